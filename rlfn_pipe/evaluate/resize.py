"""Bicubic resizing by MATLAB's rule, the one the super-resolution field makes its low-resolution images with.

`imresize(image, height, width)` is the general form, `downscale(image, factor)` the fast one that data
loading uses, `upscale(image, factor)` the bicubic baseline. numpy only.

The rule: cubic convolution with a = -0.5, widened by 1/scale (and so low-pass) when shrinking; the output
sample x (from 1) sits at u = x / scale + (1 - 1 / scale) / 2; taps outside the picture take the edge's value;
the axis with the smaller scale goes first, rows first when equal; integer images are rounded (halves up) and
clipped to their type after each axis. Equals the published LR images of Set5, Set14 and BSD100 bit for bit.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

__all__ = ["downscale", "imresize", "upscale"]

#: float32 holds every integer up to here, so sums of integers below it are exact in any order.
_EXACT_FLOAT32 = 1 << 24


def downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Shrink by a whole factor as MATLAB's `imresize(image, 1 / factor)` does.

    `image` is uint8, (height, width) or (height, width, channels); the result is uint8 of
    (ceil(height / factor), ceil(width / factor)). Crop to a multiple of the factor first where the field's
    protocol asks for it. Raises ValueError for another dtype, an empty image or a factor below 1.
    """
    _check(image)
    if image.dtype != np.uint8:
        raise ValueError(f"downscale takes uint8 images, not {image.dtype}; use imresize")
    if factor < 1:
        raise ValueError(f"the factor {factor} must be a whole number of at least 1")
    if factor == 1:
        return image.copy()
    return _shrink(_shrink(image, factor, axis=0), factor, axis=1)


def upscale(image: np.ndarray, factor: int, *, border: str = "clamp") -> np.ndarray:
    """Enlarge by a whole factor: the bicubic baseline of the field's tables. See `imresize`."""
    return imresize(image, image.shape[0] * factor, image.shape[1] * factor, border=border)


def imresize(
    image: np.ndarray, height: int, width: int, *, antialias: bool = True, border: str = "clamp"
) -> np.ndarray:
    """Resize to `height` x `width` by MATLAB's bicubic rule, up or down, each axis on its own.

    `image` is (h, w) or (h, w, channels). uint8 and uint16 come back in their type, rounded after each axis
    as MATLAB does; floating-point images are neither rounded nor clipped (float64 stays, the rest becomes
    float32). `antialias` widens the kernel when shrinking. `border` says what taps beyond the edge see:
    "clamp" the edge's value, "mirror" the picture reflected with its edge repeated (newer MATLAB versions).
    Raises ValueError for an empty image, another dtype, a size below 1 or an unknown border.
    """
    _check(image)
    if height < 1 or width < 1:
        raise ValueError(f"the size {width}x{height} must be at least 1x1")
    if border not in ("clamp", "mirror"):
        raise ValueError(f'the border "{border}" must be "clamp" or "mirror"')
    sizes = (height, width)
    result = image if image.dtype in (np.uint8, np.uint16, np.float64) else image.astype(np.float32)
    for axis in sorted((0, 1), key=lambda axis: sizes[axis] / image.shape[axis]):
        if sizes[axis] != image.shape[axis]:
            indices, weights = _taps(image.shape[axis], sizes[axis], antialias, border)
            result = _weighted_sum(result, indices, weights, axis)
    return result.copy() if result is image else result


def _check(image: np.ndarray) -> None:
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"an image is (height, width) or (height, width, channels), not {image.shape}")
    if image.dtype.kind != "f" and image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"images are uint8, uint16 or floating point, not {image.dtype}")


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, near, np.where(x <= 2.0, far, 0.0))


@lru_cache(maxsize=64)
def _taps(length: int, out_length: int, antialias: bool, border: str) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and weights, each (out_length, taps), for one axis."""
    scale = out_length / length
    widening = scale if antialias and scale < 1.0 else 1.0
    reach = 2.0 / widening
    centre = (np.arange(out_length) + 0.5) / scale - 0.5
    indices = np.floor(centre - reach)[:, None].astype(np.int64) + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = _cubic(widening * (centre[:, None] - indices))
    weights /= weights.sum(axis=1, keepdims=True)
    if border == "clamp":
        indices = indices.clip(0, length - 1)
    else:
        folded = indices % (2 * length)
        indices = np.minimum(folded, 2 * length - 1 - folded)
    used = np.any(weights != 0.0, axis=0)
    indices, weights = indices[:, used], weights[:, used]
    indices.flags.writeable = weights.flags.writeable = False
    return indices, weights


def _weighted_sum(image: np.ndarray, indices: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Apply the taps along `axis`; integer images are summed in float64, rounded and clipped."""
    work: type[np.floating] = np.float32 if image.dtype == np.float32 else np.float64
    shape = [1] * image.ndim
    shape[axis] = -1
    total: np.ndarray | None = None
    for index, weight in zip(indices.T, weights.T, strict=True):
        part = np.multiply(image.take(index, axis=axis), weight.astype(work).reshape(shape), dtype=work)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None  # a cubic kernel always has taps
    if image.dtype.kind == "f":
        return total
    return np.floor(total + 0.5).clip(0, np.iinfo(image.dtype).max).astype(image.dtype)


@lru_cache(maxsize=16)
def _whole_taps(factor: int) -> tuple[tuple[int, ...], int, int]:
    """The kernel of a whole factor in whole numbers: weights, their common sum, and the first tap's offset.

    Output sample x sits at factor * x + (factor - 1) / 2, the same place in every group of `factor` source
    samples, so that all outputs share one kernel, and its weights are fractions of a common denominator.
    """
    centre = Fraction(factor - 1, 2)
    first = int(centre - 2 * factor) - 1
    weights: list[Fraction] = []
    for position in range(first, first + 4 * factor + 4):
        x = abs((centre - position) / factor)
        if x <= 1:
            weights.append((Fraction(3, 2) * x - Fraction(5, 2)) * x * x + 1)
        elif x < 2:
            weights.append(((Fraction(-1, 2) * x + Fraction(5, 2)) * x - 4) * x + 2)
        else:
            weights.append(Fraction(0))
    used = [i for i, weight in enumerate(weights) if weight]
    weights = weights[used[0] : used[-1] + 1]
    common = lcm(*(weight.denominator for weight in weights))
    whole = tuple(int(weight * common) for weight in weights)
    return whole, sum(whole), first + used[0]


def _shrink(image: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """One axis of `downscale`: strided weighted sums over the edge-padded picture, in whole numbers."""
    weights, total_weight, first = _whole_taps(factor)
    exact32 = 255 * sum(abs(weight) for weight in weights) + total_weight < _EXACT_FLOAT32
    work: type[np.floating] = np.float32 if exact32 else np.float64
    length = image.shape[axis]
    out_length = -(-length // factor)
    after = (out_length - 1) * factor + first + len(weights) - length
    padding = [(0, 0)] * image.ndim
    padding[axis] = (-first, max(0, after))
    padded = np.pad(image, padding, mode="edge")
    total: np.ndarray | None = None
    for tap, weight in enumerate(weights):
        span = slice(tap, tap + (out_length - 1) * factor + 1, factor)
        taken = padded[span] if axis == 0 else padded[:, span]
        part = np.multiply(taken, work(weight), dtype=work)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    whole = total.astype(np.int32 if exact32 else np.int64)
    rounded = (2 * whole + total_weight) // (2 * total_weight)
    return rounded.clip(0, 255).astype(np.uint8)
