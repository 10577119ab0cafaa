"""What the kernels and frames ahead of the host gain on a GPU, in turns in one process, and how far each is from fp32.

python benchmarks/gpu.py [--model rlfn-s] [--size 960x540] [--rounds 7] [--tile 0] [--batch N] [--baseline official]
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
from rlfn_pipe.engine.runner import AHEAD
from rlfn_pipe.models.cuda.trial import WISH
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.weights import load_weights
from rlfn_pipe.pipeline.engines import fast_engine
from rlfn_pipe.types import Frame, Target


class Variant:
    """An engine with or without the kernels, and with some frames ahead."""

    def __init__(
        self, options: argparse.Namespace, kernels: bool, ahead: int, precision: str = "auto"
    ) -> None:
        self.name = f"{'kernels' if kernels else 'operators'}, {ahead} ahead"
        self._wish = "on" if kernels else "off"
        spec, weights = load_weights(options.model, options.scale)
        self.engine = fast_engine(
            InferenceFactory(spec, weights), spec, device=options.device, precision=precision, reuse="off",
            tile=options.tile, batch=options.batch,
        )  # fmt: skip
        self.engine.ahead = ahead

    def run(self, frames: list[Frame]) -> Iterator[Frame]:
        # Read when the network is made, and whenever planes are.
        os.environ[WISH] = self._wish
        scale = self.engine.scale
        yield from self.engine.run((f, Target(f.width * scale, f.height * scale, COLOUR)) for f in frames)


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
    stock = list(islice(moving_frames(width, height, 64), 64))
    reference = list(Variant(options, False, 0, "fp32").run(stock[:4]))
    variants = [Variant(options, kernels, ahead) for kernels in (False, True) for ahead in (0, AHEAD)]
    firsts = {variant.name: list(variant.run(stock[:4])) for variant in variants}
    device = variants[0].engine.device
    count = repeats(lambda: list(variants[0].run(stock[:4])), device, seconds=0.4, most=16) * 4
    roads = {v.name: lambda v=v: sum(1 for _ in v.run(stock[:count])) for v in variants}
    times = in_turns(roads, options.rounds, device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    for variant in variants:
        timing = times[variant.name]
        found = {
            "road": variant.name,
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
            "psnr_fp32": round(psnr(firsts[variant.name], reference), 2),
            "psnr_first": round(psnr(firsts[variant.name], firsts[variants[0].name]), 2),
            "peak_mib_of_all": peak,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
