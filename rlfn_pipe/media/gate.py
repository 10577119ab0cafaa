"""Tries copied packets beforehand: one that the muxer cannot repack would stop the whole file."""

from __future__ import annotations

from typing import Any

import av.error
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.stream import Stream

from rlfn_pipe.media.stream_plan import codec_name
from rlfn_pipe.media.tags import MATROSKA_FAMILY, MOV_FAMILY

#: Sizes in bytes that an ADTS header can state, less the header.
_ADTS_SIZES = range(2, 8185)


class Gate:
    """Admits the packets of a copied stream that a muxer can write; `refused` counts the others.

    Damage inside a packet is none of its business, only framing that the muxer reads itself:
    ADTS headers taken off or put on, H.264 and H.265 in transport streams, AC-3 headers in mp4.
    """

    def __init__(self, source: Stream, muxer: str) -> None:
        name, context = codec_name(source), source.codec_context
        self.refused = 0
        self._filter: BitStreamFilterContext | None = None
        in_adts = name == "aac" and context is not None and not context.extradata
        if in_adts and muxer in MOV_FAMILY | MATROSKA_FAMILY:
            self._filter = BitStreamFilterContext("aac_adtstoasc", in_stream=source)
        elif name in ("h264", "hevc") and muxer == "mpegts":
            self._filter = BitStreamFilterContext(f"{name}_mp4toannexb", in_stream=source)
        self._sizes = _ADTS_SIZES if name == "aac" and muxer == "mpegts" else range(1 << 31)
        self._wants_header = name in ("ac3", "eac3") and muxer in MOV_FAMILY

    def admits(self, packet: Packet[Any]) -> bool:
        """Whether the packet can be written."""
        if self._can_write(packet):
            return True
        self.refused += 1
        return False

    def _can_write(self, packet: Packet[Any]) -> bool:
        if packet.size not in self._sizes:
            return False
        if self._wants_header and not _has_ac3_header(bytes(packet)[:8]):
            return False
        if self._filter is not None:
            try:
                self._filter.filter(Packet(bytes(packet)))
            except (av.error.FFmpegError, ValueError):
                return False
        return True


def _has_ac3_header(data: bytes) -> bool:
    """Whether AC-3 or E-AC-3 data begins with a plausible frame header."""
    if len(data) < 8 or data[:2] != b"\x0b\x77":
        return False
    version, rate_code, size_code = data[5] >> 3, data[4] >> 6, data[4] & 0x3F
    if version <= 10:
        return rate_code != 3 and size_code < 38
    return version <= 16
