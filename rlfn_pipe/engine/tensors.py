"""The engine's pictures as tensors of PyTorch: on GPUs, and where its operators run the network on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlfn_pipe.engine import colour, transfer
from rlfn_pipe.engine.arrays import Arrival
from rlfn_pipe.engine.layouts import semi_planar, surface_shape
from rlfn_pipe.engine.resize import resize
from rlfn_pipe.memory import release_cached
from rlfn_pipe.threads import compiled_threads, only_compiled
from rlfn_pipe.types import ColourInfo, Frame

__all__ = ["DTYPES", "Tensors", "lent"]

#: By the names in `rlfn_pipe.engine.device.PRECISIONS`.
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Tensors:
    """`rlfn_pipe.engine.arrays.Arrays` of tensors on a device."""

    device: torch.device

    @property
    def small_steps(self) -> bool:
        return self.device.type == "cpu"

    @property
    def at_once(self) -> bool:
        return self.device.type == "cpu"

    def quiet(self) -> AbstractContextManager[Any]:
        held = ExitStack()
        held.enter_context(torch.inference_mode())
        if self.device.type == "cuda":
            # Kernels go to the current one, whatever their tensors are on.
            held.enter_context(torch.cuda.device(self.device))
        return held

    def send(self, array: np.ndarray) -> torch.Tensor:
        return transfer.send(array, self.device)

    def fetch(self, arrays: Sequence[torch.Tensor]) -> Arrival:
        return transfer.fetch(arrays)

    def surface(self, planes: Sequence[torch.Tensor], bit_depth: int) -> Arrival:
        luma = planes[0]
        shape = surface_shape(luma.shape, luma.element_size())
        with transfer.lasting(luma.device):
            room = torch.empty(shape, dtype=luma.dtype, device=luma.device)
        made = semi_planar(planes, room, bit_depth)
        return transfer.stay([part.view(torch.uint16) if bit_depth > 8 else part for part in made])

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def stack(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(arrays))

    def repeated(self, array: torch.Tensor, count: int) -> torch.Tensor:
        return array.expand(count, *array.shape[1:])

    def flipped(self, array: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        return array.flip(axes)

    def copied(self, array: torch.Tensor) -> torch.Tensor:
        return array.clone()

    def alone(self, part: torch.Tensor) -> torch.Tensor:
        return part.clone() if part.untyped_storage().nbytes() > part.nbytes else part

    def equal(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        return torch.equal(one, other)

    def extremes(self, array: torch.Tensor) -> tuple[float, float]:
        if self.device.type != "cpu":  # to ask a device would be to wait for all that it has in hand
            return -math.inf, math.inf
        least, most = array.aminmax()
        return float(least), float(most)

    def finite(self, results: torch.Tensor) -> torch.Tensor:
        # As in `Host`.
        return torch.isfinite(results.sum(dim=(1, 2, 3)))

    def without_bad(self, results: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
        # On the device; nothing is read back.
        return torch.where(finite[:, None, None, None], results, torch.zeros((), device=results.device))

    def rgb(self, frame: Frame) -> torch.Tensor:
        return colour.to_rgb(frame, self.device)

    def resized(
        self, rgb: torch.Tensor, excess: torch.Tensor | None, height: int, width: int
    ) -> torch.Tensor:
        return resize(colour.add_excess(rgb, excess), height, width, self)

    def planes(
        self, rgb: torch.Tensor, layout: ColourInfo, *, neutral: bool, excess: torch.Tensor | None
    ) -> list[torch.Tensor]:
        return colour.from_rgb(rgb, layout, neutral=neutral, excess=excess)

    def upload(self, plane: np.ndarray) -> torch.Tensor:
        return colour.upload(plane, self.device)

    def quantised(self, values: torch.Tensor, bit_depth: int) -> torch.Tensor:
        return colour.quantise(values, bit_depth)

    def places(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns

    def release(self) -> None:
        release_cached(self.device)


_ON_THE_HOST = Tensors(torch.device("cpu"))


def lent(step: str, *arguments: Any, **named: Any) -> Any:
    """A step of `Tensors` on the CPU for arrays, which are not copied on their way in and out.

    On the calling thread alone, also where PyTorch was not there yet when that was first said.
    """
    with only_compiled(compiled_threads()), _ON_THE_HOST.quiet():
        made = getattr(_ON_THE_HOST, step)(
            *map(_tensor, arguments), **{name: _tensor(value) for name, value in named.items()}
        )
    return [each.numpy() for each in made] if isinstance(made, list) else made.numpy()


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    # Steps that write to what they are given are given their own.
    return torch.from_numpy(value if value.flags.writeable else value.copy())
