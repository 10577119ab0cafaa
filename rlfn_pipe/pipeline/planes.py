"""Samples to RGB and results to samples, one pass each: on the CPU by the compiled part, on NVIDIA GPUs by kernels."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.models.native.library import MOST_TAPS, Library, Planes, Samples, Taps, any_library
from rlfn_pipe.threads import compiled_threads, let_openmp_rest
from rlfn_pipe.types import ColourInfo, Frame

if TYPE_CHECKING:
    from rlfn_pipe.models.cuda.library import Maker

__all__ = ["from_rgb", "to_rgb"]

#: Layouts that have kernels.
_YUV = ("420", "422", "440", "444")
#: A filter that takes each sample as it is.
_SAME: conversions.Taps = ((0, 1.0),)
#: Kernels count a plane's samples in 32 bits.
_MOST_PIXELS = (1 << 31) - 1


def from_rgb(
    rgb: torch.Tensor, colour: ColourInfo, *, neutral: bool = False, excess: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """As `rlfn_pipe.engine.colour.from_rgb`, which it calls for all that neither the compiled part nor kernels do.

    Code values may differ by one where a value lies between two, since sums are rounded in another order.
    """
    chroma = colour.subsampling in _YUV and not neutral
    if chroma and (maker := _maker_on(rgb.device)) and rgb[0].numel() <= _MOST_PIXELS:
        scale = None if excess is None else rgb.shape[-2] // excess.shape[-2]
        if _down_works(rgb.device, colour, scale):
            return by_maker(maker, rgb, colour, excess)
    found = any_library()
    if found is None or rgb.device.type != "cpu" or not chroma:
        return conversions.from_rgb(rgb, colour, neutral=neutral, excess=excess)
    rgb = rgb.contiguous()
    _, height, width = rgb.shape
    numbers = _Numbers.of(colour)
    small = conversions.chroma_size(height, width, colour.subsampling)
    dtype = torch.uint8 if colour.bit_depth == 8 else torch.int16
    planes = [torch.empty(size, dtype=dtype) for size in ((height, width), small, small)]
    threads = compiled_threads()
    job = Planes(
        height=height,
        width=width,
        threads=threads,
        bytes=dtype.itemsize,
        half_x=len(numbers.along) > 1,
        half_y=len(numbers.down) > 1,
        scale=1 if excess is None else height // excess.shape[-2],
        top=(1 << colour.bit_depth) - 1,
        **dict(zip(("red", "green", "blue"), numbers.luma, strict=True)),
        **dict(zip(("luma_gain", "cb_gain", "cr_gain"), numbers.gains, strict=True)),
        **dict(zip(("luma_offset", "chroma_offset"), numbers.offsets, strict=True)),
        along=_taps(numbers.along),
        down=_taps(numbers.down),
    )
    job.rgb, job.y, job.cb, job.cr = (tensor.data_ptr() for tensor in (rgb, *planes))
    if excess is not None:
        excess = excess.contiguous()
        job.excess = excess.data_ptr()
    if threads > 1:
        let_openmp_rest()
    found.planes(job)
    return planes


def to_rgb(frame: Frame, device: torch.device) -> torch.Tensor:
    """As `rlfn_pipe.engine.colour.to_rgb`, which it calls for all but YUV on the CPU or on a GPU with kernels for it.

    Values may differ by a few in the 24th bit, since sums are rounded in another order.
    """
    if frame.colour.subsampling in _YUV:
        if (maker := _maker_on(device)) and _up_works(device, frame.colour):
            return rgb_by(maker, frame, device)
        if device.type == "cpu" and (found := any_library()):
            return _rgb_by_library(found, frame)
    return conversions.to_rgb(frame, device)


def _rgb_by_library(found: Library, frame: Frame) -> torch.Tensor:
    conversions.check_planes(frame)
    numbers, threads = _UpNumbers.of(frame.colour), compiled_threads()
    luma, *chroma = (_rows(plane) for plane in frame.planes[:3])
    if chroma[0].strides != chroma[1].strides:
        chroma = [np.ascontiguousarray(plane) for plane in chroma]
    height, width = luma.shape
    rgb = torch.empty((3, height, width), dtype=torch.float32)
    job = Samples(
        height=height,
        width=width,
        threads=threads,
        bytes=luma.itemsize,
        half_x=numbers.along is not None,
        half_y=numbers.down is not None,
        **dict(zip(("black", "luma_gain", "zero", "chroma_gain"), numbers.levels, strict=True)),
        luma_step=luma.strides[0],
        chroma_step=chroma[0].strides[0],
    )
    job.red, job.green[0], job.green[1], job.blue = numbers.mix
    for taps, ready in ((numbers.along, job.along), (numbers.down, job.down)):
        ready[0], ready[1] = (_taps(_gapless(each)) for each in taps or (_SAME, _SAME))
    job.y, job.cb, job.cr = (plane.ctypes.data for plane in (luma, *chroma))
    job.rgb = rgb.data_ptr()
    if threads > 1:
        let_openmp_rest()
    found.picture(job)
    return rgb


def _rows(plane: np.ndarray) -> np.ndarray:
    """A plane whose rows are without gaps; they may lie apart, as decoders leave them."""
    return (
        plane if plane.strides[1] == plane.itemsize and plane.strides[0] > 0 else np.ascontiguousarray(plane)
    )


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

    conversions.check_planes(frame)
    samples = conversions.sent(frame.planes[:3], device)
    with on(device):
        return pictures.rgb(maker, samples, *_UpNumbers.of(frame.colour))


def by_maker(
    maker: Maker, rgb: torch.Tensor, colour: ColourInfo, excess: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """As `from_rgb` for a layout with chroma, by kernels of that maker."""
    from rlfn_pipe.models.cuda import pictures
    from rlfn_pipe.models.cuda.library import on

    numbers = _Numbers.of(colour)
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
        small = conversions.chroma_size(height, width, layout.subsampling)
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


class _Numbers(NamedTuple):
    """What a layout's planes are made with; fields as the arguments of `rlfn_pipe.models.cuda.pictures.planes`."""

    luma: tuple[float, float, float]
    gains: tuple[float, float, float]
    offsets: tuple[float, float]
    along: conversions.Taps
    down: conversions.Taps

    @classmethod
    def of(cls, colour: ColourInfo) -> _Numbers:
        """The numbers of a layout with chroma."""
        black, span, zero, chroma_span = conversions.levels(colour)
        red, green, blue = conversions.luma_weights(colour)
        white = conversions.WHITE
        return cls(
            (red, green, blue),
            (
                span / white,
                chroma_span / (2.0 * white * (1.0 - blue)),
                chroma_span / (2.0 * white * (1.0 - red)),
            ),
            (black, zero),
            _filter(colour.subsampling in ("420", "422"), colour.chroma_location != "centre"),
            _filter(colour.subsampling in ("420", "440"), colour.chroma_location == "topleft"),
        )


class _UpNumbers(NamedTuple):
    """What RGB is made with; fields as the arguments of `rlfn_pipe.models.cuda.pictures.rgb`."""

    levels: tuple[float, float, float, float]
    mix: tuple[float, float, float, float]
    along: tuple[conversions.Taps, conversions.Taps] | None
    down: tuple[conversions.Taps, conversions.Taps] | None

    @classmethod
    def of(cls, colour: ColourInfo) -> _UpNumbers:
        """The numbers of a layout with chroma."""
        black, span, zero, chroma_span = conversions.levels(colour)
        kr, kg, kb = conversions.luma_weights(colour)
        along = conversions.interpolation(colour.chroma_location != "centre")
        down = conversions.interpolation(colour.chroma_location == "topleft")
        white = conversions.WHITE
        return cls(
            (black, white / span, zero, white / chroma_span),
            (
                2.0 * (1.0 - kr),
                -2.0 * (1.0 - kb) * kb / kg,
                -2.0 * (1.0 - kr) * kr / kg,
                2.0 * (1.0 - kb),
            ),
            along if colour.subsampling in ("420", "422") else None,
            down if colour.subsampling in ("420", "440") else None,
        )


def _filter(half: bool, cosited: bool) -> conversions.Taps:
    """Chroma's filter in one direction, without gaps; a full one takes each sample as it is."""
    return _gapless(conversions.decimation(cosited)) if half else _SAME


def _gapless(taps: conversions.Taps) -> conversions.Taps:
    weights = dict(taps)
    return tuple((k, weights.get(k, 0.0)) for k in range(taps[0][0], taps[-1][0] + 1))


@lru_cache(maxsize=16)
def _taps(taps: conversions.Taps) -> Taps:
    made = Taps(first=taps[0][0], count=len(taps))
    assert made.count <= MOST_TAPS
    for number, (_, weight) in enumerate(taps):
        made.weight[number] = weight
    return made
