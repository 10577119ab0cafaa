"""One RGB picture on its way through the network: cut into tiles, put together again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

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
        """A canvas with zeros where results are added to it: elsewhere there is one tile's, which is copied."""
        size = (3, self.rgb.shape[-2] * self.scale, self.rgb.shape[-1] * self.scale)
        if not _in_parts(device):
            return torch.zeros(size, dtype=torch.float32, device=device)
        canvas = torch.empty(size, dtype=torch.float32)
        for tile in self.tiles:
            for part in _parts(tile, self.scale, split=True):
                if part.fades:
                    canvas[part.place].zero_()
        return canvas

    def _add(self, tile: Tile, result: torch.Tensor) -> None:
        assert self._canvas is not None
        answer = _answered(tile, result, self.scale)
        parts = _parts(tile, self.scale, split=_in_parts(result.device))
        # All that takes memory comes first: a tile for which there is none is added later, once.
        weighted = [part.weighted(answer, self.scale) for part in parts]
        for part, values in zip(parts, weighted, strict=True):
            if part.fades:
                self._canvas[part.place].add_(values)
            else:
                self._canvas[part.place] = values

    def complete(self, tiles: tuple[Tile, ...], canvas: torch.Tensor) -> None:
        """Take a canvas (3, s h, s w) that the answers of all `tiles` are on already; it is not written to."""
        self.tiles, self._canvas, self._missing = tiles, canvas, set()

    def result(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The upscaled picture (3, s h, s w) float32 without the padding, and what `add_excess` adds to it."""
        assert self._canvas is not None and self.done
        height, width = self._height * self.scale, self._width * self.scale
        return self._canvas[:, :height, :width], self._excess


@dataclass(frozen=True, slots=True)
class _Part:
    """A rectangle of what a tile answers for, which fades somewhere or nowhere; slices of a (3, s h, s w) tensor.

    `inside` counts from the answer's corner, `place` from the canvas'. `fades`: the spans that fade in it, with the
    part of their weights and the axes behind theirs.
    """

    inside: tuple[slice, slice, slice]
    place: tuple[slice, slice, slice]
    fades: tuple[tuple[Span, slice, int], ...]

    def weighted(self, answer: torch.Tensor, scale: int) -> torch.Tensor:
        """The rectangle of a whole answer with its weights; a view where nothing fades."""
        values = answer[self.inside]
        for span, piece, behind in self.fades:
            values = values * _weights(span, scale, answer.device)[piece].reshape((-1,) + (1,) * behind)
        return values


def _in_parts(device: torch.device) -> bool:
    """Whether what fades is told from what does not: on devices each step costs more than it saves."""
    return device.type == "cpu"


@lru_cache(maxsize=256)
def _parts(tile: Tile, scale: int, *, split: bool) -> tuple[_Part, ...]:
    """What a tile answers for, by where it fades or (not `split`) as one."""
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


def answer_of(tile: Tile, result: torch.Tensor, scale: int) -> torch.Tensor:
    """What a tile's (3, s h, s w) result answers for, with the weights of its fades.

    (3, s * rows, s * columns) of ``tile.y.start .. stop`` and ``tile.x.start .. stop``; a view of `result` where
    nothing fades.
    """
    answer = _answered(tile, result, scale)
    parts = _parts(tile, scale, split=_in_parts(result.device))
    if len(parts) == 1:
        return parts[0].weighted(answer, scale)
    made = torch.empty_like(answer)
    for part in parts:
        made[part.inside] = part.weighted(answer, scale)
    return made


def _answered(tile: Tile, result: torch.Tensor, scale: int) -> torch.Tensor:
    y, x = tile.y, tile.x
    return result[
        :,
        (y.start - y.origin) * scale : (y.stop - y.origin) * scale,
        (x.start - x.origin) * scale : (x.stop - x.origin) * scale,
    ]


def _weights(span: Span, scale: int, device: torch.device) -> torch.Tensor:
    return send(fade_weights(span, scale), device)
