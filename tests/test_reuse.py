"""Reuse: `exact` gives the bits of `off`, `near` stays within its tolerance and does not drift."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlfn_pipe.engine import colour
from rlfn_pipe.engine.reference import NearestNetwork, nearest_factory, nearest_spec
from rlfn_pipe.engine.reuse import (
    CELL,
    REACH,
    REACH_ALPHA,
    Statistics,
    changed_cells,
    same_samples,
    touched,
)
from rlfn_pipe.engine.runner import Engine, Grid
from rlfn_pipe.engine.tiling import plan
from rlfn_pipe.errors import UsageError
from rlfn_pipe.models.fuse import InferenceFactory
from rlfn_pipe.models.weights import load
from rlfn_pipe.types import ColourInfo, Frame, Target

YUV = ColourInfo(matrix=1, range=1)
DEEP = replace(YUV, bit_depth=10)
ALPHA = ColourInfo(0, range=2, subsampling="rgb", alpha=True)
HEIGHT, WIDTH = 84, 110


def planes(rng: np.random.Generator, layout: ColourInfo, size: tuple[int, int]) -> list[np.ndarray]:
    """A picture with some structure: smooth noise, full of colours."""
    count = 3 + layout.alpha
    found = []
    for number in range(count):
        high, wide = size
        if layout.subsampling == "420" and number in (1, 2):
            high, wide = -(-high // 2), -(-wide // 2)
        coarse = rng.integers(40, 220, (-(-high // 6), -(-wide // 6))).repeat(6, 0).repeat(6, 1)[:high, :wide]
        fine = coarse + rng.integers(-8, 9, (high, wide))
        deep = layout.bit_depth > 8
        found.append((fine << (layout.bit_depth - 8)).astype(np.uint16 if deep else np.uint8))
    return found


def clip(*pictures: list[np.ndarray], layout: ColourInfo = YUV) -> list[Frame]:
    return [
        Frame(tuple(picture), layout, index=i, pts=i, time_base=Fraction(1, 25))
        for i, picture in enumerate(pictures)
    ]


def with_square(picture: list[np.ndarray], y: int, x: int, value: int = 235) -> list[np.ndarray]:
    """The picture with a small square on its first plane."""
    first = picture[0].copy()
    first[y : y + 6, x : x + 6] = value
    return [first, *picture[1:]]


def moving(picture: list[np.ndarray], count: int = 5) -> list[list[np.ndarray]]:
    """A cursor that wanders about the left of the picture, then stands."""
    found = [with_square(picture, 4 + 2 * i, 3 + 3 * i) for i in range(count)]
    return [*found, found[-1], found[-1]]


SCALE4 = load("rlfn-s", 4)


def engine(reuse: str, **settings: object) -> Engine:
    spec, module = SCALE4
    settings = {"device": "cpu", "threads": 1, **settings}
    return Engine(InferenceFactory(spec, module), spec, reuse=reuse, **settings)  # type: ignore[arg-type]


def target_of(frame: Frame, scale: int = 4) -> Target:
    return Target(frame.width * scale, frame.height * scale, frame.colour)


def run(made: Engine, frames: list[Frame]) -> list[Frame]:
    return list(made.run((frame, target_of(frame, made.scale)) for frame in frames))


def check_same(one: list[Frame], other: list[Frame]) -> None:
    assert [f.index for f in one] == [f.index for f in other]
    for a, b in zip(one, other, strict=True):
        assert (a.pts, a.time_base, a.concealed, a.colour) == (b.pts, b.time_base, b.concealed, b.colour)
        for p, q in zip(a.planes, b.planes, strict=True):
            np.testing.assert_array_equal(p, q)


def scenes() -> dict[str, list[Frame]]:
    rng = np.random.default_rng(7)
    a, b, c = (planes(rng, YUV, (HEIGHT, WIDTH)) for _ in range(3))
    deep = planes(rng, DEEP, (HEIGHT, WIDTH))
    clear = planes(rng, ALPHA, (HEIGHT, WIDTH))
    clear[3] = np.where(np.arange(WIDTH) < 50, 0, clear[3]).astype(np.uint8)
    solid = [*clear[:3], np.full_like(clear[3], 255)]
    nowhere = [*clear[:3], np.zeros_like(clear[3])]
    dot = np.zeros_like(clear[3])
    dot[40:44, 60:64] = 200
    chroma = [a[0], with_square([a[1]], 20, 20)[0], a[2]]
    return {
        "static": clip(a, a, a, a),
        "held": clip(a, a, a, b, b, c, c, c),
        "cursor": clip(*moving(a)),
        "alternating": clip(a, b, a, b, with_square(a, 30, 70), with_square(b, 30, 70)),
        "chroma only": clip(a, chroma, chroma, a),
        "fade in and out of a square": clip(*(with_square(a, 30, 40, v) for v in (40, 41, 60, 41, 40))),
        "10 bit": clip(*moving(deep, 3), layout=DEEP),
        "alpha": clip(clear, clear, solid, with_square(solid, 9, 9), with_square(clear, 9, 9), layout=ALPHA),
        "alpha appears": clip(nowhere, [*clear[:3], dot], [*clear[:3], dot], nowhere, layout=ALPHA),
        "tiny": clip(
            *([plane[:9, :9] for plane in picture] for picture in (deep, deep, deep[::-1])),
            layout=replace(DEEP, subsampling="444"),
        )[:2],
    }


SCENES = scenes()


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tile": 48, "overlap": 12},
        {"tile": 48, "overlap": 12, "batch": 4},
        {"tile": 48, "overlap": 12, "batch": 4, "precision": "fp32"},
        {"batch": 4},
    ],
    ids=["auto", "tiles", "tiles in batches", "fp32 batches", "frames in batches"],
)
def test_exact_gives_the_bits_of_off(name: str, settings: dict[str, object]) -> None:
    frames = SCENES[name]
    off, exact = engine("off", **settings), engine("exact", **settings)
    reference = run(off, frames)
    check_same(run(exact, frames), reference)
    assert off.statistics.frames_repeated == off.statistics.tiles_reused == 0
    assert off.statistics.frames == exact.statistics.frames == len(frames)
    assert reference[0].planes[0].std() > 1
