"""Float32 that is float32: NVIDIA's convolutions round it to TF32 unless they are told not to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["exact_fp32"]


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Within, PyTorch's convolutions in float32 are not rounded to TF32; for the whole process."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
