"""The way between the host and a device: nobody waits for a copy before it is needed.

CUDA copies from and to pinned memory while host and device go on. Each direction has a stream of its own, since a GPU
has an engine for each, beside that for kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

__all__ = ["AHEAD", "Arrival", "fetch", "frames_ahead", "send"]

#: Frames that may be on their way to the host while the device computes the next ones.
AHEAD = 2


def frames_ahead(device: torch.device) -> int:
    """How many frames the engine computes before it waits for the oldest one to arrive."""
    return AHEAD if device.type == "cuda" else 0


def send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of an array on the device, of any type that PyTorch has."""
    if device.type != "cuda":
        return torch.from_numpy(np.array(array, order="C")).to(device)
    pinned = torch.empty(array.shape, dtype=_dtype(array), pin_memory=True)
    np.copyto(pinned.numpy(), array)
    up, _ = _streams(device)
    with torch.cuda.stream(up):
        values = pinned.to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(up)
    # The allocator knows of the stream only on which the memory was taken.
    values.record_stream(current)
    return values


class Arrival:
    """Tensors on their way to the host; `landed` where somebody carries them there."""

    def __init__(self, copies: list[torch.Tensor], landed: torch.cuda.Event | None) -> None:
        self._copies, self._landed = copies, landed

    def tensors(self) -> list[torch.Tensor]:
        """The tensors on the host, once they are there."""
        if self._landed is not None:
            self._landed.synchronize()
            self._landed = None
        self._copies = [copy.cpu() for copy in self._copies]
        return self._copies


def fetch(tensors: Sequence[torch.Tensor]) -> Arrival:
    """Bring tensors of one device to the host. Those of the CPU are passed on as they are."""
    device = tensors[0].device
    if device.type != "cuda":
        return Arrival(list(tensors), None)
    _, down = _streams(device)
    down.wait_stream(torch.cuda.current_stream(device))
    for tensor in tensors:
        tensor.record_stream(down)
    with torch.cuda.stream(down):
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        landed = torch.cuda.current_stream(device).record_event()
    return Arrival(copies, landed)


@lru_cache(maxsize=8)
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Streams for copies to the device and back."""
    up, down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
    return up, down


def _dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
