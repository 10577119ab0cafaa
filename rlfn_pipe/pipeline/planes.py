"""Samples to RGB and results to samples, one pass each, by the compiled part: arrays on the CPU. No torch here.

Where the engine has tensors `rlfn_pipe.pipeline.tensor_planes` does it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rlfn_pipe.engine import layouts
from rlfn_pipe.engine.arrays import Array, Arrays
from rlfn_pipe.engine.host import Host
from rlfn_pipe.models.native.library import MOST_TAPS, Library, Planes, Samples, Taps, any_library
from rlfn_pipe.threads import compiled_threads, let_openmp_rest
from rlfn_pipe.types import ColourInfo, Frame

__all__ = ["YUV", "DownNumbers", "UpNumbers", "from_rgb", "planes_by_library", "rgb_by_library", "to_rgb"]

#: Layouts with chroma.
YUV = ("420", "422", "440", "444")
#: A filter that takes each sample as it is.
_SAME: layouts.Taps = ((0, 1.0),)
#: Rows that are rounded at a time, so that they stay in cache.
_ROWS = 64


def from_rgb(
    rgb: Array, colour: ColourInfo, *, neutral: bool = False, excess: Array | None = None
) -> list[Array]:
    """As `rlfn_pipe.engine.colour.from_rgb`, for what the engine has, arrays or tensors.

    Code values may differ by one where a value lies between two, since sums are rounded in another order.
    """
    if not isinstance(rgb, np.ndarray):
        from rlfn_pipe.pipeline import tensor_planes

        return tensor_planes.from_rgb(rgb, colour, neutral=neutral, excess=excess)
    if colour.subsampling in YUV and not neutral:
        if found := any_library():
            return planes_by_library(found, rgb, colour, excess)
        return Host().planes(rgb, colour, neutral=neutral, excess=excess)
    rgb = Host().resized(rgb, excess, rgb.shape[-2], rgb.shape[-1])
    black, span, zero, _ = layouts.levels(colour)
    gain = span / layouts.WHITE
    if colour.subsampling == "rgb":
        return [_quantised((one,), (gain,), black, colour.bit_depth) for one in rgb]
    luma = _quantised(
        tuple(rgb), tuple(gain * share for share in layouts.luma_weights(colour)), black, colour.bit_depth
    )
    if colour.subsampling == "grey":
        return [luma]
    small = layouts.chroma_size(luma.shape[0], luma.shape[1], colour.subsampling)
    return [luma, *(np.full(small, zero, luma.dtype) for _ in range(2))]


def to_rgb(frame: Frame, arrays: Arrays) -> Array:
    """As `rlfn_pipe.engine.colour.to_rgb`, as the engine has pictures: as `arrays`.

    Values may differ by a few in the 24th bit, since sums are rounded in another order.
    """
    if not isinstance(arrays, Host):
        from rlfn_pipe.engine.tensors import Tensors
        from rlfn_pipe.pipeline import tensor_planes

        assert isinstance(arrays, Tensors)
        return tensor_planes.to_rgb(frame, arrays.device)
    colour = frame.colour
    if colour.subsampling in YUV:
        found = any_library()
        return rgb_by_library(found, frame) if found else arrays.rgb(frame)
    layouts.check_planes(frame)
    black, span, _, _ = layouts.levels(colour)
    count = 3 if colour.subsampling == "rgb" else 1
    rgb = arrays.stack([arrays.upload(plane) for plane in frame.planes[:count]])
    rgb -= np.float32(black)
    rgb *= np.float32(layouts.WHITE / span)
    return rgb if count == 3 else arrays.repeated(rgb, 3)


def _quantised(
    parts: tuple[np.ndarray, ...], gains: tuple[float, ...], black: float, bit_depth: int
) -> np.ndarray:
    """The weighted sum of `parts` (h, w) float32 and `black`, rounded to code values: uint8, or uint16 above 8 bit."""
    made = np.empty(parts[0].shape, np.uint8 if bit_depth == 8 else np.uint16)
    first, *rest = (np.float32(gain) for gain in gains)
    for row in range(0, len(made), _ROWS):
        values = parts[0][row : row + _ROWS] * first
        for part, gain in zip(parts[1:], rest, strict=True):
            values += part[row : row + _ROWS] * gain
        values += np.float32(black)
        made[row : row + _ROWS] = Host().quantised(values, bit_depth)
    return made


def planes_by_library(
    found: Library, rgb: np.ndarray, colour: ColourInfo, excess: np.ndarray | None
) -> list[np.ndarray]:
    """As `from_rgb` for a layout with chroma."""
    rgb = np.ascontiguousarray(rgb)
    _, height, width = rgb.shape
    numbers = DownNumbers.of(colour)
    small = layouts.chroma_size(height, width, colour.subsampling)
    dtype = np.dtype(np.uint8 if colour.bit_depth == 8 else np.uint16)
    planes = [np.empty(size, dtype) for size in ((height, width), small, small)]
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
    job.rgb, job.y, job.cb, job.cr = (array.ctypes.data for array in (rgb, *planes))
    if excess is not None:
        excess = np.ascontiguousarray(excess)
        job.excess = excess.ctypes.data
    if threads > 1:
        let_openmp_rest()
    found.planes(job)
    return planes


def rgb_by_library(found: Library, frame: Frame) -> np.ndarray:
    """As `to_rgb` for a layout with chroma."""
    layouts.check_planes(frame)
    numbers, threads = UpNumbers.of(frame.colour), compiled_threads()
    luma, *chroma = (_rows(plane) for plane in frame.planes[:3])
    if chroma[0].strides != chroma[1].strides:
        chroma = [np.ascontiguousarray(plane) for plane in chroma]
    height, width = luma.shape
    rgb = np.empty((3, height, width), np.float32)
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
    job.rgb = rgb.ctypes.data
    if threads > 1:
        let_openmp_rest()
    found.picture(job)
    return rgb


def _rows(plane: np.ndarray) -> np.ndarray:
    """A plane whose rows are without gaps; they may lie apart, as decoders leave them."""
    return (
        plane if plane.strides[1] == plane.itemsize and plane.strides[0] > 0 else np.ascontiguousarray(plane)
    )


class DownNumbers(NamedTuple):
    """What a layout's planes are made with; fields as the arguments of `rlfn_pipe.models.cuda.pictures.planes`."""

    luma: tuple[float, float, float]
    gains: tuple[float, float, float]
    offsets: tuple[float, float]
    along: layouts.Taps
    down: layouts.Taps

    @classmethod
    def of(cls, colour: ColourInfo) -> DownNumbers:
        """The numbers of a layout with chroma."""
        black, span, zero, chroma_span = layouts.levels(colour)
        red, green, blue = layouts.luma_weights(colour)
        white = layouts.WHITE
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


class UpNumbers(NamedTuple):
    """What RGB is made with; fields as the arguments of `rlfn_pipe.models.cuda.pictures.rgb`."""

    levels: tuple[float, float, float, float]
    mix: tuple[float, float, float, float]
    along: tuple[layouts.Taps, layouts.Taps] | None
    down: tuple[layouts.Taps, layouts.Taps] | None

    @classmethod
    def of(cls, colour: ColourInfo) -> UpNumbers:
        """The numbers of a layout with chroma."""
        black, span, zero, chroma_span = layouts.levels(colour)
        kr, kg, kb = layouts.luma_weights(colour)
        along = layouts.interpolation(colour.chroma_location != "centre")
        down = layouts.interpolation(colour.chroma_location == "topleft")
        white = layouts.WHITE
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


def _filter(half: bool, cosited: bool) -> layouts.Taps:
    """Chroma's filter in one direction, without gaps; a full one takes each sample as it is."""
    return _gapless(layouts.decimation(cosited)) if half else _SAME


def _gapless(taps: layouts.Taps) -> layouts.Taps:
    weights = dict(taps)
    return tuple((k, weights.get(k, 0.0)) for k in range(taps[0][0], taps[-1][0] + 1))


@lru_cache(maxsize=16)
def _taps(taps: layouts.Taps) -> Taps:
    made = Taps(first=taps[0][0], count=len(taps))
    assert made.count <= MOST_TAPS
    for number, (_, weight) in enumerate(taps):
        made.weight[number] = weight
    return made
