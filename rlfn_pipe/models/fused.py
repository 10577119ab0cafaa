"""The folded network with Triton's kernels between its convolutions, for CUDA. Unmeasured; see `rlfn_pipe.unmeasured`."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

from rlfn_pipe.errors import UsageError
from rlfn_pipe.models.fuse import SLOPE, Grid, InferenceBlock, attention_of
from rlfn_pipe.unmeasured import WISH, asked_for

__all__ = ["FusedBlock", "kernels_wanted"]


def kernels_wanted(device: torch.device) -> bool:
    """Whether Triton's kernels are to be used on `device`. Raises UsageError where Triton is missing."""
    if not asked_for("kernels", device):
        return False
    if importlib.util.find_spec("triton") is None:
        raise UsageError(
            f"{WISH}=kernels needs Triton, which is not installed; pip install triton, or leave it out"
        )
    return True


class FusedBlock(InferenceBlock):
    """`InferenceBlock` in fewer passes: biases, activations, the residual sum and attention's product are kernels."""

    def forward(self, x: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        from rlfn_pipe.models import kernels

        y, last = x, self.c3
        for conv in (self.c1, self.c2, last):
            assert conv.bias is not None
            y = F.conv2d(y, conv.weight, padding=1)
            y = kernels.leaky(y, conv.bias, SLOPE, x if conv is last else None)
        mask = attention_of(self, y, grid)
        assert self.c5.bias is not None and self.widen.bias is not None
        result = F.conv2d(y, self.c5.weight)
        return kernels.attend(result, self.c5.bias, F.conv2d(mask, self.widen.weight), self.widen.bias)
