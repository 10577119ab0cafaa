"""Samples to RGB and results to samples where the engine has tensors: on NVIDIA GPUs by kernels, one pass each."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.engine.layouts import check_planes, chroma_size
from rlfn_pipe.models.native.library import any_library
from rlfn_pipe.pipeline.planes import YUV, DownNumbers, UpNumbers, planes_by_library, rgb_by_library
from rlfn_pipe.types import ColourInfo, Frame

if TYPE_CHECKING:
    from rlfn_pipe.models.cuda.library import Maker

__all__ = ["from_rgb", "to_rgb"]

#: Kernels count a plane's samples in 32 bits.
_MOST_PIXELS = (1 << 31) - 1


def from_rgb(
    rgb: torch.Tensor, colour: ColourInfo, *, neutral: bool = False, excess: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """As `rlfn_pipe.engine.colour.from_rgb`, which it calls for all that neither kernels nor the compiled part do."""
    chroma = colour.subsampling in YUV and not neutral
    if chroma and (maker := _maker_on(rgb.device)) and rgb[0].numel() <= _MOST_PIXELS:
        scale = None if excess is None else rgb.shape[-2] // excess.shape[-2]
        if _down_works(rgb.device, colour, scale):
            return by_maker(maker, rgb, colour, excess)
    found = any_library() if chroma and rgb.device.type == "cpu" else None
    if found is None:
        return conversions.from_rgb(rgb, colour, neutral=neutral, excess=excess)
    planes = planes_by_library(found, rgb.numpy(), colour, None if excess is None else excess.numpy())
    bits = [plane.view(np.int16) if plane.dtype == np.uint16 else plane for plane in planes]
    return [torch.from_numpy(plane) for plane in bits]


def to_rgb(frame: Frame, device: torch.device) -> torch.Tensor:
    """As `rlfn_pipe.engine.colour.to_rgb`, which it calls for all but YUV on the CPU or on a GPU with kernels for it."""
    if frame.colour.subsampling in YUV:
        if (maker := _maker_on(device)) and _up_works(device, frame.colour):
            return rgb_by(maker, frame, device)
        if device.type == "cpu" and (found := any_library()):
            return torch.from_numpy(rgb_by_library(found, frame))
    return conversions.to_rgb(frame, device)


def _maker_on(device: torch.device) -> Maker | None:
    """As `rlfn_pipe.models.cuda.trial.maker_on`, which is imported only where there is a GPU."""
    if device.type != "cuda":
        return None
    from rlfn_pipe.models.cuda.trial import maker_on

    return maker_on(device)


def rgb_by(maker: Maker, frame: Frame, device: torch.device) -> torch.Tensor:
    """As `to_rgb` for a layout with chroma, by kernels of that maker."""
    from rlfn_pipe.models.cuda import pictures
    from rlfn_pipe.models.cuda.library import on

    check_planes(frame)
    samples = conversions.sent(frame.planes[:3], device)
    with on(device):
        return pictures.rgb(maker, samples, *UpNumbers.of(frame.colour))


def by_maker(
    maker: Maker, rgb: torch.Tensor, colour: ColourInfo, excess: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """As `from_rgb` for a layout with chroma, by kernels of that maker."""
    from rlfn_pipe.models.cuda import pictures
    from rlfn_pipe.models.cuda.library import on

    numbers = DownNumbers.of(colour)
    with on(rgb.device):
        return pictures.planes(
            maker, rgb, numbers.luma, numbers.gains, numbers.offsets, colour.bit_depth, numbers.along, numbers.down,
            excess,
        )  # fmt: skip


@lru_cache(maxsize=64)
def _down_works(device: torch.device, layout: ColourInfo, scale: int | None) -> bool:
    """Whether kernels make planes of a layout as the engine does, tried once; `scale`: of an excess, or None for none."""
    from rlfn_pipe.models.cuda.trial import TRIED, near_or_warn

    maker = _maker_on(device)
    assert maker is not None
    random = torch.Generator().manual_seed(0)
    # Planes are compared in code values of 8 bit, whatever the depth.
    unit = float(1 << (layout.bit_depth - 8))
    for _, height, width in TRIED:
        large = 255.0 * torch.rand(3, height * (scale or 1), width * (scale or 1), generator=random)
        some = torch.randn(3, height, width, generator=random)
        for excess in (None,) if scale is None else (some, torch.zeros_like(some)):
            rgb, plus = large.to(device), None if excess is None else excess.to(device)
            roads = (
                lambda r=rgb, p=plus: by_maker(maker, r, layout, p),
                lambda r=rgb, p=plus: conversions.from_rgb(r.clone(), layout, excess=p),
            )
            one, other = (lambda road=road: _joined(road()).div_(unit) for road in roads)
            if not near_or_warn(one, other, device):
                return False
    return True


def _joined(planes: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([plane.flatten().to(torch.int32).bitwise_and_(0xFFFF) for plane in planes]).float()


@lru_cache(maxsize=64)
def _up_works(device: torch.device, layout: ColourInfo) -> bool:
    """Whether kernels make RGB of a layout as the engine does, tried once."""
    from rlfn_pipe.models.cuda.trial import TRIED, near_or_warn

    maker = _maker_on(device)
    assert maker is not None
    random = np.random.default_rng(0)
    dtype = np.uint8 if layout.bit_depth == 8 else np.uint16
    for _, height, width in TRIED:
        small = chroma_size(height, width, layout.subsampling)
        sizes = ((height, width), small, small)
        planes = tuple(random.integers(0, 1 << layout.bit_depth, size).astype(dtype) for size in sizes)
        frame = Frame(planes, replace(layout, alpha=False))
        one, other = (
            lambda frame=frame: rgb_by(maker, frame, device),
            lambda frame=frame: conversions.to_rgb(frame, device),
        )
        if not near_or_warn(one, other, device):
            return False
    return True
