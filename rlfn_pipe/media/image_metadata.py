"""What belongs to a picture beside its pixels: ICC profile, EXIF, XMP, IPTC, texts, resolution, PNG colour chunks."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

#: A JPEG marker segment holds 65533 bytes, six of them for the word Exif.
LARGEST_JPEG_EXIF = 65_527

#: The same for XMP.
LARGEST_JPEG_XMP = 65_000

#: Number of the block in Photoshop's part of a JPEG that holds IPTC data.
_IPTC_BLOCK = 0x0404


@dataclass(frozen=True)
class ImageMeta:
    """Metadata of one picture as read.

    `format` is what the file is ("png", "jpg", "webp", "tiff", "bmp", "avif"), whatever its name.
    `icc` is a sound profile as stored, `exif` a TIFF block without the "Exif" prefix, its
    orientation already reset to 1 and its thumbnail gone. `size` is (width, height) of the picture
    that all this is about. `dpi` is (x, y) in dots an inch, `aspect` the same without a unit.
    `lossless` says that a WebP was stored losslessly. `png_chunks` are colour chunks of a PNG, `texts` its
    texts. `xmp` has its orientation reset, too. `comment` is a JPEG's.
    `notes` are sentences about what was read otherwise than a user may expect.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "png"
    size: tuple[int, int] | None = None
    dpi: tuple[float, float] | None = None
    aspect: tuple[int, int] | None = None
    lossless: bool = False
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    texts: tuple[tuple[bytes, bytes], ...] = ()
    xmp: bytes | None = None
    iptc: bytes | None = None
    comment: bytes | None = None
    notes: tuple[str, ...] = ()


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

_IN_PIXELS = (
    *((b"GPano:FullPanoWidthPixels", 0), (b"GPano:FullPanoHeightPixels", 1)),
    *((b"GPano:CroppedAreaImageWidthPixels", 0), (b"GPano:CroppedAreaImageHeightPixels", 1)),
    *((b"GPano:CroppedAreaLeftPixels", 0), (b"GPano:CroppedAreaTopPixels", 1)),
    *((b"GPano:LargestValidInteriorRectLeft", 0), (b"GPano:LargestValidInteriorRectTop", 1)),
    *((b"GPano:LargestValidInteriorRectWidth", 0), (b"GPano:LargestValidInteriorRectHeight", 1)),
)
#: Names of elements without an end, after which a packet is given up.
_MOST_UNCLOSED = 16
#: What further parts of a file are called in its XMP, and here.
_PARTS = {b"GainMap": "its gain map (HDR)", b"MotionPhoto": "its short film"}


def clean_xmp(xmp: bytes | str | None) -> tuple[bytes | None, tuple[str, ...]]:
    """The packet with its orientation set to 1 and without what it says of other parts of the file; these parts by name."""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if not isinstance(xmp, bytes) or not xmp:
        return None, ()
    xmp = _with_property(xmp, b"tiff:Orientation", lambda value: 1)
    parts = set(re.findall(rb"Item:Semantic(?:\s*=\s*[\"']|>\s*)(\w+)", xmp)) - {b"Primary"}
    if b"hdrgm:Version" in xmp:
        parts.add(b"GainMap")
    if re.search(rb"GCamera:(MotionPhoto|MicroVideo)(\s*=\s*[\"']|>\s*)1", xmp):
        parts.add(b"MotionPhoto")
    if parts:
        names = rb"(?:hdrgm:\w+|GCamera:(?:MotionPhoto|MicroVideo)\w*)"
        xmp = _without_elements(xmp, rb"\w+:Directory|" + names)
        xmp = re.sub(rb"\s" + names + rb"\s*=\s*(\"[^\"]*\"|'[^']*')", b"", xmp)
    named = [_PARTS.get(part, part.decode()) for part in sorted(parts)]
    pointer = (
        rb"\sxmpNote:HasExtendedXMP\s*=\s*(?:\"[^\"]*\"|'[^']*')"
        rb"|<xmpNote:HasExtendedXMP>[^<]*</xmpNote:HasExtendedXMP>"
    )
    if re.search(pointer, xmp):
        xmp = re.sub(pointer, b"", xmp)
        named.append("the XMP data beyond 64 kB")
    return xmp, tuple(named)


def _without_elements(xmp: bytes, names: bytes) -> bytes:
    """The packet without the elements of these names, in one pass whatever it holds."""
    kept, at, unclosed = [], 0, set[bytes]()
    for match in re.finditer(rb"<(" + names + rb")\b", xmp):
        name = match[1]
        if match.start() < at or name in unclosed:
            continue
        behind = xmp.find(b">", match.end())
        if behind < 0 or len(unclosed) == _MOST_UNCLOSED:
            break
        end = behind + 1
        if xmp[behind - 1 : behind] != b"/":
            closing = b"</" + name + b">"
            end = xmp.find(closing, behind) + len(closing)
            if end < len(closing):
                unclosed.add(name)
                continue
        kept.append(xmp[at : match.start()])
        at = end
    return b"".join([*kept, xmp[at:]])


def xmp_orientation(xmp: bytes | str | None) -> int:
    """The orientation (1..8) by XMP, which counts where EXIF has none."""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp or b""
    found = re.search(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\b", xmp)
    return int(found[1]) if found else 1


def xmp_for(xmp: bytes, size: tuple[int, int], before: tuple[int, int] | None) -> bytes:
    """The packet with its numbers in pixels as a picture of `size` (width, height) has them.

    `before`: the size that they are about; None: only the size itself is set.
    """
    for name, side in (
        *((b"tiff:ImageWidth", 0), (b"tiff:ImageLength", 1)),
        *((b"exif:PixelXDimension", 0), (b"exif:PixelYDimension", 1)),
    ):
        xmp = _with_property(xmp, name, lambda value, side=side: size[side])  # type: ignore[misc]
    for name, side in _IN_PIXELS:
        factor = size[side] / before[side] if before is not None else 1.0
        xmp = _with_property(xmp, name, lambda value, factor=factor: round(value * factor))  # type: ignore[misc]
    return xmp


def _with_property(xmp: bytes, name: bytes, change: Callable[[int], int]) -> bytes:
    """A whole number set anew wherever it stands, as an attribute or an element; the packet is not parsed."""
    pattern = rb"(" + name + rb"\s*=\s*[\"']|<" + name + rb">\s*)(\d+)"
    return re.sub(pattern, lambda match: match[1] + str(change(int(match[2][:18]))).encode(), xmp)


def iptc_of_jpeg(info: Mapping[Any, Any]) -> bytes | None:
    """IPTC data in what Pillow found in a JPEG."""
    blocks = info.get("photoshop")
    found = blocks.get(_IPTC_BLOCK) if isinstance(blocks, dict) else None
    return found if isinstance(found, bytes) and found else None


def iptc_of_tiff(value: bytes) -> bytes:
    """IPTC data as a TIFF has it, also where it was written as 32-bit numbers in the other byte order."""
    swapped = value[:1] != b"\x1c" and value[3:4] == b"\x1c"
    return b"".join(value[i : i + 4][::-1] for i in range(0, len(value), 4)) if swapped else value


def iptc_of_photoshop(resources: bytes) -> bytes | None:
    """IPTC data among Photoshop's resources, or by itself."""
    if resources[:1] == b"\x1c":
        return resources
    at = resources.find(b"8BIM" + struct.pack(">H", _IPTC_BLOCK))
    if at < 0 or at + 12 > len(resources):
        return None
    name = resources[at + 6]
    at += 6 + 1 + name + (name + 1) % 2
    length = int.from_bytes(resources[at : at + 4], "big")
    found = resources[at + 4 : at + 4 + length]
    return found if length and len(found) == length else None


def photoshop_iptc(iptc: bytes) -> bytes:
    """IPTC data as one of Photoshop's resources."""
    return b"8BIM" + struct.pack(">HHI", _IPTC_BLOCK, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def jpeg_iptc(iptc: bytes) -> bytes:
    """IPTC data as a marker segment of a JPEG; nothing where it is too long for one."""
    body = b"Photoshop 3.0\0" + photoshop_iptc(iptc)
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


def avif_extras(head: bytes) -> tuple[str, ...]:
    """What an AVIF has beside its picture, in words."""
    head = head[: max(head.find(b"mdat"), 0)]
    found = (
        ("hdrgainmap" if b"hdrgainmap" in head else "tmap", "its gain map (HDR)"),
        ("clli", "its light levels"),
    )
    return tuple(words for mark, words in found if mark.encode() in head)


def avif_depth(head: bytes) -> int:
    """Bits of a sample (8, 10 or 12) by the AV1 configurations in an AVIF's header."""
    depth, at = 8, head.find(b"av1C")
    while 0 <= at < len(head) - 6:
        flags = head[at + 6]
        if flags & 0x40:
            depth = max(depth, 12 if flags & 0x20 else 10)
        at = head.find(b"av1C", at + 4)
    return depth
