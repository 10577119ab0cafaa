"""The inference form as one compiled function: in bf16 with AVX-512 bf16, in float32 with AVX2 or AVX-512.

The 3x3 convolutions are done by Winograd's F(4, 3) (Lavin and Gray, arXiv 1509.09308): in bf16 along rows, which takes
half the multiplications, in float32 along rows and columns, which takes a quarter. All that lies between them is done
while it is in cache. Weights are folded and transformed in float64 here and rounded once; the first layer and ESA's
small map are float32 in either. The headers say the rest.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from rlfn_pipe.allowance import cores
from rlfn_pipe.models.folding import Conv, Folded, Weights, folded, neighbours
from rlfn_pipe.models.native.library import Job, LibraryBlock, LibraryNet, Stretch, library
from rlfn_pipe.models.native.results import Results
from rlfn_pipe.threads import compiled_threads, let_openmp_rest

if TYPE_CHECKING:
    from rlfn_pipe.models.native.memory import RememberingNetwork
    from rlfn_pipe.types import ModelSpec

__all__ = ["Grid", "NativeNetwork", "fits", "winograd_weights"]

#: As in `rlfn_pipe.models.fuse`, of arrays.
Grid = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Pixels of a tile: wider ones leave the cache, lower ones compute more rows twice, of which float32 has more. How a
#: picture is cut changes no bit.
TILE_WIDTH = 320
TILE_HEIGHT = {"bf16": 96, "fp32": 256}
#: Points of the Winograd transform besides 0 and infinity, as in winograd.hpp: those with the least error in bf16.
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def fits(spec: ModelSpec, precision: str) -> bool:
    """Whether the compiled part is there and computes networks like `spec` in `precision`."""
    found = library(precision)
    if found is None:
        return False
    # 48 channels after padding, or one vector more.
    few = 48 // found.lanes
    widths = {-(-c // found.lanes) for c in (spec.channels, spec.mid_channels)}
    return (
        spec.blocks <= 16
        and spec.esa_channels == 16
        and len(widths) == 1
        and widths <= {few, few + 1}
        and spec.scale in (2, 3, 4)
    )


def winograd_weights(weight: np.ndarray) -> np.ndarray:
    """3x3 weights (o, i, 3, 3) to those of six products along rows, (6, 3 rows, i, o) in float64."""
    return np.einsum("oiyx,sx->syio", weight, _transform())


def winograd_squares(weight: np.ndarray) -> np.ndarray:
    """3x3 weights (o, i, 3, 3) to those of six by six products, (6 along columns, 6 along rows, i, o) in float64."""
    return np.einsum("oiyx,ry,sx->rsio", weight, _transform(), _transform())


def _transform() -> np.ndarray:
    matrix = [[p**k / math.prod(p - q for q in _POINTS if q != p) for k in range(3)] for p in _POINTS]
    return np.array([*matrix, [0.0, 0.0, 1.0]])


class NativeNetwork:
    """An RLFN on the CPU; called as `rlfn_pipe.models.fuse.InferenceNet` is, but with arrays.

    `weights` are those of an RLFN of `spec`, for which `fits` is True in `precision` (bf16 or fp32). `edge_fp32` keeps
    the last convolution in float32, too.
    Results do not depend on how many pictures come together, on threads, or on where tiles inside it lie. Several
    threads may call it at once.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, precision: str, edge_fp32: bool = False) -> None:
        self.scale = spec.scale
        self._precision, self._edge_fp32 = precision, edge_fp32
        found = library(precision)
        assert found is not None, "see `fits`"
        self.library = found
        self._lanes, self._short = found.lanes, precision == "bf16"
        self._vectors, self._esa_vectors = -(-spec.channels // self._lanes), 16 // self._lanes
        self._kept: list[np.ndarray] = []
        self.results = Results()
        self._cores = cores()
        self._spare: deque[np.ndarray] = deque(maxlen=self._cores)
        form = folded(spec, weights)
        with np.errstate(
            over="ignore"
        ):  # weights beyond float32 give no finite results, which is told of then
            self._blocks = (LibraryBlock * spec.blocks)(*map(self._block, form.blocks))
            self.net = self._packed(spec, form)
        #: What a low-resolution pixel takes while its picture is computed, besides some rows for each thread.
        self.pixel_bytes = (
            self.library.workspace(self.net, Job(height=1000, width=1000, columns=1, rows=1)) / 1e6
        )

    def __call__(self, x: np.ndarray, grid: Grid | None = None) -> np.ndarray:
        """(N, 3, h, w) RGB, 0..255, to (N, 3, s h, s w) float32, not clamped."""
        x = np.ascontiguousarray(x, np.float32)
        n, _, h, w = x.shape
        result = self.results.empty((n, 3, h * self.scale, w * self.scale))
        for i in range(n):
            place = None if grid is None else (grid[0][i], grid[1][i], grid[2][i, 0])
            with self.job(x[i], result[i], place) as job:
                self.library.run(self.net, job)
        return result

    def remembering(self, limit: int) -> RememberingNetwork:
        """The same network for the pictures of a video; what it keeps of the last one takes up to `limit` bytes."""
        from rlfn_pipe.models.native.memory import RememberingNetwork

        return RememberingNetwork(self, limit)

    @contextmanager
    def job(
        self,
        picture: np.ndarray,
        result: np.ndarray,
        place: Grid | None = None,
        memory: np.ndarray | None = None,
    ) -> Iterator[Job]:
        """What the library wants to know of a picture (3, h, w) and its result (3, s h, s w), both contiguous float32.

        `place` is a picture's own `Grid`; `memory` as `memory_bytes` asks for it. Valid inside the context.
        """
        _, h, w = picture.shape
        threads = compiled_threads()
        if threads > 1:
            let_openmp_rest()
        columns, rows = _tiles(h, w, threads, TILE_HEIGHT[self._precision])
        job = Job(height=h, width=w, threads=threads, columns=columns, rows=rows)
        job.memory = None if memory is None else _aligned(memory)
        size = self.library.workspace(self.net, job)
        workspace = self._room(size)
        # Alone this thread is one of several as a rule, each with its frame.
        self.results.most = 1 if threads > 1 else self._cores
        job.workspace = _aligned(workspace)
        job.stretch, kept = _whole(h, w) if place is None else _placed(*place)
        job.picture, job.result = picture.ctypes.data, result.ctypes.data
        yield job
        self._spare.append(workspace)
        del kept

    def _room(self, size: int) -> np.ndarray:
        """A buffer, the last picture's where it is large enough: the heap would be left with holes otherwise."""
        with suppress(IndexError):
            spare = self._spare.pop()
            if len(spare) >= size:
                return spare
            del spare  # before the larger one comes
        return np.empty(size, np.uint8)

    def forget(self) -> bool:
        """Hand back the buffers that the next pictures would use. False when there was none.

        Results' do not count: what memory ended for may just have left its own there.
        """
        waiting = bool(self._spare)
        self._spare.clear()
        self.results.release()
        return waiting

    def memory_bytes(self, h: int, w: int) -> int:
        """What keeping all layers of a picture takes."""
        columns, rows = _tiles(h, w, 1, TILE_HEIGHT[self._precision])
        job = Job(height=h, width=w, threads=1, columns=columns, rows=rows)
        size: int = self.library.memory(self.net, job)
        return size

    def _block(self, convs: dict[str, Conv]) -> LibraryBlock:
        few = self._esa_vectors
        made = LibraryBlock()
        for i, name in enumerate(("c1_r", "c2_r", "c3_r")):
            setattr(made, f"conv_{i}", self._large(convs[name]))
            setattr(made, f"bias_{i}", self._bias(convs[name], self._vectors))
        made.reduce = self._kept_as(_taps(convs["reduce"].weight), few)
        made.reduce_bias = self._bias(convs["reduce"], few)
        for name, vectors in (
            ("c5", self._vectors),
            ("conv2", few),
            ("conv_f", few),
            ("conv4", self._vectors),
        ):
            weight = _taps(convs[name].weight)
            if self.library.kernel == "amx" and name in ("conv_f", "conv4"):
                weight = np.pad(weight, [(0, 0), (0, 16), (0, 0)])  # as many inputs as its tiles have
            setattr(made, name, self._kept_as(weight, vectors))
            setattr(made, f"{name}_bias", self._bias(convs[name], vectors))
        made.conv3 = self._float(_taps(convs["conv3"].weight), few)
        made.conv3_bias = self._bias(convs["conv3"], few)
        return made

    def _packed(self, spec: ModelSpec, form: Folded) -> LibraryNet:
        head, tail, body = form.head, form.tail, form.body
        tail_vectors = -(-3 * spec.scale**2 // self._lanes)
        step = 2 if self._short else 1
        net = LibraryNet(
            vectors=self._vectors,
            inputs=-(-spec.channels // step) * step,
            mid_inputs=-(-spec.mid_channels // step) * step,
            blocks=spec.blocks,
            scale=spec.scale,
            tail_float=self._edge_fp32,
        )
        # [colour][row][column], as the rows of the picture lie.
        colours = head.weight.transpose(1, 2, 3, 0) * form.prescale
        net.head = self._float(colours.reshape(27, 1, -1), self._vectors)
        net.head_bias = self._bias(head, self._vectors)
        net.body = self._large(body)
        net.body_bias = self._bias(body, self._vectors)
        if self._short:
            # In bf16 the last layer is a plain convolution: it would lose too much otherwise.
            pack = self._float if self._edge_fp32 else self._kept_as
            net.tail = pack(_even(_taps(tail.weight)), tail_vectors)
        else:
            net.tail = self._float(winograd_squares(tail.weight), tail_vectors)
        net.tail_bias = self._bias(tail, tail_vectors)
        net.block = self._blocks
        return net

    def _large(self, conv: Conv) -> int:
        """Address of the packed weights of a 3x3 convolution between layers."""
        transformed = winograd_weights if self._short else winograd_squares
        return self._kept_as(transformed(conv.weight), self._vectors)

    def _kept_as(self, weights: np.ndarray, vectors: int) -> int:
        """Address of (..., i, o) packed in the network's number format.

        Pairs of inputs lie side by side in bf16: [...][pair][vector][lane][2].
        """
        if not self._short:
            return self._float(weights, vectors)
        weights = _even(self._wide(weights, vectors))
        *taps, inputs, outputs = weights.shape
        pairs = weights.reshape(*taps, inputs // 2, 2, outputs).swapaxes(-1, -2)
        return self._address(_bf16(pairs))

    def _float(self, weights: np.ndarray, vectors: int) -> int:
        """Address of (..., o) in float32, padded to vectors."""
        return self._address(np.ascontiguousarray(self._wide(weights, vectors), dtype=np.float32))

    def _wide(self, weights: np.ndarray, vectors: int) -> np.ndarray:
        """The last axis filled up with zeros to whole vectors."""
        missing = vectors * self._lanes - weights.shape[-1]
        return np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, missing)])

    def _bias(self, conv: Conv, vectors: int) -> int:
        return self._float(conv.bias, vectors)

    def _address(self, values: np.ndarray) -> int:
        """Address of a copy that begins with a line of the processor's cache: no vector lies in two of them."""
        room = np.empty(values.nbytes + 64, np.uint8)
        self._kept.append(room)
        address = _aligned(room)
        ctypes.memmove(address, values.ctypes.data, values.nbytes)
        return address


def _bf16(values: np.ndarray) -> np.ndarray:
    """The bits (uint16) of float64 values in bfloat16, rounded to the nearest, ties to even, from float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _taps(weight: np.ndarray) -> np.ndarray:
    """(o, i, k, k) to (k k, i, o)."""
    o, i, k, _ = weight.shape
    return weight.transpose(2, 3, 1, 0).reshape(k * k, i, o)


def _even(weights: np.ndarray) -> np.ndarray:
    """(..., i, o) with a zero input more where their number is odd."""
    return np.pad(weights, [(0, 0)] * (weights.ndim - 2) + [(0, weights.shape[-2] % 2), (0, 0)])


def _aligned(buffer: np.ndarray) -> int:
    """The first address in it at which a line of the processor's cache begins."""
    return -(-buffer.ctypes.data // 64) * 64


def _tiles(h: int, w: int, threads: int, height: int) -> tuple[int, int]:
    """Columns and rows of tiles: for one thread no more than the cache asks for, else many or as many for each."""
    columns, rows = -(-w // TILE_WIDTH), 1 if threads == 1 else max(1, round(h / height))
    while columns * rows < 4 * threads and columns * rows % threads:
        rows += 1
    return columns, min(rows, h)


@lru_cache(maxsize=16)
def _whole(h: int, w: int) -> tuple[Stretch, list[np.ndarray]]:
    """Where the small map of a picture of its own is read, the same for every frame of a video."""
    border = np.zeros(((h - 9) // 6 + 2, (w - 9) // 6 + 2))
    border[1:-1, 1:-1] = 1.0
    # No matrices, which would grow with the square of a side.
    return _stretch(_shares(h), _shares(w), border)


def _shares(side: int) -> tuple[np.ndarray, np.ndarray]:
    """`neighbours` with the shares of both cells, (side, 2)."""
    first, share = neighbours(side)
    return first, np.stack([1.0 - share, share], axis=1)


def _placed(rows: np.ndarray, columns: np.ndarray, border: np.ndarray) -> tuple[Stretch, list[np.ndarray]]:
    """The same for a tile by its matrices (h, h3) and (w, w3), which have two neighbouring entries a row."""
    return _stretch(_entries(rows), _entries(columns), border)


def _stretch(
    rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray], border: np.ndarray
) -> tuple[Stretch, list[np.ndarray]]:
    """From the first of two neighbouring cells and the shares of both, for each row and each column."""
    kept = [np.ascontiguousarray(border, np.float32)]
    for first, shares in (rows, columns):
        kept += [np.ascontiguousarray(first, np.int32), np.ascontiguousarray(shares, np.float32)]
    mask, row, row_share, column, column_share = (array.ctypes.data for array in kept)
    stretch = Stretch(row=row, column=column, row_share=row_share, column_share=column_share, border=mask)
    return stretch, kept


def _entries(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = (matrix != 0).argmax(axis=1)
    padded = np.pad(matrix, ((0, 0), (0, 1)))
    shares = np.stack([np.take_along_axis(padded, first[:, None] + i, axis=1)[:, 0] for i in (0, 1)], axis=1)
    return first, shares
