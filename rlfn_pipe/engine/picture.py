"""One RGB picture on its way through the network: cut into tiles, put together again."""

from __future__ import annotations

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
        inside = rgb.clamp(0.0, 255.0)
        excess = rgb - inside
        negligible = 0.25 * 255.0 / ((1 << bit_depth) - 1)
        # To ask a device would be to wait for all that it has in hand.
        asked = rgb.device.type == "cpu"
        self._excess = None if asked and not bool(excess.abs().max() > negligible) else excess
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
                size = (3, self.rgb.shape[-2] * self.scale, self.rgb.shape[-1] * self.scale)
                self._canvas = torch.zeros(size, dtype=torch.float32, device=result.device)
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

    def _add(self, tile: Tile, result: torch.Tensor) -> None:
        assert self._canvas is not None
        y, x, s = tile.y, tile.x, self.scale
        part = answer_of(tile, result, s)
        self._canvas[:, y.start * s : y.stop * s, x.start * s : x.stop * s].add_(part)

    def complete(self, tiles: tuple[Tile, ...], canvas: torch.Tensor) -> None:
        """Take a canvas (3, s h, s w) that the answers of all `tiles` are on already; it is not written to."""
        self.tiles, self._canvas, self._missing = tiles, canvas, set()

    def result(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The upscaled picture (3, s h, s w) float32 without the padding, and what `add_excess` adds to it."""
        assert self._canvas is not None and self.done
        height, width = self._height * self.scale, self._width * self.scale
        return self._canvas[:, :height, :width], self._excess


def answer_of(tile: Tile, result: torch.Tensor, scale: int) -> torch.Tensor:
    """What a tile's (3, s h, s w) result answers for, with the weights of its fades.

    (3, s * rows, s * columns) of ``tile.y.start .. stop`` and ``tile.x.start .. stop``; a view of `result` where
    nothing fades.
    """
    y, x = tile.y, tile.x
    part = result[
        :,
        (y.start - y.origin) * scale : (y.stop - y.origin) * scale,
        (x.start - x.origin) * scale : (x.stop - x.origin) * scale,
    ]
    for span, dim in ((y, 1), (x, 0)):
        if span.fade_in or span.fade_out:
            part = part * _weights(span, scale, result.device).reshape((-1,) + (1,) * dim)
    return part


def _weights(span: Span, scale: int, device: torch.device) -> torch.Tensor:
    return send(fade_weights(span, scale), device)
