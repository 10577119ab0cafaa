"""Memory that has ended: how that is told, and what can be handed back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["is_out_of_memory", "release_cached"]

_ALLOCATOR_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "not enough memory: you tried to allocate",
    "MPS backend out of memory",
    # Of pinned memory.
    "CUDA error: out of memory",
    # Of a kernel as it is loaded or started, and of the libraries' own workspaces.
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the exceptions by which PyTorch and Python report exhausted memory.

    Accelerators raise `torch.OutOfMemoryError`; the CPU allocator, and CUDA itself, raise a RuntimeError, known
    by its own wording, which is matched exactly rather than by any mention of a device.
    """
    # It may be half loaded, by another thread.
    accelerators = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, MemoryError | accelerators):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATOR_MESSAGES)


def release_cached(device: torch.device) -> None:
    """Hand cached blocks of the allocator back before trying again with less."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
