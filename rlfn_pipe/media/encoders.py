"""Which encoder goes into which container, with what quality, pixel format and tags.

`encoder_table` holds what is known of each encoder; `plan_encoding` turns the user's wishes and the
source's colour into the settings of one output, or says in one sentence why it cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import av
import av.codec
import av.codec.codec

from rlfn_pipe.errors import UsageError
from rlfn_pipe.media.colour import LAYOUTS, PixelLayout, planar_format, tags_for_output, with_assumed_matrix
from rlfn_pipe.media.encoder_table import ENCODERS, LONG, MUXERS, ROTATING_MUXERS, Encoder
from rlfn_pipe.media.hdr10 import parameters
from rlfn_pipe.types import (
    MATRIX_BT709,
    MATRIX_RGB,
    MATRIX_UNSPECIFIED,
    RANGE_FULL,
    RANGE_LIMITED,
    ColourInfo,
)

__all__ = [
    "ENCODERS",
    "MUXERS",
    "ROTATING_MUXERS",
    "EncodePlan",
    "Encoder",
    "carried_tags",
    "muxer_for",
    "plan_encoding",
]

#: Containers that hold colour tags of their own, whatever the codec can say.
_TAGGING_MUXERS = frozenset({"mp4", "mov", "matroska", "webm"})
#: And those that hold the range (QuickTime's older box has no place for it).
_RANGE_MUXERS = frozenset({"mp4", "matroska", "webm"})

#: With one of these among the encoder options our default quality would be in the way.
_RATE_OPTIONS = frozenset({"crf", "qp", "cqp", "cq", "b", "qmin", "qmax", "lossless"})

#: Below this side FFV1's slices are refused; its older form has none.
_FFV1_SLICED = 16


@dataclass(frozen=True, slots=True)
class EncodePlan:
    """Settings of one video output.

    `width`, `height`: coded size (the picture may be a pixel less, the edge is repeated then);
    `picture`: size of the upscaled picture; `colour`: layout of the frames handed to the
    encoder; `tags`: what is written into the stream; `options`: for the encoder;
    `notes`: what the person should know; `opaque`: what to say when a frame has transparent pixels
    ("": alpha is kept, or there is none).
    """

    muxer: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    picture: tuple[int, int]
    colour: ColourInfo
    tags: ColourInfo
    options: dict[str, str]
    notes: tuple[str, ...]
    opaque: str = ""


def muxer_for(path: Path) -> str:
    """The container that an output name asks for.

    Raises:
        UsageError: an extension that no known container has.
    """
    try:
        return MUXERS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(MUXERS))
        shown = f"the extension {path.suffix!r}" if path.suffix else "a name without extension"
        raise UsageError(f"{path}: {shown} names no video container; use one of {known}") from None


def automatic_codec(
    muxer: str, depth: int, hdr: bool, picture: tuple[int, int], *, alpha: bool = False
) -> str:
    """The encoder that `--codec auto` stands for, for an upscaled picture of that size; `alpha`: there is something
    transparent in it.
    """
    deep = depth > 8 or hdr
    if muxer == "webm":
        # libvpx is built for 8 bits here, and SVT-AV1 knows no alpha.
        return "libsvtav1" if deep and not alpha and ENCODERS["libsvtav1"].takes(picture) else "libvpx-vp9"
    if muxer == "avi":
        return "mpeg4"
    if muxer == "mpegts":
        return "libx264"
    return "libx265" if deep and ENCODERS["libx265"].takes(picture) else "libx264"


def plan_encoding(
    path: Path,
    *,
    tags: ColourInfo,
    resolved: ColourInfo,
    picture: tuple[int, int],
    codec: str = "auto",
    crf: float | None = None,
    encoder_preset: str | None = None,
    pix_fmt: str = "auto",
    encoder_options: Mapping[str, str] | None = None,
    mastering: bytes | None = None,
    light_level: bytes | None = None,
    transparent: bool = True,
) -> EncodePlan:
    """Settle container, encoder, pixel format, tags and quality of an output.

    Args:
        tags, resolved: the source's colour as tagged and as understood.
        picture: width and height of the upscaled picture, stored pixels.
        mastering, light_level: HDR10 side data of the source, libav's structures.
        transparent: the first frame has transparent pixels, where the source has alpha.

    Raises:
        UsageError: unknown container or encoder, the two do not go together, or the encoder
            cannot do the pixel format, quality or size asked for.
    """
    muxer = muxer_for(path)
    notes: list[str] = []
    hdr = tags.transfer in (16, 18)
    alpha = tags.alpha and transparent
    name = automatic_codec(muxer, tags.bit_depth, hdr, picture, alpha=alpha) if codec == "auto" else codec
    encoder = _encoder(name, muxer, path)
    formats = _formats(encoder, muxer)
    chosen = _pixel_format(encoder, formats, pix_fmt, tags, alpha)
    layout = LAYOUTS[planar_format(chosen)]
    holder = name if pix_fmt == "auto" else chosen
    notes += _losses(layout, tags, holder)
    opaque = _without_alpha(formats, chosen, holder) if tags.alpha and not layout.alpha else ""
    if opaque and transparent:
        notes.append(opaque)
    width, height = _coded_size(encoder, layout, picture, notes)
    out_tags, colour = _output_colour(encoder, muxer, layout, tags, resolved, height, notes)
    options = dict(encoder.options)
    given = dict(encoder_options or {})
    if crf is not None or not _RATE_OPTIONS & given.keys():
        _set_quality(encoder, crf, options)
    if encoder_preset is not None:
        if not encoder.preset:
            raise UsageError(f"--encoder-preset does not apply to {name}, which has no presets")
        if encoder.presets and encoder_preset not in encoder.presets:
            known = ", ".join(encoder.presets)
            raise UsageError(f"--encoder-preset {encoder_preset}: {name} has no such preset; use {known}")
        options[encoder.preset] = encoder_preset
    if name == "prores_ks":
        options.setdefault("profile", "4" if layout.subsampling == "444" else "3")
    if name in ("libx264", "mpeg4") and muxer == "avi":
        options["bf"] = "0"  # AVI cannot say the order in which B-frames are shown
    if name == "ffv1" and min(width, height) < _FFV1_SLICED:
        options = {"level": "1", "g": "1"}
    ours = parameters(name, mastering, light_level)
    if ours is None:
        notes.append(
            f"mastering display and light levels (HDR10) are left out; {name} does not hold them here"
        )
    if name == "libx265":
        ours = ["log-level=error", *(ours or ())]
    if encoder.parameters and (ours or encoder.parameters in given):
        theirs = [given.pop(encoder.parameters)] if encoder.parameters in given else []
        options[encoder.parameters] = ":".join([*(ours or ()), *theirs])
    options.update(given)
    return EncodePlan(
        muxer, name, chosen, width, height, picture, colour, out_tags, options, tuple(notes), opaque
    )


def _encoder(name: str, muxer: str, path: Path) -> Encoder:
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UsageError(f"--codec {name}: no such encoder; known are {known}")
    encoder = ENCODERS[name]
    if muxer not in encoder.muxers:
        fitting = ", ".join(sorted(n for n, e in ENCODERS.items() if muxer in e.muxers and "nvenc" not in n))
        homes = ", ".join(sorted(ext for ext, m in MUXERS.items() if m in encoder.muxers))
        raise UsageError(
            f"{path.name}: {name} does not go into {path.suffix}; use --codec {fitting}, or an output named {homes}"
        )
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        raise UsageError(
            f"--codec {name}: this build of PyAV lacks that encoder; see `rlfn-pipe doctor`"
        ) from None
    return encoder


def _formats(encoder: Encoder, muxer: str) -> list[str]:
    """The pixel formats that an encoder takes and a container keeps."""
    formats = [f.name for f in av.codec.Codec(encoder.name, "w").video_formats or ()]
    known = LAYOUTS.keys() | encoder.packed
    found = [name for name in formats if name in known and name not in encoder.refuses]
    if encoder.alpha_beside and muxer not in ("matroska", "webm"):
        found = [name for name in found if not LAYOUTS[planar_format(name)].alpha]
    return found


def _without_alpha(formats: list[str], chosen: str, holder: str) -> str:
    """What to say where transparent pixels meet a format without alpha."""
    holding = [name for name in formats if LAYOUTS[planar_format(name)].alpha]
    if not holding:
        return f"transparency was dropped; {holder} does not hold it"
    return f"transparency was dropped; {chosen} does not hold it, --pix-fmt {' or '.join(holding)} does"


def _pixel_format(encoder: Encoder, formats: list[str], wanted: str, tags: ColourInfo, alpha: bool) -> str:
    if wanted != "auto":
        try:
            plain = planar_format(wanted) if not wanted.startswith("yuvj") else wanted.replace("yuvj", "yuv")
        except ValueError:
            raise UsageError(
                f"--pix-fmt {wanted}: no such pixel format; {encoder.name} takes {', '.join(formats)}"
            ) from None
        fitting = [name for name in formats if name == plain or planar_format(name) == plain]
        if not fitting:
            raise UsageError(
                f"--pix-fmt {wanted} is not one that {encoder.name} takes; use {', '.join(formats)}"
            )
        return fitting[0]

    def loss(name: str) -> tuple[tuple[int, ...], int]:
        layout = LAYOUTS[planar_format(name)]
        # What shows through is missed more than the fineness of colours.
        dropped = alpha and not layout.alpha
        return (int(dropped), *_loss(layout, tags, encoder.name)), formats.index(name)

    return min(formats, key=loss)


def _losses(layout: PixelLayout, tags: ColourInfo, holder: str) -> list[str]:
    """What a layout does not hold of the source, besides transparency; `holder` is to blame."""
    notes = []
    beside = " beside transparency" if layout.alpha else ""
    if layout.bit_depth < tags.bit_depth:
        notes.append(
            f"{holder} holds {layout.bit_depth} bits a sample{beside}; the source's {tags.bit_depth} were rounded"
        )
    if _missing(layout.subsampling, tags.subsampling):
        notes.append(
            f"chroma was reduced from {tags.subsampling} to {layout.subsampling}; {holder} holds no more{beside}"
        )
    return notes


#: How fine chroma is along rows and along columns.
_DETAIL = {"grey": (0, 0), "420": (1, 1), "422": (1, 2), "440": (2, 1), "444": (2, 2), "rgb": (2, 2)}


def _missing(there: str, wanted: str) -> int:
    """What one subsampling lacks of another one's chroma, in both directions together."""
    return sum(max(0, b - a) for a, b in zip(_DETAIL[there], _DETAIL[wanted], strict=True))


def _loss(layout: PixelLayout, tags: ColourInfo, encoder: str) -> tuple[int, ...]:
    """How badly a format holds the source: what is lost first, what is wasted last."""
    wanted = tags.subsampling
    # Players hardly know 4:0:0 or RGB in the lossy codecs.
    playable = encoder == "ffv1" or (layout.subsampling not in ("grey", "rgb"))
    if wanted == "grey" and encoder != "ffv1":
        wanted = "420"
    if wanted == "rgb" and encoder != "ffv1":
        wanted = "444"
    depth = layout.bit_depth - tags.bit_depth
    return (
        not playable,
        _missing(layout.subsampling, wanted),
        max(0, -depth),
        int(tags.alpha and not layout.alpha),
        (layout.subsampling == "rgb") != (wanted == "rgb"),
        int(layout.subsampling != wanted),
        _missing(wanted, layout.subsampling),
        max(0, depth),
        int(layout.alpha and not tags.alpha),
    )


def _coded_size(
    encoder: Encoder, layout: PixelLayout, picture: tuple[int, int], notes: list[str]
) -> tuple[int, int]:
    width, height = picture
    if encoder.even:
        width += width % 2 if layout.subsampling in ("420", "422") else 0
        height += height % 2 if layout.subsampling in ("420", "440") else 0
    if (width, height) != picture:
        notes.append(
            f"{encoder.name} needs even sides: {picture[0]}x{picture[1]} became {width}x{height} by repeating the edge"
        )
    if not encoder.takes((width, height)):
        least = encoder.least_side((width, height))
        long = f" where the other is above {LONG}" if least > encoder.minimum else ""
        bound, other = f"below {least} pixels a side{long}", "larger"
        if min(width, height) >= least:
            bound, other = f"above {encoder.maximum} pixels a side", "smaller"
        raise UsageError(
            f"{encoder.name} takes no picture {bound} and this one has {width}x{height}; "
            f"use a {other} scale or another --codec"
        )
    return width, height


def _output_colour(
    encoder: Encoder,
    muxer: str,
    layout: PixelLayout,
    tags: ColourInfo,
    resolved: ColourInfo,
    out_height: int,
    notes: list[str],
) -> tuple[ColourInfo, ColourInfo]:
    """Tags to write and the resolved layout of the frames to encode."""
    source_is_rgb, target_is_rgb = tags.subsampling == "rgb", layout.subsampling == "rgb"
    if source_is_rgb and not target_is_rgb:
        tags = replace(tags, matrix=MATRIX_BT709, range=RANGE_LIMITED)
        resolved = replace(resolved, matrix=MATRIX_BT709, range=RANGE_LIMITED)
    elif target_is_rgb:
        tags = replace(tags, matrix=MATRIX_RGB, range=RANGE_FULL)
        resolved = replace(resolved, matrix=MATRIX_RGB, range=RANGE_FULL)
    shape = {
        "bit_depth": layout.bit_depth,
        "subsampling": layout.subsampling,
        "alpha": layout.alpha,
        "chroma_location": "left",
    }
    tags, resolved = replace(tags, **shape), replace(resolved, **shape)  # type: ignore[arg-type]
    container_tags = muxer in _TAGGING_MUXERS
    says_range = not encoder.limited and (encoder.tags_range or container_tags)
    if resolved.range == RANGE_FULL and not target_is_rgb and not says_range:
        notes.append(f"full range became limited range, which is all that {encoder.name} can say here")
        tags, resolved = replace(tags, range=RANGE_LIMITED), replace(resolved, range=RANGE_LIMITED)
    if not target_is_rgb and not (encoder.tags_colour or container_tags):
        tags, resolved, said = with_assumed_matrix(tags, resolved, out_height, encoder.name)
        notes += said
        return tags, resolved
    return tags_for_output(tags, resolved, out_height), resolved


def _set_quality(encoder: Encoder, crf: float | None, options: dict[str, str]) -> None:
    if not encoder.quality:
        if crf is not None:
            raise UsageError(
                f"--crf does not apply to {encoder.name}, which has no such setting; leave it out"
            )
        return
    value = encoder.crf if crf is None else crf
    if not encoder.best <= value <= encoder.worst:
        raise UsageError(
            f"--crf {value:g} is out of range for {encoder.name}; use {encoder.best:g} to {encoder.worst:g}"
        )
    if encoder.quality == "qscale":
        # A fixed quantiser: the flag of that name would want a quality on every frame.
        options["qmin"] = options["qmax"] = str(round(value))
        return
    options[encoder.quality] = f"{value:g}"
    if encoder.quality == "cq":
        options.setdefault("rc", "vbr")
        options.setdefault("b", "0")


def carried_tags(plan: EncodePlan) -> dict[str, int]:
    """Colour tags of a plan that its codec or its container can say, by their names in `ColourInfo`.

    Without those that are unspecified, and without the matrix of RGB, which has none.
    """
    encoder, tags = ENCODERS[plan.codec], plan.tags
    found = {}
    if encoder.tags_colour or plan.muxer in _TAGGING_MUXERS:
        found = {"matrix": tags.matrix, "transfer": tags.transfer, "primaries": tags.primaries}
        if tags.subsampling == "rgb":
            del found["matrix"]
    if plan.codec == "libvpx-vp9" and plan.muxer not in _TAGGING_MUXERS:
        found = {kind: value for kind, value in found.items() if kind == "matrix"}  # all that VP9 says
    found = {kind: value for kind, value in found.items() if value != MATRIX_UNSPECIFIED}
    if tags.range and (encoder.tags_range or plan.muxer in _RANGE_MUXERS):
        found["range"] = tags.range
    return found
