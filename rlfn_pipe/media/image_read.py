"""Reading still pictures into planes.

Pillow reads the headers, judges whether a file is whole, and decodes all that has 8 bits; it is
strict where OpenCV gives a half-grey picture. OpenCV decodes the deeper pixels (16-bit RGB in PNG
and TIFF, 10 and 12 bits in AVIF), which Pillow would cut to 8 bits.
"""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from rlfn_pipe.errors import InputError, RlfnPipeError, reason_of
from rlfn_pipe.media import exif, png_chunks, webp_chunks
from rlfn_pipe.media.image_metadata import (
    ImageMeta,
    avif_depth,
    avif_extras,
    clean_xmp,
    icc_space,
    iptc_of_jpeg,
    iptc_of_photoshop,
    iptc_of_tiff,
    orient,
    read_nclx,
    xmp_orientation,
)
from rlfn_pipe.media.limits import check_picture_size, max_pixels
from rlfn_pipe.media.signatures import foreign_name, read_head, sniff
from rlfn_pipe.types import RANGE_FULL, ColourInfo, Frame

T = TypeVar("T", int, float)

# Failures reach us as empty results; OpenCV would tell them a second time on standard error.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# So would Pillow's libtiff, to whose module it is linked. Inside of it, as on Windows, it cannot be told to be quiet.
with suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

# One plug-in per format that we accept, so that no other parser ever sees the file.
_OPENERS = {
    "png": PngImagePlugin.PngImageFile,
    "jpg": JpegImagePlugin.jpeg_factory,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}

# The filters of `warnings` and Pillow's bound are global: only one thread at a time may change them.
_global_lock = threading.Lock()

_UNREAD_SAMPLES = "signed, 32-bit and floating-point samples are not read"
_CONVERT = "convert the picture to 8 or 16 bits"

_BITS_PER_SAMPLE, _PHOTOMETRIC, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 258, 262, 282, 283, 296
_COMPRESSION = 259
_UNREAD_COMPRESSIONS = {34712: "JPEG 2000", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL"}
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
_ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1"

#: Code values (of 8 bits) by which two decoders of one picture may differ: premultiplied alpha rounds.
_AGREEMENT = 4

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B", "I;16L"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


def read_image(path: Path, index: int = 0) -> tuple[Frame, ImageMeta]:
    """Decode a still picture; of several pictures in a file the first.

    What the file is, its content says, not its name. Planes are (R, G, B) or (Y,), then A where
    there is transparency; uint8, or uint16 where the file has more than 8 bits (`bit_depth` 16, or
    10 and 12 as stored). Full range, upright (EXIF orientation applied). Palettes become RGB, one
    bit becomes 8-bit grey, CMYK and Lab become sRGB (by their profile where there is one).
    `index` is the frame's index.

    Raises:
        InputError: the file is missing, unreadable, empty, cut short, damaged, too large or no picture.
    """
    head = read_head(path)
    format = _image_format(path, head)
    try:
        with path.open("rb") as file:
            data = file.read() if format == "avif" else file.read(1 << 20)
            file.seek(0)
            if format == "webp":
                check_picture_size(path, *webp_chunks.canvas_size(path))
            picture = _open(format, file)
            check_picture_size(path, *picture.size)
            return _decode(path, picture, data, format, index)
    except RlfnPipeError:
        raise
    except MemoryError:
        raise InputError(
            f"{path}: not enough memory to decode the picture; free some or use a smaller one"
        ) from None
    # The parsers raise errors of many kinds (SyntaxError, struct.error, ...) on damaged files.
    except Exception as error:
        # The parsers' own have no number, and EINVAL is a damaged file's: it leads to a place that no file has.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise InputError(
                f"{path} cannot be read ({reason_of(error)}); check the drive that it is on"
            ) from error
        reason = str(error).strip().rstrip(".") or type(error).__name__
        if "unknown pixel mode" in reason:
            raise InputError(f"{path}: this kind of samples in a {format} is not read; {_CONVERT}") from error
        raise InputError(
            f"{path}: the {format} picture is damaged or cut short ({reason}); copy or export it again"
        ) from error


def _image_format(path: Path, head: bytes) -> str:
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy it again")
    found = sniff(head)
    if found is None:
        foreign = foreign_name(head)
        if foreign:
            raise InputError(f"{path} is a {foreign} file, which is not read; convert it to png first")
        raise InputError(f"{path} is not a picture (its content is of no known image format); leave it out")
    kind, name = found
    if kind == "video":
        raise InputError(f"{path} is a {name} video by its content; give it its true extension")
    return name


def _open(format: str, file: IO[bytes]) -> ImageFile.ImageFile:
    """Read the header."""
    with _no_remarks():
        return _OPENERS[format](file, None)


@contextmanager
def _no_remarks() -> Iterator[None]:
    """Pillow warns of nothing in the block, and our bound on pixels replaces its own, which is lower."""
    with _global_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels()
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = theirs


def _decode(
    path: Path, picture: ImageFile.ImageFile, data: bytes, format: str, index: int
) -> tuple[Frame, ImageMeta]:
    notes: list[str] = []
    # Loading changes the picture object, so what the header says is taken first.
    depth = _stored_depth(picture, data, format)
    if depth > 16:
        raise InputError(f"{path}: {_UNREAD_SAMPLES}; {_CONVERT}")
    _check_compression(path, picture)
    rawmode = _rawmode(picture)
    tiff_tags: dict[int, Any] = {}
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        with _no_remarks():
            # All that it warns of and refuses comes here: loading, which takes long, needs the lock no more.
            picture.load_prepare()
            tiff_tags = dict(picture.tag_v2)
            with suppress(Exception):
                dict(picture.getexif())
    info = dict(picture.info)
    if getattr(picture, "is_animated", False):
        notes.append("only the first picture in the file is used (the rest: animation, pages or a gain map)")
    stored_size = picture.size
    picture.load()  # of a TIFF it turns the pixels as the orientation says
    beside = _beside(path, picture, format, tiff_tags, stored_size)
    notes += beside.notes
    turned = beside.orientation if format == "tiff" else 1
    orientation = 1 if format == "tiff" else beside.orientation

    array: np.ndarray | None = None
    if depth > 8 and picture.mode in ("RGB", "RGBA"):
        array = _decode_deep(path, picture, rawmode, depth, turned)
        if array is None:
            notes.append(f"{depth} bits a sample are read as 8")
    if array is None:
        array, depth = _decode_shallow(path, picture, info, tiff_tags, depth, notes)
    if format == "png":
        array = _with_transparent_colour(array, png_chunks.transparency(path), data[24], depth)

    stored_planes = cv2.split(array) if array.ndim == 3 else (array,)
    planes = tuple(orient(plane, orientation) for plane in stored_planes)
    icc: bytes | None = info.get("icc_profile") or beside.icc
    grey = len(planes) <= 2
    if icc and icc_space(icc) is None:
        notes.append("the ICC profile is damaged and is not kept")
        icc = None
    elif icc and icc_space(icc) not in ("RGB", "GRAY"):
        icc = None  # used up by the conversion to sRGB
    chunks = png_chunks.colour_chunks(path) if format == "png" else ()
    primaries, transfer = read_nclx(data) if format == "avif" else (2, 2)
    if format == "png" and icc is None:
        primaries, transfer = png_chunks.colour(chunks)
    xmp, parts = clean_xmp(beside.xmp)
    if not getattr(picture, "is_animated", False) and (format == "jpg" and _ISO_GAIN_MAP in data):
        parts = tuple(dict.fromkeys((*parts, "its gain map (HDR)")))
    parts = parts if format != "avif" else tuple(dict.fromkeys((*parts, *avif_extras(data))))
    if parts:
        notes.append(f"what else is in the file is not kept: {', '.join(parts)}")
    colour = ColourInfo(
        primaries=primaries,
        transfer=transfer,
        range=RANGE_FULL,
        bit_depth=depth,
        subsampling="grey" if grey else "rgb",
        alpha=len(planes) in (2, 4),
    ).resolved(planes[0].shape[0])
    meta = ImageMeta(
        icc=icc,
        exif=beside.exif,
        format=format,
        size=(planes[0].shape[1], planes[0].shape[0]),
        dpi=_turned(_resolution(info), max(turned, orientation)),
        aspect=_turned(_aspect(info, tiff_tags), max(turned, orientation)),
        lossless=format == "webp" and webp_chunks.is_lossless(path),
        png_chunks=chunks,
        texts=png_chunks.texts(path) if format == "png" else (),
        xmp=xmp,
        iptc=beside.iptc,
        comment=info.get("comment") if format == "jpg" else None,
        notes=tuple(notes),
    )
    return Frame(planes=planes, colour=colour, index=index), meta


class _Beside(NamedTuple):
    """Metadata blocks of a file, EXIF without its orientation, and what is to be said of them."""

    orientation: int = 1
    exif: bytes | None = None
    xmp: bytes | str | None = None
    iptc: bytes | None = None
    icc: bytes | None = None
    notes: tuple[str, ...] = ()


def _beside(
    path: Path,
    picture: ImageFile.ImageFile,
    format: str,
    tiff_tags: dict[int, Any],
    stored_size: tuple[int, int],
) -> _Beside:
    """What lies beside the pixels of a picture that was loaded; metadata may follow them."""
    block, xmp = picture.info.get("exif"), picture.info.get("xmp")
    iptc, icc = iptc_of_jpeg(picture.info) if format == "jpg" else None, None
    orientation, kept = 0, exif.Kept(None)
    try:
        if format == "tiff":
            orientation = tiff_tags.get(exif.ORIENTATION, 0)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tiff:
                found = exif.parse(tiff)
            kept = exif.kept_of_tiff(found)
            if entry := found.first.get(exif.TIFF_IPTC):
                iptc = iptc_of_tiff(entry.value)
            elif entry := found.first.get(exif.PHOTOSHOP):
                iptc = iptc_of_photoshop(entry.value)
            block = None
        elif format == "png":
            raw = png_chunks.raw_profiles(path)
            segment = raw.get("app1", b"")
            block = block or raw.get("exif") or (segment if segment.startswith(b"Exif") else None)
            xmp = xmp or raw.get("xmp")
            xmp = xmp or (segment[len(_XMP_SEGMENT) :] if segment.startswith(_XMP_SEGMENT) else None)
            iptc = iptc_of_photoshop(raw.get("iptc") or raw.get("8bim") or b"")
            icc = raw.get("icc") or raw.get("icm")
        while isinstance(block, bytes) and block.startswith(b"Exif\0\0"):
            block = block[6:]
        if isinstance(block, bytes) and block:
            kept = exif.kept(block, stored_size)
            orientation = kept.orientation
        notes = kept.notes
    except ValueError as error:
        notes = (f"the EXIF data is damaged ({error}) and is not kept",)
    upright = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else xmp_orientation(xmp)
    return _Beside(upright, kept.block, xmp, iptc, icc, notes)


def _rawmode(picture: ImageFile.ImageFile) -> str:
    """How the samples lie in the file, in Pillow's words ("RGB;16B", ...)."""
    if not picture.tile:
        return ""
    arguments = picture.tile[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _check_compression(path: Path, picture: ImageFile.ImageFile) -> None:
    """Name a compression that Pillow's libtiff has no decoder for."""
    number = picture.tag_v2.get(_COMPRESSION) if isinstance(picture, TiffImagePlugin.TiffImageFile) else None
    if number in _UNREAD_COMPRESSIONS:
        raise InputError(
            f"{path}: {_UNREAD_COMPRESSIONS[number]} compression in a tiff is not read; save it with deflate or LZW"
        )


def _stored_depth(picture: ImageFile.ImageFile, data: bytes, format: str) -> int:
    if format == "avif":
        return avif_depth(data)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    # 16 bits of a BMP's pixel are five or six a sample.
    return 16 if ";16" in _rawmode(picture) and format != "bmp" else 8


def _decode_deep(
    path: Path, picture: Image.Image, rawmode: str, depth: int, orientation: int
) -> np.ndarray | None:
    """Pixels above 8 bits: HxWx{2,3,4} uint16 in RGB(A) or grey, alpha order; None where OpenCV cannot.

    `picture` holds the same pixels as Pillow decoded them, at 8 bits and turned by `orientation`.
    OpenCV mistakes some layouts (such as planes stored one after another in TIFF) for others, so
    what it gives counts only where both agree.
    """
    encoded = path.read_bytes()
    if picture.format == "PNG":
        encoded = png_chunks.plain(
            encoded
        )  # OpenCV shows an animation's first picture, and crashes on damaged ones
    if orientation != 1:
        encoded = exif.tiff_upright(encoded)  # OpenCV turns some, whatever its flags, and refuses the others
    try:
        array = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if array is None or array.dtype != np.uint16 or array.ndim != 3:
        return None
    alpha = array.shape[2] == 4
    array = orient(cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if alpha else cv2.COLOR_BGR2RGB), orientation)
    expected = np.array(picture.convert("RGBA" if alpha else "RGB"))
    if expected.shape != array.shape:
        return None
    premultiplied = rawmode.startswith("RGBa")
    if premultiplied:
        weight = expected[..., 3:].astype(np.uint16)
        expected[..., :3] = (expected[..., :3] * weight + 127) // 255
    # A transparent colour (tRNS) is alpha to OpenCV and not yet to Pillow.
    compared = 4 if alpha and picture.mode == "RGBA" else 3
    short = np.right_shift(array[..., :compared], depth - 8).astype(np.uint8)
    difference = cv2.absdiff(short, np.ascontiguousarray(expected[..., :compared]))
    if depth == 16 and difference.max() > _AGREEMENT:  # AVIF's chroma is interpolated in different ways
        return None
    if rawmode.startswith("LA;16"):
        return np.ascontiguousarray(array[..., (0, 3)])
    return _unpremultiplied(array, (1 << depth) - 1) if premultiplied else array


def _unpremultiplied(array: np.ndarray, white: int) -> np.ndarray:
    """RGBA whose colours were stored multiplied by alpha, with that undone."""
    alpha = array[..., 3:].astype(np.float32)
    colours = array[..., :3].astype(np.float32) * (white / np.maximum(alpha, 1.0))
    result = array.copy()
    result[..., :3] = np.minimum(np.rint(colours), white).astype(array.dtype)
    return result


def _decode_shallow(
    path: Path,
    picture: Image.Image,
    info: dict[Any, Any],
    tiff_tags: dict[int, Any],
    depth: int,
    notes: list[str],
) -> tuple[np.ndarray, int]:
    """What Pillow decodes by itself: 8-bit pixels of every kind, and 16-bit grey. With its bit depth."""
    mode = picture.mode
    if mode in ("I", "F"):
        raise InputError(f"{path}: {_UNREAD_SAMPLES}; {_CONVERT}")
    if mode.startswith("I;16"):
        array = np.array(picture).astype(np.uint16)
        if tiff_tags.get(_PHOTOMETRIC) == 0:
            array = ((1 << depth) - 1) - array
        return array, depth
    if depth > 8 and mode in ("CMYK", "LAB"):
        notes.append(f"{depth} bits a sample are read as 8")
    if mode in ("CMYK", "LAB"):
        picture = _to_srgb(picture, info.get("icc_profile"), notes)
    elif mode in _GREY_MODES:
        picture = picture.convert("LA" if mode in _ALPHA_MODES else "L")
    elif (mode == "P" and info.get("transparency") is not None) or mode in _ALPHA_MODES:
        picture = picture.convert("RGBA")
    else:
        picture = picture.convert("RGB")
    return np.array(picture), 8


def _to_srgb(picture: Image.Image, icc: object, notes: list[str]) -> Image.Image:
    """CMYK or Lab as sRGB, by the embedded profile where it is one for this space."""
    name = "CMYK" if picture.mode == "CMYK" else "Lab"
    srgb = ImageCms.createProfile("sRGB")
    profile: ImageCms.ImageCmsProfile | None = None
    if isinstance(icc, bytes) and icc_space(icc) == name:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    elif name == "Lab":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    if profile is not None:
        try:
            converted = ImageCms.profileToProfile(picture, profile, srgb, outputMode="RGB")
        except ImageCms.PyCMSError:
            profile = None
        else:
            if converted is not None:
                notes.append(f"{name} is converted to sRGB by its colour profile")
                return converted
    notes.append(f"{name} without a usable profile is converted to RGB by the plain formula")
    return picture.convert("RGB")


def _with_transparent_colour(
    array: np.ndarray, key: tuple[int, ...] | None, stored_depth: int, depth: int
) -> np.ndarray:
    """Alpha made from PNG's single transparent colour, compared at the depth that the file has."""
    channels = 1 if array.ndim == 2 else array.shape[2]
    if key is None or channels != len(key):
        return array
    white = (1 << depth) - 1
    # Grey of 1, 2 and 4 bits was spread to 8 by Pillow; the key is still in the file's own units.
    scaled = [value * white // ((1 << stored_depth) - 1) for value in key]
    stacked = array.reshape(*array.shape[:2], channels)
    opaque = (stacked != np.array(scaled, dtype=np.int64)).any(axis=-1, keepdims=True)
    return np.concatenate([stacked, np.where(opaque, white, 0).astype(array.dtype)], axis=-1)


def _resolution(info: dict[Any, Any]) -> tuple[float, float] | None:
    dpi = info.get("dpi")
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    x, y = float(dpi[0]), float(dpi[1])
    return (x, y) if 1 < x < 1e5 and 1 < y < 1e5 else None


def _aspect(info: dict[Any, Any], tiff_tags: dict[int, Any]) -> tuple[int, int] | None:
    """Resolutions (x, y) that have no unit, where they differ."""
    found = info.get("aspect") or (info.get("jfif_density") if info.get("jfif_unit") == 0 else None)
    if tiff_tags.get(_RESOLUTION_UNIT) == 1:
        found = tiff_tags.get(_X_RESOLUTION), tiff_tags.get(_Y_RESOLUTION)
    try:
        x, y = (Fraction(float(value)).limit_denominator(1000) for value in found or ())
        ratio = x / y
    except (TypeError, ValueError, ArithmeticError):
        return None
    small = 0 < ratio.numerator < 1 << 16 and 0 < ratio.denominator < 1 << 16
    return (ratio.numerator, ratio.denominator) if small and ratio != 1 else None


def _turned(pair: tuple[T, T] | None, orientation: int) -> tuple[T, T] | None:
    """(x, y) as they are for the upright picture."""
    return (pair[1], pair[0]) if pair is not None and orientation >= 5 else pair
