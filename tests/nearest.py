"""A small real network for tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from rlfn_pipe.engine.network import Grid
from rlfn_pipe.types import ModelSpec


class NearestNetwork(nn.Module):
    """Repeats every pixel `scale` times each way: the identity as an upscaler. Ignores the grid."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="nearest") if self.scale > 1 else x.clone()


def nearest_factory(scale: int) -> Callable[[torch.dtype, bool, str], NearestNetwork]:
    """Gives a `NearestNetwork` whatever format is asked for: float32 goes through unchanged, so nothing is rounded."""
    return lambda dtype, edge_fp32, device: NearestNetwork(scale)


def nearest_spec(scale: int) -> ModelSpec:
    """The description that goes with `NearestNetwork`."""
    return ModelSpec("nearest", scale, 3, 3, 0, input_range=255.0, architecture="nearest")
