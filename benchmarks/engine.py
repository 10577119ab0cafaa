"""The inference form against the plain module: time side by side, and accuracy of short formats.

    python benchmarks/engine.py speed --weights ../shared/data/weights/rlfn_s_x4.pth
    python benchmarks/engine.py accuracy --weights ../shared/data/weights/rlfn_s_x4.pth \
        --pictures ../shared/data/test/Set14/LRx4
    python benchmarks/engine.py memory --weights ../shared/data/weights/rlfn_s_x4.pth --size 960x540 --tile 0
    python benchmarks/engine.py threads --weights weights/rlfn-s-x4.safetensors --threads 2

`speed` takes the plain module in bf16 channels_last and ours in turns on one frame and gives medians of CPU
seconds of one thread, which other work on the machine disturbs little. `accuracy`
compares with fp32: lowest PSNR, largest difference in code values, and the largest deviation of flat fields.
`memory` upscales two frames and gives seconds and peak memory; `--malloc default` leaves the C library alone.
`threads` takes the compiled network on one frame with one thread and with `--threads` in turns, medians of wall time.
One JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rlfn_pipe.engine import runner
from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.fuse import build_inference
from rlfn_pipe.models.native.network import NativeNetwork, fits
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.strips import StripNetwork
from rlfn_pipe.models.weights import load_file, load_weights
from rlfn_pipe.pipeline.engines import fast_engine
from rlfn_pipe.types import ColourInfo, Frame, ModelSpec, Target

Run = Callable[[torch.Tensor], torch.Tensor]
FLAT_LEVELS = (0, 16, 60, 128, 180, 235, 250, 255)


def forms(spec: ModelSpec, module: RLFN, path: Path) -> dict[str, Run]:
    """The plain module in bf16 channels_last, its folded form, ours in strips and compiled; those with float32 edges."""
    plain = load_file(path)[1].eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    gain = spec.input_range / 255.0

    def run_plain(x: torch.Tensor) -> torch.Tensor:
        return plain((x * gain).to(torch.bfloat16, memory_format=torch.channels_last)).float() / gain

    runs: dict[str, Run] = {
        "plain bf16": run_plain,
        "folded bf16": build_inference(spec, module, torch.bfloat16),
        "strips bf16": StripNetwork(spec, module, torch.bfloat16),
        "strips bf16, fp32 edges": StripNetwork(spec, module, torch.bfloat16, edge_fp32=True),
    }
    for name, precision, edge in (
        ("compiled bf16", "bf16", False),
        ("compiled bf16, fp32 edges", "bf16", True),
        ("compiled fp32", "fp32", False),
    ):
        if fits(spec, precision):
            net = NativeNetwork(spec, weights_of(module), precision, edge)
            runs[name] = lambda x, net=net: torch.from_numpy(net(x.numpy()))
    return runs


def speed(options: argparse.Namespace) -> None:
    """Medians over rounds in which every form runs once."""
    spec, module = load_file(options.weights)
    width, height = map(int, options.size.split("x"))
    x = torch.rand(1, 3, height, width) * 255.0
    runs = forms(spec, module, options.weights)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            run(x)
            seconds[name].append(time.thread_time() - start)
    base = statistics.median(seconds["plain bf16"][1:])
    for name, values in seconds.items():
        median = statistics.median(values[1:])
        row = {"weights": options.weights.stem, "size": options.size, "form": name}
        print(json.dumps({**row, "cpu_ms": round(median * 1e3, 1), "speed_ratio": round(base / median, 3)}))


def accuracy(options: argparse.Namespace) -> None:
    """Rounded and clamped output against fp32."""
    spec, module = load_file(options.weights)
    reference = build_inference(spec, module)
    for name, run in forms(spec, module, options.weights).items():
        psnrs, largest = [], 0.0
        for path in sorted(options.pictures.glob("*.png")):
            pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
            x = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
            expected = reference(x).clamp(0, 255)
            got = run(x).clamp(0, 255).round()
            psnrs.append(float(10 * torch.log10(255.0**2 / (got - expected).double().square().mean())))
            largest = max(largest, float((got - expected.round()).abs().max()))
        flat = 0.0
        inner = slice(10 * spec.scale, -10 * spec.scale)
        for level in FLAT_LEVELS:
            y = run(torch.full((1, 3, 40, 40), float(level)))
            flat = max(flat, float((y - level)[..., inner, inner].abs().max()))
        row = {"weights": options.weights.stem, "form": name, "pictures": len(psnrs)}
        row |= {"lowest_psnr": round(min(psnrs), 2), "mean_psnr": round(statistics.mean(psnrs), 2)}
        print(json.dumps({**row, "largest_difference": largest, "largest_flat_deviation": round(flat, 2)}))


def memory(options: argparse.Namespace) -> None:
    """Seconds a frame and peak resident memory of the engine."""
    if options.malloc == "default":
        runner.suit_allocator = lambda **kinds: ""  # type: ignore[attr-defined]
    spec, module = load_file(options.weights)
    width, height = map(int, options.size.split("x"))
    layout = ColourInfo(1, range=1, subsampling="420")
    rng = np.random.default_rng(0)
    sizes = [(height, width), ((height + 1) // 2, (width + 1) // 2), ((height + 1) // 2, (width + 1) // 2)]
    planes = tuple(rng.integers(60, 180, size, dtype=np.uint8) for size in sizes)
    target = Target(width * spec.scale, height * spec.scale, layout)
    tile = None if options.tile < 0 else options.tile
    engine = fast_engine(
        InferenceFactory(spec, weights_of(module)),
        spec,
        device="cpu",
        threads=options.threads,
        tile=tile,
        reuse="off",
    )
    start = time.process_time()
    for _ in engine.run((Frame(planes, layout, index), target) for index in range(2)):
        seconds, start = time.process_time() - start, time.process_time()
    row = {
        "weights": options.weights.stem,
        "size": options.size,
        "tile": options.tile,
        "malloc": options.malloc,
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({**row, "cpu_s_a_frame": round(seconds, 2), "peak_mib": peak}))


def threads(options: argparse.Namespace) -> None:
    """One frame by one thread and by all of them; what they share of it shows in the ratio."""
    spec, weights = load_weights(options.weights)
    width, height = map(int, options.size.split("x"))
    x = np.random.default_rng(0).random((1, 3, height, width), np.float32) * 255.0
    runner.suit_allocator()
    network = NativeNetwork(spec, weights, "bf16" if fits(spec, "bf16") else "fp32")
    counts = (1, options.threads)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        for count in counts:
            torch.set_num_threads(count)
            network(x)
            for _ in range(3):
                start = time.perf_counter()
                network(x)
                seconds[count].append(time.perf_counter() - start)
    one, all_of_them = (1e3 * statistics.median(seconds[count]) for count in counts)
    row = {"weights": options.weights.stem, "size": options.size, "threads": options.threads}
    row |= {"ratio": round(one / all_of_them, 2), "one_ms": round(one, 2), "all_ms": round(all_of_them, 2)}
    print(json.dumps(row))


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "accuracy", "memory", "threads"])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, default=Path("../shared/data/test/Set14/LRx4"))
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tile", type=int, default=-1, help="-1: auto, 0: whole frames")
    parser.add_argument("--malloc", choices=["ours", "default"], default="ours")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"speed": speed, "accuracy": accuracy, "memory": memory, "threads": threads}[options.what](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
