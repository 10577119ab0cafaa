"""What the engine does with pictures, whether they lie on the host as arrays or on a device as tensors.

`rlfn_pipe.engine.host` has the one, `rlfn_pipe.engine.tensors` the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from rlfn_pipe.types import ColourInfo, Frame

__all__ = ["Array", "Arrays", "Arrival"]

#: A numpy array, or a tensor where the engine has tensors. What both can is written in the engine itself: slices,
#: arithmetic, also in place, `clip`, `reshape`, `swapaxes`.
Array = Any


class Arrival(Protocol):
    """Arrays on their way to the host, or to an encoder beside them."""

    def tensors(self) -> list[Array]:
        """The arrays, once they are there."""
        ...


class Arrays(Protocol):
    """What the engine does with pictures (3, h, w) float32 and cannot write in one way for both kinds."""

    @property
    def small_steps(self) -> bool:
        """Whether each step costs little, so that less may be computed in more of them."""
        ...

    @property
    def at_once(self) -> bool:
        """Whether results are known as soon as they are there, so that nothing of them need be asked about later."""
        ...

    def __hash__(self) -> int: ...

    def quiet(self) -> AbstractContextManager[Any]:
        """Within, the calling thread computes for the engine: nothing is kept for gradients."""
        ...

    def send(self, array: np.ndarray) -> Array:
        """A host array as the engine has it; not to be written to."""
        ...

    def fetch(self, arrays: Sequence[Array]) -> Arrival:
        """Bring arrays to the host."""
        ...

    def surface(self, planes: Sequence[Array], bit_depth: int) -> Arrival:
        """Quantised planes of 4:2:0 as `rlfn_pipe.types.Target.surface` says; they stay where they are."""
        ...

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Float32 of any values."""
        ...

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Float32 zeros."""
        ...

    def stack(self, arrays: Sequence[Array]) -> Array:
        """(N, ...) of N arrays of one shape."""
        ...

    def repeated(self, array: Array, count: int) -> Array:
        """(1, ...) as (count, ...), not to be written to."""
        ...

    def flipped(self, array: Array, axes: tuple[int, ...]) -> Array:
        """The array turned round along some axes."""
        ...

    def copied(self, array: Array) -> Array:
        """A copy that may be written to."""
        ...

    def alone(self, part: Array) -> Array:
        """`part`, or a copy where it would keep something larger alive."""
        ...

    def equal(self, one: Array, other: Array) -> bool:
        """Whether two arrays have the same values."""
        ...

    def extremes(self, array: Array) -> tuple[float, float]:
        """The least and the greatest value, or any beyond them where to know would be to wait."""
        ...

    def finite(self, results: Array) -> Array:
        """(N,) booleans for (N, C, h, w): no value is NaN or infinite."""
        ...

    def without_bad(self, results: Array, finite: Array) -> Array:
        """`results` with zeros instead of those that are not `finite`."""
        ...

    def rgb(self, frame: Frame) -> Array:
        """As `rlfn_pipe.engine.colour.to_rgb`."""
        ...

    def resized(self, rgb: Array, excess: Array | None, height: int, width: int) -> Array:
        """`rgb` with its `excess` (`rlfn_pipe.engine.colour.add_excess`) in another size, or in its own."""
        ...

    def planes(self, rgb: Array, colour: ColourInfo, *, neutral: bool, excess: Array | None) -> list[Array]:
        """As `rlfn_pipe.engine.colour.from_rgb`."""
        ...

    def upload(self, plane: np.ndarray) -> Array:
        """A copy of a uint8 or uint16 plane as float32, values unchanged."""
        ...

    def quantised(self, values: Array, bit_depth: int) -> Array:
        """As `rlfn_pipe.engine.colour.quantise`; may overwrite `values`."""
        ...

    def places(self, mask: Array) -> tuple[Array, Array]:
        """Rows and columns of what is True."""
        ...

    def release(self) -> None:
        """Hand cached memory back before trying again with less."""
        ...
