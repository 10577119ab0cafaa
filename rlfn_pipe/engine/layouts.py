"""The numbers of a frame's layout: matrices, levels, sizes of planes, chroma's filters. No torch here.

Matrices follow ITU-T H.273 (non-constant luminance). Chroma is interpolated and decimated with Catmull-Rom kernels (the
decimating one stretched by two), exactly at the siting's positions; odd sizes have their chroma rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rlfn_pipe.errors import EngineError
from rlfn_pipe.types import (
    MATRIX_BT470BG,
    MATRIX_BT709,
    MATRIX_BT2020_NCL,
    MATRIX_FCC,
    MATRIX_SMPTE170M,
    MATRIX_SMPTE240M,
    RANGE_FULL,
    ColourInfo,
    Frame,
)

#: (Kr, Kb) of each H.273 matrix.
LUMA_WEIGHTS: dict[int, tuple[float, float]] = {
    MATRIX_BT709: (0.2126, 0.0722),
    MATRIX_FCC: (0.30, 0.11),
    MATRIX_BT470BG: (0.299, 0.114),
    MATRIX_SMPTE170M: (0.299, 0.114),
    MATRIX_SMPTE240M: (0.212, 0.087),
    MATRIX_BT2020_NCL: (0.2627, 0.0593),
}

WHITE = 255.0

#: Rows of a surface begin at multiples of so many bytes, as those of libav's own on CUDA do.
SURFACE_PITCH = 256

#: (sample offset, weight) pairs of a filter.
Taps = tuple[tuple[int, float], ...]


def chroma_size(height: int, width: int, subsampling: str) -> tuple[int, int]:
    """(rows, columns) of a chroma plane, odd sizes rounded up."""
    rows = (height + 1) // 2 if subsampling in ("420", "440") else height
    columns = (width + 1) // 2 if subsampling in ("420", "422") else width
    return rows, columns


def luma_weights(colour: ColourInfo) -> tuple[float, float, float]:
    """(Kr, Kg, Kb) of a YUV or grey layout; EngineError for a matrix that is not supported."""
    try:
        kr, kb = LUMA_WEIGHTS[colour.matrix]
    except KeyError:
        raise EngineError(
            f"the colour matrix {colour.matrix} (ITU-T H.273) is not supported; "
            "convert the input to BT.601, BT.709 or BT.2020 first"
        ) from None
    return kr, 1.0 - kr - kb, kb


def levels(colour: ColourInfo) -> tuple[float, float, float, float]:
    """(black, luma span, chroma zero, chroma span) in code values."""
    unit, top = float(1 << (colour.bit_depth - 8)), float((1 << colour.bit_depth) - 1)
    if colour.range == RANGE_FULL:
        return 0.0, top, 128.0 * unit, top
    return 16.0 * unit, 219.0 * unit, 128.0 * unit, 224.0 * unit


def surface_shape(size: tuple[int, ...], sample_bytes: int) -> tuple[int, int]:
    """(rows, samples in a row) of the memory for a surface of `size` (h, w), as `rlfn_pipe.types.Target` says."""
    height, width = size
    return height * 3 // 2, -(-width * sample_bytes // SURFACE_PITCH) * SURFACE_PITCH // sample_bytes


def semi_planar(planes: Sequence[Any], room: Any, bit_depth: int) -> list[Any]:
    """Quantised planes of 4:2:0 as luma (h, w) and chroma (h / 2, w), parts of `room` (see `surface_shape`).

    Arrays, or tensors: uint8, or 16 bits of which `bit_depth` count; these end up as the high ones.
    """
    height, width = planes[0].shape
    luma, chroma = room[:height, :width], room[height:, :width]
    luma[:] = planes[0]
    chroma[:, 0::2] = planes[1]
    chroma[:, 1::2] = planes[2]
    if bit_depth > 8:
        for part in (luma, chroma):
            part <<= 16 - bit_depth
    return [luma, chroma]


def check_planes(frame: Frame) -> None:
    """EngineError for planes whose number, sizes or depth is not what the layout has."""
    colour, planes = frame.colour, frame.planes
    expected = (1 if colour.subsampling == "grey" else 3) + colour.alpha
    chroma = chroma_size(frame.height, frame.width, colour.subsampling)
    sizes = [planes[0].shape] + [chroma] * (2 if expected - colour.alpha == 3 else 0)
    sizes += [planes[0].shape] * colour.alpha
    if len(planes) != expected or any(p.shape != s for p, s in zip(planes, sizes, strict=True)):
        raise EngineError(
            f"frame {frame.index} has planes of sizes {[p.shape for p in planes]}, which is not what "
            f"{frame.width}x{frame.height} {colour.subsampling} needs; this is a defect of the reader"
        )
    if not 8 <= colour.bit_depth <= 16:
        raise EngineError(f"frame {frame.index} has {colour.bit_depth} bits a sample; 8 to 16 are supported")


def _cubic(distance: float) -> float:
    """Catmull-Rom kernel."""
    d = abs(distance)
    if d < 1.0:
        return 1.5 * d**3 - 2.5 * d**2 + 1.0
    if d < 2.0:
        return -0.5 * d**3 + 2.5 * d**2 - 4.0 * d + 2.0
    return 0.0


@lru_cache(maxsize=8)
def _taps(offset: float, stretch: float) -> Taps:
    """(sample offset, weight) pairs that evaluate at `offset`; weights sum to one."""
    reach = int(np.ceil(2.0 * stretch)) + 1
    found = [(k, _cubic((k - offset) / stretch)) for k in range(-reach, reach + 2)]
    total = sum(weight for _, weight in found)
    return tuple((k, weight / total) for k, weight in found if abs(weight) > 1e-12)


def interpolation(cosited: bool) -> tuple[Taps, Taps]:
    """The filters of `upsample` for even and for odd samples."""
    evens, odds = (0.0, 0.5) if cosited else (-0.25, 0.25)
    return _taps(evens, 1.0), _taps(odds, 1.0)


def decimation(cosited: bool) -> Taps:
    """The filter of `downsample`: around sample 2 i, or between it and the next one."""
    return _taps(0.0 if cosited else 0.5, 2.0)
