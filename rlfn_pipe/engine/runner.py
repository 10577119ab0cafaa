"""The engine: frames in, upscaled frames out, whatever the device, its memory and its number format.

Frames become RGB pictures on the device, pictures are cut into tiles, tiles of one shape run together
across frames, results are blended on a canvas and go back as planes. The look-ahead is bounded, the
order is kept. When memory runs out the batch is halved, then the tile, and what was in hand is redone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from rlfn_pipe.allocator import suit_allocator
from rlfn_pipe.engine.arrays import Array, Arrays
from rlfn_pipe.engine.forms import Forms
from rlfn_pipe.engine.network import Grid, NetworkFactory, Remembering
from rlfn_pipe.engine.reuse import Statistics
from rlfn_pipe.engine.schedule import Run
from rlfn_pipe.engine.settings import Settings
from rlfn_pipe.engine.sizes import Sizes
from rlfn_pipe.engine.tiling import Tile, border_mask, stretch_matrix
from rlfn_pipe.engine.work import depth_of
from rlfn_pipe.errors import EngineError, UsageError
from rlfn_pipe.threads import only_compiled, pytorch_threads
from rlfn_pipe.types import Frame, ModelSpec, Target

__all__ = ["Engine"]

#: Frames that may be on their way to the host while a CUDA device computes the next ones.
AHEAD = 2
#: Bytes that a network may keep of the last frame's layers, so that only what changed is computed.
LAYERS = 1 << 30


class Engine:
    """Upscales frames with one network on one device.

    `device` and `precision` as in `rlfn_pipe.engine.device.resolve_device` and `resolve_precision`; `tile` is the side in
    low-resolution pixels (None: by memory, 0: whole frames); `overlap` the pixels that neighbours
    share (None: `rlfn_pipe.engine.sizes.default_overlap`); `batch` tiles at once (None: by memory); `threads` for the CPU
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
        if reuse not in ("exact", "near", "off"):
            raise UsageError(f"--reuse {reuse} is not known; use exact, near or off")
        self.reuse, self.reuse_tolerance, self.statistics = reuse, reuse_tolerance, Statistics()
        self.threads, self.tta, self._budget = settings.threads, settings.tta, settings.budget
        self.to_rgb, self.to_planes = to_rgb, to_planes
        self._warn = on_warning or (lambda message: None)
        self._on_step = on_step
        self._forms = Forms(network_factory, str(self.device), self.precision)
        #: How pictures are kept.
        self.arrays = self._forms.arrays
        #: Of tiles and batches.
        self.sizes = Sizes(spec, settings, self._forms, self._warn)
        self._share = 1.0
        self._counting = threading.Lock()
        #: Whether overflow is looked for when a frame is closed, instead of after each batch.
        self.late_checks = not self.arrays.at_once
        #: Frames that are computed while older ones are on their way to the host.
        self.ahead = AHEAD if self.device.type == "cuda" else 0
        if self.device.type == "cpu":
            suit_allocator(tensors=not self._forms.on_host)

    def keeps_layers(self, height: int, width: int, edge_fp32: bool) -> bool:
        """Whether the network can keep a whole frame's layers, for a next one that is like it in places."""
        sizes = self.sizes
        if self.reuse == "off" or self.tta or not sizes.limits.layers or sizes.tile_for(height, width):
            return False
        network = self._remembering(edge_fp32)
        return network is not None and network.keeps(height, width)

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
        self.sizes.limits.went_well(len(tiles))
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
            if self.sizes.limits.layers and (keeping := self._remembering(edge_fp32)):
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
            self.sizes.limits.keep_no_layers()
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
