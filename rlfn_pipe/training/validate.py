"""PSNR on the held-back images while a run goes (the benchmark sets are for `evaluate` alone)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rlfn_pipe.evaluate.metrics import psnr_y
from rlfn_pipe.training.data import Pairs
from rlfn_pipe.training.device import to_tensor


class Validation:
    """Central crops of held-back images, and the mean PSNR-Y of a network on them."""

    def __init__(self, pairs: Pairs, images: int, crop: int, device: torch.device) -> None:
        scale = pairs.scale
        self._scale = scale
        self._crops: list[tuple[Tensor, np.ndarray]] = []
        for hr, versions in list(zip(pairs.hr, pairs.lr, strict=True))[:images]:
            lr = versions[0]
            height, width = (min(crop // scale, side) for side in lr.shape[:2])
            top, left = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
            large = hr[top * scale : (top + height) * scale, left * scale : (left + width) * scale]
            small = lr[top : top + height, left : left + width]
            self._crops.append((_one(small, device), np.array(large)))

    def psnr(self, model: nn.Module) -> float:
        """Mean PSNR-Y in dB of `model` (values in 0..1, fp32)."""
        return float(np.mean(self.each(model)))

    @torch.no_grad()
    def is_finite(self, model: nn.Module) -> bool:
        """Whether `model` makes nothing but finite values of the first crop."""
        return bool(model(self._crops[0][0]).isfinite().all())

    @torch.no_grad()
    def each(self, model: nn.Module) -> list[float]:
        """PSNR-Y in dB of `model` on each crop."""
        was_training = model.training
        model.eval()
        values = [psnr_y(_picture(model(small)), large, self._scale) for small, large in self._crops]
        model.train(was_training)
        return values


def _one(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (h, w, 3) view -> float (1, 3, h, w) in 0..1."""
    return to_tensor(np.array(image, order="C")[None], device)


def _picture(sr: Tensor) -> np.ndarray:
    """float (1, 3, h, w) in 0..1 -> (h, w, 3) in 0..255, clamped and rounded to 8 bit; what is no number stays so."""
    return (sr[0].clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy()
