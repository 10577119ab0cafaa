"""HDR10 metadata as the encoders want it told: mastering display (SMPTE ST 2086) and light levels (CTA-861.3)."""

from __future__ import annotations

import struct
from fractions import Fraction


def _mastering(data: bytes | None) -> tuple[list[Fraction], list[Fraction]] | None:
    """(R, G, B, white chromaticities x y; least and greatest luminance) of AVMasteringDisplayMetadata."""
    if data is None or len(data) < 88:
        return None
    numbers = struct.unpack_from("<22i", data)
    pairs = [Fraction(numbers[i], numbers[i + 1] or 1) for i in range(0, 20, 2)]
    return (pairs[:8], pairs[8:10]) if numbers[20] and numbers[21] else None


def x265_parameters(mastering: bytes | None, light_level: bytes | None) -> list[str]:
    """libx265's parameters for libav's mastering and light level structures (None: absent)."""
    params = []
    display = _mastering(mastering)
    if display is not None:
        params.append(f"master-display={_st2086(*display)}")
    levels = _light(light_level)
    if levels is not None:
        params.append(f"max-cll={levels[0]},{levels[1]}")
    if params:
        params += ["hdr10=1", "repeat-headers=1"]
    return params


def x264_parameters(mastering: bytes | None, light_level: bytes | None) -> list[str]:
    """libx264's parameters for libav's mastering and light level structures (None: absent)."""
    params = []
    display = _mastering(mastering)
    if display is not None:
        params.append(f"mastering-display={_st2086(*display)}")
    levels = _light(light_level)
    if levels is not None:
        params.append(f"cll={levels[0]},{levels[1]}")
    return params


def _st2086(chromaticities: list[Fraction], luminances: list[Fraction]) -> str:
    """In units of ST 2086: 0.00002, and 0.0001 cd/m2."""
    xy = [round(v * 50000) for v in chromaticities]
    low, high = (round(v * 10000) for v in luminances)
    return f"G({xy[2]},{xy[3]})B({xy[4]},{xy[5]})R({xy[0]},{xy[1]})WP({xy[6]},{xy[7]})L({high},{low})"


def svt_parameters(mastering: bytes | None, light_level: bytes | None) -> list[str]:
    """SVT-AV1's parameters for libav's mastering and light level structures (None: absent)."""
    params = []
    display = _mastering(mastering)
    if display is not None:
        xy = [f"{float(v):.5f}" for v in display[0]]
        low, high = (f"{float(v):.4f}" for v in display[1])
        params.append(
            f"mastering-display=G({xy[2]},{xy[3]})B({xy[4]},{xy[5]})R({xy[0]},{xy[1]})WP({xy[6]},{xy[7]})L({high},{low})"
        )
    levels = _light(light_level)
    if levels is not None:
        params.append(f"content-light={levels[0]},{levels[1]}")
    return params


def _light(data: bytes | None) -> tuple[int, int] | None:
    """(MaxCLL, MaxFALL) in cd/m2 of AVContentLightMetadata."""
    if data is None or len(data) < 8:
        return None
    peak, average = struct.unpack_from("<2I", data)
    return (peak, average) if peak or average else None
