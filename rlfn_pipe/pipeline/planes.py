"""Results to planes by the compiled part on the CPU, where it is used: one pass instead of some forty."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.models.fused import TRIED, kernels_wanted, near_or_warn, on
from rlfn_pipe.models.native.library import MOST_TAPS, Planes, Taps, any_library
from rlfn_pipe.threads import compiled_threads, let_openmp_rest
from rlfn_pipe.types import MATRIX_BT709, RANGE_LIMITED, ColourInfo

__all__ = ["from_rgb"]


def from_rgb(
    rgb: torch.Tensor, colour: ColourInfo, *, neutral: bool = False, excess: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """As `rlfn_pipe.engine.colour.from_rgb`, which it calls for all that the compiled part does not do.

    Code values may differ by one where a value lies between two, since sums are rounded in another order.
    """
    chroma = colour.subsampling in ("420", "422", "440", "444") and not neutral
    if chroma and kernels_wanted(rgb.device) and _kernels_work(rgb.device):
        return by_kernels(conversions.add_excess(rgb, excess), colour)
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


def by_kernels(rgb: torch.Tensor, colour: ColourInfo) -> list[torch.Tensor]:
    """As `from_rgb` for a layout with chroma, by Triton's kernels; see `rlfn_pipe.models.kernels`."""
    from rlfn_pipe.models import kernels

    numbers = _Numbers.of(colour)
    with on(rgb.device):
        return kernels.planes(
            rgb, numbers.luma, numbers.gains, numbers.offsets, colour.bit_depth, numbers.along, numbers.down
        )


@lru_cache(maxsize=8)
def _kernels_work(device: torch.device) -> bool:
    """Whether Triton's kernels make planes as the engine does, tried once."""
    layout = ColourInfo(MATRIX_BT709, range=RANGE_LIMITED)
    roads = [by_kernels, conversions.from_rgb]
    for _, height, width in TRIED:
        rgb = (255.0 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))).to(device)
        one, other = (
            lambda road=road, rgb=rgb: torch.cat([p.flatten() for p in road(rgb, layout)]) for road in roads
        )
        if not near_or_warn(one, other):
            return False
    return True


class _Numbers(NamedTuple):
    """What a layout's planes are made with; fields as the arguments of `rlfn_pipe.models.kernels.planes`."""

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


def _filter(half: bool, cosited: bool) -> conversions.Taps:
    """Chroma's filter in one direction, without gaps; a full one takes each sample as it is."""
    taps = conversions.decimation(cosited) if half else ((0, 1.0),)
    first, last = taps[0][0], taps[-1][0]
    weights = dict(taps)
    return tuple((k, weights.get(k, 0.0)) for k in range(first, last + 1))


@lru_cache(maxsize=4)
def _taps(taps: conversions.Taps) -> Taps:
    made = Taps(first=taps[0][0], count=len(taps))
    assert made.count <= MOST_TAPS
    for number, (_, weight) in enumerate(taps):
        made.weight[number] = weight
    return made
