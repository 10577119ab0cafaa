"""Whether a file ends before its own headers say so, as a copy or download that was broken off does."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
#: More than any film has; a file of empty boxes is not walked through.
_MOST_BOXES = 1_000_000
#: What a RIFF file that was written to a pipe says.
_OPEN_RIFF = 0xFFFFFFFF


def missing_bytes(path: Path) -> int:
    """How many bytes a Matroska, mp4, mov or AVI file lacks at its end; 0 for others and where nothing is stated.

    Raises OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(12)
        if start[:4] == _EBML.to_bytes(4, "big"):
            end = _end_of_segment(file)
        elif start[4:8] in (b"ftyp", b"wide", b"moov", b"mdat", b"free", b"skip"):
            end = _end_of_boxes(file, size)
        elif start[:4] == b"RIFF":
            length = struct.unpack("<I", start[4:8])[0]
            end = 0 if length == _OPEN_RIFF else 8 + length
        else:
            end = 0
    return max(0, end - size)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """The end of the last box (ISO 14496-12, 4.2) that begins in the file."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > size:
            return at
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:
            return size
        if length < 8:
            return 0
        at += length
    return 0


def _end_of_segment(file: BinaryIO) -> int:
    """The end of the Segment (RFC 8794, RFC 9559); 0 where its length is left open."""
    file.seek(0)
    for wanted in (_EBML, _SEGMENT):
        name = int.from_bytes(file.read(4), "big")
        first = file.read(1)
        if name != wanted or not first or not first[0]:
            return 0
        width = 9 - first[0].bit_length()
        value = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:
            return 0
        end = file.tell() + value
        if wanted == _EBML:
            file.seek(end)
    return end
