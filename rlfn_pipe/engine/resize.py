"""Separable Lanczos-3 on the device, for sizes that the network's own scale does not give."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from rlfn_pipe.engine.transfer import send

_LOBES = 3.0


@lru_cache(maxsize=32)
def lanczos_matrix(out_size: int, in_size: int) -> np.ndarray:
    """The matrix (out_size, in_size), float32, that resamples an axis by Lanczos-3.

    Half-pixel centres; the kernel is widened by the ratio when the axis shrinks (antialiasing);
    taps beyond the edge fall on the outermost sample; every row sums to one.
    """
    ratio = in_size / out_size
    width = max(1.0, ratio)
    centre = (np.arange(out_size) + 0.5) * ratio - 0.5
    reach = int(np.ceil(_LOBES * width)) + 1
    taps = np.floor(centre)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)[None, :]
    distance = np.abs(taps - centre[:, None]) / width
    weights = np.where(distance < _LOBES, np.sinc(distance) * np.sinc(distance / _LOBES), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((out_size, in_size), dtype=np.float64)
    np.add.at(matrix, (np.arange(out_size)[:, None], np.clip(taps, 0, in_size - 1)), weights)
    return matrix.astype(np.float32)


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize (C, h, w) float32 to (C, height, width); the very same tensor when the size is equal.

    Overshoot is kept: rounding to code values clamps it.
    """
    if image.shape[-1] != width:
        across = send(lanczos_matrix(width, image.shape[-1]), image.device)
        image = image @ across.T
    if image.shape[-2] != height:
        down = send(lanczos_matrix(height, image.shape[-2]), image.device)
        image = down @ image
    return image
