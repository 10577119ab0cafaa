"""Frames in a GPU's memory as the engine takes them: surfaces of its decoder to planes, by DLPack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

__all__ = ["context_of", "planes_of"]


@contextmanager
def context_of(device: torch.device) -> Iterator[None]:
    """Within, the context of a GPU that PyTorch works in is the calling thread's, and is there."""
    with torch.cuda.device(device):
        torch.cuda.current_stream(device).synchronize()
        yield


def planes_of(surface: Sequence[Any], bit_depth: int) -> tuple[np.ndarray, ...]:
    """The planes (Y, U, V) of a surface of 4:2:0, copied where it lies, so that its decoder can have it back.

    `surface`: luma (h, w) and chroma (h / 2, w / 2, 2), which have ``__dlpack__``: uint8, or uint16 with the sample's
    `bit_depth` bits as the high ones. The result as in `rlfn_pipe.types.Frame`: uint8, or int16.

    The copy is one of the calling thread's stream, which is that of NVIDIA's decoder: nobody waits for either.
    """
    # Asked for a capsule, PyAV wants no stream; from_dlpack would name one.
    luma, chroma = (from_dlpack(plane.__dlpack__()) for plane in surface)
    parts: list[Any] = [luma, chroma[..., 0], chroma[..., 1]]
    if bit_depth == 8:
        return tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)
    mask = (1 << bit_depth) - 1
    return tuple((part.view(torch.int16) >> (16 - bit_depth)).bitwise_and_(mask) for part in parts)
