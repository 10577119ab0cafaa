"""The engine: frames in, upscaled frames out, whatever the device, its memory and its number format.

Frames become RGB pictures on the device, pictures are cut into tiles, tiles of one shape run together
across frames, results are blended on a canvas and go back as planes. The look-ahead is bounded, the
order is kept. When memory runs out the batch is halved, then the tile, and what was in hand is redone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from rlfn_pipe.allocator import suit_allocator
from rlfn_pipe.engine.arrays import Array, Arrays
from rlfn_pipe.engine.device import available_memory
from rlfn_pipe.engine.forms import Forms
from rlfn_pipe.engine.limits import Limits
from rlfn_pipe.engine.network import Grid, NetworkFactory, Remembering
from rlfn_pipe.engine.reuse import Statistics
from rlfn_pipe.engine.schedule import Run
from rlfn_pipe.engine.settings import Settings
from rlfn_pipe.engine.tiling import Tile, border_mask, stretch_matrix
from rlfn_pipe.engine.work import depth_of
from rlfn_pipe.errors import EngineError, UsageError
from rlfn_pipe.threads import only_compiled, pytorch_threads
from rlfn_pipe.types import Frame, ModelSpec, Target

__all__ = ["DEFAULT_OVERLAP", "Engine"]

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
#: Frames that may be on their way to the host while a CUDA device computes the next ones.
AHEAD = 2
#: Bytes of a number in each format.
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: Elements of the largest tensor on a device.
MOST_ELEMENTS = (1 << 31) - 1
#: Threads that the memory budget is meant for; frames side by side on more of them may take more, where it is free.
THREADS_OF_BUDGET = 4
#: Bytes that a network may keep of the last frame's layers, so that only what changed is computed.
LAYERS = 1 << 30


def default_overlap(tile: int | None) -> int:
    """The overlap for a wanted tile side (None: auto, 0: whole frames) when none is given.

    Small tiles would be computed many times over with `DEFAULT_OVERLAP`; they get half their side, at
    least `SMALL_OVERLAP` where they are larger than that.
    """
    if not tile:
        return DEFAULT_OVERLAP
    return max(0, min(DEFAULT_OVERLAP, max(SMALL_OVERLAP, tile // 2), tile - 12))


class Engine:
    """Upscales frames with one network on one device.

    `device` and `precision` as in `rlfn_pipe.engine.device.resolve_device` and `resolve_precision`; `tile` is the side in
    low-resolution pixels (None: by memory, 0: whole frames); `overlap` the pixels that neighbours
    share (None: `default_overlap`); `batch` tiles at once (None: by memory); `threads` for the CPU
    (None: all cores); `tta` averages the eight flips and rotations; `budget` is the bytes that activations
    may take (None: by what is free); `reuse` is exact, near or off, with `reuse_tolerance` in code values of
    8 bit for near; `to_rgb` (a frame, and what `arrays` it is for) and `to_planes` do in another way what `to_rgb` and
    `from_rgb` of `rlfn_pipe.engine.colour` do (None).
    `statistics` counts what the runs computed. `on_warning` gets one sentence for each step that memory
    forced and for each tile redone in fp32; `on_step` is called each time the network has been through a batch
    of tiles, from any thread.
    Raises UsageError for impossible settings.
    """

    def __init__(
        self,
        network_factory: NetworkFactory,
        spec: ModelSpec,
        *,
        device: str = "auto",
        precision: str = "auto",
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        threads: int | None = None,
        tta: bool = False,
        budget: int | None = None,
        reuse: str = "exact",
        reuse_tolerance: float = 2.0,
        to_rgb: Callable[[Frame, Arrays], Array] | None = None,
        to_planes: Callable[..., list[Array]] | None = None,
        on_warning: Callable[[str], None] | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec, self.scale = spec, spec.scale
        settings = Settings.resolve(
            device=device,
            precision=precision,
            tile=tile,
            overlap=overlap,
            batch=batch,
            threads=threads,
            tta=tta,
            budget=budget,
        )
        self.device, self.precision = settings.found, settings.precision
        self._tile, self._overlap, self._batch, self.tta = tile, overlap, batch, tta
        if reuse not in ("exact", "near", "off"):
            raise UsageError(f"--reuse {reuse} is not known; use exact, near or off")
        self.reuse, self.reuse_tolerance, self.statistics = reuse, reuse_tolerance, Statistics()
        self.threads, self._budget = settings.threads, settings.budget
        self.to_rgb, self.to_planes = to_rgb, to_planes
        self._warn = on_warning or (lambda message: None)
        self._on_step = on_step
        self._forms = Forms(network_factory, str(self.device), self.precision)
        #: How pictures are kept.
        self.arrays = self._forms.arrays
        self._pixel_bytes: float | None = None
        self._limits, self._share = Limits(), 1.0
        self._counting = threading.Lock()
        #: Whether overflow is looked for when a frame is closed, instead of after each batch.
        self.late_checks = not self.arrays.at_once
        #: Frames that are computed while older ones are on their way to the host.
        self.ahead = AHEAD if self.device.type == "cuda" else 0
        self._room = 0
        if self.device.type == "cpu":
            suit_allocator(tensors=not self._forms.on_host)
            # Many threads waste more by sharing a small frame than by a frame's buffers each.
            shares = max(1, self.threads // THREADS_OF_BUDGET)
            self._room = max(self._budget, min(shares * self._budget, available_memory(self.device) // 4))

    # ------------------------------------------------------------ settings

    @property
    def overlap(self) -> int:
        """Low-resolution pixels that neighbouring tiles share, as things stand."""
        if self._overlap is not None:
            return self._overlap
        return default_overlap(self._limits.tile if self._limits.tile is not None else self._tile)

    @property
    def shrunk(self) -> bool:
        """Whether memory forces smaller tiles or batches than were meant: results then differ in their last bits."""
        return self._limits.shrunk

    @property
    def shortages(self) -> int:
        """How many times memory forced smaller tiles or batches."""
        return self._limits.shortages

    def _bytes_per_pixel(self) -> float:
        """Peak bytes for a low-resolution pixel, result included (measured: docs/performance.md)."""
        if self._pixel_bytes is None:
            self._pixel_bytes = self._reckoned_bytes()
        return self._pixel_bytes

    def _reckoned_bytes(self) -> float:
        samples = 3.0 * self.scale**2
        # The sum so far and a result that is turned back.
        turned = 8.0 if self.tta else 0.0
        size = _BYTES[self.precision]
        width = max(self.spec.channels, self.spec.mid_channels)
        if self.device.type != "cpu":
            return 5.0 * width * size + samples * (2 * size + 4 + turned)
        network = self._forms.beside()
        if network is not None:
            # The picture and what lies around it, the result and its planes.
            return network.pixel_bytes + 24.0 + (5.0 + turned) * samples
        # The first layer's output, two blocks' sums and ESA's maps; all else lasts for a few rows.
        kept = (3.0 * width + 2.0 * self.spec.esa_channels) * size + 2.0 * self.spec.esa_channels
        return kept + 24.0 + (7.0 + turned) * samples

    def _largest_tile(self) -> int:
        """Pixels of the largest tile that is chosen without being asked for."""
        return self._pixels_in(TILE_SHARE if self.device.type == "cpu" else 1.0)

    def _pixels_in(self, share: float) -> int:
        """Pixels that are computed in a share of the budget, at least those of the smallest tile that is chosen."""
        in_strips = self.device.type == "cpu" and self._forms.beside() is None
        room = self._budget * share - (CPU_STRIPS if in_strips else 0)
        pixels = int(room / self._bytes_per_pixel())
        if self.device.type != "cpu":
            # Libraries on devices count a tensor's elements in 32 bits here and there.
            pixels = min(pixels, MOST_ELEMENTS // max(self.spec.channels, 3 * self.scale**2))
        return max(self._least_side() ** 2, pixels)

    def _least_side(self) -> int:
        """The smallest side of a tile that nobody asked for."""
        return max(SMALLEST_CHOSEN, 3 * (self._overlap or 0))

    def tile_for(self, height: int, width: int) -> int:
        """The tile side for a frame (0: whole)."""
        tile = self._tile
        if tile is None:
            # A whole frame's result is its canvas, which takes no more with it than tiles beside theirs.
            whole = height * width <= self._pixels_in(1.0)
            tile = 0 if whole else max(self._least_side(), math.isqrt(self._largest_tile()))
        return self._limits.tile_of(tile)

    def batch_for(self, height: int, width: int) -> int:
        """How many tiles of height x width low-resolution pixels are computed at once, 1 or more."""
        if self._batch is not None:
            batch = self._batch
        elif self.device.type == "cpu":
            batch = 1
        else:
            pixels = height * width
            batch = max(1, min(64, int(self._budget / self._bytes_per_pixel() / pixels), (1 << 21) // pixels))
        return self._limits.batch_of(batch)

    def lanes_for(self, height: int, width: int, edge_fp32: bool, copies: int = 0) -> int:
        """How many whole frames are computed side by side, one a thread, where they have nothing in common.

        `copies` is how many pictures of the result's size (float32) a frame takes besides the usual.
        Threads that share a frame wait for one another some 20 times. 1: they share it all the same, since
        the network's bits depend on them, memory is too short, or tiles or batches were asked for.
        """
        if self.threads == 1 or self.tile_for(height, width) or (self._batch or 1) > 1:
            return 1
        pixel = self._bytes_per_pixel() + copies * 12.0 * self.scale**2
        fits = pixel * height * width * self.threads <= self._room
        return self.threads if fits and self._forms.beside(edge_fp32) is not None else 1

    def keeps_layers(self, height: int, width: int, edge_fp32: bool) -> bool:
        """Whether the network can keep a whole frame's layers, for a next one that is like it in places."""
        if self.reuse == "off" or self.tta or not self._limits.layers or self.tile_for(height, width):
            return False
        network = self._remembering(edge_fp32)
        return network is not None and network.keeps(height, width)

    def shrink(self, batch: int, side: int) -> bool:
        """Memory ran out with `batch` tiles of `side`: lower the limits, say so.

        True when the batch was halved (the same tiles can be tried again in smaller groups), False when
        the tile was (everything has to be cut anew). Raises EngineError at the smallest tile.
        """
        if batch > 1:
            count = self._limits.halve_batch(batch)
            self._warn(f"out of memory on {self.device}: going on with {count} tile(s) at once")
            return True
        least = max(SMALLEST_TILE, (self._overlap or 0) + 12)
        if side <= least or (self._limits.tile is not None and self._limits.tile <= least):
            raise EngineError(
                f"{self.device} has not enough memory for a tile of {side} pixels; "
                "free memory there or choose another device with --device"
            )
        tile = self._limits.halve_tile(side, least)
        self._warn(f"out of memory on {self.device}: going on with tiles of {tile} pixels")
        return False

    def count(self, more: Statistics) -> None:
        """Add to `statistics`, from any run."""
        with self._counting:
            self.statistics += more

    # ------------------------------------------------------------ the run

    def run(self, work: Iterable[tuple[Frame, Target]]) -> Iterator[Frame]:
        """Upscale frames in order; index, pts, time base and the mark `concealed` are carried over.

        Holds a bounded number of frames, whatever the length. Several runs may be under way at once, on the CPU in
        several threads. Raises EngineError when a frame does not fit the device even in the smallest tiles, or when a
        tile that overflowed is not finite in fp32 either.
        """
        run, edge_fp32 = Run(self), False
        try:
            for frame, target in work:
                edge_fp32 = depth_of(frame, target) > 8
                yield from self._stepped(run.take(frame, target), edge_fp32)
            yield from self._stepped(run.rest(), edge_fp32)
        except EngineError:
            # Those that were finished before are not lost with it.
            yield from self._stepped(run.finished(), edge_fp32)
            raise
        finally:
            run.close()

    def _stepped(self, frames: Iterator[Frame], edge_fp32: bool) -> Iterator[Frame]:
        """The same frames; threads and device are the engine's while it works, the caller's at all other times."""
        while True:
            with self._threads(edge_fp32):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    @contextmanager
    def _threads(self, edge_fp32: bool) -> Iterator[None]:
        """The threads, or the device, that the network and what is around it take in the calling thread."""
        threads: AbstractContextManager[None] = nullcontext()
        if self.device.type != "cuda":
            alone = self._forms.beside(edge_fp32) is not None
            threads = (only_compiled if alone else pytorch_threads)(self.threads)
        with threads, self.arrays.quiet():
            yield

    def infer(
        self, pixels: Array, tiles: Sequence[Tile], edge_fp32: bool, remember: bool = False
    ) -> tuple[Array, Array | None]:
        """Results (N, 3, s h, s w) float32 of tiles of one shape, pixels (N, 3, h, w) float32.

        With `remember` (see `keeps_layers`) what the layers have in common with the last frame that was
        computed so is not computed again. On the CPU several threads may call this at once.

        On the CPU tiles whose result is not finite are computed again in fp32 at once. On a device that
        works behind our back nobody waits for that to be known: zeros stand for such tiles, unless they are whole
        frames, and flags (N,) come with the results, False for tiles that `redo` has to compute.
        """
        with self._exact_float32():
            result = self._infer(pixels, tiles, self.precision, edge_fp32, remember)
            finite: Array | None = None
            if self.precision != "fp32":
                finite = self.arrays.finite(result)
                if self.late_checks:
                    # A tile that is a whole frame is put in the place of what was there.
                    if not tiles[0].whole:
                        result = self.arrays.without_bad(result, finite)
                else:
                    for i, good in enumerate(finite.tolist()):
                        if not good:
                            result[i] = self.redo(pixels[i], tiles[i])
                    finite = None
        self._limits.went_well(len(tiles))
        return result, finite

    def redo(self, pixels: Array, tile: Tile) -> Array:
        """The result (3, s h, s w) of a tile (3, h, w) in fp32, after it overflowed in the short format.

        Raises EngineError when it is not finite in fp32 either.
        """
        size = f"{tile.x.size}x{tile.y.size}"
        self._warn(f"a tile of {size} pixels overflowed in {self.precision} and was redone in fp32")
        with self._exact_float32():
            result = self._infer(pixels[None], [tile], "fp32", False)
        if not all(self.arrays.finite(result).tolist()):
            raise EngineError(
                f"the network {self.spec.name} gives no finite result even in fp32; check its weights"
            )
        return result[0]

    def _exact_float32(self) -> AbstractContextManager[object]:
        """Float32 layers are asked for where their precision counts: no TF32 in their place."""
        if self.device.type != "cuda":
            return nullcontext()
        import torch

        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

    def _infer(
        self,
        pixels: Array,
        tiles: Sequence[Tile],
        precision: str,
        edge_fp32: bool,
        remember: bool = False,
    ) -> Array:
        if remember:
            self._share = 1.0
            if self._limits.layers and (keeping := self._remembering(edge_fp32)):
                result = keeping(pixels, self._grid(tiles))
                self._on_step()
                self._share = keeping.computed
                return result
        network = self._forms.network(edge_fp32, precision)
        if not self.tta:
            y = network(pixels, self._grid(tiles))
            self._on_step()
            return y
        arrays, total = self.arrays, None
        for transpose in (False, True):
            for dims in ((), (-1,), (-2,), (-2, -1)):
                turned = [_turned(tile, transpose, dims) for tile in tiles]
                x = arrays.flipped(pixels, dims) if dims else pixels
                y = network(x.swapaxes(-1, -2) if transpose else x, self._grid(turned))
                self._on_step()
                y = y.swapaxes(-1, -2) if transpose else y
                y = arrays.flipped(y, dims) if dims else y
                if total is None:
                    total = arrays.copied(y)
                else:
                    total += y
        assert total is not None
        total /= 8.0
        return total

    def _remembering(self, edge_fp32: bool) -> Remembering | None:
        """The network with a memory of the last frame, where it can be had so."""
        return self._forms.remembering(edge_fp32, min(LAYERS, self._budget))

    def forget(self) -> bool:
        """Hand back all memory that networks keep for the next frame, and keep no layers for a while.

        False when they kept none.
        """
        kept = self._forms.forget()
        if kept:
            self._limits.keep_no_layers()
        return kept

    @property
    def share(self) -> float:
        """The share (0..1) of its work that the last batch with `remember` took."""
        return self._share

    def _grid(self, tiles: Sequence[Tile]) -> Grid | None:
        if tiles[0].whole:
            return None
        arrays = (
            np.stack([stretch_matrix(tile.y) for tile in tiles]),
            np.stack([stretch_matrix(tile.x) for tile in tiles]),
            np.stack([np.outer(border_mask(tile.y), border_mask(tile.x))[None] for tile in tiles]),
        )
        rows, columns, border = map(self.arrays.send, arrays)
        return rows, columns, border


def _turned(tile: Tile, transpose: bool, dims: tuple[int, ...]) -> Tile:
    """The tile of the flipped (then transposed) frame that holds the same pixels."""
    y = tile.y.mirrored() if -2 in dims else tile.y
    x = tile.x.mirrored() if -1 in dims else tile.x
    return Tile(x, y) if transpose else Tile(y, x)
