"""What is read of a video: the part that was asked for, what was found of its format, and a range of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from rlfn_pipe.media.orientation import DisplayMatrix
from rlfn_pipe.media.timing import Timeline
from rlfn_pipe.types import ColourInfo

__all__ = ["Part", "Selection", "SourceFormat"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of the clip to take: seconds from the clip's start, and a number of frames.

    `sample` takes that many seconds from the middle instead.
    """

    start: Fraction | None = None
    end: Fraction | None = None
    frames: int | None = None
    sample: Fraction | None = None


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """What the first decoded frame tells of all of them.

    `codec`: name of its decoder; `width`, `height`: stored picture as the frames are handed out (after baking a rotation);
    `pix_fmt`: planar format of the planes; `tags`: colour as found; `colour`: resolved;
    `matrix`: display matrix that the output must carry (None: upright or baked; other angles than
    multiples of 90 degrees are never baked);
    `mastering`, `light_level`: HDR10 side data as libav's structures (None: absent); `stereo`: how two
    eyes' views share the picture, as Matroska names it ("": one view, None: otherwise than in two halves);
    `transparent`: the first frame has pixels that are not opaque.
    """

    width: int
    height: int
    pix_fmt: str
    tags: ColourInfo
    colour: ColourInfo
    matrix: DisplayMatrix | None
    mastering: bytes | None
    light_level: bytes | None
    codec: str = ""
    stereo: str | None = ""
    transparent: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A range of an opened source's frames, and all that was settled for the whole of them.

    `first`, `last`: half-open range of indices into the timeline's table; `coded_size`: width and
    height that every decoded picture is brought to; `baked`: display matrix that is applied to
    the pixels; `interlaced`: the stream was found to be; `counted`: the range by numbers of
    frames where the table has no entries (None: up to the last). Plain data that another process can take.
    """

    timeline: Timeline
    format: SourceFormat
    first: int
    last: int
    coded_size: tuple[int, int]
    baked: DisplayMatrix | None
    interlaced: bool
    counted: tuple[int, int | None] = (0, None)
