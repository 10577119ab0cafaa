"""The chunks of a PNG: its colour, its texts, and what others hide in them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from rlfn_pipe.media.image_metadata import photoshop_iptc

#: PNG chunks that say how its values are to be read as colour.
_COLOUR_CHUNKS = frozenset({b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI"})
_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_XMP_KEY = b"XML:com.adobe.xmp\0"
_RAW_PROFILE = b"Raw profile type "
_PROFILES = frozenset({"exif", "app1", "xmp", "iptc", "8bim", "icc", "icm"})
_LONGEST_PROFILE = 1 << 24
#: Bytes of a colour chunk or of a transparent colour; what claims more is none.
_LONGEST_COLOUR = 256


def colour_chunks(path: Path) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks before the pixels that say how a PNG's values are to be read as colour, the first of each kind."""
    return tuple(_before_pixels(path, _COLOUR_CHUNKS).items())


#: Primaries (H.273) by what a cHRM chunk says of them and the white point, in 100 000ths.
_PRIMARIES = {
    1: (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    9: (31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600),
    11: (31400, 35100, 68000, 32000, 26500, 69000, 15000, 6000),
    12: (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000),
}
#: Curves by a gAMA chunk: linear, and the powers that H.273 has.
_GAMMAS = {100_000: 8, 35_714: 5}
_PLAIN_GAMMA = 45_455


def colour(chunks: Iterable[tuple[bytes, bytes]]) -> tuple[int, int]:
    """Primaries and transfer (H.273 codes) by a PNG's colour chunks; (2, 2) where they say nothing beyond sRGB.

    cICP overrules sRGB, which overrules gAMA and cHRM.
    """
    found = dict(chunks)
    cicp = found.get(b"cICP", b"")
    if len(cicp) == 4:
        return cicp[0], cicp[1]
    if b"sRGB" in found:
        return 2, 2
    gamma, white = found.get(b"gAMA", b""), found.get(b"cHRM", b"")
    transfer, primaries = 2, 2
    if len(gamma) == 4:
        value = int.from_bytes(gamma, "big")
        transfer = next((code for g, code in _GAMMAS.items() if abs(value - g) <= 500), 2)
    if len(white) == 32:
        values = struct.unpack(">8I", white)
        near = (
            code
            for code, known in _PRIMARIES.items()
            if all(abs(a - b) <= 150 for a, b in zip(values, known, strict=True))
        )
        primaries = next(near, 2)
    return (2, 2) if (primaries, transfer) == (1, 2) else (primaries, transfer)


def untold(chunks: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """What of a PNG's gAMA and cHRM has no code in H.273, so that no other format can carry it."""
    found = dict(chunks)
    if b"cICP" in found or b"sRGB" in found:
        return ()
    primaries, transfer = colour(chunks)
    told = []
    gamma = int.from_bytes(found.get(b"gAMA", b""), "big") or _PLAIN_GAMMA
    if transfer == 2 and abs(gamma - _PLAIN_GAMMA) > 500:
        told.append("transfer curve")
    if primaries == 2 and b"cHRM" in found and not _is_srgb(found[b"cHRM"]):
        told.append("colour primaries")
    return tuple(told)


def _is_srgb(white: bytes) -> bool:
    values = struct.unpack(">8I", white) if len(white) == 32 else ()
    return len(values) == 8 and all(abs(a - b) <= 150 for a, b in zip(values, _PRIMARIES[1], strict=True))


def texts(path: Path) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks with texts, XMP excepted, wherever they stand; nothing else is read."""
    return tuple(text for text in _texts(path) if not text[1].startswith((_XMP_KEY, _RAW_PROFILE)))


def raw_profiles(path: Path) -> dict[str, bytes]:
    """Metadata that ImageMagick and others put into texts, in hexadecimal digits: exif, xmp, iptc, icc, ..."""
    found: dict[str, bytes] = {}
    for kind, body in _texts(path):
        name, _, text = body.removeprefix(_RAW_PROFILE).partition(b"\0")
        known = name.decode("latin-1").lower()
        if not body.startswith(_RAW_PROFILE) or kind == b"iTXt" or known in found or known not in _PROFILES:
            continue
        try:
            if kind == b"zTXt":
                text = zlib.decompressobj().decompress(text[1:], _LONGEST_PROFILE)
            _, length, digits = text.split(maxsplit=2)
            found[known] = bytes.fromhex(digits.decode("ascii"))[: int(length)]
        except (ValueError, zlib.error):
            continue  # what is damaged is no profile
    return found


def _texts(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb") as file:
        for kind, length in _chunks(file):
            if kind in _TEXT_CHUNKS:
                body = file.read(length)
                if len(body) == length:
                    yield kind, body


def transparency(path: Path) -> tuple[int, ...] | None:
    """The one sample value (grey) or three (RGB) that a PNG without alpha declares transparent."""
    body = _before_pixels(path, frozenset({b"tRNS"})).get(b"tRNS", b"")
    return struct.unpack(f">{len(body) // 2}H", body) if len(body) in (2, 6) else None


def _before_pixels(path: Path, kinds: frozenset[bytes]) -> dict[bytes, bytes]:
    """The first chunk of each of these kinds, in order; however much else lies before the pixels, it is not read."""
    found: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        for kind, length in _chunks(file):
            if kind == b"IDAT":
                break
            if kind in kinds and kind not in found and length <= _LONGEST_COLOUR:
                found[kind] = file.read(length)
    return found


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk of a PNG up to its end, the file standing where the chunk's body begins."""
    at, kind = 8, b""
    while kind != b"IEND" and file.seek(at) and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        at += 12 + length


def plain(png: bytes) -> bytes:
    """The still picture of a PNG and nothing else: no animation, no metadata."""
    file, kept = io.BytesIO(png), (b"IHDR", b"tRNS", b"IDAT", b"IEND")
    found = ((kind, file.read(length)) for kind, length in _chunks(file) if kind in kept)
    return png[:8] + b"".join(pack(kind, body) for kind, body in found)


def insert(png: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG with further chunks put between its header and everything else."""
    after_header = 8 + 25
    packed = b"".join(pack(kind, body) for kind, body in chunks)
    return png[:after_header] + packed + png[after_header:]


def pack(kind: bytes, body: bytes) -> bytes:
    """One chunk: length, kind, body, checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def xmp_chunk(xmp: bytes) -> tuple[bytes, bytes]:
    """XMP as a PNG chunk: not compressed, without language and translation."""
    return b"iTXt", _XMP_KEY + bytes(4) + xmp


def iptc_chunk(iptc: bytes) -> tuple[bytes, bytes]:
    """IPTC data as ImageMagick and ExifTool put it into a PNG: Photoshop's resource in hexadecimal digits, compressed."""
    resource = photoshop_iptc(iptc)
    digits = resource.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return b"zTXt", _RAW_PROFILE + b"iptc\0\0" + zlib.compress(
        f"\niptc\n{len(resource):8}\n{lines}\n".encode()
    )
