"""Tags and chapters: what travels with a file and its streams, and what must not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container.core import Chapter

MOV_FAMILY = frozenset({"mp4", "mov", "ipod", "ismv", "psp", "3gp", "3g2", "f4v"})
MATROSKA_FAMILY = frozenset({"matroska", "webm"})
#: Containers of which players play all that is in them.
NO_EDIT_LISTS = frozenset({"mpegts", "avi", "nut"})

#: Written by every muxer about itself; the source's value would be a lie.
_CONTAINER_OWN = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "software"})
_STATISTICS = re.compile(r"(BPS|NUMBER_OF_FRAMES|NUMBER_OF_BYTES|_STATISTICS_\w+)(-\w+)?", re.IGNORECASE)
_DURATION = re.compile(r"DURATION(-\w+)?", re.IGNORECASE)
_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")
_LANGUAGE_SUFFIX = re.compile(r"(.+)-[a-z]{3}")

#: QuickTime's list of languages has codes of its own choice; other codes of the same language are unknown to it.
_QUICKTIME_LANGUAGES = {
    "sqi": "alb", "hye": "arm", "eus": "baq", "mya": "bur", "zho": "chi", "cze": "ces", "nld": "dut",
    "fre": "fra", "kat": "geo", "deu": "ger", "ell": "gre", "isl": "ice", "mkd": "mac", "msa": "may",
    "fas": "per", "rum": "ron", "slo": "slk", "bod": "tib", "cym": "wel", "swe": "sve",
}  # fmt: skip

_COMMON_TAGS = frozenset({"title", "artist", "album", "comment", "copyright", "date", "genre", "track"})
_MOV_TAGS = (
    _COMMON_TAGS
    | {"album_artist", "composer", "grouping", "lyrics", "description", "synopsis", "keywords", "disc"}
    | {"show", "episode_id", "episode_sort", "season_number", "network", "media_type", "hd_video"}
    | {"gapless_playback", "compilation", "location", "creation_time", "timecode"}
)
_AVI_TAGS = _COMMON_TAGS | {"language", "encoded_by"}
_TS_TAGS = frozenset({"service_name", "service_provider"})


def _without_doubles(tags: Mapping[str, str]) -> dict[str, str]:
    """Drop `key-eng` where `key` stands beside it: the demuxer reports localised tags twice."""
    kept = {}
    for key, value in tags.items():
        match = _LANGUAGE_SUFFIX.fullmatch(key)
        if not (match and match[1] in tags):
            kept[key] = value
    return kept


def container_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The container's tags without those that each muxer writes about itself (brands, encoder)."""
    return {k: v for k, v in _without_doubles(tags).items() if k.lower() not in _CONTAINER_OWN}


def stream_tags(tags: Mapping[str, str], muxer: str, *, copied: bool, whole: bool = True) -> dict[str, str]:
    """The tags of one stream that stay true in an output of format `muxer`.

    `copied` is False for a stream that is encoded anew (its encoder tag goes), `whole` False
    when only a part of the stream is taken (byte and frame statistics go). Durations always
    go: muxers write them themselves.
    """
    kept = {}
    for key, value in _without_doubles(tags).items():
        if _DURATION.fullmatch(key) or (key.lower() == "encoder" and not copied):
            continue
        if _STATISTICS.fullmatch(key) and not (copied and whole):
            continue
        if key.lower() == "vendor_id" and muxer not in MOV_FAMILY:
            continue
        if key.lower() == "language" and muxer == "mov":
            value = _QUICKTIME_LANGUAGES.get(value, value)
        # mov and mp4 write a track's title and report it as its name.
        kept["title" if key == "name" and "title" not in tags else key] = value
    return kept


def later_timecode(timecode: str, frames: int, rate: Fraction) -> str:
    """A SMPTE timecode (ST 12-1) so many frames later, at `rate` frames a second; others stay as they are.

    With a semicolon (or a point) before the frames, the first numbers of a minute are dropped, except in every tenth.
    """
    match = _TIMECODE.fullmatch(timecode.strip())
    second = round(rate)
    if match is None or second < 1:
        return timecode
    hours, minutes, seconds, number = (int(match[i]) for i in (1, 2, 3, 5))
    dropped = second // 15 if match[4] in ";." and second % 30 == 0 else 0
    minutes += 60 * hours
    count = (minutes * 60 + seconds) * second + number - dropped * (minutes - minutes // 10) + frames
    minute, ten = 60 * second - dropped, 600 * second - 9 * dropped
    tens, rest = divmod(count % (144 * ten), ten)
    if rest >= minute + dropped:
        single, rest = divmod(rest - dropped, minute)
        rest += dropped
    else:
        single = 0
    minutes, (seconds, number) = 10 * tens + single, divmod(rest, second)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}{match[4]}{number:02d}"


def needs_metadata_keys(tags: Mapping[str, str], muxer: str) -> bool:
    """Whether mov/mp4 needs `movflags=use_metadata_tags` to hold these tags (`com.apple...` keys)."""
    return muxer in MOV_FAMILY and any(key.lower().startswith("com.") for key in tags)


def lost_tags(tags: Mapping[str, str], muxer: str, *, metadata_keys: bool = False) -> list[str]:
    """Names of container tags that format `muxer` has no place for, in order."""
    if muxer in MATROSKA_FAMILY or (muxer in MOV_FAMILY and metadata_keys):
        return []
    known = {"avi": _AVI_TAGS, "mpegts": _TS_TAGS}.get(muxer, _MOV_TAGS if muxer in MOV_FAMILY else None)
    if known is None:
        return []
    return [key for key in tags if key.lower() not in known]


def shifted_chapters(
    chapters: Sequence[Chapter], base: Fraction, window: tuple[Fraction, Fraction | None] | None
) -> list[Chapter]:
    """Chapters moved by `-base` seconds and cut to `window` (source time); empty ones are left out.

    The time base of a chapter stays where it can hold the shift exactly, else it is refined.
    """
    result: list[Chapter] = []
    for chapter in chapters:
        unit = Fraction(chapter["time_base"] or 1)
        start, end = chapter["start"] * unit, chapter["end"] * unit
        if window is not None:
            low, high = window
            if end <= low or (high is not None and start >= high):
                continue
            start, end = max(start, low), end if high is None else min(end, high)
        start, end = max(start - base, Fraction(0)), max(end - base, Fraction(0))
        if end <= start and chapter["end"] > chapter["start"]:
            continue
        fine = Fraction(1, math.lcm(unit.denominator, start.denominator, end.denominator))
        if fine.denominator > 1_000_000_000:
            fine = Fraction(1, 1_000_000)
        result.append(
            {
                "id": chapter["id"],
                "start": round(start / fine),
                "end": round(end / fine),
                "time_base": fine,
                "metadata": dict(chapter.get("metadata", {})),
            }
        )
    return result
