"""Writing still pictures: encode in memory, metadata included, then one rename into place."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from rlfn_pipe.errors import OutputError, RlfnPipeError, Taken, is_full
from rlfn_pipe.files import write_atomically
from rlfn_pipe.media import png_chunks
from rlfn_pipe.media.exif import (
    TIFF_ICC,
    TIFF_IPTC,
    TIFF_XMP,
    Directories,
    Entry,
    Order,
    build,
    fitting,
    for_tiff,
    longs,
    rationals,
    shorts,
    sized,
    without_orientation,
)
from rlfn_pipe.media.image_metadata import (
    LARGEST_JPEG_EXIF,
    LARGEST_JPEG_XMP,
    ImageMeta,
    icc_fits,
    jpeg_iptc,
    write_nclx,
    xmp_for,
)
from rlfn_pipe.media.limits import check_output_size
from rlfn_pipe.media.signatures import DEFAULT_QUALITY
from rlfn_pipe.types import ColourInfo, Frame

#: From this quality on JPEG and AVIF keep full chroma resolution.
_FULL_CHROMA_FROM = 75

# Three times as fast as the usual 6 for files about a tenth larger; OpenCV's 4 is a sixth faster than Pillow's 3, and
# its files are smaller (docs/performance.md).
_DEFLATE_LEVEL, _OPENCV_DEFLATE_LEVEL = 3, 4

# A fifth of the time of lossless WebP's usual method 4 for files a seventh larger, still much smaller than PNG.
_WEBP_LOSSLESS: dict[str, Any] = {"lossless": True, "exact": True, "method": 0, "quality": 20}

# On a 12-megapixel picture a seventh of the time of libavif's usual 6, for a file a third larger.
_AVIF_SPEED = 9

_TIFF_STRIP_BYTES = 1 << 20
_TIFF_LARGEST = 2**32 - 2**20
_NO_ALPHA = frozenset({"jpg", "bmp"})
_METRES_PER_INCH = 0.0254


def write_image(
    path: Path,
    frame: Frame,
    meta: ImageMeta,
    *,
    format: str,
    quality: int | None = None,
    overwrite: bool = True,
) -> int:
    """Encode `frame` as `format` and rename it into place; returns the file's size in bytes.

    `frame` is full-range RGB or grey, with or without alpha, 8 bits in uint8 or 9..16 in uint16;
    samples are scaled to a depth that the format has. `quality` is 1..100 (jpg, webp, avif; webp is
    lossless at 100, or where the source was and no quality is given; None: `DEFAULT_QUALITY`). jpg
    and bmp have no alpha: the picture is laid over white. ICC is embedded where it fits the pixels,
    EXIF and resolution where the format has a place for them. The folder is made where it is
    missing; a failure leaves neither a half file nor a temporary one.

    Raises:
        OutputError: the picture does not fit the format, the file cannot be written, or there is
            one already and `overwrite` is False.
    """
    if frame.colour.subsampling not in ("rgb", "grey"):
        raise ValueError("write_image takes RGB or grey frames")
    check_output_size(path, frame.width, frame.height, format)
    try:
        encoded = _encode(path, _samples(frame, format), frame, meta, format, quality)
    except (RlfnPipeError, MemoryError):
        raise
    except Exception as error:  # encoders raise errors of many kinds
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise OutputError(f"{path}: the {format} encoder failed ({reason}); write png") from error
    _write_atomically(path, encoded, overwrite)
    return len(encoded)


def output_depth(depth: int, format: str) -> int:
    """Bits of a sample that `format` stores for a picture of `depth` bits."""
    if depth <= 8 or format not in ("png", "tiff", "avif"):
        return 8
    if format == "avif":
        return 10 if depth <= 10 else 12
    return 16


def stays_grey(colour: ColourInfo, format: str) -> bool:
    """Whether a grey picture is stored as grey; WebP and most AVIF encoders do not.

    16-bit grey with alpha in TIFF is allowed, but hardly any program reads it.
    """
    if colour.subsampling != "grey" or format == "webp":
        return False
    deep = colour.bit_depth > 8
    if format == "avif":
        return not deep and not colour.alpha
    return not (format == "tiff" and deep and colour.alpha)


# --------------------------------------------------------------------- samples


def _samples(frame: Frame, format: str) -> np.ndarray:
    """HxW or HxWx{2,3,4} samples, grey or RGB first and alpha last, as `format` stores them."""
    planes, colour = frame.planes, frame.colour
    depth = output_depth(colour.bit_depth, format)
    planes = tuple(_rescaled(np.asarray(plane), colour.bit_depth, depth) for plane in planes)
    if colour.alpha and format in _NO_ALPHA:
        planes = tuple(_over_white(plane, planes[-1]) for plane in planes[:-1])
    if len(planes) <= 2 and not stays_grey(colour, format):
        planes = (planes[0],) * 3 + planes[1:]
    contiguous = [np.ascontiguousarray(plane) for plane in planes]
    return contiguous[0] if len(contiguous) == 1 else cv2.merge(contiguous)


def _rescaled(plane: np.ndarray, depth: int, wanted: int) -> np.ndarray:
    if depth == wanted:
        return plane
    white, wanted_white = (1 << depth) - 1, (1 << wanted) - 1
    scaled = (plane.astype(np.uint32) * wanted_white + white // 2) // white
    return scaled.astype(np.uint8 if wanted == 8 else np.uint16)


def _over_white(plane: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha.astype(np.uint32)
    return ((plane * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


# -------------------------------------------------------------------- encoding


def _encode(
    path: Path, array: np.ndarray, frame: Frame, meta: ImageMeta, format: str, quality: int | None
) -> bytes:
    height, width = array.shape[:2]
    grey = array.ndim == 2 or array.shape[2] == 2
    icc = meta.icc if icc_fits(meta.icc, grey) else None
    exif = sized(meta.exif, (width, height), meta.size) if meta.exif else None
    if meta.xmp:
        meta = replace(meta, xmp=xmp_for(meta.xmp, (width, height), meta.size))
    if format == "tiff":
        return _encode_tiff(path, array, meta, icc, exif)
    if format == "png":
        return _encode_png(array, frame, meta, icc, exif)
    extra: dict[str, Any] = {}
    if meta.dpi and format in ("jpg", "bmp"):
        extra["dpi"] = meta.dpi
    if icc and format != "bmp":
        extra["icc_profile"] = icc
    if exif is not None and format == "jpg":
        exif = fitting(exif, LARGEST_JPEG_EXIF)
    if exif is not None and format != "bmp":
        # AVIF has a place of its own for the orientation, and Pillow takes EXIF that has one apart for it.
        extra["exif"] = b"Exif\0\0" + (without_orientation(exif) if format == "avif" else exif)
    if meta.xmp and (format != "jpg" or len(meta.xmp) <= LARGEST_JPEG_XMP) and format != "bmp":
        extra["xmp"] = meta.xmp
    chosen = quality if quality is not None else DEFAULT_QUALITY.get(format, 0)
    if format == "avif":
        encoded = _encode_avif(array, frame, chosen, extra)
        primaries, transfer = frame.colour.primaries, frame.colour.transfer
        return write_nclx(encoded, primaries, transfer) if (primaries, transfer) != (2, 2) else encoded
    if format == "jpg":
        extra |= {"quality": chosen, "subsampling": 0 if chosen >= _FULL_CHROMA_FROM else 2}
        extra |= {"comment": meta.comment} if meta.comment else {}
        extra |= {"extra": jpeg_iptc(meta.iptc)} if meta.iptc else {}
    elif format == "webp":
        lossless = chosen == 100 or (quality is None and meta.lossless)
        extra |= _WEBP_LOSSLESS if lossless else {"quality": chosen}
    encoded = _saved(array, {"jpg": "JPEG", "webp": "WEBP", "bmp": "BMP"}[format], extra)
    if format == "jpg" and meta.aspect and not meta.dpi and encoded[6:11] == b"JFIF\0":
        return encoded[:13] + struct.pack(">BHH", 0, *meta.aspect) + encoded[18:]
    return encoded


def _saved(array: np.ndarray, name: str, parameters: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=name, **parameters)
    return buffer.getvalue()


def _encode_avif(array: np.ndarray, frame: Frame, quality: int, extra: dict[str, Any]) -> bytes:
    if array.dtype == np.uint8:
        chroma = "4:4:4" if quality >= _FULL_CHROMA_FROM else "4:2:0"
        extra = {"quality": quality, "subsampling": chroma, "speed": _AVIF_SPEED, **extra}
        return _saved(array, "AVIF", extra)
    kinds = {
        cv2.IMAGE_METADATA_ICCP: "icc_profile",
        cv2.IMAGE_METADATA_EXIF: "exif",
        cv2.IMAGE_METADATA_XMP: "xmp",
    }
    present = {kind: extra[key].removeprefix(b"Exif\0\0") for kind, key in kinds.items() if key in extra}
    depth = output_depth(frame.colour.bit_depth, "avif")
    settings = {
        cv2.IMWRITE_AVIF_DEPTH: depth,
        cv2.IMWRITE_AVIF_QUALITY: quality,
        cv2.IMWRITE_AVIF_SPEED: _AVIF_SPEED,
    }
    return _opencv(".avif", array, settings, present)


def _opencv(extension: str, array: np.ndarray, settings: dict[int, int], metadata: dict[int, bytes]) -> bytes:
    bgr = cv2.cvtColor(array, cv2.COLOR_RGB2BGR if array.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    parameters = [number for setting in settings.items() for number in setting]
    blocks = [np.frombuffer(block, np.uint8) for block in metadata.values()]
    done, encoded = cv2.imencodeWithMetadata(extension, bgr, list(metadata), blocks, parameters)
    if not done:
        size = f"{bgr.shape[1]}x{bgr.shape[0]}"
        raise OutputError(f"the {extension[1:]} encoder refused a picture of {size}; write tiff instead")
    return encoded.tobytes()


# ------------------------------------------------------------------------- PNG


def _encode_png(
    array: np.ndarray, frame: Frame, meta: ImageMeta, icc: bytes | None, exif: bytes | None
) -> bytes:
    if array.ndim == 3 and array.shape[2] >= 3:
        png = _opencv(".png", array, {cv2.IMWRITE_PNG_COMPRESSION: _OPENCV_DEFLATE_LEVEL}, {})
    elif array.ndim == 3 and array.dtype != np.uint8:
        png = _encode_png_la16(array)
    else:
        png = _saved(array, "PNG", {"compress_level": _DEFLATE_LEVEL})
    chunks: list[tuple[bytes, bytes]] = []
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    chunks += [(kind, body) for kind, body in meta.png_chunks if not (icc and kind == b"sRGB")]
    primaries, transfer = frame.colour.primaries, frame.colour.transfer
    said = {kind for kind, _ in chunks} & {b"cICP", b"sRGB", b"gAMA", b"cHRM"}
    if not said and 2 not in (primaries, transfer) and max(primaries, transfer) < 256:
        chunks.append((b"cICP", bytes((primaries, transfer, 0, 1))))
    if meta.dpi:
        x, y = (round(value / _METRES_PER_INCH) for value in meta.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", x, y, 1)))
    elif meta.aspect:
        chunks.append((b"pHYs", struct.pack(">IIB", *meta.aspect, 0)))
    if exif is not None:
        chunks.append((b"eXIf", exif))
    chunks += meta.texts
    if meta.xmp:
        chunks.append(png_chunks.xmp_chunk(meta.xmp))
    if meta.iptc:
        chunks.append(png_chunks.iptc_chunk(meta.iptc))
    return png_chunks.insert(png, chunks)


def _encode_png_la16(array: np.ndarray) -> bytes:
    """16-bit grey with alpha, which neither library writes.

    A row of it has the same bytes, and the same filter distance, as one of 8-bit RGBA. So it is
    compressed as that, and the header then says what it is.
    """
    png = _saved(array.astype(">u2").view(np.uint8), "PNG", {"compress_level": _DEFLATE_LEVEL})
    header = bytearray(png[16:29])
    header[8:10] = 16, 4  # bit depth, colour type
    return png[:8] + png_chunks.pack(b"IHDR", bytes(header)) + png[33:]


# ------------------------------------------------------------------------ TIFF


def _encode_tiff(
    path: Path, array: np.ndarray, meta: ImageMeta, icc: bytes | None, exif: bytes | None
) -> bytes:
    """Deflate with horizontal prediction, 8 or 16 bits, any channels; the directory stands before the strips.

    Pillow has no 16-bit colour, and OpenCV no metadata, in TIFF.
    """
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    samples = array.reshape(height, width, channels)
    rows = max(1, _TIFF_STRIP_BYTES // (width * channels * array.itemsize))
    found = for_tiff(exif) if exif is not None else Directories("<", {})
    order = found.order
    strips = [_tiff_strip(samples[top : top + rows], order) for top in range(0, height, rows)]
    if sum(map(len, strips)) > _TIFF_LARGEST:
        raise OutputError(f"{path}: the picture needs more than the 4 GiB of a tiff file; write png")

    tags = {
        **found.first,
        256: longs(order, width),
        257: longs(order, height),
        258: shorts(order, *(8 * array.itemsize,) * channels),
        259: shorts(order, 8),  # deflate
        262: shorts(order, 2 if channels >= 3 else 1),
        277: shorts(order, channels),
        278: longs(order, rows),
        284: shorts(order, 1),
        317: shorts(order, 2),  # horizontal prediction
    }
    if channels in (2, 4):
        tags[338] = shorts(order, 2)  # alpha that the colours are not multiplied by
    if meta.dpi or meta.aspect:
        tags[282], tags[283] = (rationals(order, value) for value in meta.dpi or meta.aspect or ())
        tags[296] = shorts(order, 2 if meta.dpi else 1)
    for tag, kind, block in ((TIFF_ICC, 7, icc), (TIFF_XMP, 1, meta.xmp), (TIFF_IPTC, 1, meta.iptc)):
        if block:
            tags[tag] = Entry(kind, len(block), block)
    lengths = list(map(len, strips))
    starts = [int(start) for start in np.cumsum([0, *lengths])[:-1]]
    tags |= {273: longs(order, *starts), 279: longs(order, *lengths)}
    before = len(build(replace(found, first=tags)))
    tags[273] = longs(order, *(start + before for start in starts))
    return b"".join([build(replace(found, first=tags)), *strips])


def _tiff_strip(samples: np.ndarray, order: Order) -> bytes:
    predicted = samples.copy()
    predicted[:, 1:] -= samples[:, :-1]
    ordered = predicted.astype(predicted.dtype.newbyteorder(order), copy=False)
    return zlib.compress(ordered.tobytes(), _DEFLATE_LEVEL)


# --------------------------------------------------------------------- on disk


def _write_atomically(path: Path, encoded: bytes, overwrite: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(path, encoded, overwrite=overwrite)
        except FileExistsError:
            raise Taken(f"{path}: appeared while its picture was made; use -y to replace it") from None
    except OSError as error:
        if is_full(error):
            raise OutputError(f"{path}: the disk is full; free {len(encoded)} bytes and run again") from error
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path} cannot be written ({reason}); choose another place or mend its permissions"
        ) from error
