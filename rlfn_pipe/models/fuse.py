"""The exact inference form of an RLFN: same function, fewer and cheaper passes over the pixels.

What is folded, and why it is exact:

* The value range of the weights (0..1 or 0..255) goes into the first and the last convolution (zero
  padding is zero in either range). The power of two nearest to the ratio is taken from the input
  instead, which is exact in every float format, so that float16 weights do not become subnormal.
* In a block, ``c5`` (1x1) is followed by ESA's ``conv1`` (1x1), which is read twice: by ``conv2`` (3x3,
  stride 2, no padding) and by ``conv_f`` (1x1) and then ``conv4`` (1x1). Convolutions without padding
  and with 1x1 kernels compose to one convolution, biases included:
  ``conv2 . conv1 . c5`` is one 3x3 of stride 2, ``conv4 . conv_f . conv1 . c5`` is one 1x1.
* ``conv4`` is linear and acts on channels, the bilinear stretch is linear, acts on positions and
  keeps constants: they commute, so ``conv4`` runs on the small map and joins ``conv3`` there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from rlfn_pipe.types import ModelSpec

Grid = tuple[torch.Tensor, torch.Tensor]
_SLOPE = 0.05
_WHITE = 255.0


def _fold(outer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`outer` after the 1x1 convolution (weight (m, i), bias (m,)): weight and bias in float64."""
    w = outer.weight.double()
    b = outer.bias.double() if outer.bias is not None else w.new_zeros(w.shape[0])
    return torch.einsum("omyx,mi->oiyx", w, weight), b + torch.einsum("omyx,m->o", w, bias)


def _conv(weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    out_channels, in_channels, size, _ = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, size, stride, padding).to(weight)
    with torch.no_grad():
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_(bias)
    return conv


def _copied(conv: nn.Conv2d, scale: float = 1.0, scale_bias: float = 1.0) -> nn.Conv2d:
    assert conv.bias is not None
    return _conv(conv.weight.double() * scale, conv.bias.double() * scale_bias, padding=conv.padding[0])  # type: ignore[arg-type]


class InferenceBlock(nn.Module):
    """RLFB with ESA (paper, figure 2) in folded form; (N, C, h, w) in and out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        esa = block.esa
        self.c1, self.c2, self.c3 = _copied(block.c1_r), _copied(block.c2_r), _copied(block.c3_r)
        self.c5 = _copied(block.c5)
        c5_weight, c5_bias = block.c5.weight.double()[:, :, 0, 0], block.c5.bias.double()
        weight, bias = _fold(esa.conv1, c5_weight, c5_bias)
        inner = weight[:, :, 0, 0]
        self.reduce = _conv(*_fold(esa.conv2, inner, bias), stride=2)
        conv4 = esa.conv4.weight.double()[:, :, 0, 0]
        self.small = _conv(
            torch.einsum("om,miyx->oiyx", conv4, esa.conv3.weight.double()),
            conv4 @ esa.conv3.bias.double(),
            padding=1,
        )
        direct, direct_bias = _fold(esa.conv_f, inner, bias)
        self.direct = _conv(*_fold(esa.conv4, direct[:, :, 0, 0], direct_bias))

    def forward(self, x: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        y = F.leaky_relu_(self.c1(x), _SLOPE)
        y = F.leaky_relu_(self.c2(y), _SLOPE)
        y = F.leaky_relu_(self.c3(y), _SLOPE).add_(x)
        small = self.small(F.max_pool2d(self.reduce(y), 7, 3))
        attention = self.direct(y).add_(_stretch(small, y, grid)).sigmoid_()
        return self.c5(y).mul_(attention)


def _stretch(small: torch.Tensor, like: torch.Tensor, grid: Grid | None) -> torch.Tensor:
    """The small map (N, C, h3, w3) over `like`'s size; `grid` places it as in the tile's frame."""
    if grid is None:
        return F.interpolate(small, size=like.shape[-2:], mode="bilinear", align_corners=False)
    rows, columns = grid
    n, c, h3, w3 = small.shape
    h = rows.shape[1]
    tall = torch.bmm(rows, small.permute(0, 2, 3, 1).reshape(n, h3, w3 * c)).view(n, h, w3, c)
    return torch.matmul(columns[:, None], tall).permute(0, 3, 1, 2)


def _prescale(spec: ModelSpec) -> float:
    return float(2.0 ** round(math.log2(spec.input_range / _WHITE)))


def _head(spec: ModelSpec, module: nn.Module) -> nn.Conv2d:
    return _copied(module.conv_1, scale=spec.input_range / _WHITE / _prescale(spec))


def _tail(spec: ModelSpec, module: nn.Module) -> nn.Conv2d:
    gain = _WHITE / spec.input_range
    return _copied(module.upsampler[0], scale=gain, scale_bias=gain)


class InferenceNet(nn.Module):
    """Exact inference form of an RLFN.

    Takes (N, 3, h, w) RGB, 0..255 (any float format, sides of at least 15) and gives (N, 3, s h, s w),
    0..255 and not clamped, in the last layer's format. `grid` is None for whole frames, else ESA's
    stretch for each tile: row matrices (N, h, h3) and column matrices (N, w, w3).
    """

    def __init__(self, spec: ModelSpec, module: nn.Module) -> None:
        super().__init__()
        self.scale = spec.scale
        self.prescale = _prescale(spec)
        self.head = _head(spec, module)
        plain = [getattr(module, f"block_{number}") for number in range(1, spec.blocks + 1)]
        self.blocks = nn.ModuleList(InferenceBlock(block) for block in plain)
        self.body = _copied(module.conv_2)
        self.tail = _tail(spec, module)

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        dtype = self.body.weight.dtype
        if self.prescale != 1.0:
            x = x * self.prescale
        x = x.to(dtype=self.head.weight.dtype, memory_format=torch.channels_last)
        shallow = self.head(x).to(dtype)
        if grid is not None:
            grid = (grid[0].to(dtype), grid[1].to(dtype))
        y = shallow
        for block in self.blocks:
            y = block(y, grid)
        y = self.body(y).add_(shallow)
        return F.pixel_shuffle(self.tail(y.to(self.tail.weight.dtype)), self.scale)


def build_inference(
    spec: ModelSpec,
    module: nn.Module,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    edge_fp32: bool = False,
) -> InferenceNet:
    """A copy of `module` (an RLFN of `spec`) in inference form; `module` is left as it is.

    Folding is done in float64, then rounded to `dtype` once. `edge_fp32` keeps the first and the last
    convolution in float32: bf16 holds 8 significant bits, too few for sources above 8 bit.
    """
    with torch.no_grad():
        net = InferenceNet(spec, module).eval().requires_grad_(False)
        net.to(dtype=dtype)
        if edge_fp32 and dtype in (torch.bfloat16, torch.float16):
            net.head = _head(spec, module).float().requires_grad_(False)
            net.tail = _tail(spec, module).float().requires_grad_(False)
        return net.to(memory_format=memory_format)  # type: ignore[call-overload]


class InferenceFactory:
    """Builds the inference form of one network on demand, as `rlfn_pipe.engine.runner.Engine` asks for it."""

    def __init__(self, spec: ModelSpec, module: nn.Module) -> None:
        self.spec, self.module = spec, module

    def __call__(self, dtype: torch.dtype, edge_fp32: bool) -> InferenceNet:
        """An inference form in `dtype`; `edge_fp32` as in `build_inference`."""
        return build_inference(self.spec, self.module, dtype, edge_fp32=edge_fp32)
