"""What the engine asks of a network, and what it can use where a network has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rlfn_pipe.engine.arrays import Array

if TYPE_CHECKING:
    import torch

__all__ = ["Grid", "HostFactory", "Memorable", "Network", "NetworkFactory", "Remembering", "SideBySide"]

#: ESA's place in the frame for a batch of tiles, float32: row matrices (N, h, h3) and column matrices
#: (N, w, w3) that stretch its small map, and the mask (N, 1, h3 + 2, w3 + 2) of the cells around it.
Grid = tuple[Array, Array, Array]


class Network(Protocol):
    """What the engine runs: RGB (N, 3, h, w) float32, 0..255, to (N, 3, s h, s w), 0..255.

    The result is float32. `grid` is None for whole frames; networks without a
    position-dependent part ignore it. All are tensors, or numpy arrays (see `HostFactory`).
    """

    def __call__(self, x: Array, grid: Grid | None = None) -> Array: ...


@runtime_checkable
class Memorable(Protocol):
    """A network that can also be had with a memory of the last frame: same bits, less to compute."""

    def remembering(self, limit: int) -> Remembering: ...


@runtime_checkable
class Remembering(Network, Protocol):
    """A network that keeps what it can use for the next frame.

    `computed` is the share (0..1) of the last call's work that had to be done; `keeps` says whether there is
    room for frames of a size; `forget` hands the memory back and is False when there was none.
    """

    computed: float

    def keeps(self, h: int, w: int) -> bool: ...

    def forget(self) -> bool: ...


@runtime_checkable
class SideBySide(Network, Protocol):
    """A network with threads of its own (`rlfn_pipe.threads`).

    Several threads may call it at once, with the bits that all of them together would give. `pixel_bytes` is what a
    low-resolution pixel takes meanwhile, picture and result not counted. `forget` hands back the memory that waits for
    the next picture and is False when there was none.
    """

    pixel_bytes: float

    def forget(self) -> bool: ...


class NetworkFactory(Protocol):
    """Builds the network in a number format on a device; `edge_fp32` asks for float32 first and last layers."""

    def __call__(self, dtype: torch.dtype, edge_fp32: bool, device: str, /) -> Network: ...


@runtime_checkable
class HostFactory(NetworkFactory, Protocol):
    """A factory that also builds networks of numpy arrays, where `serves` says so for a device and a number format.

    Once it does, `host` gives one for any number format (of `rlfn_pipe.engine.device.PRECISIONS`).
    """

    def serves(self, device: str, precision: str) -> bool: ...

    def host(self, precision: str, edge_fp32: bool) -> Network: ...
