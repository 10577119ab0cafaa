"""Pure geometry of tiles: where they lie, what of them is trusted, where ESA's map comes from.

RLFN is not shift-equivariant. ESA (paper, section 3.1) reduces its input by a strided 3x3
convolution and a 7x7 pooling of stride 3, then stretches the small map over the *whole* input.
A tile that is run as if it were a picture of its own therefore sees another attention grid than
its frame does. Here tiles lie on the frame's own grid:

* One cell of the small map covers 15 input pixels and the next one starts 6 further, so a tile
  whose origin is a multiple of 6 computes cells ``origin / 6, origin / 6 + 1, ...`` of its frame.
* The frame's last cell is reached exactly when the last tile ends where the frame ends, which
  asks that a tile's side be congruent to the frame's side modulo 6.
* The map is stretched by the frame's ratio and offset (`stretch_matrix`), not the tile's.

What then differs from the whole frame comes from the zero padding at inner borders; it decays with
the distance, so neighbours overlap and only the middle of the overlap is used (`Span.start`,
`Span.stop`, `fade_weights`). Everything here is plain integers and numpy; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

#: Input pixels from one cell of ESA's small map to the next (stride 2 times stride 3).
GRID = 6
#: Smallest side that yields one cell of ESA's small map.
MINIMUM_SIDE = 15
#: Input pixels over which one tile fades into the next, where the overlap has room for it.
FADE = 8


@dataclass(frozen=True, slots=True)
class Span:
    """One axis of a tile, in low-resolution pixels.

    The tile reads frame pixels ``origin .. origin + size`` of `frame` pixels and answers for
    ``start .. stop`` (frame coordinates). It shares its first `fade_in` and its last `fade_out`
    answered pixels with its neighbours; both are 0 at the frame's borders.
    """

    origin: int
    size: int
    frame: int
    start: int
    stop: int
    fade_in: int = 0
    fade_out: int = 0

    @property
    def whole(self) -> bool:
        """True when the span is the whole frame on this axis."""
        return self.size == self.frame

    def mirrored(self) -> Span:
        """The same span of the mirrored frame; it stays on the grid since sizes are congruent."""
        return Span(
            self.frame - self.origin - self.size,
            self.size,
            self.frame,
            self.frame - self.stop,
            self.frame - self.start,
            self.fade_out,
            self.fade_in,
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a frame: rows by `y`, columns by `x`."""

    y: Span
    x: Span

    @property
    def whole(self) -> bool:
        """True when the tile is its whole frame, so that no geometry has to be passed on."""
        return self.y.whole and self.x.whole

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in low-resolution pixels."""
        return self.y.size, self.x.size


def cells(side: int) -> int:
    """Side of ESA's small map for an input side of at least 15 pixels."""
    return (side - 9) // GRID


def tile_side(frame: int, tile: int, overlap: int) -> int:
    """The side really used for tiles of at most `tile` pixels on an axis of `frame` pixels.

    It is the frame's side when that is no larger. Otherwise it is congruent to the frame's side modulo
    6 and the smallest that does with as many tiles as the largest possible one, so that no more is
    computed twice than `overlap` asks for. A tile reaches past its overlap by one step of the grid at
    least, even if that makes it larger than `tile`.
    """
    if tile <= 0 or frame <= tile:
        return frame
    side = tile - (tile - frame) % GRID
    least = max(MINIMUM_SIDE, overlap + GRID)
    least += (frame - least) % GRID
    if side <= least:
        return min(least, frame)
    count = _count(frame, side, overlap)
    while side > least and _count(frame, side - GRID, overlap) == count:
        side -= GRID
    return side


def _count(frame: int, side: int, overlap: int) -> int:
    """How many spans of `side` pixels, starting on the grid, cover the axis with that overlap."""
    return -(-((frame - side) // GRID) // ((side - overlap) // GRID)) + 1


@lru_cache(maxsize=256)
def spans(frame: int, tile: int, overlap: int) -> tuple[Span, ...]:
    """Cut an axis of `frame` pixels into spans of one size that share at least `overlap` pixels.

    `tile` is the wanted side (0: the whole axis). Origins are multiples of 6 and as evenly spread
    as the grid allows; the answered parts cover the axis, and where two of them meet they fade
    into each other over at most `FADE` pixels in the middle of what the tiles share.
    """
    side = tile_side(frame, tile, overlap)
    if side == frame:
        return (Span(0, frame, frame, 0, frame),)
    steps = (frame - side) // GRID
    count = _count(frame, side, overlap)
    origins = [GRID * (i * steps // (count - 1)) for i in range(count)]
    seams = []
    for left, right in pairwise(origins):
        shared = left + side - right
        fade = max(0, min(FADE, shared, GRID * ((right - left) // GRID)))
        first = right + (shared - fade) // 2
        seams.append((first, first + fade))
    result = []
    for i, origin in enumerate(origins):
        start, after_in = seams[i - 1] if i else (0, 0)
        before_out, stop = seams[i] if i < len(seams) else (frame, frame)
        result.append(Span(origin, side, frame, start, stop, after_in - start, stop - before_out))
    return tuple(result)


@lru_cache(maxsize=256)
def plan(height: int, width: int, tile: int, overlap: int) -> tuple[Tile, ...]:
    """All tiles of a frame, row by row. `tile` 0 gives one tile, the whole frame."""
    columns = spans(width, tile, overlap)
    return tuple(Tile(y, x) for y in spans(height, tile, overlap) for x in columns)


@lru_cache(maxsize=512)
def stretch_matrix(span: Span) -> np.ndarray:
    """Bilinear stretch of the small map's axis as the whole frame does it, for one span.

    Returns float32 of shape (span.size, cells(span.size)), two entries a row that sum to one.
    Half-pixel centres, ratio and offset of the frame; positions outside the frame's map are
    clamped as in the frame, positions outside the tile's own cells take its outermost cell (they
    lie in the part of the overlap that is not used).
    """
    total, own, first = cells(span.frame), cells(span.size), span.origin // GRID
    position = (np.arange(span.size) + span.origin + 0.5) * (total / span.frame) - 0.5
    position = np.clip(position, 0.0, total - 1.0)
    lower = np.floor(position).astype(np.int64)
    share = position - lower
    upper = np.minimum(lower + 1, total - 1)
    rows = np.arange(span.size)
    matrix = np.zeros((span.size, own), dtype=np.float64)
    np.add.at(matrix, (rows, np.clip(lower - first, 0, own - 1)), 1.0 - share)
    np.add.at(matrix, (rows, np.clip(upper - first, 0, own - 1)), share)
    return matrix.astype(np.float32)


@lru_cache(maxsize=512)
def border_mask(span: Span) -> np.ndarray:
    """Which cells around the small map's axis exist: float32 of length ``cells(span.size) + 2``.

    1 inside; at either end 1 where the frame goes on and 0 at its edge, where the network pads zeros.
    """
    mask = np.ones(cells(span.size) + 2, dtype=np.float32)
    mask[0] = span.origin > 0
    mask[-1] = span.origin + span.size < span.frame
    return mask


@lru_cache(maxsize=512)
def fade_weights(span: Span, scale: int) -> np.ndarray:
    """Weights of the answered part of a span at the output's size.

    float32 of length ``(stop - start) * scale``; one inside, a raised cosine over the fades. The
    weights of all spans of an axis sum to one at every output pixel.
    """
    weights = np.ones((span.stop - span.start) * scale, dtype=np.float64)
    if span.fade_in:
        weights[: span.fade_in * scale] = _ramp(span.fade_in * scale)
    if span.fade_out:
        weights[-span.fade_out * scale :] = 1.0 - _ramp(span.fade_out * scale)
    return weights.astype(np.float32)


def _ramp(length: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)


def reflected(side: int, minimum: int = MINIMUM_SIDE) -> np.ndarray | None:
    """Source indices that lengthen an axis of `side` pixels to `minimum` by reflection at its end.

    None when the axis is long enough. A single pixel is repeated.
    """
    if side >= minimum:
        return None
    return np.pad(np.arange(side), (0, minimum - side), mode="reflect" if side > 1 else "edge")
