"""The folded network in Triton's kernels, in fp16 on CUDA (docs/performance.md has what that gains).

Convolutions take bias, activation and residual sum along, the last one the pixel shuffle; a block's end is one kernel.
Kernels are used where they give on the device at hand what PyTorch's operators give there: compilers differ, and one of a
block of 256 pixels was seen to give nonsense on an H200. `RLFN_PIPE_TRITON=off` keeps them off.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlfn_pipe.models.fuse import SLOPE, Grid, InferenceBlock, InferenceNet, attention_of

if TYPE_CHECKING:
    from rlfn_pipe.models.kernels import Attention, Convolution

__all__ = ["TRIED", "WISH", "FusedBlock", "FusedNet", "fused_or", "kernels_wanted", "near_or_warn", "on"]

#: Environment variable; "off" keeps the kernels off.
WISH = "RLFN_PIPE_TRITON"
#: Root mean square of what two roads in fp16 may differ by, in code values of 8 bit; it is 0.1 where all is well.
_NEAR = 1.0
#: Pictures, rows and columns that kernels are tried on: Triton makes others where a size is a multiple of 16.
TRIED = ((1, 24, 36), (2, 32, 48))


def kernels_wanted(device: torch.device) -> bool:
    """Whether Triton's kernels can be tried on `device`: it is there, and nobody said no."""
    if device.type != "cuda" or os.environ.get(WISH) == "off":
        return False
    return importlib.util.find_spec("triton") is not None


def fused_or(
    plain: InferenceNet, build: Callable[[type[FusedNet], type[FusedBlock]], InferenceNet]
) -> InferenceNet:
    """`plain`, or what `build` makes of the same network in kernels where these work on its device."""
    weight = plain.body.weight
    if weight.dtype != torch.float16 or not kernels_wanted(weight.device):
        return plain
    fused = build(FusedNet, FusedBlock).to(weight.device)
    for count, height, width in TRIED:
        picture = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
        picture = picture.mul_(128.0).add_(64.0).to(weight.device)
        if not near_or_warn(lambda x=picture: fused(x), lambda x=picture: plain(x)):  # type: ignore[misc]
            return plain
    return fused


def on(device: torch.device) -> AbstractContextManager[object]:
    """Where Triton's kernels have to be called: they go to the current device, whatever their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@torch.inference_mode()
def near_or_warn(one: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor]) -> bool:
    """Whether kernels (`one`) give what PyTorch's operators give, within rounding. A warning says why not."""
    wanted = other().float()
    try:
        off = float((one().float() - wanted).square().mean().sqrt())
        reason, good = f"they are {off:.3g} code values off", off < _NEAR
    except Exception as error:  # whatever a compiler may raise: there is another road
        reason, good = f"{type(error).__name__}: {error}".splitlines()[0], False
    if not good:
        warnings.warn(f"Triton's kernels are not used, {reason}", RuntimeWarning, stacklevel=2)
    return good


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

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        with on(x.device):
            return super().forward(x, grid)

    def _picture(self, y: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
        if self.tail.weight.dtype == torch.float32:
            return super()._picture(y, shallow)
        if self._ends is None:
            assert self.tail.bias is not None and self.centre is not None
            bias = self.tail.bias.float() + self.centre[:, 0, 0]
            self._ends = (_convolution(self.body), _convolution(self.tail), bias)
        body, tail, bias = self._ends
        return tail(body(y, skip=shallow), scale=self.scale, bias=bias)
