"""Convolutions with what follows them done in the same pass, where oneDNN offers that to PyTorch.

`torch.ops.mkldnn._convolution_pointwise` applies an activation and takes a float32 bias while the sums are
still in registers. It is the operator that PyTorch's own compiler calls; it is private, so it is tried on
small numbers before it is used, and the same convolution from public operators stands behind it.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["Convolution", "FusedConvolution", "PlainConvolution", "fused_available", "make_convolution"]

Activation = Literal["none", "leaky_relu", "sigmoid"]
_SLOPE = 0.05
#: Number formats that are worth trying; others have no oneDNN convolution.
_FORMATS = (torch.bfloat16, torch.float16, torch.float32)


class Convolution(Protocol):
    """A convolution of one shape and what follows it. Tensors are (N, C, h, w), channels last."""

    def __call__(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """The convolution with `rows` and `columns` of zeros at each side, then its activation."""
        ...


class PlainConvolution:
    """`Convolution` from public operators, in any number format."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, activation: Activation = "none"
    ) -> None:
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias = bias.to(weight.dtype)
        self._stride, self._activation = stride, activation

    def __call__(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        y = F.conv2d(x, self._weight, self._bias, self._stride, (rows, columns))
        if self._activation == "leaky_relu":
            return F.leaky_relu_(y, _SLOPE)
        return y.sigmoid_() if self._activation == "sigmoid" else y


class FusedConvolution:
    """`Convolution` in one pass; the bias stays float32 whatever the format of weights and pixels."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, activation: Activation = "none"
    ) -> None:
        ops = torch.ops.mkldnn
        self._run = ops._convolution_pointwise.default
        self._stride = [stride, stride]
        weight = weight.contiguous(memory_format=torch.channels_last)
        # The layout that oneDNN wants depends on the shape of the weights, not on the picture's.
        self._weight = ops._reorder_convolution_weight(weight, [0, 0], self._stride, [1, 1], 1)
        self._bias = bias.float()
        self._after: tuple[str, list[float]] = (activation, [_SLOPE] if activation == "leaky_relu" else [])

    def __call__(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        name, scalars = self._after
        result: torch.Tensor = self._run(
            x, self._weight, self._bias, [rows, columns], self._stride, [1, 1], 1, name, scalars, None
        )
        return result


def make_convolution(
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
    activation: Activation = "none",
    fused: bool | None = None,
) -> Convolution:
    """The fastest convolution there is on the CPU for these weights (o, i, k, k).

    `bias` (o,) may be of a longer format than the weights. `fused` True or False asks for one road;
    None takes the fused one where it works.
    """
    if fused is None:
        fused = fused_available(weight.dtype)
    return (FusedConvolution if fused else PlainConvolution)(weight, bias, stride, activation)


@cache
@torch.inference_mode()
def fused_available(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this CPU has the fused operators for `dtype` and they compute what is meant."""
    present: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if dtype not in _FORMATS or not present:
        return False
    generator = np.random.default_rng(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.standard_normal(shape, np.float32)).to(dtype)

    x = numbers(1, 16, 17, 18).to(memory_format=torch.channels_last)
    weight, bias = numbers(16, 16, 3, 3) / 12, numbers(16).float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    try:
        for activation in get_args(Activation):
            meant = PlainConvolution(weight.float(), bias, 1, activation)(x.float(), 0, 1)
            got = FusedConvolution(weight, bias, 1, activation)(x, 0, 1)
            if got.dtype != dtype or not torch.allclose(got.float(), meant, tolerance, tolerance):
                return False
    except (AttributeError, RuntimeError, TypeError):
        # No such operator, another signature, or no kernel for this format: the public ones do it.
        return False
    return True
