"""The folded network by kernels of its own, in fp16 on an NVIDIA GPU (docs/performance.md has what that gains)."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from rlfn_pipe.models.cuda.layout import groups_of, in_memory, in_registers, packed, results, shuffled
from rlfn_pipe.models.cuda.library import Maker, on
from rlfn_pipe.models.folding import neighbours
from rlfn_pipe.models.fuse import Grid, InferenceBlock, InferenceNet

__all__ = ["KernelNet"]

#: Channels of ESA's maps that the kernels are written for.
ESA = 16
_WARP = 32


#: Rows and columns of a tile of the convolution, and rows of a warp; as in kernels.cu.
_ROWS, _COLUMNS, _PER_WARP = 8, 16, 2
#: Tiles that a block has in hand at once, so that some are fetched while others are computed; more gained nothing.
_MOST_GROUPS = 4


class Convolution:
    """A 3x3 convolution with what lies around it; (N, h, w, 8 * groups) fp16 in and out, channels filled up with zeros."""

    def __init__(
        self, maker: Maker, conv: nn.Conv2d, bias: torch.Tensor | None = None, *, active: bool = False, skip: bool = False,
        scale: int = 0,
    ) -> None:  # fmt: skip
        weight = conv.weight
        outputs, inputs = weight.shape[:2]
        self.groups_in, self.groups_out = groups_of(inputs), 6 if scale else groups_of(outputs)
        self._stride, self._padding, self._scale = conv.stride[0], cast(int, conv.padding[0]), scale
        taps = weight.permute(2, 3, 1, 0).reshape(9, inputs, outputs)
        columns = shuffled(scale) if scale else results(self.groups_out)
        self._weight = packed(taps, in_memory(self.groups_in), columns)
        self._bias = _slots(conv.bias if bias is None else bias, scale, 8 * self.groups_out)
        tile = (
            ((_ROWS - 1) * self._stride + 3) * ((_COLUMNS - 1) * self._stride + 3) * 16 * (self.groups_in | 1)
        )
        # The last lanes of a fragment of 8 channels read, and do not use, what comes behind the tiles.
        spare = 16
        self._groups = min(_MOST_GROUPS, (maker.shared - self._weight.nbytes - spare) // tile)
        self._shared = self._weight.nbytes + self._groups * tile + spare
        self._blocks = maker.processors * (maker.shared // self._shared)
        self._kernel = maker.kernel(
            "conv",
            {
                "CONVOLUTION": 1, "IN": self.groups_in, "OUT": self.groups_out, "STRIDE": self._stride,
                "PADDING": self._padding, "ACTIVE": int(active), "SKIP": int(skip), "SHUFFLE": scale,
                "GROUPS": self._groups,
            },
        )  # fmt: skip

    def __call__(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """The result for `x`, plus `skip`; with a scale (N, 3, scale * h, scale * w) float32."""
        count, height, width, channels = x.shape
        assert channels == 8 * self.groups_in and x.is_contiguous() and (skip is None or skip.is_contiguous())
        lost = 2 - 2 * self._padding
        rows, columns = ((side - lost - 1) // self._stride + 1 for side in (height, width))
        if self._scale:
            out = x.new_empty((count, 3, rows * self._scale, columns * self._scale), dtype=torch.float32)
        else:
            out = x.new_empty((count, rows, columns, 8 * self.groups_out))
        tiles = count * -(-rows // _ROWS) * -(-columns // _COLUMNS)
        blocks = min(self._blocks, -(-tiles // self._groups))
        threads = _ROWS // _PER_WARP * _WARP * self._groups
        self._kernel(
            (blocks, 1), threads, self._shared, x, self._weight, self._bias, skip, out,
            count, height, width, rows, columns,
        )  # fmt: skip
        return out


def _slots(bias: torch.Tensor | None, scale: int, count: int) -> torch.Tensor:
    """A convolution's bias as its kernel counts results, float32."""
    assert bias is not None
    values = bias.float()
    if not scale:
        return F.pad(values, (0, count - len(values))).contiguous()
    slots = [
        (colour * scale + y) * scale + x if max(x, y) < scale else -1
        for colour in range(3) for y in range(4) for x in range(4)
    ]  # fmt: skip
    return F.pad(values, (0, 1))[slots].contiguous()


class Block:
    """A residual block and its attention."""

    def __init__(self, maker: Maker, block: InferenceBlock) -> None:
        self._first, self._second = (Convolution(maker, conv, active=True) for conv in (block.c1, block.c2))
        self._third = Convolution(maker, block.c3, active=True, skip=True)
        self._reduce, self._block = Convolution(maker, block.reduce), block
        self._pool = maker.kernel("pool", {"POOL": 1})
        groups = groups_of(block.c5.out_channels)
        rows, columns = in_registers(groups), results(groups)
        parts = (
            packed(_matrix(block.c5), rows, columns),
            packed(_matrix(block.direct), rows, results(ESA // 8)),
            packed(_matrix(block.widen), in_registers(ESA // 8), columns),
        )
        self._weight = torch.cat([part.flatten() for part in parts])
        self._biases = [
            F.pad(_bias(conv), (0, -conv.out_channels % 8)).contiguous()
            for conv in (block.c5, block.direct, block.widen)
        ]
        self._attend = maker.kernel("attend", {"ATTEND": 1, "GROUPS_OF_8": groups})
        self._processors = maker.processors

    def __call__(self, x: torch.Tensor, grid: Grid | None, tables: list[torch.Tensor]) -> torch.Tensor:
        y = self._third(self._second(self._first(x)), skip=x)
        small = self._small(y, grid)
        out = torch.empty_like(y)
        count, height, width, _ = y.shape
        rows, columns = small.shape[1:3]
        fragments = -(-count * height * width // 16)
        self._attend(
            (min(8 * self._processors, -(-fragments // 8)), 1), 8 * _WARP, self._weight.nbytes, y, self._weight,
            *self._biases, small, *tables, out, count, height, width, rows, columns, int(grid is not None),
        )  # fmt: skip
        return out

    def _small(self, y: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        """ESA's small map, (N, h3, w3, 16)."""
        reduced = self._reduce(y)
        count, height, width, _ = reduced.shape
        rows, columns = ((side - 7) // 3 + 1 for side in (height, width))
        pooled = reduced.new_empty((count, rows, columns, ESA))
        self._pool(
            (-(-pooled.numel() // (8 * 256)), 1), 256, 0, reduced, pooled, count, height, width, rows, columns
        )
        small = self._block.convolved(pooled.permute(0, 3, 1, 2), grid)
        return small.permute(0, 2, 3, 1).contiguous()


class KernelNet(InferenceNet):
    """`InferenceNet` by kernels. Its weights are taken as they are when it first runs."""

    maker: Maker
    _made: tuple[Convolution | None, list[Block], Convolution, Convolution | None] | None = None

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        with on(x.device):
            return self._enlarged(x, grid)

    def _enlarged(self, x: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        if self._made is None:
            self._made = self._layers()
        head, blocks, body, tail = self._made
        height, width = x.shape[-2:]
        if grid is not None:
            grid = (grid[0], grid[1], grid[2].to(torch.float16))
        shallow = self._shallow(x, head)
        tables = _whole(height, width, x.device) if grid is None else _placed(grid)
        y = shallow
        for block in blocks:
            y = block(y, grid, tables)
        y = body(y, skip=shallow)
        if tail is not None:
            return tail(y)
        image = self.tail(y[..., : self.tail.in_channels].permute(0, 3, 1, 2).float())
        return F.pixel_shuffle(image, self.scale)

    def _layers(self) -> tuple[Convolution | None, list[Block], Convolution, Convolution | None]:
        """Head, blocks, body and tail; no head and no tail where those are in float32, by PyTorch's operators."""
        head = tail = None
        if self.head.weight.dtype != torch.float32:
            head = Convolution(self.maker, self.head)
        if self.tail.weight.dtype != torch.float32:
            assert self.tail.bias is not None and self.centre is not None
            tail = Convolution(
                self.maker, self.tail, self.tail.bias.float() + self.centre[:, 0, 0], scale=self.scale
            )
        blocks = [Block(self.maker, cast(InferenceBlock, block)) for block in self.blocks]
        self._pixels = self.maker.kernel("pixels", {"PIXELS": 1})
        return head, blocks, Convolution(self.maker, self.body, skip=True), tail

    def _shallow(self, x: torch.Tensor, head: Convolution | None) -> torch.Tensor:
        """What the first layer gives, (N, h, w, C)."""
        if head is None:
            y = self.head((x * self.prescale).contiguous(memory_format=torch.channels_last)).to(torch.float16)
            y = y.permute(0, 2, 3, 1)
            return F.pad(y, (0, -y.shape[-1] % 8)).contiguous()
        count, _, height, width = x.shape
        pixels = x.new_empty((count, height, width, 8), dtype=torch.float16)
        number = count * height * width
        self._pixels(
            (-(-number // 256), 1),
            256,
            0,
            x.float().contiguous(),
            pixels,
            count,
            height * width,
            self.prescale,
        )
        return head(pixels)


@lru_cache(maxsize=16)
def _whole(height: int, width: int, device: torch.device) -> list[torch.Tensor]:
    """Where the small map of a whole picture is read for each row and each column: the first of two cells and the second
    one's share, (h,) int32 and float32, then (w,); bilinear with half-pixel centres."""
    tables: list[torch.Tensor] = []
    for size in (height, width):
        lower, share = map(torch.from_numpy, neighbours(size))
        tables += [lower.to(device, torch.int32), share.to(device, torch.float32)]
    return tables


def _placed(grid: Grid) -> list[torch.Tensor]:
    """The same for tiles, (N, h) and (N, w), from the matrices of their places in the frame."""
    tables: list[torch.Tensor] = []
    for matrix in grid[:2]:
        # A row has one entry, or two that lie together, and sums to one.
        first = (matrix != 0).to(torch.uint8).argmax(dim=-1, keepdim=True)
        share = 1.0 - matrix.gather(-1, first)
        tables += [first[..., 0].to(torch.int32).contiguous(), share[..., 0].float().contiguous()]
    return tables


def _matrix(conv: nn.Conv2d) -> torch.Tensor:
    return conv.weight[:, :, 0, 0].T


def _bias(conv: nn.Conv2d) -> torch.Tensor:
    assert conv.bias is not None
    return conv.bias.float()
