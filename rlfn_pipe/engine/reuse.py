"""What need not be computed again: repeated frames, and tiles whose input has not changed.

`exact` keeps the results of one frame. A tile whose input equals the frame before's takes that result, and a
frame whose every sample does takes the whole picture, planes and all. Equal input gives equal bits because a
tile's result does not depend on its company: it runs alone, or in batches of one shape for which that was
tried (`Run`). `near` compares with the input that a tile was last *computed* from, so that nothing drifts.

Comparisons are made on the host, on the samples as they were decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlfn_pipe.engine.picture import answer_of
from rlfn_pipe.engine.tiling import Span, Tile
from rlfn_pipe.types import Frame, Target

__all__ = ["KEPT_BYTES", "Answer", "Kept", "Mosaic", "Statistics", "changed_cells", "same_samples"]

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
    """What a run computed and what it did not have to. Tiles of repeated frames are not counted."""

    frames: int = 0
    frames_repeated: int = 0
    tiles_computed: int = 0
    tiles_reused: int = 0

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.frames + other.frames,
            self.frames_repeated + other.frames_repeated,
            self.tiles_computed + other.tiles_computed,
            self.tiles_reused + other.tiles_reused,
        )


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
    """True when two frames of one layout are equal sample for sample.

    Ends at the first block of rows that differs, and looks at the middle row first.
    """
    for p, q in zip(one.planes, other.planes, strict=True):
        if p is q:
            continue
        middle = p.shape[0] // 2
        if not np.array_equal(p[middle], q[middle]):
            return False
        for row in range(0, p.shape[0], _ROWS):
            if not np.array_equal(p[row : row + _ROWS], q[row : row + _ROWS]):
                return False
    return True


def changed_cells(one: Frame, other: Frame) -> np.ndarray:
    """Which cells of `CELL` x `CELL` luma samples differ in any plane: bool (ceil(h / 8), ceil(w / 8))."""
    rows, columns = -(-one.height // CELL), -(-one.width // CELL)
    changed = np.zeros((rows, columns), dtype=bool)
    for p, q in zip(one.planes, other.planes, strict=True):
        differ = p != q
        # A chroma plane's cell is half as high or wide where the plane is.
        high = CELL // round(one.height / p.shape[0]) if p.shape[0] < one.height else CELL
        wide = CELL // round(one.width / p.shape[1]) if p.shape[1] < one.width else CELL
        differ = np.logical_or.reduceat(differ, np.arange(0, differ.shape[0], high), axis=0)
        differ = np.logical_or.reduceat(differ, np.arange(0, differ.shape[1], wide), axis=1)
        changed[: differ.shape[0], : differ.shape[1]] |= differ
    return changed


def touched(cells: np.ndarray, tile: Tile, reach: int) -> bool:
    """True when a cell that `tile` (or what lies within `reach` around it) reads has changed."""
    return bool(cells[_cell_range(tile.y, reach), _cell_range(tile.x, reach)].any())


def _cell_range(span: Span, reach: int) -> slice:
    return slice(max(0, span.origin - reach) // CELL, -(-(span.origin + span.size + reach) // CELL))


def _samples_of(frame: Frame, tile: Tile) -> tuple[np.ndarray, ...]:
    """Views of the samples under a tile, one a plane."""
    views = []
    for plane in frame.planes:
        down, along = (
            -(-whole // part) for whole, part in zip(frame.planes[0].shape, plane.shape, strict=True)
        )
        y, x = tile.y, tile.x
        views.append(
            plane[
                y.origin // down : -(-(y.origin + y.size) // down),
                x.origin // along : -(-(x.origin + x.size) // along),
            ]
        )
    return tuple(views)


def _within(one: Sequence[np.ndarray], other: Sequence[np.ndarray], tolerance: int) -> bool:
    return all(
        p.size == 0 or int((np.maximum(p, q) - np.minimum(p, q)).max()) <= tolerance
        for p, q in zip(one, other, strict=True)
    )


# ---------------------------------------------------------------- what is kept


class Answer:
    """A tile's answered and weighted part (3, s h, s w) float32, once it has been computed."""

    __slots__ = ("part",)

    def __init__(self) -> None:
        self.part: torch.Tensor | None = None

    def set(self, tile: Tile, result: torch.Tensor, scale: int) -> None:
        """Keep what `tile` answers of its `result` (3, s h, s w)."""
        part = answer_of(tile, result, scale)
        # A view would keep the whole batch's result alive.
        self.part = part.clone() if part.untyped_storage().nbytes() > part.nbytes else part


@dataclass(slots=True)
class Kept:
    """The tiles of the last frame: their answers, and the samples that they came from.

    `frame` is the last frame; for `near`, `inputs` has copies of the samples that each tile was last
    computed from. `answers` has one list of tiles a picture (colour, then alpha where it is one).
    """

    frame: Frame
    target: Target
    tiles: tuple[Tile, ...]
    answers: list[list[Answer]]
    inputs: list[tuple[np.ndarray, ...]] | None

    def unchanged(self, frame: Frame, tolerance: int | None) -> list[bool]:
        """For each tile whether its answer holds for `frame` (same layout and tiles).

        `tolerance` in code values of the frame's depth for `near`, None for `exact`.
        """
        if tolerance is None or self.inputs is None:
            cells = changed_cells(self.frame, frame)
            reach = REACH_ALPHA if frame.colour.alpha else REACH
            return [not touched(cells, tile, reach) for tile in self.tiles]
        return [
            _within(samples, _samples_of(frame, tile), tolerance)
            for tile, samples in zip(self.tiles, self.inputs, strict=True)
        ]


def inputs_of(frame: Frame, tiles: Sequence[Tile]) -> list[tuple[np.ndarray, ...]]:
    """Copies of the samples under each tile."""
    return [tuple(view.copy() for view in _samples_of(frame, tile)) for tile in tiles]


def kept_bytes(pixels: int, scale: int) -> int:
    """About what a canvas and the answers of `pixels` low-resolution pixels take (they overlap a little)."""
    return int(pixels * scale * scale * 12 * 2.5)


class Mosaic:
    """A canvas that lasts from frame to frame; only what changed is put together again.

    Every pixel is the sum of the same parts in the same order as on a new canvas: bits do not depend on
    what was there before.
    """

    def __init__(self) -> None:
        self._tiles: tuple[Tile, ...] = ()
        self._shown: list[Answer] = []
        self._canvas: torch.Tensor | None = None

    def show(self, tiles: tuple[Tile, ...], answers: list[Answer], scale: int) -> torch.Tensor:
        """The canvas (3, s H, s W) float32 of all parts. It is overwritten by the next call."""
        if self._canvas is None or self._tiles != tiles:
            self._canvas = None
            self._canvas = _new_canvas(tiles, answers, scale)
            changed = None
        else:
            changed = [i for i, answer in enumerate(answers) if answer is not self._shown[i]]
        if changed is not None and 2 * len(changed) > len(tiles):
            self._canvas.zero_()
            changed = None
        for within in [None] if changed is None else [tiles[i] for i in changed]:
            if within is not None:
                rows, columns = _area(within.y, None, scale), _area(within.x, None, scale)
                self._canvas[:, slice(*rows), slice(*columns)].zero_()
            for tile, answer in zip(tiles, answers, strict=True):
                _add(self._canvas, tile, answer, scale, within)
        self._tiles, self._shown = tiles, answers
        return self._canvas


def _new_canvas(tiles: tuple[Tile, ...], answers: list[Answer], scale: int) -> torch.Tensor:
    part = answers[0].part
    assert part is not None
    size = (3, tiles[0].y.frame * scale, tiles[0].x.frame * scale)
    return torch.zeros(size, dtype=torch.float32, device=part.device)


def _area(span: Span, within: Span | None, scale: int) -> tuple[int, int]:
    """(first, past the last) output pixel that a span answers for, of those of `within`; may be empty."""
    if within is None:
        return span.start * scale, span.stop * scale
    return max(span.start, within.start) * scale, min(span.stop, within.stop) * scale


def _add(canvas: torch.Tensor, tile: Tile, answer: Answer, scale: int, within: Tile | None) -> None:
    """Add a tile's part, or what of it lies where `within` answers."""
    top, bottom = _area(tile.y, within and within.y, scale)
    left, right = _area(tile.x, within and within.x, scale)
    if top >= bottom or left >= right:
        return
    assert answer.part is not None
    y, x = tile.y.start * scale, tile.x.start * scale
    canvas[:, top:bottom, left:right].add_(answer.part[:, top - y : bottom - y, left - x : right - x])
