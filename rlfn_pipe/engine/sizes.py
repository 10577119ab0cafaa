"""How large tiles and batches are, by what memory there is, and smaller ones where it ran out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from rlfn_pipe.engine.device import available_memory
from rlfn_pipe.engine.forms import Forms
from rlfn_pipe.engine.limits import Limits
from rlfn_pipe.engine.settings import Settings
from rlfn_pipe.errors import EngineError
from rlfn_pipe.types import ModelSpec

__all__ = ["DEFAULT_OVERLAP", "Sizes"]

#: Low-resolution pixels that neighbouring tiles share unless told otherwise (measured: docs/performance.md).
DEFAULT_OVERLAP = 60
#: Small tiles that were asked for share half of themselves, but no less than this.
SMALL_OVERLAP = 36
#: Tiles are not halved below this side (or below the overlap and some pixels more).
SMALLEST_TILE = 48
#: Nor chosen below this one, however little memory is free: with `DEFAULT_OVERLAP` a frame's pixels are computed twice
#: over at this side, a hundred times at the smallest; in float32 it takes 50 MB.
SMALLEST_CHOSEN = 192
#: Bytes that the CPU's strips take besides what grows with the picture.
CPU_STRIPS = 96 << 20
#: Share of the memory budget that a tile may take on the CPU, beside the frame's canvas: 1080p to 4K stays below
#: 2.5 GB with it, of which an encoder takes more than half (docs/performance.md).
TILE_SHARE = 0.6
#: Bytes of a number in each format.
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: Elements of the largest tensor on a device.
MOST_ELEMENTS = (1 << 31) - 1
#: Threads that the memory budget is meant for; frames side by side on more of them may take more, where it is free.
THREADS_OF_BUDGET = 4


def default_overlap(tile: int | None) -> int:
    """The overlap for a wanted tile side (None: auto, 0: whole frames) when none is given.

    Small tiles would be computed many times over with `DEFAULT_OVERLAP`; they get half their side, at
    least `SMALL_OVERLAP` where they are larger than that.
    """
    if not tile:
        return DEFAULT_OVERLAP
    return max(0, min(DEFAULT_OVERLAP, max(SMALL_OVERLAP, tile // 2), tile - 12))


class Sizes:
    """Tiles, batches and frames side by side of one engine: `settings` say what was asked for, `forms` what a pixel takes.

    `warn` gets one sentence for each step that memory forced.
    """

    def __init__(
        self, spec: ModelSpec, settings: Settings, forms: Forms, warn: Callable[[str], None]
    ) -> None:
        self._spec, self._forms, self._warn = spec, forms, warn
        self._tile, self._overlap, self._batch = settings.tile, settings.overlap, settings.batch
        self._device, self._precision, self._tta = settings.found, settings.precision, settings.tta
        self._threads, self._budget = settings.threads, settings.budget
        self.limits = Limits()
        self._room = 0
        if self._device.type == "cpu":
            # Many threads waste more by sharing a small frame than by a frame's buffers each.
            shares = max(1, self._threads // THREADS_OF_BUDGET)
            self._room = max(self._budget, min(shares * self._budget, available_memory(self._device) // 4))

    @property
    def overlap(self) -> int:
        """Low-resolution pixels that neighbouring tiles share, as things stand."""
        if self._overlap is not None:
            return self._overlap
        return default_overlap(self.limits.tile if self.limits.tile is not None else self._tile)

    def tile_for(self, height: int, width: int) -> int:
        """The tile side for a frame (0: whole)."""
        tile = self._tile
        if tile is None:
            # A whole frame's result is its canvas, which takes no more with it than tiles beside theirs.
            whole = height * width <= self._pixels_in(1.0)
            tile = 0 if whole else max(self._least_side(), math.isqrt(self._largest_tile()))
        return self.limits.tile_of(tile)

    def batch_for(self, height: int, width: int) -> int:
        """How many tiles of height x width low-resolution pixels are computed at once, 1 or more."""
        if self._batch is not None:
            batch = self._batch
        elif self._device.type == "cpu":
            batch = 1
        else:
            pixels = height * width
            batch = max(1, min(64, int(self._budget / self.pixel_bytes / pixels), (1 << 21) // pixels))
        return self.limits.batch_of(batch)

    def lanes_for(self, height: int, width: int, edge_fp32: bool, copies: int = 0) -> int:
        """How many whole frames are computed side by side, one a thread, where they have nothing in common.

        `copies` is how many pictures of the result's size (float32) a frame takes besides the usual.
        Threads that share a frame wait for one another some 20 times. 1: they share it all the same, since
        the network's bits depend on them, memory is too short, or tiles or batches were asked for.
        """
        if self._threads == 1 or self.tile_for(height, width) or (self._batch or 1) > 1:
            return 1
        pixel = self.pixel_bytes + copies * 12.0 * self._spec.scale**2
        fits = pixel * height * width * self._threads <= self._room
        return self._threads if fits and self._forms.beside(edge_fp32) is not None else 1

    def shrink(self, batch: int, side: int) -> bool:
        """Memory ran out with `batch` tiles of `side`: lower the limits, say so.

        True when the batch was halved (the same tiles can be tried again in smaller groups), False when
        the tile was (everything has to be cut anew). Raises EngineError at the smallest tile.
        """
        if batch > 1:
            count = self.limits.halve_batch(batch)
            self._warn(f"out of memory on {self._device}: going on with {count} tile(s) at once")
            return True
        least = max(SMALLEST_TILE, (self._overlap or 0) + 12)
        if side <= least or (self.limits.tile is not None and self.limits.tile <= least):
            raise EngineError(
                f"{self._device} has not enough memory for a tile of {side} pixels; "
                "free memory there or choose another device with --device"
            )
        tile = self.limits.halve_tile(side, least)
        self._warn(f"out of memory on {self._device}: going on with tiles of {tile} pixels")
        return False

    @cached_property
    def pixel_bytes(self) -> float:
        """Peak bytes for a low-resolution pixel, result included (measured: docs/performance.md)."""
        samples = 3.0 * self._spec.scale**2
        # The sum so far and a result that is turned back.
        turned = 8.0 if self._tta else 0.0
        size = _BYTES[self._precision]
        width = max(self._spec.channels, self._spec.mid_channels)
        if self._device.type != "cpu":
            return 5.0 * width * size + samples * (2 * size + 4 + turned)
        network = self._forms.beside()
        if network is not None:
            # The picture and what lies around it, the result and its planes.
            return network.pixel_bytes + 24.0 + (5.0 + turned) * samples
        # The first layer's output, two blocks' sums and ESA's maps; all else lasts for a few rows.
        kept = (3.0 * width + 2.0 * self._spec.esa_channels) * size + 2.0 * self._spec.esa_channels
        return kept + 24.0 + (7.0 + turned) * samples

    def _largest_tile(self) -> int:
        """Pixels of the largest tile that is chosen without being asked for."""
        return self._pixels_in(TILE_SHARE if self._device.type == "cpu" else 1.0)

    def _pixels_in(self, share: float) -> int:
        """Pixels that are computed in a share of the budget, at least those of the smallest tile that is chosen."""
        in_strips = self._device.type == "cpu" and self._forms.beside() is None
        room = self._budget * share - (CPU_STRIPS if in_strips else 0)
        pixels = int(room / self.pixel_bytes)
        if self._device.type != "cpu":
            # Libraries on devices count a tensor's elements in 32 bits here and there.
            pixels = min(pixels, MOST_ELEMENTS // max(self._spec.channels, 3 * self._spec.scale**2))
        return max(self._least_side() ** 2, pixels)

    def _least_side(self) -> int:
        """The smallest side of a tile that nobody asked for."""
        return max(SMALLEST_CHOSEN, 3 * (self._overlap or 0))
