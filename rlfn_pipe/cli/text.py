"""Text for people: what may be printed, sizes and times in words. No rich here."""

from __future__ import annotations

import dataclasses
import json
import math
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any


def printable(text: object) -> str:
    """`text` with everything a terminal could obey or choke on shown as an escape.

    Control characters (newlines too), bidirectional overrides and bytes of file names that are
    not UTF-8 become `\\xNN` or `\\uNNNN`; everything else stays.
    """
    return "".join(_escaped(character) for character in str(text))


def _escaped(character: str) -> str:
    # Cc control, Cf format (bidi overrides), Cs lone surrogate, Zl and Zp line separators.
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shortened(text: str, width: int) -> str:
    """`text` cut in the middle to at most `width` characters."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def human_bytes(count: int | None) -> str:
    """1536 -> "1.5 KB" (powers of 1000, as disks are sold)."""
    if count is None:
        return "unknown"
    size = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}" if size < 99.95 else f"{size:.0f} {unit}"


def human_seconds(seconds: float | None) -> str:
    """75.3 -> "1:15"; below ten seconds one decimal."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def clock(seconds: Fraction | float | None) -> str:
    """A media time as HH:MM:SS.mmm."""
    if seconds is None:
        return "unknown"
    sign = "-" if seconds < 0 else ""
    milliseconds = round(abs(Fraction(seconds)) * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def count_of(number: int, noun: str) -> str:
    """(1, "frame") -> "1 frame", (2, "frame") -> "2 frames"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain(value: Any) -> Any:
    """`value` as what JSON can hold: dataclasses as objects, fractions and paths as strings.

    Infinite and not-a-number floats become null.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Fraction | Path):
        return str(value)
    return value


def json_line(value: Any) -> str:
    """`value` as JSON on one line, in ASCII so that any file name passes through any pipe."""
    return json.dumps(plain(value), ensure_ascii=True, allow_nan=False)
