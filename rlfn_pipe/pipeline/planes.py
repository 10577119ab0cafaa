"""Results to planes on the CPU by the compiled part, where it is used: one pass instead of some forty."""

from __future__ import annotations

from functools import lru_cache

import torch

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.models.native.library import MOST_TAPS, Planes, Taps, any_library
from rlfn_pipe.threads import compiled_threads, let_openmp_rest
from rlfn_pipe.types import ColourInfo

__all__ = ["from_rgb"]


def from_rgb(
    rgb: torch.Tensor, colour: ColourInfo, *, neutral: bool = False, excess: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """As `rlfn_pipe.engine.colour.from_rgb`, which it calls for all that the compiled part does not do.

    Code values may differ by one where a value lies between two, since sums are rounded in another order.
    """
    found = any_library()
    chroma = colour.subsampling in ("420", "422", "440", "444") and not neutral
    if found is None or rgb.device.type != "cpu" or not chroma:
        return conversions.from_rgb(rgb, colour, neutral=neutral, excess=excess)
    rgb = rgb.contiguous()
    _, height, width = rgb.shape
    black, span, zero, chroma_span = conversions.levels(colour)
    red, green, blue = conversions.luma_weights(colour)
    half_x, half_y = colour.subsampling in ("420", "422"), colour.subsampling in ("420", "440")
    small = conversions.chroma_size(height, width, colour.subsampling)
    dtype = torch.uint8 if colour.bit_depth == 8 else torch.int16
    planes = [torch.empty(size, dtype=dtype) for size in ((height, width), small, small)]
    threads = compiled_threads()
    white = conversions.WHITE
    job = Planes(
        height=height,
        width=width,
        threads=threads,
        bytes=dtype.itemsize,
        half_x=half_x,
        half_y=half_y,
        scale=1 if excess is None else height // excess.shape[-2],
        top=(1 << colour.bit_depth) - 1,
        red=red,
        green=green,
        blue=blue,
        luma_gain=span / white,
        luma_offset=black,
        cb_gain=chroma_span / (2.0 * white * (1.0 - blue)),
        cr_gain=chroma_span / (2.0 * white * (1.0 - red)),
        chroma_offset=zero,
        along=_taps(half_x, colour.chroma_location != "centre"),
        down=_taps(half_y, colour.chroma_location == "topleft"),
    )
    job.rgb, job.y, job.cb, job.cr = (tensor.data_ptr() for tensor in (rgb, *planes))
    if excess is not None:
        excess = excess.contiguous()
        job.excess = excess.data_ptr()
    if threads > 1:
        let_openmp_rest()
    found.planes(job)
    return planes


@lru_cache(maxsize=4)
def _taps(half: bool, cosited: bool) -> Taps:
    """The filter of an axis, without gaps; a full axis takes each sample as it is."""
    taps = conversions.decimation(cosited) if half else ((0, 1.0),)
    first, last = taps[0][0], taps[-1][0]
    made = Taps(first=first, count=last - first + 1)
    assert made.count <= MOST_TAPS
    for offset, weight in taps:
        made.weight[offset - first] = weight
    return made
