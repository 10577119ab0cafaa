"""What `RLFN_PIPE_CUDA`'s parts gain on a GPU, in turns in one process, and how far each is from fp32.

python benchmarks/gpu.py [--model rlfn-s] [--size 960x540] [--rounds 7] [--tile 0] [--batch N]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import numpy as np
import torch

from rlfn_pipe.bench.clip import COLOUR, moving_frames
from rlfn_pipe.bench.engine import engine_speed
from rlfn_pipe.bench.timing import in_turns, repeats
from rlfn_pipe.engine import transfer
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.models.fuse import InferenceFactory
from rlfn_pipe.models.weights import load
from rlfn_pipe.pipeline.planes import from_rgb
from rlfn_pipe.types import Frame, Target
from rlfn_pipe.unmeasured import PARTS, WISH


class Variant:
    """An engine with some of the parts."""

    def __init__(self, parts: tuple[str, ...], options: argparse.Namespace, precision: str = "auto") -> None:
        self.name = "+".join(parts) or "none"
        self._wish = ",".join(parts)
        spec, module = load(options.model, options.scale)
        with self._wished():
            self.engine = Engine(
                InferenceFactory(spec, module), spec, device=options.device, precision=precision, reuse="off",
                tile=options.tile, batch=options.batch, to_planes=from_rgb,
            )  # fmt: skip

    def run(self, frames: list[Frame]) -> Iterator[Frame]:
        scale = self.engine.scale
        with self._wished():
            yield from self.engine.run((f, Target(f.width * scale, f.height * scale, COLOUR)) for f in frames)

    def _wished(self) -> _Wish:
        return _Wish(self._wish)


class _Wish:
    def __init__(self, wish: str) -> None:
        self._wish = wish

    def __enter__(self) -> None:
        os.environ[WISH] = self._wish
        transfer._streams.cache_clear()

    def __exit__(self, *_: object) -> None:
        os.environ.pop(WISH, None)


def psnr(one: list[Frame], other: list[Frame]) -> float:
    """Over all planes, in dB; infinite where all is equal."""
    pairs = [(p, q) for f, g in zip(one, other, strict=True) for p, q in zip(f.planes, g.planes, strict=True)]
    error = np.mean([np.mean((p.astype(np.float64) - q) ** 2) for p, q in pairs])
    return float(10 * np.log10(255.0**2 / error)) if error else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="rlfn-s")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--size", default="960x540")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--parts", action="append", help="a combination, with commas; else each, and all")
    parser.add_argument(
        "--baseline", action="append", default=[], help="of `rlfn-pipe bench`, measured first"
    )
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    if options.baseline:
        speed = engine_speed(
            options.model, scale=options.scale, size=(width, height), device=options.device,
            baselines=options.baseline, rounds=options.rounds,
        )  # fmt: skip
        print(json.dumps({**asdict(speed), "tflops": speed.tflops}), flush=True)
    wanted = [tuple(filter(None, text.split(","))) for text in options.parts or ()]
    combinations = wanted or [(), *((part,) for part in PARTS), tuple(PARTS)]
    stock = list(islice(moving_frames(width, height, 64), 64))
    reference = list(Variant((), options, "fp32").run(stock[:4]))
    variants, roads, good, first = [], {}, {}, None
    for parts in combinations:
        name = "+".join(parts) or "none"
        try:
            variant = Variant(parts, options)
            few = list(variant.run(stock[:4]))
        except Exception as error:  # one part that fails must not hide the others
            print(json.dumps({"parts": name, "failed": f"{type(error).__name__}: {error}"[:600]}), flush=True)
            continue
        first = first or few
        good[name] = {"psnr_fp32": round(psnr(few, reference), 2), "psnr_first": round(psnr(few, first), 2)}
        variants.append(variant)
    if not variants:
        return
    device = variants[0].engine.device
    count = repeats(lambda: list(variants[0].run(stock[:4])), device, seconds=0.4, most=16) * 4
    for variant in variants:
        roads[variant.name] = lambda v=variant: sum(1 for _ in v.run(stock[:count]))
    times = in_turns(roads, options.rounds, device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    for variant in variants:
        timing = times[variant.name]
        found = {
            "parts": variant.name,
            "model": options.model,
            "size": options.size,
            "tile": options.tile,
            "batch": options.batch,
            "device": str(device),
            "precision": variant.engine.precision,
            "ms": round(timing.ms / count, 3),
            "cpu_ms": round(timing.cpu_ms / count, 3),
            "spread": round(timing.spread, 3),
            "frames": count,
            **good[variant.name],
            "peak_mib_of_all": peak,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
