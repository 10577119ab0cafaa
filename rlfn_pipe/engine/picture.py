"""One RGB picture on its way through the network: cut into tiles, put together again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rlfn_pipe.engine.tiling import Span, Tile, fade_weights, plan, reflected
from rlfn_pipe.engine.transfer import send


class Picture:
    """An RGB image (3, h, w) float32 on the device, its tiles and its canvas.

    `bit_depth` is the larger one of source and target; above 8 the network's first and last layers are
    to run in float32 (`edge_fp32`). Pictures with a side below the network's minimum are lengthened by
    reflection and the result is cropped.

    The network sees the image clamped to 0..255, the range it was trained on: outside it may go astray
    altogether (the 52-channel reference weights answer a flat -15 with about -430). What was cut off, the
    super-whites and footroom of real video, is enlarged bilinearly and added to the result; on the CPU unless it
    is below a quarter of a code value at `bit_depth`.
    """

    def __init__(self, rgb: torch.Tensor, scale: int, minimum: int, bit_depth: int) -> None:
        self.scale, self.edge_fp32 = scale, bit_depth > 8
        self._height, self._width = rgb.shape[-2:]
        self._excess: torch.Tensor | None = None
        least, most = -math.inf, math.inf
        if rgb.device.type == "cpu":  # to ask a device would be to wait for all that it has in hand
            least, most = (float(value) for value in rgb.aminmax())
        if least < 0.0 or most > 255.0:
            inside = rgb.clamp(0.0, 255.0)
            negligible = 0.25 * 255.0 / ((1 << bit_depth) - 1)
            if max(-least, most - 255.0) > negligible:
                self._excess = rgb - inside
            rgb = inside
        for dim, side in ((-2, self._height), (-1, self._width)):
            index = reflected(side, minimum)
            if index is not None:
                rgb = rgb.index_select(dim, send(index, rgb.device))
        self.rgb = rgb
        self._canvas: torch.Tensor | None = None
        self._missing: set[Tile] = set()
        self.tiles: tuple[Tile, ...] = ()

    @property
    def pixels(self) -> int:
        """Low-resolution pixels, padding included."""
        return self.rgb.shape[-2] * self.rgb.shape[-1]

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

    def pixels_of(self, tile: Tile) -> torch.Tensor:
        """The (3, h, w) view that a tile reads."""
        y, x = tile.y, tile.x
        return self.rgb[:, y.origin : y.origin + y.size, x.origin : x.origin + x.size]

    def waits_for(self, tile: Tile) -> bool:
        """True while the tile's result has not been placed."""
        return tile in self._missing

    def place(self, tile: Tile, result: torch.Tensor) -> None:
        """Blend a tile's (3, s h, s w) float32 result into the canvas; each tile exactly once."""
        assert tile in self._missing
        if len(self.tiles) == 1:
            self._canvas = result
        else:
            if self._canvas is None:
                self._canvas = self._clear_canvas(result.device)
            self._add(tile, result)
        # Last: where memory ends before, the tile is computed and placed again.
        self._missing.remove(tile)

    def mend(self, tile: Tile, result: torch.Tensor) -> None:
        """Put a result where zeros were placed for the tile."""
        assert self._canvas is not None and tile not in self._missing
        if len(self.tiles) == 1:
            self._canvas = result
        else:
            self._add(tile, result)

    def _clear_canvas(self, device: torch.device) -> torch.Tensor:
        """A canvas with zeros where tiles fade into one another: elsewhere there is one tile, which is copied."""
        size = (3, self.rgb.shape[-2] * self.scale, self.rgb.shape[-1] * self.scale)
        canvas = torch.empty(size, dtype=torch.float32, device=device)
        for tile in self.tiles:
            for place, rows, columns in _parts(tile, self.scale):
                if rows.fades or columns.fades:
                    canvas[place].zero_()
        return canvas

    def _add(self, tile: Tile, result: torch.Tensor) -> None:
        assert self._canvas is not None
        y, x, s = tile.y, tile.x, self.scale
        answer = _answered(tile, result, s)
        for place, rows, columns in _parts(tile, s):
            part = answer[:, rows.inside, columns.inside]
            if not (rows.fades or columns.fades):
                self._canvas[place] = part
                continue
            for span, piece, dim in ((y, rows, 1), (x, columns, 0)):
                if piece.fades:
                    weights = _weights(span, s, result.device)[piece.inside]
                    part = part * weights.reshape((-1,) + (1,) * dim)
            self._canvas[place].add_(part)

    def complete(self, tiles: tuple[Tile, ...], canvas: torch.Tensor) -> None:
        """Take a canvas (3, s h, s w) that the answers of all `tiles` are on already; it is not written to."""
        self.tiles, self._canvas, self._missing = tiles, canvas, set()

    def result(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The upscaled picture (3, s h, s w) float32 without the padding, and what `add_excess` adds to it."""
        assert self._canvas is not None and self.done
        height, width = self._height * self.scale, self._width * self.scale
        return self._canvas[:, :height, :width], self._excess


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of what a tile answers for along an axis, in output pixels from where that starts."""

    inside: slice
    fades: bool


def _pieces(span: Span, scale: int) -> list[_Piece]:
    """Where a span fades in, where it stands alone, and where it fades out."""
    stop = (span.stop - span.start) * scale
    first, last = span.fade_in * scale, stop - span.fade_out * scale
    if first > last:
        return [_Piece(slice(0, stop), True)]
    edges = ((0, first, True), (first, last, False), (last, stop, True))
    return [_Piece(slice(begin, end), fades) for begin, end, fades in edges if end > begin]


def _parts(tile: Tile, scale: int) -> Iterator[tuple[tuple[slice, slice, slice], _Piece, _Piece]]:
    """Rectangles of what a tile answers for, with their places on the canvas."""
    for rows in _pieces(tile.y, scale):
        for columns in _pieces(tile.x, scale):
            down, along = (
                slice(span.start * scale + piece.inside.start, span.start * scale + piece.inside.stop)
                for span, piece in ((tile.y, rows), (tile.x, columns))
            )
            yield (slice(None), down, along), rows, columns


def answer_of(tile: Tile, result: torch.Tensor, scale: int) -> torch.Tensor:
    """What a tile's (3, s h, s w) result answers for, with the weights of its fades.

    (3, s * rows, s * columns) of ``tile.y.start .. stop`` and ``tile.x.start .. stop``; a view of `result` where
    nothing fades.
    """
    part = _answered(tile, result, scale)
    spans = ((tile.y, -2), (tile.x, -1))
    if not any(span.fade_in or span.fade_out for span, _ in spans):
        return part
    part = part.clone()
    for span, dim in spans:
        for piece in _pieces(span, scale):
            if piece.fades:
                begin, end = piece.inside.start, piece.inside.stop
                weights = _weights(span, scale, result.device)[piece.inside]
                part.narrow(dim, begin, end - begin).mul_(weights.reshape((-1,) + (1,) * (-1 - dim)))
    return part


def _answered(tile: Tile, result: torch.Tensor, scale: int) -> torch.Tensor:
    y, x = tile.y, tile.x
    return result[
        :,
        (y.start - y.origin) * scale : (y.stop - y.origin) * scale,
        (x.start - x.origin) * scale : (x.stop - x.origin) * scale,
    ]


def _weights(span: Span, scale: int, device: torch.device) -> torch.Tensor:
    return send(fade_weights(span, scale), device)
