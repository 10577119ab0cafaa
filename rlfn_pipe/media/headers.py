"""Encoder headers of segments that are joined behind one header: do they say the same, and if not, what to do.

Encoders of equal settings write equal headers, so this is for the case that they did not (another
version of the encoder, another number of threads in the text that x264 leaves about itself).
"""

from __future__ import annotations

import re

from rlfn_pipe.errors import OutputError
from rlfn_pipe.media.encoders import EncodePlan

_START_CODE = re.compile(rb"\x00\x00\x01")
_H264, _HEVC = frozenset({"libx264", "h264_nvenc"}), frozenset({"libx265", "hevc_nvenc"})
#: Coded with start codes throughout: their headers may stand before any keyframe.
_MPEG = frozenset({"mpeg4", "mpeg2video"})
#: Their keyframes carry all that a decoder needs to know.
_IN_BAND = frozenset({"libsvtav1", "av1_nvenc", "libvpx-vp9", "prores_ks"})
_H264_SEI, _HEVC_SEI = frozenset({6}), frozenset({39, 40})


def missing_headers(plan: EncodePlan, file: bytes, segment: bytes, name: str) -> bytes:
    """What must stand before a segment's first picture so that a decoder of the file can read it.

    `file` and `segment`: extradata of the file's header and of the segment's encoder; nothing is
    missing where they say the same.

    Raises:
        OutputError: they differ, and this codec or container has no place for a second header.
    """
    codec = plan.codec
    if file == segment or not segment or codec in _IN_BAND:
        return b""
    if codec in _MPEG:
        return segment
    if codec in _H264 or codec in _HEVC:
        if _parameter_sets(codec, file) == _parameter_sets(codec, segment):
            return b""
        # Apple's hvc1 keeps parameter sets in the header alone, and the muxer drops others.
        if codec in _H264 or plan.muxer not in ("mp4", "mov"):
            return segment
    raise OutputError(
        f"{name}: a segment was made by {codec} with other settings or another version than this one; "
        "remove the work folder and run the command again"
    )


def _parameter_sets(codec: str, extradata: bytes) -> list[bytes]:
    """The header's units without the texts and hints (SEI) that decoding does not depend on."""
    units = [unit.rstrip(b"\0") for unit in _START_CODE.split(extradata)]
    if codec in _H264:
        return [unit for unit in units if unit and unit[0] & 0x1F not in _H264_SEI]
    return [unit for unit in units if unit and unit[0] >> 1 & 0x3F not in _HEVC_SEI]
