"""Separable Lanczos-3, for sizes that the network's own scale does not give, and bilinear enlarging.

An output sample reads a few input samples, so an axis is resampled band by band: some neighbouring outputs at a time, as
a matrix product with the inputs that they read (docs/performance.md has what that gains over one product).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rlfn_pipe.engine.arrays import Array, Arrays

__all__ = ["enlarge", "resize"]

_LOBES = 3.0
#: Outputs of a band: fewer waste less on zeros, more are fewer calls, which is what a GPU has to wait for.
_BAND, _BAND_ON_A_GPU = 32, 256
#: Multiplications of a product that OpenBLAS, numpy's own, does on the thread that asks for it, whatever others it has.
_ALONE = 1 << 18


class _Bands(NamedTuple):
    """`weights` (n, band, reach) float32: outputs ``band * i ...`` of inputs ``first[i] ... first[i] + reach``."""

    first: tuple[int, ...]
    weights: Array


def resize(image: Array, height: int, width: int, arrays: Arrays) -> Array:
    """Resize (C, h, w) float32 to (C, height, width); the very same array when the size is equal.

    Half-pixel centres; the kernel is widened by the ratio when an axis shrinks (antialiasing). Overshoot is kept:
    rounding to code values clamps it.
    """
    h, w = image.shape[-2:]
    # The way with the smaller picture in between.
    rows_first = height * w <= h * width
    for rows in (rows_first, not rows_first):
        image = _resampled(image, height if rows else width, arrays, rows=rows, lobes=_LOBES)
    return image


def enlarge(image: Array, height: int, width: int, arrays: Arrays) -> Array:
    """(C, h, w) float32 to a larger (C, height, width), bilinearly, with half-pixel centres."""
    for rows, size in ((False, width), (True, height)):
        image = _resampled(image, size, arrays, rows=rows, lobes=1.0)
    return image


def _resampled(image: Array, size: int, arrays: Arrays, *, rows: bool, lobes: float) -> Array:
    """Rows or columns of an image as `size` of them; `lobes` of the sinc kernel, or 1 for a triangle."""
    count = image.shape[-2 if rows else -1]
    if count == size:
        return image
    band = _BAND if arrays.small_steps else _BAND_ON_A_GPU
    bands = _bands(size, count, band, lobes, arrays)
    reach = bands.weights.shape[-1]
    made = arrays.empty((image.shape[0], size, image.shape[2]) if rows else (*image.shape[:2], size))
    across = image.shape[-1 if rows else -2]
    part = max(1, _ALONE // (band * reach)) if isinstance(image, np.ndarray) else across
    for number, first in enumerate(bands.first):
        begin, end = number * band, min(size, (number + 1) * band)
        weights = bands.weights[number, : end - begin]
        for at in range(0, across, part):
            to = min(across, at + part)
            if rows:
                made[:, begin:end, at:to] = weights @ image[:, first : first + reach, at:to]
            else:
                made[:, at:to, begin:end] = image[:, at:to, first : first + reach] @ weights.T
    return made


@lru_cache(maxsize=32)
def _bands(size: int, in_size: int, band: int, lobes: float, arrays: Arrays) -> _Bands:
    """An axis of `in_size` samples to one of `size`; every row of weights sums to one.

    Taps beyond the edge fall on the outermost sample.
    """
    ratio = in_size / size
    width = max(1.0, ratio)
    centre = (np.arange(size) + 0.5) * ratio - 0.5
    around = int(np.ceil(lobes * width)) + 1
    taps = np.floor(centre)[:, None].astype(np.int64) + np.arange(-around, around + 1)[None, :]
    distance = np.abs(taps - centre[:, None]) / width
    kernel = np.sinc(distance) * np.sinc(distance / lobes) if lobes > 1.0 else 1.0 - distance
    weights = np.where(distance < lobes, kernel, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    taps = np.clip(taps, 0, in_size - 1)
    starts = range(0, size, band)
    reach = max(int(taps[min(i + band, size) - 1, -1] - taps[i, 0]) + 1 for i in starts)
    first = tuple(min(int(taps[i, 0]), in_size - reach) for i in starts)
    made = np.zeros((len(first), band, reach), dtype=np.float64)
    row = np.arange(size)[:, None]
    np.add.at(made, (row // band, row % band, taps - np.repeat(first, band)[:size, None]), weights)
    return _Bands(first, arrays.send(made.astype(np.float32)))
