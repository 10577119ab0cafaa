"""Between libav's pixel formats and the planes that the engine works on.

A `Frame` holds planar samples. Formats that libav stores otherwise (packed, semi-planar,
palette, sub-8-bit) are converted by swscale to the planar format that loses nothing, or the
least; everything else passes as views of the decoder's own buffers, without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane

from rlfn_pipe.types import (
    MATRIX_BT709,
    MATRIX_RGB,
    MATRIX_UNSPECIFIED,
    RANGE_FULL,
    RANGE_UNSPECIFIED,
    ChromaLocation,
    ColourInfo,
    Subsampling,
)

#: libav's decoders of codecs whose 4:2:0 chroma lies in the middle of its four luma samples.
_CENTRED_CHROMA_CODECS = frozenset({"mjpeg", "mpeg1video", "jpeg2000", "h261", "h263", "flv", "theora"})

_PLANAR_YUV: dict[str, Subsampling] = {"420": "420", "422": "422", "444": "444", "440": "440"}


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """A planar pixel format: chroma layout, significant bits, whether an alpha plane follows."""

    subsampling: Subsampling
    bit_depth: int
    alpha: bool

    @property
    def planes(self) -> int:
        """Number of planes, alpha included."""
        return (1 if self.subsampling == "grey" else 3) + self.alpha


def _known_layouts() -> dict[str, PixelLayout]:
    layouts: dict[str, PixelLayout] = {}
    depths = {8: "", 9: "9le", 10: "10le", 12: "12le", 14: "14le", 16: "16le"}
    for depth, suffix in depths.items():
        for name in _PLANAR_YUV:
            layouts[f"yuv{name}p{suffix}"] = PixelLayout(_PLANAR_YUV[name], depth, False)
            layouts[f"yuva{name}p{suffix}"] = PixelLayout(_PLANAR_YUV[name], depth, True)
        layouts[f"gray{suffix}"] = PixelLayout("grey", depth, False)
        layouts[f"gbrp{suffix}"] = PixelLayout("rgb", depth, False)
        layouts[f"gbrap{suffix}"] = PixelLayout("rgb", depth, True)
    available = {}
    for name, layout in layouts.items():
        try:
            VideoFormat(name)
        except ValueError:
            continue
        available[name] = layout
    return available


#: Every planar format whose planes the engine reads and writes directly.
LAYOUTS: dict[str, PixelLayout] = _known_layouts()


def planar_format(pix_fmt: str) -> str:
    """The planar format of `LAYOUTS` in which a frame of `pix_fmt` is best held.

    `yuvj...` names become their plain twins (the range is kept in `ColourInfo`).
    """
    if pix_fmt in LAYOUTS:
        return pix_fmt
    if pix_fmt.startswith("yuvj"):
        return planar_format(pix_fmt.replace("yuvj", "yuv"))
    fmt = VideoFormat(pix_fmt)
    depth = max((component.bits for component in fmt.components), default=8)
    alpha = any(component.is_alpha for component in fmt.components)
    if fmt.is_rgb or fmt.has_palette or fmt.is_bayer or pix_fmt.startswith("xyz"):
        return _at_depth("gbrap" if alpha or fmt.has_palette else "gbrp", depth)
    if len(fmt.components) - alpha == 1:
        return _at_depth("yuva444p" if alpha else "gray", depth)
    wide, tall = fmt.chroma_width(16), fmt.chroma_height(16)
    chroma = "444" if wide == 16 and tall == 16 else "420" if tall < 16 else "422"
    return _at_depth(f"yuv{'a' if alpha else ''}{chroma}p", depth)


def _at_depth(stem: str, depth: int) -> str:
    """The format of a family with the least depth that is at least `depth`."""
    for bits in (8, 10, 12, 16):
        name = stem if bits == 8 else f"{stem}{bits}le"
        if bits >= depth and name in LAYOUTS:
            return name
    return f"{stem}16le"


def colour_of(frame: VideoFrame, codec: str, pix_fmt: str, fallback: ColourInfo | None = None) -> ColourInfo:
    """The tags of a decoded frame as found (nothing is guessed here).

    `pix_fmt` is the planar format that will hold it; `fallback` gives the container's tags
    for what the codec leaves unspecified.
    """
    layout = LAYOUTS[pix_fmt]
    tags = ColourInfo(
        matrix=int(frame.colorspace),
        transfer=int(frame.color_trc),
        primaries=int(frame.color_primaries),
        range=int(frame.color_range),
        chroma_location=chroma_location(codec),
        bit_depth=layout.bit_depth,
        subsampling=layout.subsampling,
        alpha=layout.alpha,
    )
    if frame.format.name.startswith("yuvj"):
        tags = replace(tags, range=RANGE_FULL)
    if layout.subsampling == "rgb":
        tags = replace(tags, matrix=MATRIX_RGB, range=tags.range or RANGE_FULL)
    if fallback is not None:
        tags = replace(
            tags,
            matrix=tags.matrix if tags.matrix != 2 else fallback.matrix,
            transfer=tags.transfer if tags.transfer != 2 else fallback.transfer,
            primaries=tags.primaries if tags.primaries != 2 else fallback.primaries,
            range=tags.range if tags.range != RANGE_UNSPECIFIED else fallback.range,
        )
    return tags


def chroma_location(codec: str) -> ChromaLocation:
    """The usual chroma siting of a codec (PyAV does not show the one that is tagged)."""
    return "centre" if codec in _CENTRED_CHROMA_CODECS else "left"


def planes_of(frame: VideoFrame) -> tuple[np.ndarray, ...]:
    """Views of a planar frame's samples, in the order that `types.Frame` states.

    The frame's format must be one of `LAYOUTS` (or its `yuvj` twin). The views keep the
    decoder's buffer alive.
    """
    layout = LAYOUTS[planar_format(frame.format.name)]
    dtype = np.uint8 if layout.bit_depth == 8 else np.uint16
    views = []
    for plane in frame.planes:
        rows = _rows(plane, dtype)
        views.append(rows[::-1] if plane.line_size < 0 else rows)
    if layout.subsampling == "rgb":
        views[:3] = [views[2], views[0], views[1]]
    return tuple(views)


def _rows(plane: VideoPlane, dtype: type[np.uint8] | type[np.uint16]) -> np.ndarray:
    """The samples of one plane (H, W), without the padding at the ends of its lines."""
    samples: np.ndarray = np.frombuffer(plane, dtype)  # type: ignore[call-overload]  # a buffer, untyped
    return samples.reshape(plane.height, -1)[:, : plane.width]


def is_transparent(alpha: np.ndarray, colour: ColourInfo) -> bool:
    """Whether any sample of an alpha plane is below full opacity."""
    return bool(alpha.min() < (1 << colour.bit_depth) - 1)


def reformatted(frame: VideoFrame, pix_fmt: str, width: int, height: int) -> VideoFrame:
    """A frame in another format or size, by swscale; ranges are left as they are. From a GPU's memory, too."""
    colour_range = int(frame.color_range) or None
    # Its threads would write over one another: what makes 16-bit samples of packed or semi-planar ones goes on to
    # the next multiple of a vector, over the first samples of the next thread's rows.
    return frame.reformat(
        width, height, pix_fmt, src_color_range=colour_range, dst_color_range=colour_range, threads=1
    )


def frame_from_planes(planes: tuple[np.ndarray, ...], pix_fmt: str, width: int, height: int) -> VideoFrame:
    """A libav frame that holds a copy of `planes`.

    Where `width` x `height` exceeds the planes by a pixel (codecs that need even sizes), the
    last column and row are repeated.
    """
    layout = LAYOUTS[pix_fmt]
    frame = VideoFrame(width, height, pix_fmt)
    ordered = list(planes)
    if layout.subsampling == "rgb":
        ordered[:3] = [planes[1], planes[2], planes[0]]
    dtype = np.uint8 if layout.bit_depth == 8 else np.uint16
    for plane, samples in zip(frame.planes, ordered, strict=True):
        rows = _rows(plane, dtype)
        h, w = min(samples.shape[0], plane.height), min(samples.shape[1], plane.width)
        rows[:h, :w] = samples[:h, :w]
        if w < plane.width:
            rows[:h, w:] = rows[:h, w - 1 : w]
        if h < plane.height:
            rows[h:] = rows[h - 1 : h]
    return frame


def with_assumed_matrix(
    tags: ColourInfo, resolved: ColourInfo, out_height: int, holder: str
) -> tuple[ColourInfo, ColourInfo, tuple[str, ...]]:
    """Tags and layout of an output in which nothing says the matrix, and what to say of it.

    The matrix is the one that players assume for a picture of `out_height` lines. `holder` is to blame.
    """
    tags = replace(tags, matrix=MATRIX_UNSPECIFIED)
    matrix = tags.resolved(out_height).matrix
    if matrix == resolved.matrix:
        return tags, resolved, ()
    name = "BT.709" if matrix == MATRIX_BT709 else "BT.601"
    note = f"{holder} cannot say the colour matrix here: it became {name}, which players assume at {out_height} lines"
    return tags, replace(resolved, matrix=matrix), (note,)


def tags_for_output(tags: ColourInfo, resolved: ColourInfo, out_height: int) -> ColourInfo:
    """The tags that make the output play with the input's colours.

    What was tagged stays tagged. An untagged matrix was guessed by the height of the source;
    it stays untagged where a player makes the same guess for the output, and is tagged with
    the guess where the larger picture would make it guess otherwise.
    """
    matrix = tags.matrix
    if resolved.subsampling not in ("rgb", "grey") and tags.resolved(out_height).matrix != resolved.matrix:
        matrix = resolved.matrix
    return replace(
        resolved, matrix=matrix, transfer=tags.transfer, primaries=tags.primaries, range=tags.range
    )
