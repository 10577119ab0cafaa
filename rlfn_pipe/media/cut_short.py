"""Whether a file ends before its own headers say so, as a copy or download that was broken off does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from rlfn_pipe.media.matroska import segment_end

_EBML = b"\x1a\x45\xdf\xa3"
#: A Matroska file's first element, and the next one's beginning, lie in here.
_HEAD_BYTES = 1 << 16
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
        start = file.read(_HEAD_BYTES)
        if start.startswith(_EBML):
            end = segment_end(start) or 0
        elif start[4:8] in (b"ftyp", b"wide", b"moov", b"mdat", b"free", b"skip"):
            end = _end_of_boxes(file, size)
        elif start[:4] == b"RIFF":
            length = int.from_bytes(start[4:8], "little")
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
