"""Still pictures in and out: the one import for the stages above.

::

    frame, meta = read_image(source)
    format = output_format(destination, meta, "same")
    check_output_size(destination, width, height, format)         # before the work
    target = Target(width, height, target_colour(frame, format))  # -> engine -> result
    size = write_image(destination, result, meta, format=format, quality=None)
    notes = meta.notes + conversion_notes(frame, meta, format)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlfn_pipe.media import exif, png_chunks
from rlfn_pipe.media.image_metadata import (
    LARGEST_JPEG_EXIF,
    LARGEST_JPEG_XMP,
    ImageMeta,
    icc_fits,
    icc_space,
    jpeg_iptc,
)
from rlfn_pipe.media.image_read import read_image
from rlfn_pipe.media.image_write import output_depth, stays_grey, write_image
from rlfn_pipe.media.limits import check_output_size
from rlfn_pipe.media.signatures import IMAGE_EXTENSIONS, format_named, format_of
from rlfn_pipe.types import RANGE_FULL, ColourInfo, Frame, PictureInfo

__all__ = [
    "IMAGE_EXTENSIONS",
    "ImageMeta",
    "check_output_size",
    "conversion_notes",
    "output_format",
    "picture_info",
    "read_image",
    "target_colour",
    "write_image",
]

_PLAIN_TRANSFERS = (1, 2, 6, 13, 14, 15)


def output_format(destination: Path, meta: ImageMeta, requested: str = "same") -> str:
    """The format to write: the requested one; for "same" what the destination's name says, else the source's.

    Raises:
        UsageError: `requested` is no image format.
    """
    if requested != "same":
        return format_named(requested)
    return format_of(destination) or meta.format


def target_colour(frame: Frame, format: str) -> ColourInfo:
    """The colour layout that the engine is to make of `frame` for `format`.

    Full-range RGB, or grey where the source is; depth as the format stores it (16 in png and tiff,
    10 or 12 in avif, else 8). Alpha is kept for every format: `write_image` lays the picture over
    white where the format has none, which needs it at full size.
    """
    colour = frame.colour
    grey = colour.subsampling == "grey"
    return replace(
        colour,
        matrix=colour.matrix if grey else 0,
        range=RANGE_FULL,
        bit_depth=output_depth(colour.bit_depth, format),
        subsampling="grey" if grey else "rgb",
        chroma_location="left",
    )


def picture_info(path: Path, frame: Frame, meta: ImageMeta) -> PictureInfo:
    """What `read_image` found, for the person."""
    blocks = {
        "EXIF": meta.exif,
        "XMP": meta.xmp,
        "IPTC": meta.iptc,
        "comment": meta.comment,
        "texts": meta.texts,
    }
    return PictureInfo(
        path=path,
        format=meta.format,
        width=frame.width,
        height=frame.height,
        size_bytes=path.stat().st_size,
        colour=frame.colour,
        icc=icc_space(meta.icc),
        resolution=meta.dpi,
        beside=tuple(name for name, found in blocks.items() if found),
    )


def conversion_notes(
    frame: Frame, meta: ImageMeta, format: str, quality: int | None = None
) -> tuple[str, ...]:
    """What of the picture and its metadata `format` cannot carry at `quality`, a short sentence each."""
    notes: list[str] = []
    colour = frame.colour
    if colour.alpha and format in ("jpg", "bmp"):
        notes.append(f"{format} has no transparency: the picture is laid over white")
    depth = output_depth(colour.bit_depth, format)
    if depth < colour.bit_depth:
        notes.append(f"{format} stores {depth} bits a sample: {colour.bit_depth} are rounded to {depth}")
    if meta.icc and (format == "bmp" or not icc_fits(meta.icc, stays_grey(colour, format))):
        notes.append(f"the ICC profile does not fit the {format} pixels and is not kept")
    if meta.exif and format == "bmp":
        notes.append("bmp has no place for EXIF: it is not kept")
    fits = exif.fitting(meta.exif, LARGEST_JPEG_EXIF) if meta.exif and format == "jpg" else meta.exif
    if meta.exif and fits is None:
        notes.append("the EXIF data is longer than jpg allows and is not kept")
    if meta.xmp and (format == "bmp" or (format == "jpg" and len(meta.xmp) > LARGEST_JPEG_XMP)):
        notes.append(f"{format} has no place for the XMP data: it is not kept")
    if meta.iptc and not (format in ("tiff", "png") or (format == "jpg" and jpeg_iptc(meta.iptc))):
        notes.append(f"{format} has no place for the IPTC data: it is not kept")
    if meta.texts and format != "png":
        notes.append(f"the texts of the png are not kept in {format}")
    if depth > 8 and format == "avif" and colour.subsampling == "rgb" and quality != 100:
        notes.append(
            "avif of more than 8 bits is stored with half the chroma resolution (4:2:0); --quality 100 or png keeps all"
        )
    moved = "tiff" in (format, meta.format) or fits is not meta.exif
    if meta.exif and fits is not None and moved and exif.MAKER_NOTE in exif.parse(meta.exif).inner:
        notes.append(
            "the camera maker's notes lie elsewhere in the EXIF data now: not every program may read them"
        )
    if meta.aspect and format not in ("png", "jpg", "tiff"):
        notes.append(f"{format} has no place for the pixels' aspect: it is not kept")
    if lost := _lost_colour(colour, meta, format):
        notes.append(f"{format} cannot carry the source's {' and '.join(lost)}: colours may look different")
    return tuple(notes)


def _lost_colour(colour: ColourInfo, meta: ImageMeta, format: str) -> list[str]:
    """What of a picture's colour has no place in `format`; an ICC profile, where it is kept, says all of it."""
    if format == "png" or (meta.icc and format != "bmp" and icc_fits(meta.icc, stays_grey(colour, format))):
        return []
    lost = list(png_chunks.untold(meta.png_chunks))
    if format != "avif":
        lost += ["transfer curve"] if colour.transfer not in _PLAIN_TRANSFERS else []
        lost += ["colour primaries"] if colour.primaries not in (1, 2) else []
    return lost
