"""The exact inference form of an RLFN: same function, fewer and cheaper passes over the pixels.

What is folded, and why it is exact:

* The value range of the weights (0..1 or 0..255) goes into the first and the last convolution (zero
  padding is zero in either range). The power of two nearest to the ratio is taken from the input
  instead, which is exact in every float format, so that float16 weights do not become subnormal.
* In a block, ``c5`` (1x1) is followed by ESA's ``conv1`` (1x1), which is read twice: by ``conv2`` (3x3,
  stride 2, no padding) and by ``conv_f`` (1x1). A convolution without padding after a 1x1 is one
  convolution, biases included: ``conv2 . conv1 . c5`` is one 3x3 of stride 2 and
  ``conv_f . conv1 . c5`` one 1x1, so neither ``conv1``'s nor ``conv_f``'s own map is ever made.

``conv4`` could be folded further (into the 1x1, and before the stretch, with which it commutes), which
is exact too, but then 48 channels instead of 16 have to be stretched and that costs more than it saves.

Two choices keep bf16 honest at 8 bit for almost nothing (figures in docs/performance.md): the first
convolution runs in float32, since its weights' rounding shows most, and the last one computes the
distance from mid grey, which needs a bit less than the value; mid grey is added in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rlfn_pipe.models.folding import WHITE, Conv, fold, folded, weights_of
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.types import ModelSpec

#: Row matrices (N, h, h3), column matrices (N, w, w3), border (N, 1, h3 + 2, w3 + 2); see `InferenceNet`.
Grid = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
#: Of LeakyReLU.
SLOPE = 0.05
_SHORT = (torch.bfloat16, torch.float16)


def _conv(conv: Conv, stride: int = 1) -> nn.Conv2d:
    """A convolution in float64; 3x3 ones of stride 1 have zeros around them."""
    weight, bias = map(torch.from_numpy, conv)
    out_channels, in_channels, size, _ = weight.shape
    padding = size // 2 if stride == 1 else 0
    made = nn.Conv2d(in_channels, out_channels, size, stride, padding).to(weight)
    with torch.no_grad():
        made.weight.copy_(weight)
        assert made.bias is not None
        made.bias.copy_(bias)
    return made


class InferenceBlock(nn.Module):
    """RLFB with ESA (paper, figure 2) in folded form; (N, C, h, w) in and out."""

    def __init__(self, convs: dict[str, Conv]) -> None:
        super().__init__()
        self.c1, self.c2, self.c3, self.c5 = (_conv(convs[name]) for name in ("c1_r", "c2_r", "c3_r", "c5"))
        self.reduce = _conv(fold(convs["conv2"], convs["reduce"]), stride=2)
        self.direct = _conv(fold(convs["conv_f"], convs["reduce"]))
        self.small, self.widen = _conv(convs["conv3"]), _conv(convs["conv4"])

    def forward(self, x: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        y = F.leaky_relu_(self.c1(x), SLOPE)
        y = F.leaky_relu_(self.c2(y), SLOPE)
        y = F.leaky_relu_(self.c3(y), SLOPE).add_(x)
        small = self.convolved(F.max_pool2d(self.reduce(y), 7, 3), grid)
        attention = self.widen(self.direct(y).add_(_stretch(small, y, grid))).sigmoid_()
        result: torch.Tensor = self.c5(y)
        return result.mul_(attention)

    def convolved(self, small: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        """ESA's 3x3 convolution of its small map (N, f, h3, w3).

        At a frame's edge zeros lie around the map, as in the network. At a tile's inner edge the frame's map goes on,
        and its outermost cell is a far better guess than zero (docs/performance.md has the difference).
        """
        weight, bias = self.small.weight, self.small.bias
        if grid is None:
            return F.conv2d(small, weight, bias, padding=1)
        return F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate").mul_(grid[2]), weight, bias)


def _stretch(small: torch.Tensor, like: torch.Tensor, grid: Grid | None) -> torch.Tensor:
    """The small map (N, f, h3, w3) over `like`'s size; `grid` places it as in the tile's frame."""
    if grid is None:
        return F.interpolate(small, size=like.shape[-2:], mode="bilinear", align_corners=False)
    rows, columns, _ = grid
    n, c, h3, w3 = small.shape
    h, w = rows.shape[1], columns.shape[1]
    # Along rows first, while the map is small; its transpose is what is copied.
    wide = torch.bmm(columns, small.permute(0, 3, 2, 1).reshape(n, w3, h3 * c)).view(n, w, h3, c)
    tall = torch.bmm(rows, wide.transpose(1, 2).reshape(n, h3, w * c))
    return tall.view(n, h, w, c).permute(0, 3, 1, 2)


class InferenceNet(nn.Module):
    """Exact inference form of an RLFN.

    Takes (N, 3, h, w) RGB, 0..255 (any float format, sides of at least 15) and gives (N, 3, s h, s w)
    float32 (float64 for a float64 net), 0..255 and not clamped. `grid` is None for whole frames, else it
    places each tile's ESA on its frame's grid: matrices (N, h, h3) and (N, w, w3) that stretch the small map
    along rows and columns, and (N, 1, h3 + 2, w3 + 2) with 1 where the map or its continuation counts and
    0 beyond the frame's edges.
    """

    def __init__(self, spec: ModelSpec, module: RLFN) -> None:
        super().__init__()
        self.scale = spec.scale
        form = folded(spec, weights_of(module))
        self.prescale = form.prescale
        self.head, self.body, self.tail = map(_conv, (form.head, form.body, form.tail))
        self.blocks = nn.ModuleList(map(InferenceBlock, form.blocks))
        self.centre: nn.Parameter | None = None

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        dtype = self.body.weight.dtype
        if self.prescale != 1.0:
            x = x * self.prescale
        x = x.to(dtype=self.head.weight.dtype, memory_format=torch.channels_last)
        shallow = self.head(x).to(dtype)
        if grid is not None:
            grid = (grid[0].to(dtype), grid[1].to(dtype), grid[2].to(dtype))
        y = shallow
        for block in self.blocks:
            y = block(y, grid)
        y = self.body(y).add_(shallow)
        image = self.tail(y.to(self.tail.weight.dtype))
        if self.centre is not None:
            image = image.float().add_(self.centre)
        return F.pixel_shuffle(image, self.scale)


def build_inference(
    spec: ModelSpec,
    module: RLFN,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    edge_fp32: bool = False,
    form: type[InferenceNet] = InferenceNet,
) -> InferenceNet:
    """A copy of `module` (an RLFN of `spec`) in inference form; `module` is left as it is.

    Folding is done in float64, then rounded to `dtype` once. `edge_fp32` keeps the first and the last
    convolution in float32, for sources and targets above 8 bit: bf16 holds 8 significant bits.
    `form` may be a subclass that computes the same in another way.
    """
    with torch.no_grad():
        net = form(spec, module).eval()
        head, tail = net.head, net.tail
        net.head, net.tail = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        net.to(dtype=dtype)
        short = dtype in _SHORT
        net.head = head.to(torch.float32 if dtype == torch.bfloat16 or (short and edge_fp32) else dtype)
        if short and not edge_fp32:
            assert tail.bias is not None
            bias = tail.bias.detach()
            rounded = (bias - WHITE / 2).to(dtype)
            net.centre = nn.Parameter((bias - rounded.double()).float()[:, None, None])
            tail.bias = nn.Parameter(rounded)
        net.tail = tail.to(torch.float32 if short and edge_fp32 else dtype)
        net.requires_grad_(False)
        net.to(memory_format=memory_format)  # type: ignore[call-overload]
        return net


def for_device(
    spec: ModelSpec, module: RLFN, dtype: torch.dtype, edge_fp32: bool, device: torch.device | str
) -> InferenceNet:
    """The inference form for a device that is not the CPU: by kernels of our own where they work."""
    from rlfn_pipe.models.cuda.trial import kernels_or

    plain = build_inference(spec, module, dtype, edge_fp32=edge_fp32).to(device)
    return kernels_or(
        plain, lambda form: build_inference(spec, module, dtype, edge_fp32=edge_fp32, form=form)
    )
