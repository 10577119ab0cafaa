"""Reuse on a clip: how much repeats, what looking costs, and `near` against `off`.

    python benchmarks/reuse.py CLIP [--frames 60] [--tolerance 2] [--tile N] [--rounds 3] [--looking]

Prints, for RLFN-S x4: the time of the comparison; then for off, exact and near, in turns, what was computed, PSNR
and largest difference of luma against off, the seconds a frame and the gain. `--looking` leaves the engine out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from rlfn_pipe.engine.reuse import Gallery
from rlfn_pipe.media.colour import LAYOUTS, planar_format, planes_of
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.weights import load_weights
from rlfn_pipe.pipeline.engines import fast_engine
from rlfn_pipe.types import ColourInfo, Frame, Target


def decoded(path: Path, count: int) -> Iterator[Frame]:
    """The first frames of a clip."""
    with av.open(str(path)) as container:
        for index, picture in enumerate(container.decode(video=0)):
            if index == count:
                return
            name = planar_format(picture.format.name)
            picture = picture if picture.format.name == name else picture.reformat(format=name)
            layout = LAYOUTS[name]
            colour = ColourInfo(
                1 if layout.subsampling != "rgb" else 0,
                range=1,
                bit_depth=layout.bit_depth,
                subsampling=layout.subsampling,
            )
            yield Frame(planes_of(picture), colour, index, index, Fraction(1, 25))


def looking(frames: list[Frame]) -> None:
    """Print the cost of the comparison and the share of frames that equal one of the last few."""
    gallery: Gallery[int] = Gallery()
    times, repeated = [], 0
    for frame in frames:
        target = target_of(frame)
        begin = time.perf_counter()
        found = gallery.find(frame, target)
        times.append(time.perf_counter() - begin)
        repeated += found is not None
        if found is None:
            gallery.add(frame, target, frame.index)
    print(
        f"{frames[0].width}x{frames[0].height}, {len(frames)} frames: {100 * repeated / len(frames):.1f} % equal one of "
        f"the last few; looking takes {1e3 * statistics.median(times):.3f} ms (most {1e3 * max(times):.3f})"
    )


def target_of(frame: Frame) -> Target:
    return Target(4 * frame.width, 4 * frame.height, frame.colour)


def compare(frames: list[Frame], tolerance: float, tile: int | None, rounds: int) -> None:
    """Print off, exact and near, the whole clip in turns: frames are computed ahead, so single ones cannot be timed."""
    spec, weights = load_weights("rlfn-s", 4)
    factory = InferenceFactory(spec, weights)
    seconds: dict[str, list[float]] = {"off": [], "exact": [], "near": []}
    off: list[np.ndarray] = []
    for number in range(rounds):
        for mode, times in seconds.items():
            engine = fast_engine(factory, spec, reuse=mode, reuse_tolerance=tolerance, tile=tile)
            begin, spent = time.perf_counter(), 0.0
            errors, largest = [0.0], 0
            for index, result in enumerate(engine.run((f, target_of(f)) for f in frames)):
                pause = time.perf_counter()
                if number == 0 and mode == "off":
                    off.append(result.planes[0])
                elif number == 0:
                    difference = result.planes[0].astype(np.int32) - off[index]
                    errors.append(float(np.mean(difference.astype(np.float64) ** 2)))
                    largest = max(largest, int(np.abs(difference).max()))
                spent += time.perf_counter() - pause
            times.append(time.perf_counter() - begin - spent)
            if number == 0:
                top = (1 << frames[0].colour.bit_depth) - 1
                worst = max(errors)
                quality = "equal" if worst == 0 else f"at least {10 * np.log10(top**2 / worst):.1f} dB"
                print(f"{mode}: {engine.statistics}, {quality}, largest difference {largest}")
    for mode, times in seconds.items():
        gain = statistics.median(o / t for o, t in zip(seconds["off"], times, strict=True))
        print(f"{mode}: {statistics.median(times) / len(frames):.4f} s a frame, gain {gain:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--tolerance", type=float, default=2.0)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--looking", action="store_true")
    given = parser.parse_args()
    frames = list(decoded(given.clip, given.frames))
    looking(frames)
    if not given.looking:
        compare(frames, given.tolerance, given.tile, given.rounds)


if __name__ == "__main__":
    main()
