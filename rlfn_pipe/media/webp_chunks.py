"""The chunks of a WebP file: what its header says before anything is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from rlfn_pipe.errors import InputError

__all__ = ["canvas_size", "is_lossless"]


def canvas_size(path: Path) -> tuple[int, int]:
    """(width, height) by the header: Pillow's plug-in allocates the canvas while it opens the file.

    Raises InputError where there is none.
    """
    chunk, body = next(_chunks(path), (b"", b""))
    if len(body) >= 10:
        if chunk == b"VP8X":
            return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        if chunk == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if chunk == b"VP8 ":
            return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise InputError(f"{path}: the webp picture is damaged (no picture header); copy or export it again")


def is_lossless(path: Path) -> bool:
    """Whether the first picture was stored so; what comes first of it, its pixels or lossy ones' alpha, says that."""
    for chunk, body in _chunks(path):
        part = body[16:20] if chunk == b"ANMF" else chunk
        if part in (b"VP8L", b"VP8 ", b"ALPH"):
            return part == b"VP8L"
    return False


def _chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Kinds of chunks in order, each with the first bytes (24 at most) of what it holds; nothing else is read."""
    at = 12
    with path.open("rb") as file:
        while file.seek(at) and len(head := file.read(32)) >= 8:
            kind, length = struct.unpack_from("<4sI", head)
            yield kind, head[8 : 8 + length]
            at += 8 + length + length % 2
