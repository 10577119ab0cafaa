"""Kernels are used where they are wanted, can be had, and give on the device at hand what PyTorch's operators give."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F

from rlfn_pipe.errors import SlowerThanMeant
from rlfn_pipe.memory import is_out_of_memory
from rlfn_pipe.models.cuda.library import Maker, gpu, on, why_not
from rlfn_pipe.models.cuda.network import ESA, KernelNet
from rlfn_pipe.models.fuse import Grid, InferenceBlock, InferenceNet

__all__ = ["TRIED", "WISH", "kernels_or", "maker_on", "near_or_warn", "wanted"]

#: Environment variable; "off" keeps the kernels off.
WISH = "RLFN_PIPE_KERNELS"
#: Root mean square of what two roads in fp16 may differ by, in code values of 8 bit; it is 0.1 where all is well.
_NEAR = 1.0
#: Of a network that the kernels hold in shared memory.
_MOST_CHANNELS = 64
#: Pictures, rows and columns that kernels are tried on.
TRIED = ((1, 24, 36), (2, 33, 47))


def wanted(device: torch.device) -> bool:
    """Whether kernels can be tried on `device`: they can be had, and nobody said no."""
    return device.type == "cuda" and os.environ.get(WISH) != "off" and why_not(device)[0] is None


def maker_on(device: torch.device) -> Maker | None:
    """Where kernels for `device` come from, if they are `wanted`."""
    return gpu(device) if wanted(device) else None


def kernels_or(plain: InferenceNet, build: Callable[[type[InferenceNet]], InferenceNet]) -> InferenceNet:
    """`plain`, or what `build` makes of the same network, by kernels, where these work on its device."""
    weight = plain.body.weight
    maker = maker_on(weight.device)
    if weight.dtype != torch.float16 or maker is None or not _fits(plain):
        return plain
    made = cast(KernelNet, build(KernelNet).to(weight.device))
    made.maker = maker
    for count, height, width in TRIED:
        picture = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
        picture = picture.mul_(128.0).add_(64.0).to(weight.device)
        # As a picture of its own, and as a tile of a frame.
        for grid in (None, _grid(count, height, width, weight)):
            one, other = partial(made, picture, grid), partial(plain, picture, grid)
            if not near_or_warn(one, other, weight.device):
                return plain
    return made


def _grid(count: int, height: int, width: int, like: torch.Tensor) -> Grid:
    """Some place in a frame, for tiles of that size."""
    cells = [((side - 3) // 2 - 6) // 3 + 1 for side in (height, width)]
    rows, columns = (
        F.interpolate(torch.eye(few)[None], size=side, mode="linear").mT.expand(count, -1, -1).to(like.device)
        for few, side in zip(cells, (height, width), strict=True)
    )
    border = torch.ones(count, 1, cells[0] + 2, cells[1] + 2, device=like.device)
    border[:, :, 0] = 0.0
    return rows, columns, border


def _fits(net: InferenceNet) -> bool:
    """Whether the kernels are written for a network of these sizes."""
    blocks = [cast(InferenceBlock, block) for block in net.blocks]
    most = max(max(block.c1.in_channels, block.c1.out_channels) for block in blocks)
    return net.scale <= 4 and most <= _MOST_CHANNELS and all(b.direct.out_channels == ESA for b in blocks)


@torch.inference_mode()
def near_or_warn(
    one: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor], device: torch.device
) -> bool:
    """Whether kernels (`one`) give what PyTorch's operators give, within rounding. A warning says why not.

    Memory that ends is passed on: that says nothing of the kernels.
    """
    wanted = other().float()
    try:
        with on(device):
            off = float((one().float() - wanted).square().mean().sqrt())
        reason, good = f"they are {off:.3g} code values off", off < _NEAR
    except Exception as error:  # whatever CUDA's libraries may raise: there is another road
        if is_out_of_memory(error):
            raise
        reason, good = f"{type(error).__name__}: {error}".splitlines()[0], False
    if not good:
        warnings.warn(f"the kernels for CUDA are not used, {reason}", SlowerThanMeant, stacklevel=2)
    return good
