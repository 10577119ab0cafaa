"""What need not be computed again: repeated frames, and tiles whose input has not changed.

`exact` keeps the last few frames' results and one frame's tiles. A frame whose every sample equals one of those
takes its result, planes and all: encoders code a held picture in turns, P and B frames slightly different, so
that the frame before is often not the equal one. A tile whose input equals the frame before's takes that result.
Equal input gives equal bits because a tile's result does not depend on its company: it runs alone, or in batches
of one shape for which that was tried (`Run`). `near` is `exact` behind `rlfn_pipe.engine.hold`.

Comparisons are made on the host, on the samples as they were decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import numpy as np

from rlfn_pipe.engine.arrays import Array, Arrays
from rlfn_pipe.engine.picture import answer_of
from rlfn_pipe.engine.tiling import Span, Tile
from rlfn_pipe.types import Frame, Target

__all__ = [
    "KEPT_BYTES",
    "Answer",
    "Gallery",
    "Likeness",
    "Memory",
    "Mosaic",
    "Statistics",
    "cells_near",
    "changed_cells",
    "same_samples",
]

T = TypeVar("T")

#: Frames whose results are kept, as long as they take no more than so many bytes: most repeat one of the last four
#: (docs/performance.md).
RECENT = ((8, 48 << 20), (4, 1 << 28))
#: A frame is like the one before when no more of its cells than this share lie so many cells or nearer to one that
#: changed: then two thirds of the network's work are to be done, or less (docs/performance.md). Of two frames
#: that are not, after one that is, the first is taken for one: often a page is turned, and then stays.
MOST_NEAR, NEAR, PATIENCE = 0.2, 2, 2
#: Side of a cell of `changed_cells` in luma samples.
CELL = 8
#: How far, in luma samples, a pixel's RGB depends on samples: chroma interpolation, filling under alpha.
REACH, REACH_ALPHA = 4, 16
#: Tiles' results are not kept where they would take more than this; repeated frames still are caught.
KEPT_BYTES = 1 << 29
#: Rows compared at a time, so that frames that differ are told apart after a few of them.
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a run computed and what it did not have to. Tiles of repeated frames are not counted.

    `tiles_in_part` are those of `tiles_computed` in which only what had changed was computed, and `work` is
    what all of `tiles_computed` cost, in whole tiles.
    """

    frames: int = 0
    frames_repeated: int = 0
    tiles_computed: int = 0
    tiles_reused: int = 0
    tiles_in_part: int = 0
    work: float = 0.0

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


# ---------------------------------------------------------------- comparing samples


def alike(one: Frame, other: Frame) -> bool:
    """True when two frames have the same layout, so that their samples can be compared."""
    return (
        one.colour == other.colour
        and len(one.planes) == len(other.planes)
        and all(
            p.shape == q.shape and p.dtype == q.dtype for p, q in zip(one.planes, other.planes, strict=True)
        )
    )


def same_samples(one: Frame, other: Frame) -> bool:
    """True when all samples of two frames of one layout are equal.

    Ends at the first block of rows that is not, and looks at the middle row first.
    """
    for p, q in zip(one.planes, other.planes, strict=True):
        if p is q:
            continue
        middle = p.shape[0] // 2
        starts = [(middle, middle + 1), *((row, row + _ROWS) for row in range(0, p.shape[0], _ROWS))]
        if not all(np.array_equal(p[first:end], q[first:end]) for first, end in starts):
            return False
    return True


def changed_cells(one: Frame, other: Frame, tolerance: int = 0) -> np.ndarray:
    """Which cells of `CELL` x `CELL` luma samples differ by more than `tolerance` code values in any plane.

    Frames of one layout to bool (ceil(h / 8), ceil(w / 8)).
    """
    rows, columns = -(-one.height // CELL), -(-one.width // CELL)
    changed = np.zeros((rows, columns), dtype=bool)
    for p, q in zip(one.planes, other.planes, strict=True):
        differ = np.maximum(p, q) - np.minimum(p, q) > tolerance if tolerance else p != q
        high, wide = (CELL // step for step in steps(one, p))
        differ = np.logical_or.reduceat(differ, np.arange(0, differ.shape[0], high), axis=0)
        differ = np.logical_or.reduceat(differ, np.arange(0, differ.shape[1], wide), axis=1)
        changed[: differ.shape[0], : differ.shape[1]] |= differ
    return changed


def _roughly_changed(one: Frame, other: Frame) -> np.ndarray:
    """`changed_cells` by two rows of the first plane in each cell: a guess at a hundredth of the cost."""
    differ = one.planes[0][:: CELL // 2] != other.planes[0][:: CELL // 2]
    assert CELL == 8, "as many samples as a byte has bits"
    cells = np.packbits(differ, axis=1) != 0
    return np.logical_or.reduceat(cells, np.arange(0, cells.shape[0], 2), axis=0)


def cells_near(cells: np.ndarray, reach: int) -> np.ndarray:
    """Cells with one of `cells` (bool (rows, columns)) up to `reach` cells away, diagonally too."""
    for _ in range(2):
        spread = cells.copy()
        for k in range(1, min(reach, len(cells) - 1) + 1):
            spread[k:] |= cells[:-k]
            spread[:-k] |= cells[k:]
        cells = spread.T
    return cells


def touched(cells: np.ndarray, tile: Tile, reach: int) -> bool:
    """True when a cell that `tile` (or what lies within `reach` around it) reads has changed."""
    return bool(cells[_cell_range(tile.y, reach), _cell_range(tile.x, reach)].any())


def _cell_range(span: Span, reach: int) -> slice:
    return slice(max(0, span.origin - reach) // CELL, -(-(span.origin + span.size + reach) // CELL))


def steps(frame: Frame, plane: np.ndarray) -> tuple[int, int]:
    """Luma samples (1 or 2) from one sample of a plane to the next, down and along."""
    height, width = plane.shape
    return -(-frame.height // height), -(-frame.width // width)


# ---------------------------------------------------------------- what is kept


class Answer:
    """A tile's answered and weighted part (3, s h, s w) float32, once it has been computed.

    `asked` says that somebody sees to it.
    """

    __slots__ = ("asked", "part")

    def __init__(self) -> None:
        self.asked = False
        self.part: Array | None = None

    def set(self, tile: Tile, result: Array, scale: int, arrays: Arrays) -> None:
        """Keep what `tile` answers of its `result` (3, s h, s w)."""
        # A view would keep the whole batch's result alive.
        self.part = arrays.alone(answer_of(tile, result, scale, arrays))


class Gallery(Generic[T]):
    """The last few frames that were computed, each with what holds its result."""

    def __init__(self) -> None:
        self._shown: list[tuple[Frame, Target, T]] = []

    def forget(self) -> None:
        """Drop what is kept."""
        self._shown = []

    def find(self, frame: Frame, target: Target) -> T | None:
        """What belongs to a frame equal to `frame`; the latest if several."""
        for shown, its_target, item in self._shown:
            if target == its_target and alike(shown, frame) and same_samples(shown, frame):
                return item
        return None

    def add(self, frame: Frame, target: Target, item: T) -> None:
        """Keep a frame; the oldest ones go."""
        share = target.width * target.height / (frame.width * frame.height)
        size = share * sum(plane.nbytes for plane in frame.planes)
        count = max(1, *(min(frames, int(most / size)) for frames, most in RECENT))
        self._shown = [(frame, target, item), *self._shown[: count - 1]]


class Likeness:
    """Whether frames change in places only, so that it pays to keep what lies between a network's layers."""

    def __init__(self) -> None:
        self._last: Frame | None = None
        self._patience = 0

    def sees(self, frame: Frame) -> bool:
        """Look at the next frame that is to be computed; True when its layers are to be kept."""
        last, self._last = self._last, frame
        likes = False
        if last is not None and alike(last, frame):
            # Noise escapes the guess, moving footage does not.
            likes = all(
                cells_near(changed(last, frame), NEAR).mean() <= MOST_NEAR
                for changed in (_roughly_changed, changed_cells)
            )
        self._patience = PATIENCE if likes else max(0, self._patience - 1)
        return self._patience > 0


class Memory:
    """The last frame that was computed, and its tiles' answers.

    A frame that repeats another one leaves everything as it is.
    """

    def __init__(self, scale: int) -> None:
        self._scale = scale
        self._last: tuple[Frame, Target, tuple[Tile, ...]] | None = None
        self._answers: list[list[Answer]] = []

    def forget(self) -> None:
        """Drop what is kept."""
        self._last, self._answers = None, []

    def answers(
        self, frame: Frame, target: Target, tiles: tuple[Tile, ...], pictures: int, *, keep: bool
    ) -> list[list[Answer]] | None:
        """Remember `frame`; its tiles' answers, a list for each of its pictures (colour, then alpha).

        Those that hold from the frame before are the same objects as there; the others are new and not
        `asked` for yet. None when single tiles are not kept: there is one only, `keep` forbids it, or
        they would take more than `KEPT_BYTES`.
        """
        unchanged = [False] * len(tiles)
        last = self._last
        if self._answers and last is not None and last[1:] == (target, tiles) and alike(last[0], frame):
            cells, reach = changed_cells(last[0], frame), REACH_ALPHA if frame.colour.alpha else REACH
            unchanged = [not touched(cells, tile, reach) for tile in tiles]
        size = tiles[0].y.frame * tiles[0].x.frame * pictures
        keep = keep and len(tiles) > 1 and _kept_bytes(size, self._scale) <= KEPT_BYTES
        held = self._answers if keep else []
        answers = [
            [
                held[number][i] if holds and number < len(held) else Answer()
                for i, holds in enumerate(unchanged)
            ]
            for number in range(pictures if keep else 0)
        ]
        self._last, self._answers = (frame, target, tiles), answers
        return answers or None


def _kept_bytes(pixels: int, scale: int) -> int:
    """About what a canvas and the answers of `pixels` low-resolution pixels take (they overlap a little)."""
    return int(pixels * scale * scale * 12 * 2.5)


class Mosaic:
    """A canvas that lasts from frame to frame; only what changed is put together again.

    Every pixel is the sum of the same parts in the same order as on a new canvas: bits do not depend on
    what was there before.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._tiles: tuple[Tile, ...] = ()
        self._shown: list[Answer] = []
        self._canvas: Array | None = None

    def forget(self) -> None:
        """An answer that was shown has another part now."""
        self._tiles = ()

    def show(self, tiles: tuple[Tile, ...], answers: list[Answer], scale: int) -> Array:
        """The canvas (3, s H, s W) float32 of all parts. It is overwritten by the next call."""
        if self._canvas is None or self._tiles != tiles:
            self._canvas = None
            size = (3, tiles[0].y.frame * scale, tiles[0].x.frame * scale)
            self._canvas = self._arrays.zeros(size)
            changed = None
        else:
            changed = [i for i, answer in enumerate(answers) if answer is not self._shown[i]]
        if changed is not None and 2 * len(changed) > len(tiles):
            self._canvas[:] = 0.0
            changed = None
        for within in [None] if changed is None else [tiles[i] for i in changed]:
            if within is not None:
                rows, columns = _area(within.y, None, scale), _area(within.x, None, scale)
                self._canvas[:, slice(*rows), slice(*columns)] = 0.0
            for tile, answer in zip(tiles, answers, strict=True):
                _add(self._canvas, tile, answer, scale, within)
        self._tiles, self._shown = tiles, answers
        return self._canvas


def _area(span: Span, within: Span | None, scale: int) -> tuple[int, int]:
    """(first, past the last) output pixel that a span answers for, of those of `within`; may be empty."""
    if within is None:
        return span.start * scale, span.stop * scale
    return max(span.start, within.start) * scale, min(span.stop, within.stop) * scale


def _add(canvas: Array, tile: Tile, answer: Answer, scale: int, within: Tile | None) -> None:
    """Add a tile's part, or what of it lies where `within` answers."""
    top, bottom = _area(tile.y, within.y if within else None, scale)
    left, right = _area(tile.x, within.x if within else None, scale)
    if top >= bottom or left >= right:
        return
    assert answer.part is not None
    y, x = tile.y.start * scale, tile.x.start * scale
    place = canvas[:, top:bottom, left:right]
    place += answer.part[:, top - y : bottom - y, left - x : right - x]
