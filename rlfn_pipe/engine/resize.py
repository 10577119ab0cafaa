"""Separable Lanczos-3 on the device, for sizes that the network's own scale does not give.

An output sample reads a few input samples, so an axis is resampled band by band: some neighbouring outputs at a time, as
a matrix product with the inputs that they read (docs/performance.md has what that gains over one product).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from rlfn_pipe.engine.transfer import send

__all__ = ["resize"]

_LOBES = 3.0
#: Outputs of a band: fewer waste less on zeros, more are fewer calls, which is what a GPU has to wait for.
_BAND, _BAND_ON_A_GPU = 32, 256


class _Bands(NamedTuple):
    """`weights` (n, band, reach) float32: outputs ``band * i ...`` of inputs ``first[i] ... first[i] + reach``."""

    first: tuple[int, ...]
    weights: torch.Tensor


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize (C, h, w) float32 to (C, height, width); the very same tensor when the size is equal.

    Half-pixel centres; the kernel is widened by the ratio when an axis shrinks (antialiasing). Overshoot is kept:
    rounding to code values clamps it.
    """
    h, w = image.shape[-2:]
    # The way with the smaller picture in between.
    steps = [(-2, height), (-1, width)] if height * w <= h * width else [(-1, width), (-2, height)]
    for dim, size in steps:
        if image.shape[dim] != size:
            image = _resampled(image, dim, size)
    return image


def _resampled(image: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    band = _BAND if image.device.type == "cpu" else _BAND_ON_A_GPU
    bands = _bands(size, image.shape[dim], band, image.device)
    reach = bands.weights.shape[-1]
    shape = list(image.shape)
    shape[dim] = size
    made = image.new_empty(shape)
    for number, first in enumerate(bands.first):
        begin = number * band
        count = min(band, size - begin)
        weights, read = bands.weights[number, :count], image.narrow(dim, first, reach)
        made.narrow(dim, begin, count).copy_(weights @ read if dim == -2 else read @ weights.T)
    return made


@lru_cache(maxsize=32)
def _bands(size: int, in_size: int, band: int, device: torch.device) -> _Bands:
    """An axis of `in_size` samples to one of `size`, on `device`; every row of weights sums to one.

    Taps beyond the edge fall on the outermost sample.
    """
    ratio = in_size / size
    width = max(1.0, ratio)
    centre = (np.arange(size) + 0.5) * ratio - 0.5
    around = int(np.ceil(_LOBES * width)) + 1
    taps = np.floor(centre)[:, None].astype(np.int64) + np.arange(-around, around + 1)[None, :]
    distance = np.abs(taps - centre[:, None]) / width
    weights = np.where(distance < _LOBES, np.sinc(distance) * np.sinc(distance / _LOBES), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    taps = np.clip(taps, 0, in_size - 1)
    starts = range(0, size, band)
    reach = max(int(taps[min(i + band, size) - 1, -1] - taps[i, 0]) + 1 for i in starts)
    first = tuple(min(int(taps[i, 0]), in_size - reach) for i in starts)
    made = np.zeros((len(first), band, reach), dtype=np.float64)
    row = np.arange(size)[:, None]
    np.add.at(made, (row // band, row % band, taps - np.repeat(first, band)[:size, None]), weights)
    return _Bands(first, send(made.astype(np.float32), device))
