"""Triton kernels for CUDA: what lies between the convolutions, and results to planes. Imports Triton.

Each does in one pass over memory what PyTorch does in several. They were never run on a GPU, only by Triton's
interpreter on the CPU (`TRITON_INTERPRET=1`), and are off unless asked for; see `rlfn_pipe.models.fused`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

__all__ = ["attend", "leaky", "planes"]

_BLOCK = 1024
#: Added to a float32 and taken away again it leaves the nearest whole number, ties to even, as torch.round does.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _leaky(y, bias, skip, count, channels, slope, SKIP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    value = tl.load(y + i, inside).to(tl.float32) + tl.load(bias + i % channels, inside).to(tl.float32)
    value = tl.where(value > 0, value, value * slope)
    if SKIP:
        value += tl.load(skip + i, inside).to(tl.float32)
    tl.store(y + i, value.to(y.dtype.element_ty), inside)


@triton.jit
def _attend(y, bias, mask, mask_bias, count, channels, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    channel = i % channels
    value = tl.load(y + i, inside).to(tl.float32) + tl.load(bias + channel, inside).to(tl.float32)
    share = tl.load(mask + i, inside).to(tl.float32) + tl.load(mask_bias + channel, inside).to(tl.float32)
    tl.store(y + i, (value / (1.0 + tl.exp(-share))).to(y.dtype.element_ty), inside)


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


def leaky(
    y: torch.Tensor, bias: torch.Tensor, slope: float, skip: torch.Tensor | None = None
) -> torch.Tensor:
    """LeakyReLU of `y` (N, C, h, w) and a bias (C,), plus `skip`; all channels last. Overwrites `y`."""
    count = y.numel()
    _check(y, skip)
    _leaky[(triton.cdiv(count, _BLOCK),)](
        y, bias, y if skip is None else skip, count, y.shape[1], slope, SKIP=skip is not None, BLOCK=_BLOCK
    )
    return y


def attend(y: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor, mask_bias: torch.Tensor) -> torch.Tensor:
    """(y + bias) * sigmoid(mask + mask_bias) of (N, C, h, w), channels last, and (C,). Overwrites `y`."""
    count = y.numel()
    _check(y, mask)
    _attend[(triton.cdiv(count, _BLOCK),)](y, bias, mask, mask_bias, count, y.shape[1], BLOCK=_BLOCK)
    return y


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


def _check(y: torch.Tensor, other: torch.Tensor | None) -> None:
    for each in (y, y if other is None else other):
        assert each.shape == y.shape and each.is_contiguous(memory_format=torch.channels_last)
