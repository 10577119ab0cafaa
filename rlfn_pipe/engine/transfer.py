"""The way between the host and a device: nobody waits for a copy before it is needed.

CUDA copies from and to pinned memory while host and device go on. Each direction has a stream of its own, since a GPU
has an engine for each, beside that for kernels.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

__all__ = ["Arrival", "apart", "fetch", "lasting", "send", "send_together", "stay", "together"]


def send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of an array on the device, of any type that PyTorch has."""
    return send_together([array], device)[0]


def send_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copies of arrays of one type on the device; they travel as one."""
    if device.type != "cuda":
        return [torch.from_numpy(np.array(array, order="C")).to(device) for array in arrays]
    pinned = torch.empty(sum(array.size for array in arrays), dtype=_dtype(arrays[0]), pin_memory=True)
    for part, array in zip(apart(pinned, [array.shape for array in arrays]), arrays, strict=True):
        np.copyto(part.numpy(), array)
    up, _ = _streams(device)
    with torch.cuda.stream(up):
        values = pinned.to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(up)
    # The allocator knows of the stream only on which the memory was taken.
    values.record_stream(current)
    return apart(values, [array.shape for array in arrays])


def apart(flat: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """Views of `flat`, one behind the other."""
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def together(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The one flat tensor that `tensors` are views of, as `apart` makes them; None where they are not."""
    end = tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.dtype != tensors[0].dtype or not tensor.is_contiguous() or tensor.data_ptr() != end:
            return None
        end += tensor.nbytes
    first = tensors[0]
    if first.untyped_storage().data_ptr() + first.untyped_storage().nbytes() < end:
        return None
    return first.as_strided((sum(tensor.numel() for tensor in tensors),), (1,))


class Arrival:
    """Tensors that are on their way, or being computed; `landed` once they are there, where somebody else does that."""

    def __init__(self, tensors: list[torch.Tensor], landed: torch.cuda.Event | None) -> None:
        self._tensors, self._landed = tensors, landed

    def tensors(self) -> list[torch.Tensor]:
        """The tensors, once they are there."""
        if self._landed is not None:
            self._landed.synchronize()
            self._landed = None
        return self._tensors


def fetch(tensors: Sequence[torch.Tensor]) -> Arrival:
    """Bring tensors of one device to the host, as one where they lie together.

    Those of the CPU are passed on as they are.
    """
    device = tensors[0].device
    if device.type != "cuda":
        return Arrival([tensor.cpu() for tensor in tensors], None)
    _, down = _streams(device)
    down.wait_stream(torch.cuda.current_stream(device))
    one = together(tensors)
    leaving = list(tensors) if one is None else [one]
    for tensor in leaving:
        tensor.record_stream(down)
    with torch.cuda.stream(down):
        copies = [tensor.to("cpu", non_blocking=True) for tensor in leaving]
        landed = torch.cuda.current_stream(device).record_event()
    return Arrival(copies if one is None else apart(copies[0], [t.shape for t in tensors]), landed)


def stay(tensors: Sequence[torch.Tensor]) -> Arrival:
    """Tensors of one device that stay there, for somebody who asks no stream whether they have been computed."""
    device = tensors[0].device
    done = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
    return Arrival(list(tensors), done)


@contextmanager
def lasting(device: torch.device) -> Iterator[None]:
    """Within, memory comes from what the device keeps for this, however little is left there.

    Encoders know pictures by their address, so that it must not be given to others and come back.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.use_mem_pool(_lasting_memory(device)):
        yield


@lru_cache(maxsize=8)
def _lasting_memory(device: torch.device) -> torch.cuda.MemPool:
    # It has to go before CUDA does.
    atexit.register(_lasting_memory.cache_clear)
    return torch.cuda.MemPool()


@lru_cache(maxsize=8)
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Streams for copies to the device and back."""
    up, down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
    return up, down


def _dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
