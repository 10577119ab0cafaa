"""Time against frame size, tile and batch, and the roofline: measured into a file, drawn from it.

    python benchmarks/plots.py size --size 320x180 --baseline compile --baseline openvino >> bench.jsonl
    python benchmarks/plots.py tile >> bench.jsonl
    python benchmarks/plots.py batch >> bench.jsonl
    python benchmarks/plots.py layers >> bench.jsonl
    python benchmarks/plots.py roofline >> bench.jsonl
    python benchmarks/plots.py draw bench.jsonl --to docs

The measurements take turns within each call. `draw` needs matplotlib (`pip install "rlfn-pipe[report]"`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import drawing
import torch
import torch.nn.functional as functional
from torch import nn

from rlfn_pipe.allocator import suit_allocator
from rlfn_pipe.allowance import cores
from rlfn_pipe.bench.clip import COLOUR, moving_frames
from rlfn_pipe.bench.engine import engine_speed
from rlfn_pipe.bench.report import as_data
from rlfn_pipe.bench.timing import SLICE, in_turns
from rlfn_pipe.engine.device import resolve_device, resolve_precision
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.engine.tensors import DTYPES
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.weights import load, load_weights
from rlfn_pipe.pipeline.engines import fast_engine
from rlfn_pipe.types import Target

SIZES = ("96x96", "176x144", "320x180", "480x270", "640x360", "960x540", "1280x720", "1920x1080")
TILES = (0, 480, 360, 240, 192, 144, 96, 48)
BATCHES = (1, 2, 4, 8, 16)
BATCH_TILES = (48, 96, 192)


def row(plot: str, data: dict[str, Any]) -> None:
    print(json.dumps({"plot": plot, **data}), flush=True)


# ---------------------------------------------------------------- measuring


def measure_size(options: argparse.Namespace) -> None:
    """The engine and the baselines at one size after the other."""
    for text in options.size or SIZES:
        width, height = map(int, text.split("x"))
        speed = engine_speed(
            options.model,
            scale=options.scale,
            size=(width, height),
            baselines=options.baseline,
            compile=options.compile,
            rounds=options.rounds,
        )
        row("size", as_data(speed))


def _engines(options: argparse.Namespace, settings: Iterable[dict[str, Any]]) -> list[Engine]:
    spec, weights = load_weights(options.model, options.scale)
    return [fast_engine(InferenceFactory(spec, weights), spec, **each) for each in settings]


def _engine_times(
    options: argparse.Namespace, engines: list[Engine], size: tuple[int, int], frames: int
) -> list[float]:
    """Milliseconds a frame of each engine on `frames` moving frames, in turns."""
    stock = list(moving_frames(*size, frames))

    def run(engine: Engine) -> None:
        target = Target(size[0] * engine.scale, size[1] * engine.scale, COLOUR)
        for _ in engine.run((frame, target) for frame in islice(stock, frames)):
            pass

    roads: dict[str, Callable[[], object]] = {
        str(number): partial(run, engine) for number, engine in enumerate(engines)
    }
    times = in_turns(roads, options.rounds, engines[0].device, seconds=SLICE)
    return [times[str(number)].ms / frames for number in range(len(engines))]


def measure_tile(options: argparse.Namespace) -> None:
    """One frame in tiles, without overlap (what tiles cost or gain by themselves) and with the default one."""
    width, height = map(int, (options.size or ["960x540"])[0].split("x"))
    settings: list[dict[str, Any]] = [{"tile": tile, "overlap": 0} for tile in TILES]
    settings += [{"tile": tile} for tile in TILES if tile > 96]
    engines = _engines(options, settings)
    times = _engine_times(options, engines, (width, height), 1)
    for each, ms in zip(settings, times, strict=True):
        row("tile", {**each, "width": width, "height": height, "ms": ms, "threads": engines[0].threads})


def measure_batch(options: argparse.Namespace) -> None:
    """Small frames in batches across frames; a frame is one tile."""
    for tile in BATCH_TILES:
        settings: list[dict[str, Any]] = [{"batch": batch, "tile": 0} for batch in BATCHES]
        engines = _engines(options, settings)
        times = _engine_times(options, engines, (tile, tile), max(BATCHES))
        for each, ms in zip(settings, times, strict=True):
            row("batch", {"batch": each["batch"], "tile": tile, "ms": ms, "threads": engines[0].threads})


def _moved_bytes(module: nn.Module, height: int, width: int, itemsize: int) -> tuple[float, float]:
    """(operations, bytes) of all convolutions, each reading its input and weights and writing its output once."""
    work = [0.0, 0.0]

    def counted(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        work[0] += 2.0 * output.numel() * layer.weight[0].numel()
        work[1] += float(itemsize) * (inputs[0].numel() + output.numel() + layer.weight.numel())

    handles = [m.register_forward_hook(counted) for m in module.modules() if isinstance(m, nn.Conv2d)]
    module(torch.empty(1, 3, height, width, device="meta"))
    for handle in handles:
        handle.remove()
    return work[0], work[1]


@torch.inference_mode()
def measure_layers(options: argparse.Namespace) -> None:
    """Single layers of the network by their arithmetic intensity, in a process where no engine suits the allocator.

    As in the process of `rlfn_pipe.bench.plain`, memory is kept: plain operators lose up to half their rate without.
    """
    width, height = map(int, (options.size or ["320x180"])[0].split("x"))
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
    suit_allocator(tensors=True)
    device, _ = resolve_device()
    dtype, (spec, _) = (
        DTYPES[resolve_precision("auto", device)[0]],
        load_weights(options.model, options.scale),
    )
    torch.set_num_threads(cores())
    channels, esa = spec.channels, spec.esa_channels
    roads: dict[str, Callable[[], object]] = {}
    work: dict[str, tuple[float, float]] = {}
    layers = dict.fromkeys(
        (
            (3, channels, 3),
            (channels, channels, 3),
            (channels, 3 * spec.scale**2, 3),
            (channels, channels, 1),
            (channels, esa, 1),
            (esa, channels, 1),
        )
    )
    for inside, outside, side in layers:
        name = f"{side}x{side}, {inside} to {outside}"
        x = torch.randn(1, inside, height, width).to(str(device), dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(outside, inside, side, side).to(str(device), dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        roads[name] = partial(functional.conv2d, x, weight, None, 1, side // 2)
        pixels = height * width
        work[name] = (
            2.0 * pixels * inside * outside * side**2,
            dtype.itemsize * float(pixels * (inside + outside) + weight.numel()),
        )
    a, b = (
        torch.randn(1, channels, height, width).to(str(device), dtype).to(memory_format=torch.channels_last)
        for _ in "ab"
    )
    elements = float(a.numel())
    roads["leaky ReLU"] = lambda: functional.leaky_relu(a, 0.05)
    work["leaky ReLU"] = elements, 2 * elements * dtype.itemsize
    roads["x times sigmoid"] = lambda: a * torch.sigmoid(b)
    work["x times sigmoid"] = 4 * elements, 5 * elements * dtype.itemsize
    times = in_turns(roads, options.rounds, device, seconds=SLICE)
    for name, (operations, moved) in work.items():
        seconds = times[name].ms * 1e-3
        row("layer", {"name": name, "intensity": operations / moved, "tflops": operations / seconds / 1e12})


def measure_roofline(options: argparse.Namespace) -> None:
    """The engine, the plain network and the ceilings; `measure_layers` has the single layers."""
    width, height = map(int, (options.size or ["320x180"])[0].split("x"))
    speed = engine_speed(options.model, scale=options.scale, size=(width, height), rounds=options.rounds)
    twin = load(options.model, options.scale)[1].to("meta")
    intensity = {}
    for name, itemsize in (("official", 4), ("ours", DTYPES[speed.precision].itemsize)):
        operations, moved = _moved_bytes(twin, height, width, itemsize)
        intensity[f"{name}_intensity"] = operations / moved
    cached = tuple(torch.ones(1 << 17, dtype=torch.uint8) for _ in range(2))
    copy = {"copy": lambda: cached[0].copy_(cached[1])}
    seconds = in_turns(copy, options.rounds, torch.device("cpu"), seconds=SLICE)["copy"].ms * 1e-3
    row(
        "roofline",
        {**as_data(speed), **intensity, "cache_copy_gb_s": 2.0 * cached[0].numel() / seconds / 1e9},
    )


MEASURES = {
    "size": measure_size,
    "tile": measure_tile,
    "batch": measure_batch,
    "layers": measure_layers,
    "roofline": measure_roofline,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*MEASURES, "draw"])
    parser.add_argument("files", type=Path, nargs="*", help="for draw: what was measured")
    parser.add_argument("--to", type=Path, default=Path("docs"))
    parser.add_argument("--model", default="rlfn-s")
    parser.add_argument("--scale", type=float, default=4)
    parser.add_argument("--size", action="append")
    parser.add_argument("--baseline", action="append", default=["official"])
    parser.add_argument("--compile", action="store_true", help="the engine as upscale --compile on runs it")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "draw":
        drawing.draw(options.files, options.to)
    else:
        MEASURES[options.what](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
