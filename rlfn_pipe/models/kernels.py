"""Triton kernels for CUDA: the network's convolutions with what lies between them, and results to planes.

Imports Triton. Tests run them by its interpreter on the CPU (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

__all__ = ["Attention", "Convolution", "planes"]

_BLOCK = 1024
#: Pixels that a program of the convolution, and of the attention, takes; how the former is compiled.
CONV_BLOCK, ATTEND_BLOCK = 128, 64
CONV_OPTIONS: dict[str, int] = {"num_warps": 8, "num_stages": 3}
#: Added to a float32 and taken away again it leaves the nearest whole number, ties to even, as torch.round does.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit(do_not_specialize=["height", "width", "count"])
def _conv(
    x, weight, bias, skip, out, height, width, count, slope, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    K: tl.constexpr, N: tl.constexpr, ACTIVE: tl.constexpr, SKIP: tl.constexpr, SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column, row = pixel % width, (pixel // width) % height
    k, n = tl.arange(0, K), tl.arange(0, N)
    total = tl.full((BLOCK, N), 0.0, tl.float32)
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        near = (pixel + down * width + right).to(tl.int64)
        a = tl.load(
            x + near[:, None] * INPUTS + k[None, :],
            (inside & (pixel < count))[:, None] & (k < INPUTS)[None, :],
            0.0,
        )
        total = tl.dot(a, tl.load(weight + (tap * K + k[:, None]) * N + n[None, :]), total)
    real = (pixel < count)[:, None] & (n < OUTPUTS)[None, :]
    at = pixel.to(tl.int64)[:, None] * OUTPUTS + n[None, :]
    value = total + tl.load(bias + n, n < OUTPUTS, 0.0).to(tl.float32)[None, :]
    if ACTIVE:
        value = tl.where(value > 0, value, value * slope)
    if SKIP:
        value += tl.load(skip + at, real, 0.0).to(tl.float32)
    if SCALE:
        # The pixel shuffle: channel n is colour n // scale^2, its sample (n // scale % scale, n % scale).
        image = (pixel // (width * height)).to(tl.int64)[:, None] * 3 + (n // (SCALE * SCALE))[None, :]
        y = row[:, None] * SCALE + (n // SCALE % SCALE)[None, :]
        at = (
            (image * (height * SCALE) + y) * (width * SCALE)
            + (column * SCALE)[:, None]
            + (n % SCALE)[None, :]
        )
    tl.store(out + at, value.to(out.dtype.element_ty), real)


@triton.jit(do_not_specialize=["count"])
def _attend(
    x, weight, bias, mask, mask_weight, mask_bias, out, count, CHANNELS: tl.constexpr, FEW: tl.constexpr,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    k, few = tl.arange(0, K), tl.arange(0, FEW)
    inside, within = (pixel < count)[:, None], (k < CHANNELS)[None, :]
    at = pixel[:, None] * CHANNELS + k[None, :]
    pair = k[:, None] * K + k[None, :]
    value = tl.dot(tl.load(x + at, inside & within, 0.0), tl.load(weight + pair))
    value += tl.load(bias + k, k < CHANNELS, 0.0).to(tl.float32)[None, :]
    small = tl.load(mask + pixel[:, None] * FEW + few[None, :], inside, 0.0)
    share = tl.dot(small, tl.load(mask_weight + few[:, None] * K + k[None, :]))
    share += tl.load(mask_bias + k, k < CHANNELS, 0.0).to(tl.float32)[None, :]
    tl.store(out + at, (value / (1.0 + tl.exp(-share))).to(out.dtype.element_ty), inside & within)


@triton.jit
def _code(value, top):
    value = (value + _ROUNDER) - _ROUNDER
    return tl.minimum(tl.maximum(value, 0.0), top).to(tl.int32)


@triton.jit
def _luma_of(rgb, at, plane, red, green, blue, inside):
    r = tl.load(rgb + at, inside)
    g = tl.load(rgb + plane + at, inside)
    b = tl.load(rgb + 2 * plane + at, inside)
    return r, b, r * red + g * green + b * blue


@triton.jit
def _along(
    rgb, luma, wide, plane, height, width, columns, red, green, blue, gain, offset, top, weights,
    FIRST: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, x = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width
    _, _, y = _luma_of(rgb, row * width + x, plane, red, green, blue, inside)
    tl.store(luma + row * width + x, _code(y * gain + offset, top).to(luma.dtype.element_ty), inside)
    within = x < columns
    cb = tl.full((BLOCK,), 0.0, tl.float32)
    cr = tl.full((BLOCK,), 0.0, tl.float32)
    for k in tl.static_range(COUNT):
        near = tl.minimum(tl.maximum(x * STEP + FIRST + k, 0), width - 1)
        r, b, y = _luma_of(rgb, row * width + near, plane, red, green, blue, within)
        weight = tl.load(weights + k)
        cb += weight * (b - y)
        cr += weight * (r - y)
    tl.store(wide + row * columns + x, cb, within)
    tl.store(wide + (height + row) * columns + x, cr, within)


@triton.jit
def _down(
    wide, chroma, height, rows, columns, gain, offset, top, weights,
    FIRST: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, x = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < columns
    value = tl.full((BLOCK,), 0.0, tl.float32)
    for k in tl.static_range(COUNT):
        near = tl.minimum(tl.maximum(row * STEP + FIRST + k, 0), height - 1)
        value += tl.load(weights + k) * tl.load(wide + near * columns + x, inside)
    code = _code(value * gain + offset, top)
    tl.store(chroma + row * columns + x, code.to(chroma.dtype.element_ty), inside)


class Convolution:
    """A 3x3 convolution of stride 1 with zeros around, its weights as the kernel reads them; fp16.

    `weight` (O, I, 3, 3), `bias` (O,), both at most 64 channels.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.outputs, self.inputs = weight.shape[:2]
        self._k, self._n = (max(16, triton.next_power_of_2(count)) for count in (self.inputs, self.outputs))
        taps = weight.permute(2, 3, 1, 0).reshape(9, self.inputs, self.outputs)
        self._weight = _filled(taps, (9, self._k, self._n))
        self._bias = bias.contiguous()

    def __call__(
        self,
        x: torch.Tensor,
        slope: float = 1.0,
        skip: torch.Tensor | None = None,
        scale: int = 0,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """LeakyReLU of the convolution of `x` (N, I, h, w), plus `skip`; channels last.

        With `scale` the result's pixels are shuffled, as by torch.pixel_shuffle: float32, planes. `bias` (O,) float32
        in the place of the convolution's own.
        """
        _check(x, self.inputs)
        if skip is not None:
            _check(skip, self.outputs)
        count, _, height, width = x.shape
        if scale:
            out = x.new_empty((count, 3, scale * height, scale * width), dtype=torch.float32)
        else:
            out = x.new_empty((count, height, width, self.outputs)).permute(0, 3, 1, 2)
        pixels = count * height * width
        _conv[(triton.cdiv(pixels, CONV_BLOCK),)](
            x, self._weight, self._bias if bias is None else bias, x if skip is None else skip, out,
            height, width, pixels, slope, INPUTS=self.inputs, OUTPUTS=self.outputs, K=self._k, N=self._n,
            ACTIVE=slope != 1.0, SKIP=skip is not None, SCALE=scale, BLOCK=CONV_BLOCK, **CONV_OPTIONS,
        )  # fmt: skip
        return out


class Attention:
    """A 1x1 convolution times the sigmoid of another one's result (C of C, and C of F channels, F a power of 2)."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, mask_weight: torch.Tensor, mask_bias: torch.Tensor
    ) -> None:
        self.channels, self.few = mask_weight.shape[:2]
        self._k = max(16, triton.next_power_of_2(self.channels))
        self._weight = _filled(weight[:, :, 0, 0].T, (self._k, self._k))
        self._mask_weight = _filled(mask_weight[:, :, 0, 0].T, (self.few, self._k))
        self._bias, self._mask_bias = bias.contiguous(), mask_bias.contiguous()

    def __call__(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The product for `x` (N, C, h, w) and `mask` (N, F, h, w); channels last."""
        _check(x, self.channels)
        mask = mask.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        count = x.shape[0] * x.shape[2] * x.shape[3]
        _attend[(triton.cdiv(count, ATTEND_BLOCK),)](
            x, self._weight, self._bias, mask, self._mask_weight, self._mask_bias, out, count,
            CHANNELS=self.channels, FEW=self.few, K=self._k, BLOCK=ATTEND_BLOCK,
        )  # fmt: skip
        return out


def planes(
    rgb: torch.Tensor,
    luma: tuple[float, float, float],
    gains: tuple[float, float, float],
    offsets: tuple[float, float],
    bit_depth: int,
    along: Sequence[tuple[int, float]],
    down: Sequence[tuple[int, float]],
) -> list[torch.Tensor]:
    """Y, Cb and Cr of `rgb` (3, H, W) float32, quantised as `rlfn_pipe.engine.colour.quantise` does.

    Args:
        luma: weights of red, green and blue.
        gains, offsets: from 0..255 to code values: gains of Y, Cb and Cr, offsets of luma and chroma.
        along, down: chroma's filter in each direction, (sample, weight) without gaps; one tap: all samples stay.
    """
    rgb = rgb.contiguous()
    _, height, width = rgb.shape
    step_x, step_y = (2 if len(taps) > 1 else 1 for taps in (along, down))
    columns, rows = -(-width // step_x), -(-height // step_y)
    dtype = torch.uint8 if bit_depth == 8 else torch.int16
    made = [rgb.new_empty(size, dtype=dtype) for size in ((height, width), (rows, columns), (rows, columns))]
    wide = rgb.new_empty((2, height, columns))
    top = float((1 << bit_depth) - 1)
    weights = [_weights(tuple(taps), rgb.device) for taps in (along, down)]
    block = min(_BLOCK, triton.next_power_of_2(width))
    _along[(height, triton.cdiv(width, block))](
        rgb, made[0], wide, height * width, height, width, columns, *luma, gains[0], offsets[0], top, weights[0],
        FIRST=along[0][0], COUNT=len(along), STEP=step_x, BLOCK=block,
    )  # fmt: skip
    for number in (0, 1):
        _down[(rows, triton.cdiv(columns, block))](
            wide[number], made[1 + number], height, rows, columns, gains[1 + number], offsets[1], top, weights[1],
            FIRST=down[0][0], COUNT=len(down), STEP=step_y, BLOCK=block,
        )  # fmt: skip
    return made


@lru_cache(maxsize=16)
def _weights(taps: tuple[tuple[int, float], ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([weight for _, weight in taps], dtype=torch.float32, device=device)


def _filled(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """`values` with zeros behind them in every direction."""
    made = values.new_zeros(shape)
    made[tuple(slice(size) for size in values.shape)] = values
    return made


def _check(x: torch.Tensor, channels: int) -> None:
    assert x.shape[1] == channels and x.is_contiguous(memory_format=torch.channels_last)
