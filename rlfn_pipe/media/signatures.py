"""What a file is: by its name, and by its first bytes. Light enough for every start of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rlfn_pipe.errors import InputError, UsageError

Kind = Literal["image", "video"]

#: File extension (lower case, with dot) -> name of the image format.
IMAGE_FORMATS = {
    ".png": "png",
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".jpe": "jpg",
    ".jfif": "jpg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".avif": "avif",
}
IMAGE_EXTENSIONS: frozenset[str] = frozenset(IMAGE_FORMATS)
#: Name of an image format -> `--quality` where none is given; the lossless ones have none.
DEFAULT_QUALITY = {"jpg": 95, "webp": 90, "avif": 80}

#: How many first bytes `sniff` wants to see.
HEAD_BYTES = 600

_ALIASES = {"jpeg": "jpg", "tif": "tiff"}
_AVIF_BRANDS = (b"avif", b"avis")
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Signature at an offset -> kind and name; looked through in this order.
_SIGNATURES: tuple[tuple[int, bytes, Kind, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image", "png"),
    (0, b"\xff\xd8\xff", "image", "jpg"),
    *((0, magic, "image", "tiff") for magic in _TIFF_MAGICS),
    (0, b"BM", "image", "bmp"),
    (0, b"GIF87a", "video", "gif"),
    (0, b"GIF89a", "video", "gif"),
    (0, b"\x1a\x45\xdf\xa3", "video", "matroska"),
    (0, b"FLV\x01", "video", "flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video", "asf"),
    (0, b"OggS", "video", "ogg"),
    (0, b"YUV4MPEG2", "video", "y4m"),
    (0, b"nut/multimedia container\0", "video", "nut"),
    (0, b"DKIF", "video", "ivf"),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "video", "mxf"),
    (0, b"\x00\x00\x01\xba", "video", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "video", "mpeg"),
    (4, b"moov", "video", "mov"),
    (4, b"mdat", "video", "mov"),
    (4, b"wide", "video", "mov"),
)

#: Image formats that we know by their first bytes and do not read.
_FOREIGN = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"\0\0\x01\0", "Windows icon"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    *((0, b"P%d" % digit, "PNM") for digit in range(1, 8)),
)


def sniff(head: bytes) -> tuple[Kind, str] | None:
    """Kind and format by the first `HEAD_BYTES` bytes; None where they say nothing.

    Image formats are named as in `IMAGE_FORMATS`. A GIF counts as video.
    """
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        box = head[: int.from_bytes(head[:4], "big")]
        compatible = [box[i : i + 4] for i in range(16, len(box) - 3, 4)]
        if brand in _AVIF_BRANDS or (brand in _STILL_BRANDS and any(b in _AVIF_BRANDS for b in compatible)):
            return "image", "avif"
        return None if brand in _STILL_BRANDS else ("video", "mp4")
    if head[:4] == b"RIFF":
        if head[8:12] == b"WEBP":
            return "image", "webp"
        return ("video", "avi") if head[8:12] == b"AVI " else None
    for offset, magic, kind, name in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return kind, name
    # Transport streams: a sync byte every 188 bytes, or 192 with a time code before each packet.
    for first, packet in ((0, 188), (4, 192)):
        if head[first : first + 2 * packet + 1 : packet] == b"GGG":
            return "video", "mpegts"
    return None


def foreign_name(head: bytes) -> str | None:
    """The everyday name of a known picture format that is not read here; None where unknown."""
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        return "HEIC"
    return next((name for offset, magic, name in _FOREIGN if head[offset:].startswith(magic)), None)


def read_head(path: Path) -> bytes:
    """The first bytes of a file, for `sniff`.

    Raises:
        InputError: the path is missing, a folder, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a file; name a file in it") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read ({reason}); check its permissions") from error


def format_of(path: Path) -> str | None:
    """The image format that a file name asks for ("png", "jpg", ...); None for other names."""
    return IMAGE_FORMATS.get(path.suffix.lower())


def format_named(name: str) -> str:
    """The canonical name of an image format given by a user (`jpeg` is `jpg`, `tif` is `tiff`).

    Raises:
        UsageError: no such format.
    """
    canonical = name.lower().removeprefix(".")
    canonical = _ALIASES.get(canonical, canonical)
    if canonical not in IMAGE_FORMATS.values():
        known = ", ".join(dict.fromkeys(IMAGE_FORMATS.values()))
        raise UsageError(f"{name!r} is not an image format; choose one of {known} or same")
    return canonical
