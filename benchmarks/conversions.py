"""Samples to RGB and results to samples: the compiled part against PyTorch's operators, one thread, in turns.

    python benchmarks/conversions.py [--size 320x180 --size 960x540 ...] [--scale 4] [--rounds 15]

8 bit, 4:2:0, limited range. Medians in ms of the CPU time of one thread; one JSON object a size, ratios first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

from rlfn_pipe.bench.clip import moving_frames
from rlfn_pipe.engine import colour
from rlfn_pipe.engine.host import Host
from rlfn_pipe.pipeline.planes import from_rgb, to_rgb
from rlfn_pipe.threads import only_compiled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    cpu, host = torch.device("cpu"), Host()
    for size in options.size or ["176x144", "320x180", "960x540"]:
        width, height = map(int, size.split("x"))
        frame = next(iter(moving_frames(width, height, 1)))
        large = 255.0 * torch.rand(3, height * options.scale, width * options.scale)
        roads = {
            "up, operators": lambda frame=frame: colour.to_rgb(frame, cpu),
            "up": lambda frame=frame: to_rgb(frame, host),
            "down, operators": lambda frame=frame, large=large: colour.from_rgb(large, frame.colour),
            "down": lambda frame=frame, large=large.numpy(): from_rgb(large, frame.colour),
        }
        taken: dict[str, list[float]] = {name: [] for name in roads}
        with torch.inference_mode(), only_compiled(1):
            for _ in range(options.rounds + 1):
                for name, road in roads.items():
                    begin = time.thread_time()
                    road()
                    taken[name].append(1e3 * (time.thread_time() - begin))
        ms = {name: statistics.median(times[1:]) for name, times in taken.items()}
        ratios = {f"{way} ratio": round(ms[f"{way}, operators"] / ms[way], 2) for way in ("up", "down")}
        print(
            json.dumps({"size": size, **ratios, "ms": {name: round(value, 3) for name, value in ms.items()}})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
