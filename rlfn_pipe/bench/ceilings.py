"""What the machine can do at best: bare convolutions, a matrix product, a copy.

No network can beat these rates by its own work, so what an engine reaches is told as a share of
them. They are measured in the same run as the engine, in its number format and memory layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from rlfn_pipe.bench.timing import Road, in_turns
from rlfn_pipe.types import ModelSpec

_ROUNDS_TO_CHOOSE = 3
#: Side of the matrices and bytes of the copied block, by kind of device; far larger than any cache.
_MATRIX = {"cpu": 2048, "cuda": 8192, "mps": 4096}
_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30, "mps": 1 << 28}
#: Channels are also tried zero-padded to multiples of this, which some matrix units prefer.
_CHANNEL_MULTIPLE = {"cpu": 16, "cuda": 16, "mps": 16}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best measured rates. A multiply-add counts as two operations; a copy as read and write.

    `convolution_tflops` counts useful operations: where channels were padded, only the network's own.
    `convolution_shape` says which bare convolution was the best one.
    """

    precision: str
    convolution_tflops: float
    convolution_shape: str
    matrix_tflops: float
    copy_gb_s: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A bare 3x3 convolution: `channels` in and out of which `useful` are the network's."""

    channels: int
    useful: int
    height: int
    width: int
    batch: int

    @property
    def operations(self) -> int:
        """Useful operations, two a multiply-add."""
        return 2 * 9 * self.useful**2 * self.height * self.width * self.batch

    def __str__(self) -> str:
        padded = f" padded to {self.channels}" if self.channels != self.useful else ""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.useful} channels{padded}, {self.width}x{self.height}{batch}"


@dataclass(slots=True)
class CeilingRoads:
    """What is timed for the ceilings, and how much work one pass is.

    `work`: operations (convolution, matrix) or bytes (copy) of a pass of the road of that name.
    """

    precision: str
    shape: Shape
    roads: dict[str, Road]
    work: dict[str, float]

    def ceilings(self, milliseconds: dict[str, float]) -> Ceilings:
        """The rates from the time of a pass of each road."""
        rate = {name: self.work[name] / (milliseconds[name] * 1e-3) for name in self.work}
        return Ceilings(
            precision=self.precision,
            convolution_tflops=rate["convolution"] / 1e12,
            convolution_shape=str(self.shape),
            matrix_tflops=rate["matrix"] / 1e12,
            copy_gb_s=rate["copy"] / 1e9,
        )


def shapes(spec: ModelSpec, size: tuple[int, int], device: torch.device) -> list[Shape]:
    """The convolutions to try: the frame's own size and a tile's, channels as they are and padded."""
    useful = max(spec.channels, spec.mid_channels)
    multiple = _CHANNEL_MULTIPLE[device.type]
    channels = dict.fromkeys((useful, -(-useful // multiple) * multiple))
    width, height = size
    sizes = [(height, width, 1), (96, 96, 1 if device.type == "cpu" else 64)]
    return [Shape(count, useful, h, w, n) for count in channels for h, w, n in sizes]


@torch.inference_mode()
def ceiling_roads(
    spec: ModelSpec, size: tuple[int, int], device: torch.device, precision: str, dtype: torch.dtype
) -> CeilingRoads:
    """Choose the fastest of `shapes` and make the roads for it, the matrix product and the copy.

    `size`: (width, height) of the frame that the network gets.
    """
    candidates = shapes(spec, size, device)
    tried: dict[str, Road] = {str(shape): _convolution(shape, device, dtype) for shape in candidates}
    times = in_turns(tried, _ROUNDS_TO_CHOOSE, device)
    best = max(candidates, key=lambda shape: shape.operations / min(times[str(shape)].wall))
    side = _MATRIX[device.type]
    elements = _COPY_BYTES[device.type] // dtype.itemsize
    roads = {
        "convolution": tried[str(best)],
        "matrix": _matrix(side, device, dtype),
        "copy": _copy(elements, device, dtype),
    }
    work = {
        "convolution": float(best.operations),
        "matrix": 2.0 * side**3,
        "copy": 2.0 * elements * dtype.itemsize,
    }
    return CeilingRoads(precision, best, roads, work)


def _convolution(shape: Shape, device: torch.device, dtype: torch.dtype) -> Road:
    x = torch.zeros(shape.batch, shape.channels, shape.height, shape.width, dtype=dtype, device=device)
    x[:, : shape.useful].normal_()
    weight = torch.zeros(shape.channels, shape.channels, 3, 3, dtype=dtype, device=device)
    weight[: shape.useful, : shape.useful].normal_()
    bias = torch.zeros(shape.channels, dtype=dtype, device=device)
    x, weight = (part.contiguous(memory_format=torch.channels_last) for part in (x, weight))
    return torch.inference_mode()(lambda: functional.conv2d(x, weight, bias, padding=1))


def _matrix(side: int, device: torch.device, dtype: torch.dtype) -> Road:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return torch.inference_mode()(lambda: torch.mm(a, b, out=out))


def _copy(elements: int, device: torch.device, dtype: torch.dtype) -> Road:
    # Ones: untouched zeros would all be one and the same page of the system, which stays in cache.
    source, target = (torch.ones(elements, dtype=dtype, device=device) for _ in range(2))
    return torch.inference_mode()(lambda: target.copy_(source))
