"""The folded network in Triton's kernels, in fp16 on CUDA. Unmeasured; see `rlfn_pipe.unmeasured`.

Convolutions take bias, activation and residual sum along, the last one the pixel shuffle; a block's end is one kernel.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlfn_pipe.errors import UsageError
from rlfn_pipe.models.fuse import SLOPE, Grid, InferenceBlock, InferenceNet, attention_of
from rlfn_pipe.unmeasured import WISH, asked_for

if TYPE_CHECKING:
    from rlfn_pipe.models.kernels import Attention, Convolution

__all__ = ["FusedBlock", "FusedNet", "kernels_wanted"]


def kernels_wanted(device: torch.device) -> bool:
    """Whether Triton's kernels are to be used on `device`. Raises UsageError where Triton is missing."""
    if not asked_for("kernels", device):
        return False
    if importlib.util.find_spec("triton") is None:
        raise UsageError(
            f"{WISH}=kernels needs Triton, which is not installed; pip install triton, or leave it out"
        )
    return True


def _convolution(conv: nn.Conv2d) -> Convolution:
    from rlfn_pipe.models.kernels import Convolution

    assert conv.bias is not None
    return Convolution(conv.weight, conv.bias)


class FusedBlock(InferenceBlock):
    """`InferenceBlock` in fewer passes. Its weights are taken as they are when it first runs."""

    _made: tuple[Convolution, Convolution, Convolution, Attention] | None = None

    def forward(self, x: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        if self._made is None:
            from rlfn_pipe.models.kernels import Attention

            assert self.c5.bias is not None and self.widen.bias is not None
            attend = Attention(self.c5.weight, self.c5.bias, self.widen.weight, self.widen.bias)
            self._made = (_convolution(self.c1), _convolution(self.c2), _convolution(self.c3), attend)
        first, second, third, attend = self._made
        y = third(second(first(x, SLOPE), SLOPE), SLOPE, skip=x)
        return attend(y, attention_of(self, y, grid))


class FusedNet(InferenceNet):
    """`InferenceNet` of `FusedBlock`s, whose end is two kernels."""

    _ends: tuple[Convolution, Convolution, torch.Tensor] | None = None

    def _picture(self, y: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
        if self.tail.weight.dtype == torch.float32:
            return super()._picture(y, shallow)
        if self._ends is None:
            assert self.tail.bias is not None and self.centre is not None
            bias = self.tail.bias.float() + self.centre[:, 0, 0]
            self._ends = (_convolution(self.body), _convolution(self.tail), bias)
        body, tail, bias = self._ends
        return tail(body(y, skip=shallow), scale=self.scale, bias=bias)
