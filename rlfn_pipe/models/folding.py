"""The exact rewrites of an RLFN for inference, on its weights alone: float64 arrays in and out. No torch here.

`rlfn_pipe.models.fuse` says what is folded, and why it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlfn_pipe.types import ModelSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "WHITE",
    "Conv",
    "Weights",
    "bilinear",
    "block_of",
    "conv_of",
    "fold",
    "folded_head",
    "folded_tail",
    "prescale",
    "weights_of",
]

#: A network's state dict as arrays.
Weights = Mapping[str, np.ndarray]
WHITE = 255.0


class Conv(NamedTuple):
    """A convolution's weight (o, i, k, k) and bias (o,) in float64."""

    weight: np.ndarray
    bias: np.ndarray


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """A module's state dict as arrays of float64."""
    return {name: value.detach().cpu().double().numpy() for name, value in module.state_dict().items()}


def conv_of(weights: Weights, name: str) -> Conv:
    """The convolution called `name`."""
    return Conv(*(weights[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias")))


def block_of(weights: Weights, number: int) -> dict[str, Conv]:
    """The convolutions of a block, from 1, by their last names: c1_r, c2_r, c3_r, c5 and ESA's."""
    own = {name: conv_of(weights, f"block_{number}.{name}") for name in ("c1_r", "c2_r", "c3_r", "c5")}
    esa = ("conv1", "conv2", "conv3", "conv4", "conv_f")
    return own | {name: conv_of(weights, f"block_{number}.esa.{name}") for name in esa}


def fold(outer: Conv, inner: Conv) -> Conv:
    """`outer`, which has no padding, after a 1x1 convolution as one."""
    weight = inner.weight[:, :, 0, 0]
    return Conv(
        np.einsum("omyx,mi->oiyx", outer.weight, weight),
        outer.bias + np.einsum("omyx,m->o", outer.weight, inner.bias),
    )


def prescale(spec: ModelSpec) -> float:
    """What pictures of 0..255 are multiplied by before the folded first layer: a power of two, which rounds nothing."""
    return float(2.0 ** round(math.log2(spec.input_range / WHITE)))


def folded_head(spec: ModelSpec, weights: Weights) -> Conv:
    """The first layer for pictures of 0..255 times `prescale`, whatever range the network was trained in."""
    weight, bias = conv_of(weights, "conv_1")
    return Conv(weight * (spec.input_range / WHITE / prescale(spec)), bias)


def folded_tail(spec: ModelSpec, weights: Weights) -> Conv:
    """The last layer with results of 0..255, (3 s s, h, w) before the pixel shuffle."""
    weight, bias = conv_of(weights, "upsampler.0")
    gain = WHITE / spec.input_range
    return Conv(weight * gain, bias * gain)


def bilinear(side: int) -> np.ndarray:
    """The matrix (side, cells) float64 that stretches ESA's small map of a whole axis of `side` pixels."""
    cells = (side - 9) // 6
    position = np.maximum((np.arange(side) + 0.5) * (cells / side) - 0.5, 0.0)
    lower = np.floor(position).astype(np.int64)
    matrix = np.zeros((side, cells))
    np.add.at(matrix, (np.arange(side), lower), 1.0 - (position - lower))
    np.add.at(matrix, (np.arange(side), np.minimum(lower + 1, cells - 1)), position - lower)
    return matrix
