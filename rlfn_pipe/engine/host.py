"""The engine's pictures as numpy arrays, where the compiled part runs the network.

Nothing there needs PyTorch, which takes longer to load than a picture to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rlfn_pipe.engine.arrays import Arrival
from rlfn_pipe.engine.layouts import semi_planar, surface_shape
from rlfn_pipe.engine.resize import enlarge, resize
from rlfn_pipe.types import ColourInfo, Frame

__all__ = ["Host"]


class _Here:
    """Arrays that are on the host already."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = list(arrays)

    def tensors(self) -> list[np.ndarray]:
        return self._arrays


@dataclass(frozen=True)
class Host:
    """`rlfn_pipe.engine.arrays.Arrays` of numpy."""

    small_steps: ClassVar = True
    at_once: ClassVar = True

    def quiet(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def send(self, array: np.ndarray) -> np.ndarray:
        return array

    def fetch(self, arrays: Sequence[np.ndarray]) -> Arrival:
        return _Here(arrays)

    def surface(self, planes: Sequence[np.ndarray], bit_depth: int) -> Arrival:
        room = np.empty(surface_shape(planes[0].shape, planes[0].itemsize), planes[0].dtype)
        return _Here(semi_planar(planes, room, bit_depth))

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty(shape, np.float32)

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def stack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(arrays)

    def repeated(self, array: np.ndarray, count: int) -> np.ndarray:
        return np.broadcast_to(array, (count, *array.shape[1:]))

    def flipped(self, array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.flip(array, axes)

    def copied(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def alone(self, part: np.ndarray) -> np.ndarray:
        return part if part.base is None else part.copy()

    def equal(self, one: np.ndarray, other: np.ndarray) -> bool:
        return np.array_equal(one, other)

    def extremes(self, array: np.ndarray) -> tuple[float, float]:
        return float(array.min()), float(array.max())

    def finite(self, results: np.ndarray) -> np.ndarray:
        # One sum a picture finds NaN and infinities, since both survive addition.
        with np.errstate(all="ignore"):
            return np.isfinite(results.sum(axis=(1, 2, 3)))

    def without_bad(self, results: np.ndarray, finite: np.ndarray) -> np.ndarray:
        return np.where(finite[:, None, None, None], results, np.float32(0.0))

    def rgb(self, frame: Frame) -> np.ndarray:
        return _lent("rgb", frame)

    def resized(self, rgb: np.ndarray, excess: np.ndarray | None, height: int, width: int) -> np.ndarray:
        if excess is not None:
            rgb = rgb + enlarge(excess, rgb.shape[-2], rgb.shape[-1], self)
        return resize(rgb, height, width, self)

    def planes(
        self, rgb: np.ndarray, colour: ColourInfo, *, neutral: bool, excess: np.ndarray | None
    ) -> list[np.ndarray]:
        return _lent("planes", rgb, colour, neutral=neutral, excess=excess)

    def upload(self, plane: np.ndarray) -> np.ndarray:
        return plane.astype(np.float32)

    def quantised(self, values: np.ndarray, bit_depth: int) -> np.ndarray:
        np.rint(values, out=values)
        np.clip(values, 0.0, float((1 << bit_depth) - 1), out=values)
        with np.errstate(invalid="ignore"):  # what is not finite has no code value
            return values.astype(np.uint8 if bit_depth == 8 else np.uint16)

    def places(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = mask.nonzero()
        return rows, columns

    def release(self) -> None:
        return None


def _lent(step: str, *arguments: Any, **named: Any) -> Any:
    """What `Tensors` of the CPU do by the name of `step`, with arrays in and out that are not copied."""
    from rlfn_pipe.engine.tensors import lent

    return lent(step, *arguments, **named)
