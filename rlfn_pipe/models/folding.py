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

__all__ = ["WHITE", "Conv", "Folded", "Weights", "fold", "folded", "neighbours", "weights_of"]

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


class Folded(NamedTuple):
    """An RLFN for pictures of 0..255, whatever range it was trained in.

    Pictures are multiplied by `prescale`, a power of two, which rounds nothing; then come `head`, the blocks, `body` and
    `tail`, whose (3 s s, h, w) the pixel shuffle takes. A block has its convolutions by their last names (c1_r, c2_r,
    c3_r, c5, ESA's conv1 to conv4 and conv_f) and `reduce`, conv1 after c5.
    """

    prescale: float
    head: Conv
    blocks: tuple[dict[str, Conv], ...]
    body: Conv
    tail: Conv


def folded(spec: ModelSpec, weights: Weights) -> Folded:
    """The network of `spec` that has these weights."""

    def conv(name: str) -> Conv:
        return Conv(*(weights[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias")))

    prescale = 2.0 ** round(math.log2(spec.input_range / WHITE))
    head, tail, gain = conv("conv_1"), conv("upsampler.0"), WHITE / spec.input_range
    blocks = []
    for number in range(1, spec.blocks + 1):
        block = {name: conv(f"block_{number}.{name}") for name in ("c1_r", "c2_r", "c3_r", "c5")}
        esa = ("conv1", "conv2", "conv3", "conv4", "conv_f")
        block |= {name: conv(f"block_{number}.esa.{name}") for name in esa}
        blocks.append(block | {"reduce": fold(block["conv1"], block["c5"])})
    return Folded(
        prescale,
        Conv(head.weight * (spec.input_range / WHITE / prescale), head.bias),
        tuple(blocks),
        conv("conv_2"),
        Conv(tail.weight * gain, tail.bias * gain),
    )


def fold(outer: Conv, inner: Conv) -> Conv:
    """`outer`, which has no padding, after a 1x1 convolution as one."""
    weight = inner.weight[:, :, 0, 0]
    return Conv(
        np.einsum("omyx,mi->oiyx", outer.weight, weight),
        outer.bias + np.einsum("omyx,m->o", outer.weight, inner.bias),
    )


def neighbours(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where ESA's small map is read for each pixel of a whole axis of `side`: bilinear, with half-pixel centres.

    The first of two cells (side,) int64, and the second one's share (side,) float64; 0 at the last cell.
    """
    cells = (side - 9) // 6
    position = np.clip((np.arange(side) + 0.5) * (cells / side) - 0.5, 0.0, cells - 1.0)
    lower = np.floor(position).astype(np.int64)
    return lower, position - lower
