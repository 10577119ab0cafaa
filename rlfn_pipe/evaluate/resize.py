"""MATLAB's bicubic downscaling of 8-bit images, bit for bit, with numpy alone."""

from __future__ import annotations

import numpy as np


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5, float64."""
    a = np.abs(x)
    near = (1.5 * a - 2.5) * a * a + 1.0
    far = ((-0.5 * a + 2.5) * a - 4.0) * a + 2.0
    return np.where(a <= 1.0, near, np.where(a <= 2.0, far, 0.0))


def _taps(factor: int) -> tuple[int, np.ndarray]:
    """Offset of the first tap from `factor * i` and the normalised weights of one output sample.

    With a whole factor every output sample has the same weights: sample i sits at input position
    factor*i + (factor - 1)/2, the kernel is widened by `factor` against aliasing.
    """
    centre = (factor - 1) / 2
    first = int(np.floor(centre - 2 * factor))
    positions = np.arange(first, int(np.ceil(centre + 2 * factor)) + 1)
    weights = _cubic((positions - centre) / factor)
    kept = np.nonzero(weights)[0]
    weights = weights[kept[0] : kept[-1] + 1]
    return int(positions[kept[0]]), weights / weights.sum()


def _shrink_rows(image: np.ndarray, factor: int) -> np.ndarray:
    """Shrink the first axis of a uint8 array (edges clamped, result rounded to uint8)."""
    first, weights = _taps(factor)
    out_rows = -(-image.shape[0] // factor)
    after = factor * (out_rows - 1) + first + len(weights) - image.shape[0]
    padding = [(max(0, -first), max(0, after))] + [(0, 0)] * (image.ndim - 1)
    # float32 is exact for factors of two: the weights are multiples of 2**-12 or coarser there.
    exact = np.float32 if factor in (2, 4) else np.float64
    padded = np.pad(image, padding, mode="edge").astype(exact)
    total = np.full((out_rows, *image.shape[1:]), 0.5, exact)
    for tap, weight in enumerate(weights):
        total += padded[tap : tap + factor * (out_rows - 1) + 1 : factor] * exact(weight)
    return np.clip(np.floor(total), 0, 255).astype(np.uint8)


def downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Shrink a uint8 image (H, W) or (H, W, C) by a whole factor as MATLAB's `imresize` does.

    Antialiased bicubic, rows first, each axis rounded to uint8. Sizes that are no multiple of
    the factor round up, as in MATLAB. Returns uint8 (ceil(H/factor), ceil(W/factor)[, C]).
    """
    if factor == 1:
        return image.copy()
    rows = _shrink_rows(image, factor)
    columns = _shrink_rows(np.ascontiguousarray(np.swapaxes(rows, 0, 1)), factor)
    return np.ascontiguousarray(np.swapaxes(columns, 0, 1))
