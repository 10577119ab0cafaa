"""RLFN, the residual local feature network (arXiv 2205.07514, sections 3.1 and 4.1).

Attribute names follow the published state dicts, so that official files load unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from rlfn_pipe.types import ModelSpec

#: Negative slope of every LeakyReLU in the network.
SLOPE = 0.05


class ESA(nn.Module):
    """Enhanced spatial attention: a mask from a coarse, wide view of the features.

    (N, C, h, w) -> (N, C, h, w); h and w at least 15. The strided convolution and the pooling
    see a grid that starts at the input's corner, so the mask depends on where the input was cut.
    """

    def __init__(self, channels: int, esa_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, esa_channels, 1)
        self.conv_f = nn.Conv2d(esa_channels, esa_channels, 1)
        self.conv2 = nn.Conv2d(esa_channels, esa_channels, 3, stride=2)
        self.conv3 = nn.Conv2d(esa_channels, esa_channels, 3, padding=1)
        self.conv4 = nn.Conv2d(esa_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        coarse = functional.max_pool2d(self.conv2(reduced), kernel_size=7, stride=3)
        coarse = functional.interpolate(
            self.conv3(coarse), size=x.shape[-2:], mode="bilinear", align_corners=False
        )
        return x * torch.sigmoid(self.conv4(coarse + self.conv_f(reduced)))


class RLFB(nn.Module):
    """Residual local feature block: three 3x3 convolutions, one addition, 1x1, attention.

    (N, C, h, w) -> (N, C, h, w). `mid_channels` is the width between the convolutions.
    """

    def __init__(self, channels: int, mid_channels: int, esa_channels: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(channels, mid_channels, 3, padding=1)
        self.c2_r = nn.Conv2d(mid_channels, mid_channels, 3, padding=1)
        self.c3_r = nn.Conv2d(mid_channels, channels, 3, padding=1)
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.esa = ESA(channels, esa_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.leaky_relu(self.c1_r(x), SLOPE)
        out = functional.leaky_relu(self.c2_r(out), SLOPE)
        out = functional.leaky_relu(self.c3_r(out), SLOPE)
        return self.esa(self.c5(out + x))


class RLFN(nn.Module):
    """The whole network as `spec` describes it.

    forward: (N, 3, h, w) RGB in 0 .. `spec.input_range` -> (N, 3, scale*h, scale*w) in the same
    range (not clamped). h and w at least `spec.minimum_side`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv_1 = nn.Conv2d(3, spec.channels, 3, padding=1)
        for number in range(1, spec.blocks + 1):
            self.add_module(f"block_{number}", RLFB(spec.channels, spec.mid_channels, spec.esa_channels))
        self.conv_2 = nn.Conv2d(spec.channels, spec.channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(spec.channels, 3 * spec.scale**2, 3, padding=1), nn.PixelShuffle(spec.scale)
        )

    def blocks(self) -> list[RLFB]:
        """The residual blocks in order."""
        return [block for block in self.children() if isinstance(block, RLFB)]

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(x)
        deep = shallow
        for block in self.blocks():
            deep = block(deep)
        return self.upsampler(self.conv_2(deep) + shallow)


def count_parameters(module: nn.Module) -> int:
    """Number of trained values in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())
