"""What goes with a decoded picture beside its samples, which of it is left out, and how two eyes share a picture."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

from av.video.frame import VideoFrame

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideDataContainer

_DOLBY = "its Dolby Vision layer is left out: players show the base layer (of profile 5 in wrong colours)"
_DYNAMIC = "its dynamic metadata ({}) is left out: players use what is the same for all pictures"
_UNKNOWN = "UNKNOWN"
#: Side data that no output gets, and what is said of it.
_LEFT_OUT = {
    "A53_CC": "closed captions (CEA-608, CEA-708) inside its pictures are left out",
    "DOVI_METADATA": _DOLBY,
    "DOVI_RPU_BUFFER": _DOLBY,
    "DYNAMIC_HDR_VIVID": _DYNAMIC.format("HDR Vivid"),
    "DYNAMIC_HDR_PLUS": _DYNAMIC.format("HDR10+"),
    _UNKNOWN: "what goes with its pictures is of a kind that PyAV does not know (a second view, say) and is left out,"
    " with any HDR10 data beside it",
    "SPHERICAL": "its spherical projection (360 degree video) is left out: players show the picture flat",
}
#: Matroska's names of AVStereo3D's layouts that last when a picture is enlarged: (kind, whether the right eye comes first).
_STEREO_MODES = {
    (1, 0): "left_right",
    (1, 1): "right_left",
    (2, 0): "top_bottom",
    (2, 1): "bottom_top",
}


def side_data_of(frame: VideoFrame) -> dict[str, bytes]:
    """libav's structures that came with a frame, by PyAV's names."""
    try:
        items = cast("SideDataContainer", frame.side_data)
        return {item.type.name: bytes(item) for item in items}
    except ValueError:
        # PyAV knows no name for a newer kind of side data and then shows none of it; the
        # rotation is read by another road.
        return {_UNKNOWN: b""}


def left_out(data: dict[str, bytes]) -> list[str]:
    """A sentence on each thing among a frame's side data that no output gets."""
    return list(dict.fromkeys(note for kind, note in _LEFT_OUT.items() if kind in data))


def stereo_mode(data: bytes | None) -> str | None:
    """AVStereo3D's layout by Matroska's names; "" for a single view, None for what is no pair of halves."""
    if data is None or len(data) < 8:
        return ""
    kind, flags = struct.unpack_from("<2i", data)
    return "" if kind == 0 else _STEREO_MODES.get((kind, flags & 1))


def side_by_side(stereo: str) -> tuple[int, int]:
    """How many views lie beside and above one another in a picture of Matroska's stereo mode (halves only)."""
    if stereo in ("left_right", "right_left"):
        return 2, 1
    return (1, 2) if stereo in ("top_bottom", "bottom_top") else (1, 1)
