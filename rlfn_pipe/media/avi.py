"""What AVI needs beyond its muxer: streams that do not begin with the film.

AVI stores no times, only frames in order. A picture that comes late is preceded by an empty
frame (the muxer fills up to it); a sound that comes late is told in the `dwStart` field of its
stream header, which libavformat reads but never writes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

_HEADER_BYTES = 1 << 20
_STRH_FIELDS = struct.Struct("<4s4sIHHIIII")


def whole_frames(lead: Fraction, rate: Fraction) -> Fraction:
    """The part of `lead` seconds that is whole frames; the rest, below a frame, cannot be said."""
    return Fraction(int(lead * rate)) / rate


def write_starts(path: Path, starts: Mapping[int, Fraction]) -> None:
    """Set `dwStart` of the streams named by index to the nearest of their own ticks.

    `starts` in seconds. Streams that begin at zero (or before it) are left as they are.
    """
    late = {index: start for index, start in starts.items() if start > 0}
    if not late:
        return
    with open(path, "r+b") as file:
        header = file.read(_HEADER_BYTES).partition(b"movi")[0]
        at, index = header.find(b"strh"), 0
        while at >= 0:
            if index in late:
                *_, scale, rate, _start = _STRH_FIELDS.unpack_from(header, at + 8)
                file.seek(at + 8 + _STRH_FIELDS.size - 4)
                file.write(struct.pack("<I", round(late[index] * Fraction(rate, scale or 1))))
            at, index = header.find(b"strh", at + 4), index + 1
