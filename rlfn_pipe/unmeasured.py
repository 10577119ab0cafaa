"""What was written for CUDA and has never run on a GPU. Off unless `RLFN_PIPE_CUDA` names it.

Tests run what they can of it on the CPU; docs/performance.md says how to measure it. What a GPU has proven leaves this
list.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rlfn_pipe.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["PARTS", "WISH", "asked_for"]

#: Environment variable: names of `PARTS`, with commas between them.
WISH = "RLFN_PIPE_CUDA"
#: Parts and what they are.
PARTS = {
    "channels": "channels of zeros up to a multiple of 8 (RLFN has 52), which tensor cores take without copies",
    "kernels": "Triton's kernels between the convolutions, and results to planes in two of them",
    "graphs": "a CUDA graph for each shape of a batch, instead of a launch for each layer",
    "ahead": "copies on streams of their own, and frames computed while others are on their way to the host",
}


def asked_for(part: str, device: torch.device) -> bool:
    """Whether one of `PARTS` is to be used on `device`. Raises UsageError for names that are none."""
    if device.type != "cuda":
        return False
    wanted = {name.strip() for name in os.environ.get(WISH, "").split(",")} - {""}
    unknown = sorted(wanted - PARTS.keys())
    if unknown:
        raise UsageError(f"{WISH} names {', '.join(unknown)}; known are {', '.join(PARTS)}")
    return part in wanted
