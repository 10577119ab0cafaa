"""The inference form on the CPU: exact, but strip by strip, so that what a layer writes the next finds in cache.

A block (paper, figure 2) is a chain of 3x3 convolutions and pointwise steps, with one exception: ESA's
small map needs the whole frame. So a frame is done in passes. One pass takes horizontal strips with a halo
of 3 rows through ESA's second half of the block before and the three convolutions of this block, and the
small map is completed after it. Only each block's sum before ESA, and the first layer's output, are
ever held for a whole frame. What a strip computes beyond its rows is computed again by its neighbour, 6 rows
at each seam; nothing else differs from the network on the whole frame, and tiles with their `grid` work alike.

Activations are done by the convolutions where `models.convolution` can, the stretch of the small map is one
matrix product a strip, added to its target, and the shuffle moves whole groups of neighbouring samples.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from rlfn_pipe.allocator import keep_buffers
from rlfn_pipe.models.convolution import Activation, Convolution, fused_available, make_convolution
from rlfn_pipe.models.folding import Conv, folded, neighbours, weights_of
from rlfn_pipe.models.fuse import Grid

if TYPE_CHECKING:
    from rlfn_pipe.models.rlfn import RLFN
    from rlfn_pipe.types import ModelSpec

__all__ = ["STRIP_BYTES", "StripNetwork"]

#: Bytes of one activation of a strip: some of them have to fit the last level of cache (docs/performance.md).
STRIP_BYTES = 12 << 20
#: Strips are not made lower than this: each seam costs 6 rows of convolutions.
LEAST_ROWS = 24
_HALO = 3
_MID_GREY = 127.5
_SHORT = (torch.bfloat16, torch.float16)
#: What holds a group of neighbouring samples of so many bytes as one element.
_GROUP = {4: torch.int32, 8: torch.int64, 16: torch.complex128}


class _Block:
    """The convolutions of one RLFB. ESA's first 1x1 swallows `c5`, so that it reads the block's sum."""

    def __init__(self, convs: dict[str, Conv], dtype: torch.dtype, fused: bool | None) -> None:
        def made(name: str, activation: Activation = "none", stride: int = 1) -> Convolution:
            return _made(convs[name], dtype, fused, activation, stride)

        self.chain = [made(name, "leaky_relu") for name in ("c1_r", "c2_r", "c3_r")]
        self.c5, self.conv2, self.conv_f = made("c5"), made("conv2", stride=2), made("conv_f")
        self.conv4 = made("conv4", "sigmoid")
        self.conv1 = made("reduce")
        # The small map is so small that it can stay exact.
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.conv3 = _made(convs["conv3"], exact, fused)


def _made(
    conv: Conv, dtype: torch.dtype, fused: bool | None, activation: Activation = "none", stride: int = 1
) -> Convolution:
    weight, bias = map(torch.from_numpy, conv)
    return make_convolution(weight.to(dtype), bias, stride, activation, fused)


class StripNetwork:
    """An RLFN on the CPU; called as `rlfn_pipe.models.fuse.InferenceNet` is, with the same result.

    `module` (an RLFN of `spec`), `dtype` and `edge_fp32` as in `build_inference`. `fused` asks for one road of
    `make_convolution`. `strip_bytes` sets the strips' height.
    """

    def __init__(
        self,
        spec: ModelSpec,
        module: RLFN,
        dtype: torch.dtype,
        edge_fp32: bool = False,
        *,
        fused: bool | None = None,
        strip_bytes: int = STRIP_BYTES,
    ) -> None:
        keep_buffers(strip_bytes + strip_bytes // 3)
        short = dtype in _SHORT
        self.scale, self._dtype, self._strip_bytes = spec.scale, dtype, strip_bytes
        form = folded(spec, weights_of(module))
        self._prescale = form.prescale
        self._channels, self._esa_channels = spec.channels, spec.esa_channels
        self._head_dtype = torch.float32 if dtype == torch.bfloat16 or (short and edge_fp32) else dtype
        self._tail_dtype = torch.float32 if short and edge_fp32 else dtype
        self._head = _made(form.head, self._head_dtype, fused)
        self._blocks = [_Block(convs, dtype, fused) for convs in form.blocks]
        self._body = _made(form.body, dtype, fused)
        last, bias = map(torch.from_numpy, form.tail)
        self._offset, self._remainder = 0.0, None
        if self._tail_dtype in _SHORT:
            # The distance from mid grey needs a bit less than the value.
            self._offset, bias = _MID_GREY, bias - _MID_GREY
            if not (fused_available(dtype) if fused is None else fused):
                # A short bias is rounded; what that takes away is added again behind the convolution.
                self._remainder = (bias - bias.to(dtype).double()).float()
        self._tail = make_convolution(last.to(self._tail_dtype), bias, fused=fused)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        """(N, 3, h, w) RGB, 0..255, to (N, 3, s h, s w) float32 (float64), not clamped.

        Each picture is computed by itself, so that its result does not depend on the others'.
        """
        n, _, h, w = x.shape
        kind = torch.float64 if self._dtype == torch.float64 else torch.float32
        result = torch.empty((n, 3, h * self.scale, w * self.scale), dtype=kind)
        for i in range(n):
            place = None if grid is None else (grid[0][i], grid[1][i], grid[2][i])
            self._picture(x[i : i + 1], _Stretch(h, w, self._dtype, place), result[i])
        return result

    def _picture(self, x: torch.Tensor, stretch: _Stretch, result: torch.Tensor) -> None:
        h, w = x.shape[-2:]
        height = max(LEAST_ROWS, self._strip_bytes // (w * self._channels * self._dtype.itemsize))
        count = max(1, round(h / height))
        strips = [(h * i // count, h * (i + 1) // count) for i in range(count)]
        shallow = self._frame(h, w)
        for a, b in strips:
            self._first(x, a, b, shallow)
        source: _Source = _Whole(shallow)
        here, spare = self._buffers(h, w), self._buffers(h, w)
        for block in self._blocks:
            total, reduced = here
            done = 0
            maps = []
            for a, b in strips:
                self._first_half(block, source, a, b, total)
                reduced[:, :, a:b].copy_(block.conv1(total[:, :, a:b], 0, 0))
                # ESA's strided convolution reads three rows from every second one on.
                count = max(0, (b - 1) // 2 - done)
                if count:
                    part = block.conv2(reduced[:, :, 2 * done : 2 * (done + count) + 1], 0, 0)
                    maps.append(F.max_pool2d(part, (1, 7), (1, 3)))
                    done += count
            small = F.max_pool2d(torch.cat(maps, 2), (7, 1), (3, 1))
            source = _SecondHalf(block, total, reduced, stretch, stretch.columns(block.conv3, small))
            here, spare = spare, here
        for a, b in strips:
            self._last(source, shallow, a, b, result)

    def _buffers(self, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What a block leaves: the sum before ESA, and that after ESA's first convolution."""
        return self._frame(h, w), self._frame(h, w, self._esa_channels)

    def _frame(self, h: int, w: int, channels: int = 0) -> torch.Tensor:
        size = (1, channels or self._channels, h, w)
        return torch.empty(size, dtype=self._dtype, memory_format=torch.channels_last)

    def _first(self, x: torch.Tensor, a: int, b: int, shallow: torch.Tensor) -> None:
        """Rows a .. b of the first convolution."""
        h = x.shape[2]
        lo, hi = max(0, a - 1), min(h, b + 1)
        part = x[:, :, lo:hi]
        if self._prescale != 1.0:
            part = part * self._prescale
        part = part.to(self._head_dtype).contiguous(memory_format=torch.channels_last)
        shallow[:, :, a:b].copy_(_convolved(self._head, part, lo == 0, hi == h))

    def _first_half(self, block: _Block, source: _Source, a: int, b: int, total: torch.Tensor) -> None:
        """Rows a .. b of a block's three convolutions plus its input, into `total`."""
        h = total.shape[2]
        lo, hi = max(0, a - _HALO), min(h, b + _HALO)
        x = source.rows(lo, hi)
        y = x
        for conv in block.chain:
            y = _convolved(conv, y, lo == 0, hi == h)
        torch.add(y, x[:, :, a - lo : b - lo], out=total[:, :, a:b])

    def _last(self, source: _Source, shallow: torch.Tensor, a: int, b: int, result: torch.Tensor) -> None:
        """Rows a .. b of the last two convolutions, as picture rows of `result` (3, s h, s w)."""
        h = shallow.shape[2]
        top, bottom = a == 0, b == h
        outer, inner = (max(0, a - 2), min(h, b + 2)), (max(0, a - 1), min(h, b + 1))
        y = _convolved(self._body, source.rows(*outer), top, bottom)
        y = y.add_(shallow[:, :, inner[0] : inner[1]])
        y = _convolved(self._tail, y.to(self._tail_dtype), top, bottom)
        if self._remainder is not None:
            y = y.float().add_(self._remainder[:, None, None])
        s = self.scale
        _shuffle(y, s, result[:, s * a : s * b], self._offset)


class _Source:
    """Where a block's input comes from."""

    def rows(self, lo: int, hi: int) -> torch.Tensor:
        """(1, C, hi - lo, w)."""
        raise NotImplementedError


class _Whole(_Source):
    """A frame that is there."""

    def __init__(self, frame: torch.Tensor) -> None:
        self._frame = frame

    def rows(self, lo: int, hi: int) -> torch.Tensor:
        return self._frame[:, :, lo:hi]


class _SecondHalf(_Source):
    """ESA's second half, computed when asked for: ``c5(total) * sigmoid(conv4(conv_f(reduced) + map))``."""

    def __init__(
        self,
        block: _Block,
        total: torch.Tensor,
        reduced: torch.Tensor,
        stretch: _Stretch,
        columns: torch.Tensor,
    ) -> None:
        self._block, self._total, self._reduced = block, total, reduced
        self._stretch, self._columns = stretch, columns

    def rows(self, lo: int, hi: int) -> torch.Tensor:
        attention = self._block.conv_f(self._reduced[:, :, lo:hi], 0, 0)
        self._stretch.add_rows(attention, lo, hi, self._columns)
        return self._block.c5(self._total[:, :, lo:hi], 0, 0).mul_(self._block.conv4(attention, 0, 0))


class _Stretch:
    """The bilinear stretch of the small map over a frame, or over a tile by its `grid`, as two products."""

    def __init__(
        self,
        h: int,
        w: int,
        dtype: torch.dtype,
        grid: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self._dtype = dtype
        self._border = None if grid is None else grid[2]
        self._width = w
        self._exact = torch.float64 if dtype == torch.float64 else torch.float32
        if grid is None:
            # Of a whole frame each strip has its piece of the rows' matrix, which would grow with the square of a side.
            self._height = h
        else:
            self._rows, self._columns = grid[0].to(dtype), grid[1].to(self._exact)

    def columns(self, conv: Convolution, small: torch.Tensor) -> torch.Tensor:
        """The small map (1, f, h3, w3) after its convolution, stretched along its rows: (h3, w * f)."""
        small = small.to(self._exact)
        if self._border is None:
            small = conv(small, 1, 1)
            size = (small.shape[2], self._width)
            wide = F.interpolate(small, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        else:
            small = F.pad(small, (1, 1, 1, 1), mode="replicate").mul_(self._border)
            small = conv(small.contiguous(memory_format=torch.channels_last), 0, 0)
            wide = torch.matmul(self._columns, small[0].permute(1, 2, 0))
        return wide.to(self._dtype).flatten(1)

    def add_rows(self, target: torch.Tensor, lo: int, hi: int, columns: torch.Tensor) -> None:
        """Add the stretched map's rows lo .. hi to `target` (1, f, hi - lo, w), in place."""
        if self._border is None:
            first, piece = _rows_matrix(self._height, lo, hi)
            weights = piece.to(self._dtype)
        else:
            weights = self._rows[lo:hi]
            used = torch.nonzero(weights.any(dim=0)).flatten()
            first = int(used[0])
            weights = weights[:, first : int(used[-1]) + 1]
        pixels = target[0].permute(1, 2, 0).flatten(1)
        assert pixels.data_ptr() == target.data_ptr(), "channels last is what a convolution gives back"
        pixels.addmm_(weights, columns[first : first + weights.shape[1]])


@lru_cache(maxsize=512)
def _rows_matrix(side: int, lo: int, hi: int) -> tuple[int, torch.Tensor]:
    """The matrix, float64, of rows lo .. hi of a whole frame of `side` rows, from the first cell that they use, and that.

    The same for all blocks and frames; of rows one behind the other, which use a few cells.
    """
    lower, share = (part[lo:hi] for part in neighbours(side))
    first, last = int(lower[0]), int((lower + (share > 0)).max())
    weights = np.zeros((hi - lo, last - first + 1))
    rows = np.arange(hi - lo)
    weights[rows, lower - first] = 1.0 - share
    # Where the second cell has no share it may not be there.
    np.add.at(weights, (rows, np.minimum(lower - first + 1, last - first)), share)
    return first, torch.from_numpy(weights)


def _convolved(conv: Convolution, x: torch.Tensor, top: bool, bottom: bool) -> torch.Tensor:
    """A 3x3 convolution of rows; zeros stand for rows only beyond the frame's `top` and `bottom`.

    One row less comes out at any other end.
    """
    if top and bottom:
        return conv(x, 1, 1)
    if not (top or bottom):
        return conv(x, 0, 1)
    y = conv(x, 1, 1)
    return y[:, :, :-1] if top else y[:, :, 1:]


def _shuffle(y: torch.Tensor, scale: int, target: torch.Tensor, offset: float) -> None:
    """Pixel shuffle of (1, 3 s s, r, w) into `target` (3, s r, s w), plus `offset`.

    A pixel's s samples of one output row lie side by side before and after, so they are moved as one.
    """
    r, w = y.shape[-2:]
    y = y[0].permute(1, 2, 0).contiguous()
    group = _GROUP.get(scale * y.element_size())
    if group is None or y.dtype == torch.float64:
        grouped = y.view(r, w, 3, scale, scale).permute(2, 0, 3, 1, 4)
        target.view(3, r, scale, w, scale).copy_(grouped)
    else:
        moved = y.view(group).view(r, w, 3, scale).permute(2, 0, 3, 1).contiguous()
        target.view(3, r * scale, w * scale).copy_(moved.view(y.dtype).view(3, r * scale, w * scale))
    if offset:
        target.add_(offset)
