"""Frames in a GPU's memory as the engine takes them: surfaces of its decoder to planes, by DLPack."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from rlfn_pipe.errors import HardwareFailed
from rlfn_pipe.memory import is_out_of_memory, release_cached

__all__ = ["Context", "planes_of"]


class Context:
    """A GPU that PyTorch works on, for libraries that share it. Within a call's ``with`` its context is the thread's."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._threads = device, threading.local()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with torch.cuda.device(self._device):
            if not getattr(self._threads, "ready", False):
                # PyTorch makes a GPU the thread's when it first asks it for something.
                torch.cuda.current_stream(self._device).synchronize()
                self._threads.ready = True
            yield


def planes_of(surface: Sequence[Any], bit_depth: int) -> tuple[np.ndarray, ...]:
    """The planes (Y, U, V) of a surface of 4:2:0, each in memory of its own where the surface lies.

    `surface`: luma (h, w) and chroma (h / 2, w / 2, 2), which have ``__dlpack__``: uint8, or uint16 with the sample's
    `bit_depth` bits as the high ones. The result as in `rlfn_pipe.types.Frame`: uint8, or int16, without gaps.

    They are made on the calling thread's stream, which is that of NVIDIA's decoder: nobody waits for either.

    Raises:
        HardwareFailed: there is no memory for them.
    """
    # Asked for a capsule, PyAV wants no stream; from_dlpack would name one.
    luma, chroma = (from_dlpack(plane.__dlpack__()) for plane in surface)
    for _ in range(2):
        try:
            return _apart(luma, chroma, bit_depth)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release_cached(luma.device)
    raise HardwareFailed(f"{luma.device} has no memory left for its pictures")


def _apart(luma: torch.Tensor, chroma: torch.Tensor, bit_depth: int) -> tuple[Any, ...]:
    parts = (luma, chroma[..., 0], chroma[..., 1])
    if bit_depth == 8:
        return tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)
    mask = (1 << bit_depth) - 1
    return tuple((part.view(torch.int16) >> (16 - bit_depth)).bitwise_and_(mask) for part in parts)
