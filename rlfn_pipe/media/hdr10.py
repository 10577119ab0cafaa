"""HDR10 metadata as the encoders want it told: mastering display (SMPTE ST 2086) and light levels (CTA-861.3)."""

from __future__ import annotations

import struct
from fractions import Fraction

#: By encoder: names of its parameters for mastering display and light levels, and what has to be said with them.
_NAMES = {
    "libx264": ("mastering-display", "cll", ()),
    "libx265": ("master-display", "max-cll", ("hdr10=1", "repeat-headers=1")),
    "libsvtav1": ("mastering-display", "content-light", ()),
}


def parameters(encoder: str, mastering: bytes | None, light_level: bytes | None) -> list[str] | None:
    """An encoder's parameters for libav's mastering and light level structures (None: absent).

    None where there is something to say and the encoder takes no such parameters.
    """
    display, levels = _mastering(mastering), _light(light_level)
    if display is None and levels is None:
        return []
    if encoder not in _NAMES or (encoder == "libx264" and not _fits(display, levels)):
        return None
    display_name, levels_name, more = _NAMES[encoder]
    told = []
    if display is not None:
        told.append(f"{display_name}={_st2086(*display, as_decimals=encoder == 'libsvtav1')}")
    if levels is not None:
        told.append(f"{levels_name}={levels[0]},{levels[1]}")
    return [*told, *more]


def _st2086(chromaticities: list[Fraction], luminances: list[Fraction], as_decimals: bool) -> str:
    """As decimals, or in units of ST 2086: 0.00002, and 0.0001 cd/m2."""
    if as_decimals:
        xy = [f"{float(v):.5f}" for v in chromaticities]
        low, high = (f"{float(v):.4f}" for v in luminances)
    else:
        xy = [str(round(v * 50000)) for v in chromaticities]
        low, high = (str(round(v * 10000)) for v in luminances)
    return f"G({xy[2]},{xy[3]})B({xy[4]},{xy[5]})R({xy[0]},{xy[1]})WP({xy[6]},{xy[7]})L({high},{low})"


def _fits(display: tuple[list[Fraction], list[Fraction]] | None, levels: tuple[int, int] | None) -> bool:
    """Whether the numbers have room in the fields that H.264 and HEVC have for them."""
    xy, luminances = display or ([], [])
    return (
        all(0 <= round(v * 50000) < 1 << 16 for v in xy)
        and all(0 <= round(v * 10000) < 1 << 32 for v in luminances)
        and all(level < 1 << 16 for level in levels or ())
    )


def _mastering(data: bytes | None) -> tuple[list[Fraction], list[Fraction]] | None:
    """(R, G, B, white chromaticities x y; least and greatest luminance) of AVMasteringDisplayMetadata."""
    if data is None or len(data) < 88:
        return None
    numbers = struct.unpack_from("<22i", data)
    pairs = [Fraction(numbers[i], numbers[i + 1] or 1) for i in range(0, 20, 2)]
    return (pairs[:8], pairs[8:10]) if numbers[20] and numbers[21] else None


def _light(data: bytes | None) -> tuple[int, int] | None:
    """(MaxCLL, MaxFALL) in cd/m2 of AVContentLightMetadata."""
    if data is None or len(data) < 8:
        return None
    peak, average = struct.unpack_from("<2I", data)
    return (peak, average) if peak or average else None
