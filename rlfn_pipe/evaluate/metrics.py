"""Quality figures after the field's protocol. numpy only, LPIPS excepted (an extra).

Pictures are uint8 or floating point in 0..255, (height, width, 3) RGB or (height, width). The protocol:
BT.601 luma in floating point (not rounded), `scale` pixels of border cropped, PSNR with a peak of 255,
SSIM with an 11x11 Gaussian window of sigma 1.5 where it lies wholly inside (Wang et al. 2004).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rlfn_pipe.errors import EngineError, InputError, UsageError

__all__ = ["crop_border", "load_lpips", "luma", "psnr", "psnr_rgb", "psnr_y", "ssim", "ssim_y"]

#: Side of the SSIM window, and so the smallest picture it is defined on.
SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_PEAK = 255.0
#: Least side for LPIPS: below it AlexNet pools its maps away.
_LPIPS_SMALLEST = 64


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma of an RGB picture: (h, w, 3) in 0..255 -> float64 (h, w) in 16..235, not rounded.

    A (h, w) picture counts as grey, R = G = B.
    """
    image = image.astype(np.float64)
    if image.ndim == 2:
        return 16.0 + image * (219.0 / 255.0)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is (height, width, 3) or (height, width), not {image.shape}")
    return 16.0 + image @ (np.array([65.481, 128.553, 24.966]) / 255.0)


def crop_border(image: np.ndarray, border: int) -> np.ndarray:
    """A view without `border` pixels on each side. Raises ValueError when nothing would be left."""
    height, width = image.shape[:2]
    if border < 0 or min(height, width) <= 2 * border:
        raise ValueError(f"a border of {border} pixels does not fit a picture of {width}x{height}")
    return image[border : height - border, border : width - border]


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 255, over all samples; infinite when equal."""
    _same_shape(first, second)
    error = float(np.mean(np.square(first.astype(np.float64) - second.astype(np.float64))))
    return float("inf") if error == 0.0 else float(10.0 * np.log10(_PEAK**2 / error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean structural similarity of two (h, w) pictures in 0..255, both sides at least 11 pixels.

    Window weights sum to one, statistics are the population's, K1 = 0.01, K2 = 0.03, valid region only.
    """
    _same_shape(first, second)
    if first.ndim != 2 or min(first.shape) < SSIM_WINDOW:
        raise ValueError(f"SSIM takes (height, width) pictures of at least 11x11, not {first.shape}")
    a, b = first.astype(np.float64), second.astype(np.float64)
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a * mean_a
    variance_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a * mean_a + mean_b * mean_b + c1) * (variance_a + variance_b + c2)
    return float(np.mean(above / below))


def psnr_y(first: np.ndarray, second: np.ndarray, border: int) -> float:
    """PSNR of the luma of two pictures, `border` pixels cropped, in dB."""
    return psnr(crop_border(luma(first), border), crop_border(luma(second), border))


def ssim_y(first: np.ndarray, second: np.ndarray, border: int) -> float:
    """SSIM of the luma of two pictures, `border` pixels cropped."""
    return ssim(crop_border(luma(first), border), crop_border(luma(second), border))


def psnr_rgb(first: np.ndarray, second: np.ndarray, border: int) -> float:
    """PSNR over all three channels of two pictures, `border` pixels cropped, in dB."""
    return psnr(crop_border(first, border), crop_border(second, border))


def load_lpips(device: str = "cpu") -> Callable[[np.ndarray, np.ndarray], float]:
    """The LPIPS distance (AlexNet, version 0.1) of two uint8 RGB pictures, lower is nearer.

    Needs the `lpips` package and the AlexNet weights that torchvision fetches once. Raises UsageError when
    the package is absent or its torchvision does not fit torch, EngineError when the weights are neither
    cached nor reachable; the function raises InputError for pictures with a side below 64 pixels.
    """
    try:
        lpips: Any = importlib.import_module("lpips")
    except ImportError as error:
        raise UsageError(
            'LPIPS needs the package "lpips", which is not installed: pip install "rlfn-pipe[lpips]"'
        ) from error
    except RuntimeError as error:
        raise UsageError(
            f"LPIPS cannot be loaded ({error}); install the torchvision that fits this torch, or drop --lpips"
        ) from error
    import torch

    try:
        network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
    except OSError as error:
        raise EngineError(
            f"the AlexNet weights of LPIPS could not be fetched ({error}); go online once or drop --lpips"
        ) from error

    def tensor(image: np.ndarray) -> torch.Tensor:
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        return planes.to(device=device, dtype=torch.float32) / 127.5 - 1.0

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        _same_shape(first, second)
        if min(first.shape[:2]) < _LPIPS_SMALLEST:
            size = f"{first.shape[1]}x{first.shape[0]}"
            raise InputError(f"LPIPS needs pictures of at least 64x64 pixels, not {size}; drop --lpips")
        with torch.inference_mode():
            return float(network(tensor(first), tensor(second)).item())

    return distance


def _same_shape(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ValueError(f"two pictures to compare have one shape, not {first.shape} and {second.shape}")


def _window() -> np.ndarray:
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    normalised: np.ndarray = weights / weights.sum()
    return normalised


def _blur(image: np.ndarray) -> np.ndarray:
    """The Gaussian window's weighted mean at every place where it fits; separable."""
    height, width = (side - SSIM_WINDOW + 1 for side in image.shape)
    window = _window()
    rows = sum(weight * image[i : i + height] for i, weight in enumerate(window))
    blurred: np.ndarray = np.asarray(sum(weight * rows[:, i : i + width] for i, weight in enumerate(window)))
    return blurred
