"""What belongs to a picture beside its pixels: ICC profile, EXIF, XMP, IPTC, texts, resolution, PNG colour chunks."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
MAKER_NOTE = 0x927C
TIFF_IPTC, TIFF_XMP = 0x83BB, 0x02BC

#: A JPEG marker segment holds 65533 bytes; a few are left for a new size of the same tags.
LARGEST_JPEG_EXIF = 65_400

#: The same for XMP.
LARGEST_JPEG_XMP = 65_000

_WIDTH_TAGS, _HEIGHT_TAGS = (0x0100, 0xA002), (0x0101, 0xA003)

#: Tags of the first directory that describe how the old file stored its pixels, not the picture.
_STORAGE_TAGS = frozenset(
    {0x00FE, 0x00FF, 0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C, 0x013D}
    | {0x013F, 0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014A, 0x014C, 0x0151, 0x0152, 0x0153, 0x015B}
    | {0x0211, 0x0212, 0x0213}
    | set(range(0x0200, 0x020A))
    | {TIFF_XMP, TIFF_IPTC, 0x8649, 0x8773}
)
#: In TIFF the size and resolution are storage, too; the writer sets its own.
_TIFF_ONLY = frozenset({0x0100, 0x0101, 0x011A, 0x011B, 0x0128})

#: PNG chunks that say how its values are to be read as colour.
_COLOUR_CHUNKS = frozenset({b"gAMA", b"cHRM", b"sRGB", b"cICP"})
_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_XMP_KEY = b"XML:com.adobe.xmp\0"
#: Number of the block in Photoshop's part of a JPEG that holds IPTC data.
_IPTC_BLOCK = 0x0404


@dataclass(frozen=True)
class ImageMeta:
    """Metadata of one picture as read.

    `format` is what the file is ("png", "jpg", "webp", "tiff", "bmp", "avif"), whatever its name.
    `icc` is a sound profile as stored, `exif` a TIFF block without the "Exif" prefix, its
    orientation already reset to 1 and its thumbnail gone. `dpi` is (x, y) in dots an inch.
    `lossless` says that a WebP was stored losslessly. `png_chunks` are colour chunks of a PNG, `texts` its
    texts. `xmp` has its orientation reset, too. `iptc` is a JPEG's or TIFF's, `comment` a JPEG's.
    `notes` are sentences about what was read otherwise than a user may expect.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "png"
    dpi: tuple[float, float] | None = None
    lossless: bool = False
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    texts: tuple[tuple[bytes, bytes], ...] = ()
    xmp: bytes | None = None
    iptc: bytes | None = None
    comment: bytes | None = None
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------ EXIF


class _Text(str):
    """Text that Pillow writes with the bytes it was read from: it takes them for Latin-1, and ASCII alone back."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("latin-1" if encoding == "ascii" else encoding, errors)


def _as_read(value: Any) -> Any:
    return _Text(value) if isinstance(value, str) else value


def read_exif(picture: Image.Image) -> tuple[Image.Exif | None, str | None]:
    """The EXIF of an open picture, or a note why it is left out."""
    try:
        exif = picture.getexif()
        for directory in (EXIF_IFD, GPS_IFD):
            exif.get_ifd(directory)
        exif.tobytes()
    # Pillow's parser raises whatever a broken offset or type runs it into.
    except Exception as error:
        return None, f"the EXIF data is damaged ({type(error).__name__}) and is not kept"
    return (exif if len(exif) else None), None


def orientation_of(exif: Image.Exif | None) -> int:
    """The EXIF orientation, 1..8; 1 where there is none or it makes no sense."""
    value = exif.get(ORIENTATION, 1) if exif is not None else 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def clean_exif(exif: Image.Exif, format: str) -> bytes | None:
    """EXIF as a TIFF block with orientation 1, without thumbnail and storage tags; None if that is all."""
    drop = _STORAGE_TAGS | _TIFF_ONLY if format == "tiff" else _STORAGE_TAGS
    # A fresh block: the old one may be a BigTIFF's, and would take its thumbnail along.
    clean = Image.Exif()
    for tag in exif:
        if tag not in drop:
            clean[tag] = (
                _without_links(exif.get_ifd(tag)) if tag in (EXIF_IFD, GPS_IFD) else _as_read(exif[tag])
            )
    if ORIENTATION in clean:
        clean[ORIENTATION] = 1
    if not set(clean) - {ORIENTATION}:
        return None
    return clean.tobytes().removeprefix(b"Exif\0\0")


def exif_for(exif: bytes, width: int, height: int) -> Image.Exif:
    """The stored EXIF with its pixel sizes set to those of the output."""
    result = Image.Exif()
    result.load(exif)
    inner = result.get_ifd(EXIF_IFD)
    for directory in (result, inner, result.get_ifd(GPS_IFD)):
        for tag in directory:
            directory[tag] = _as_read(directory[tag])
        for tags, value in ((_WIDTH_TAGS, width), (_HEIGHT_TAGS, height)):
            for tag in tags:
                if tag in directory:
                    directory[tag] = value
    return result


def exif_directories(exif: Image.Exif) -> dict[int, Any]:
    """EXIF as tags for a TIFF directory, nested directories as dicts."""
    tags: dict[int, Any] = {tag: exif[tag] for tag in exif if tag not in _STORAGE_TAGS | _TIFF_ONLY}
    for directory in (EXIF_IFD, GPS_IFD):
        if directory in tags:
            tags[directory] = _without_links(exif.get_ifd(directory))
    tags.pop(ORIENTATION, None)
    return tags


def with_tiff_upright(tiff: bytes) -> bytes:
    """The TIFF with the orientation in its first directory set to 1."""
    data = bytearray(tiff)
    order = "<" if data[0] == ord("I") else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    offset, count, size, value = ("Q", "Q", 20, 12) if big else ("I", "H", 12, 8)
    at = struct.unpack_from(order + offset, data, 8 if big else 4)[0]
    entries = struct.unpack_from(order + count, data, at)[0]
    at += struct.calcsize(order + count)
    for entry in range(at, at + entries * size, size):
        if struct.unpack_from(f"{order}H", data, entry)[0] == ORIENTATION:
            struct.pack_into(f"{order}H", data, entry + value, 1)
    return bytes(data)


def _without_links(directory: dict[int, Any]) -> dict[int, Any]:
    """A nested directory without its pointer to a further one, which would point nowhere."""
    return {tag: _as_read(value) for tag, value in directory.items() if tag != INTEROP_IFD}


def orient(plane: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored plane, HxW or HxWxC, the way EXIF `orientation` (1..8) says it is to be shown."""
    if orientation >= 5:
        plane = plane.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    return np.ascontiguousarray(plane)


# -------------------------------------------------------------------- XMP, IPTC


def clean_xmp(info: Mapping[Any, Any]) -> bytes | None:
    """The XMP packet that Pillow found, its orientation set to 1."""
    xmp = info.get("xmp")
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    return _with_property(xmp, b"tiff:Orientation", 1) if isinstance(xmp, bytes) and xmp else None


def xmp_for(xmp: bytes, width: int, height: int) -> bytes:
    """The packet with its pixel sizes set to those of the output."""
    for name, value in (
        *((b"tiff:ImageWidth", width), (b"tiff:ImageLength", height)),
        *((b"exif:PixelXDimension", width), (b"exif:PixelYDimension", height)),
    ):
        xmp = _with_property(xmp, name, value)
    return xmp


def _with_property(xmp: bytes, name: bytes, value: int) -> bytes:
    """A number set anew wherever it stands, as an attribute or an element; the packet is not parsed."""
    pattern = rb"(" + name + rb"\s*=\s*[\"']|<" + name + rb">\s*)\d+"
    return re.sub(pattern, lambda match: match[1] + str(value).encode(), xmp)


def png_xmp(xmp: bytes) -> tuple[bytes, bytes]:
    """XMP as a PNG chunk: not compressed, without language and translation."""
    return b"iTXt", _XMP_KEY + bytes(4) + xmp


def iptc_of(info: Mapping[Any, Any], tiff_tags: Mapping[int, Any]) -> bytes | None:
    """IPTC data in what Pillow found in a JPEG or TIFF."""
    blocks = info.get("photoshop")
    found = blocks.get(_IPTC_BLOCK) if isinstance(blocks, dict) else tiff_tags.get(TIFF_IPTC)
    return found if isinstance(found, bytes) and found else None


def jpeg_iptc(iptc: bytes) -> bytes:
    """IPTC data as a marker segment of a JPEG; nothing where it is too long for one."""
    block = b"8BIM" + struct.pack(">HHI", _IPTC_BLOCK, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    body = b"Photoshop 3.0\0" + block
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body if len(body) <= 65_533 else b""


# ------------------------------------------------------------------------- ICC


def icc_space(icc: bytes | None) -> str | None:
    """Colour space that an ICC profile is for ("RGB", "GRAY", "CMYK", "Lab"); None if missing or broken."""
    if icc is None or len(icc) < 128 or icc[36:40] != b"acsp":
        return None
    return icc[16:20].decode("latin-1").strip()


def icc_fits(icc: bytes | None, grey: bool) -> bool:
    """Whether the profile describes pictures of this layout."""
    return icc_space(icc) == ("GRAY" if grey else "RGB")


# ------------------------------------------------------------------ PNG chunks


def png_colour_chunks(head: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks before the pixels that say how a PNG's values are to be read as colour."""
    return tuple((kind, body) for kind, body in _chunks_before_pixels(head) if kind in _COLOUR_CHUNKS)


def png_texts(path: Path) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks with texts, XMP excepted, wherever they stand; nothing else is read."""
    found = []
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in _TEXT_CHUNKS:
                body = file.read(length)
                file.seek(4, os.SEEK_CUR)
                if len(body) == length and not body.startswith((_XMP_KEY, b"Raw profile type")):
                    found.append((kind, body))
            else:
                file.seek(length + 4, os.SEEK_CUR)
    return tuple(found)


def png_transparency(head: bytes) -> tuple[int, ...] | None:
    """The one sample value (grey) or three (RGB) that a PNG without alpha declares transparent."""
    for kind, body in _chunks_before_pixels(head):
        if kind == b"tRNS" and len(body) in (2, 6):
            return struct.unpack(f">{len(body) // 2}H", body)
    return None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG in order, as far as they are whole."""
    position = 8
    while position + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + length]
        if len(body) < length:
            return
        yield kind, body
        position += 12 + length


def _chunks_before_pixels(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    return takewhile(lambda chunk: chunk[0] != b"IDAT", _chunks(head))


def plain_png(png: bytes) -> bytes:
    """The still picture of a PNG and nothing else: no animation, no metadata."""
    kept = [chunk for chunk in _chunks(png) if chunk[0] in (b"IHDR", b"tRNS", b"IDAT", b"IEND")]
    return png[:8] + b"".join(pack_png_chunk(kind, body) for kind, body in kept)


def insert_png_chunks(png: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG with further chunks put between its header and everything else."""
    after_header = 8 + 25
    packed = b"".join(pack_png_chunk(kind, body) for kind, body in chunks)
    return png[:after_header] + packed + png[after_header:]


def pack_png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk: length, kind, body, checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# ------------------------------------------------------------------------ CICP


def read_nclx(head: bytes) -> tuple[int, int]:
    """Primaries and transfer (H.273 codes) of an AVIF; (2, 2) where they are not stated."""
    at = head.find(b"colrnclx")
    if at < 0 or at + 12 > len(head):
        return 2, 2
    primaries, transfer = struct.unpack_from(">HH", head, at + 8)
    return primaries, transfer


def write_nclx(avif: bytes, primaries: int, transfer: int) -> bytes:
    """The AVIF with other primaries and transfer in its colour box (which overrules the bitstream)."""
    at = avif.find(b"colrnclx")
    if at < 0:
        return avif
    return avif[: at + 8] + struct.pack(">HH", primaries, transfer) + avif[at + 12 :]


def avif_depth(head: bytes) -> int:
    """Bits of a sample (8, 10 or 12) by the AV1 configurations in an AVIF's header."""
    depth, at = 8, head.find(b"av1C")
    while 0 <= at < len(head) - 6:
        flags = head[at + 6]
        if flags & 0x40:
            depth = max(depth, 12 if flags & 0x20 else 10)
        at = head.find(b"av1C", at + 4)
    return depth
