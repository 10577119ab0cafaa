"""One RGB picture on its way through the network: cut into tiles, put together again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rlfn_pipe.engine.arrays import Array, Arrays
from rlfn_pipe.engine.tiling import Span, Tile, fade_weights, plan, reflected


class Picture:
    """An RGB image (3, h, w) float32 as `arrays` have it, its tiles and its canvas.

    `bit_depth` is the larger one of source and target; above 8 the network's first and last layers are
    to run in float32 (`edge_fp32`). Pictures with a side below the network's minimum are lengthened by
    reflection and the result is cropped.

    The network sees the image clamped to 0..255, the range it was trained on: outside it may go astray
    altogether (the 52-channel reference weights answer a flat -15 with about -430). What was cut off, the
    super-whites and footroom of real video, is enlarged bilinearly and added to the result; where its size is known
    unless it is below a quarter of a code value at `bit_depth`.
    """

    def __init__(self, rgb: Array, scale: int, minimum: int, bit_depth: int, arrays: Arrays) -> None:
        self.scale, self.edge_fp32, self.arrays = scale, bit_depth > 8, arrays
        self._height, self._width = rgb.shape[-2:]
        self._excess: Array | None = None
        least, most = arrays.extremes(rgb)
        if least < 0.0 or most > 255.0:
            inside = rgb.clip(0.0, 255.0)
            negligible = 0.25 * 255.0 / ((1 << bit_depth) - 1)
            if max(-least, most - 255.0) > negligible:
                self._excess = rgb - inside
            rgb = inside
        rows, columns = (reflected(side, minimum) for side in (self._height, self._width))
        if rows is not None:
            rgb = rgb[:, arrays.send(rows)]
        if columns is not None:
            rgb = rgb[:, :, arrays.send(columns)]
        self.rgb = rgb
        self._canvas: Array | None = None
        self._missing: set[Tile] = set()
        self.tiles: tuple[Tile, ...] = ()

    @property
    def done(self) -> bool:
        """True when every tile has been placed."""
        return bool(self.tiles) and not self._missing

    def cut(self, tile: int, overlap: int) -> tuple[Tile, ...]:
        """Plan the tiles anew and forget what was placed. `tile` 0: the whole picture."""
        self.tiles = plan(self.rgb.shape[-2], self.rgb.shape[-1], tile, overlap)
        self._missing = set(self.tiles)
        self._canvas = None
        return self.tiles

    def pixels_of(self, tile: Tile) -> Array:
        """The (3, h, w) view that a tile reads."""
        y, x = tile.y, tile.x
        return self.rgb[:, y.origin : y.origin + y.size, x.origin : x.origin + x.size]

    def waits_for(self, tile: Tile) -> bool:
        """True while the tile's result has not been placed."""
        return tile in self._missing

    def place(self, tile: Tile, result: Array) -> None:
        """Blend a tile's (3, s h, s w) float32 result into the canvas; each tile exactly once."""
        assert tile in self._missing
        if len(self.tiles) == 1:
            self._canvas = result
        else:
            if self._canvas is None:
                self._canvas = self._clear_canvas()
            self._add(tile, result)
        # Last: where memory ends before, the tile is computed and placed again.
        self._missing.remove(tile)

    def mend(self, tile: Tile, result: Array) -> None:
        """Put a result where zeros were placed for the tile."""
        assert self._canvas is not None and tile not in self._missing
        if len(self.tiles) == 1:
            self._canvas = result
        else:
            self._add(tile, result)

    def _clear_canvas(self) -> Array:
        """A canvas with zeros where results are added to it: elsewhere there is one tile's, which is copied."""
        size = (3, self.rgb.shape[-2] * self.scale, self.rgb.shape[-1] * self.scale)
        if not self.arrays.small_steps:
            return self.arrays.zeros(size)
        canvas = self.arrays.empty(size)
        for tile in self.tiles:
            for part in _parts(tile, self.scale, split=True):
                if part.fades:
                    canvas[part.place] = 0.0
        return canvas

    def _add(self, tile: Tile, result: Array) -> None:
        assert self._canvas is not None
        answer = _answered(tile, result, self.scale)
        parts = _parts(tile, self.scale, split=self.arrays.small_steps)
        # All that takes memory comes first: a tile for which there is none is added later, once.
        weighted = [part.weighted(answer, self.scale, self.arrays) for part in parts]
        for part, values in zip(parts, weighted, strict=True):
            place = self._canvas[part.place]
            if part.fades:
                place += values
            else:
                place[:] = values

    def complete(self, tiles: tuple[Tile, ...], canvas: Array) -> None:
        """Take a canvas (3, s h, s w) that the answers of all `tiles` are on already; it is not written to."""
        self.tiles, self._canvas, self._missing = tiles, canvas, set()

    def result(self) -> tuple[Array, Array | None]:
        """The upscaled picture (3, s h, s w) float32 without the padding, and what `add_excess` adds to it."""
        assert self._canvas is not None and self.done
        height, width = self._height * self.scale, self._width * self.scale
        return self._canvas[:, :height, :width], self._excess


@dataclass(frozen=True, slots=True)
class _Part:
    """A rectangle of what a tile answers for, which fades somewhere or nowhere; slices of (3, s h, s w).

    `inside` counts from the answer's corner, `place` from the canvas'. `fades`: the spans that fade in it, with the
    part of their weights and the axes behind theirs.
    """

    inside: tuple[slice, slice, slice]
    place: tuple[slice, slice, slice]
    fades: tuple[tuple[Span, slice, int], ...]

    def weighted(self, answer: Array, scale: int, arrays: Arrays) -> Array:
        """The rectangle of a whole answer with its weights; a view where nothing fades."""
        values = answer[self.inside]
        for span, piece, behind in self.fades:
            weights = arrays.send(fade_weights(span, scale))
            values = values * weights[piece].reshape((-1,) + (1,) * behind)
        return values


@lru_cache(maxsize=256)
def _parts(tile: Tile, scale: int, *, split: bool) -> tuple[_Part, ...]:
    """What a tile answers for, by where it fades or (not `split`, where each step costs more than it saves) as one."""
    everything, made = slice(None), []
    for rows, rows_fade in _pieces(tile.y, scale, split):
        for columns, columns_fade in _pieces(tile.x, scale, split):
            down, along = (
                slice(span.start * scale + piece.start, span.start * scale + piece.stop)
                for span, piece in ((tile.y, rows), (tile.x, columns))
            )
            fades = [
                (span, piece, behind)
                for span, piece, behind, does in (
                    (tile.y, rows, 1, rows_fade),
                    (tile.x, columns, 0, columns_fade),
                )
                if does
            ]
            made.append(_Part((everything, rows, columns), (everything, down, along), tuple(fades)))
    return tuple(made)


def _pieces(span: Span, scale: int, split: bool) -> list[tuple[slice, bool]]:
    """Where a span fades in, where it stands alone and where it fades out, in pixels from its start; and if it fades."""
    stop = (span.stop - span.start) * scale
    first, last = span.fade_in * scale, stop - span.fade_out * scale
    if not split or first > last:
        return [(slice(0, stop), bool(span.fade_in or span.fade_out))]
    edges = ((0, first, True), (first, last, False), (last, stop, True))
    return [(slice(begin, end), fades) for begin, end, fades in edges if end > begin]


def answer_of(tile: Tile, result: Array, scale: int, arrays: Arrays) -> Array:
    """What a tile's (3, s h, s w) result answers for, with the weights of its fades.

    (3, s * rows, s * columns) of ``tile.y.start .. stop`` and ``tile.x.start .. stop``; a view of `result` where
    nothing fades.
    """
    answer = _answered(tile, result, scale)
    parts = _parts(tile, scale, split=arrays.small_steps)
    if len(parts) == 1:
        return parts[0].weighted(answer, scale, arrays)
    made = arrays.empty(tuple(answer.shape))
    for part in parts:
        made[part.inside] = part.weighted(answer, scale, arrays)
    return made


def _answered(tile: Tile, result: Array, scale: int) -> Array:
    y, x = tile.y, tile.x
    return result[
        :,
        (y.start - y.origin) * scale : (y.stop - y.origin) * scale,
        (x.start - x.origin) * scale : (x.stop - x.origin) * scale,
    ]
