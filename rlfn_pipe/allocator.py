"""The C library's allocator, suited to big buffers that come and go.

By default glibc maps every buffer above 32 MiB anew, and the page faults of a layer's output then cost up to a third of
the whole time on the CPU; kept on the heap such buffers leave holes, which later ones do not fit. What is best depends on
who asks for them (docs/performance.md, "Memory").
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from functools import cache
from pathlib import Path

__all__ = ["keep_buffers", "suit_allocator"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: Bytes from which on buffers are mapped where they come in huge pages.
_MAPPED = 4 << 20


@cache
def suit_allocator(*, tensors: bool = False) -> str:
    """Suit the allocator of this process to an engine's arrays (or `tensors`), once, however many it builds.

    In huge pages fresh memory costs little, and what is mapped leaves no holes when it goes: where the kernel is asked
    for them, by numpy always, by PyTorch where it is told to (THP_MEM_ALLOC_ENABLE=1 before its first tensor),
    everything from 4 MiB on is mapped ("huge pages"). Elsewhere nothing is ("kept"). "" where the C library is not
    glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return ""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_TRIM_THRESHOLD, 1 << 30)
    if _huge_pages(tensors=tensors):
        mallopt(_MMAP_THRESHOLD, _MAPPED)
        return "huge pages"
    mallopt(_MMAP_MAX, 0)
    return "kept"


@cache
def keep_buffers(most: int) -> None:
    """Keep buffers of up to `most` bytes on the heap, for operators that take a new one for each result.

    Some 75 of them a frame, mapped and cleared, cost the strips half their time on small frames.
    """
    if suit_allocator(tensors=True) == "huge pages":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, most)


def _huge_pages(*, tensors: bool) -> bool:
    """Whether large buffers are asked for, and got, in huge pages; PyTorch aligns them to pages then."""
    try:
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return False
    if "[never]" in modes:
        return False
    if not tensors:
        return sys.platform == "linux" and os.environ.get("NUMPY_MADVISE_HUGEPAGE", "1") != "0"
    import torch

    held = [torch.empty(size << 20, dtype=torch.uint8) for size in (4, 5, 6, 7)]
    return all(buffer.data_ptr() % mmap.PAGESIZE == 0 for buffer in held)
