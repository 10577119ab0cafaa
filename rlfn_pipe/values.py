"""Parsers of option values: text from the command line, TOML values and Python values alike.

Each maker returns a parser: a function from any value to the typed one that raises `Invalid`
with the allowed range in words. `rlfn_pipe.options` says which option has which parser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

Parser = Callable[[Any], Any]

#: Largest side of an output picture in pixels that can be asked for.
MAXIMUM_SIDE = 32768


class Invalid(Exception):
    """A value outside its range.

    The message is the range in words ("a number from 1 to 8"); `item` is the offending part
    where the value is a list.
    """

    def __init__(self, allowed: str, item: Any = None) -> None:
        super().__init__(allowed)
        self.item = item


def _text_of(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def number(low: float, high: float, *, auto: str = "") -> Parser:
    """A finite number of `low`..`high` as a float; the word `auto` gives None."""
    allowed = f"{auto} or " if auto else ""
    allowed += f"a number from {_text_of(low)} to {_text_of(high)}"

    def parse(value: Any) -> float | None:
        if isinstance(value, str):
            if auto and value.strip().lower() == auto:
                return None
            try:
                value = float(value)
            except ValueError:
                raise Invalid(allowed) from None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | Fraction)
            or not low <= value <= high
        ):
            raise Invalid(allowed)
        return float(value)

    return parse


def integer(low: int, high: int, *, auto: str = "", extra: Mapping[int, str] | None = None) -> Parser:
    """A whole number of `low`..`high` or one of `extra` (value to meaning); the word `auto` gives None."""
    extra = extra or {}
    words = [auto] if auto else []
    words += [f"{value} ({meaning})" for value, meaning in extra.items()]
    words.append(f"a whole number from {low} to {high}")
    allowed = " or ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)

    def parse(value: Any) -> int | None:
        if isinstance(value, str):
            if auto and value.strip().lower() == auto:
                return None
            if not re.fullmatch(r"\s*[+-]?\d{1,12}\s*", value):
                raise Invalid(allowed)
            value = int(value)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Invalid(allowed)
        if not (low <= value <= high or value in extra):
            raise Invalid(allowed)
        return value

    return parse


def choice(*choices: str) -> Parser:
    """One of a few words, whatever the case."""
    allowed = "one of " + ", ".join(choices)

    def parse(value: Any) -> str:
        # A TOML author who writes deinterlace = true means "on".
        if isinstance(value, bool) and {"on", "off"} <= set(choices):
            value = "on" if value else "off"
        if not isinstance(value, str) or value.strip().lower() not in choices:
            raise Invalid(allowed)
        return value.strip().lower()

    return parse


def matching(pattern: str, allowed: str, *, lower: bool = True) -> Parser:
    """Text that a regular expression matches whole; whole numbers are read as text (preset = 6)."""
    regex = re.compile(pattern)

    def parse(value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        text = value.strip() if isinstance(value, str) else ""
        text = text.lower() if lower else text
        if not regex.fullmatch(text):
            raise Invalid(allowed)
        return text

    return parse


def flag(value: Any) -> bool:
    """True or false, nothing else."""
    if not isinstance(value, bool):
        raise Invalid("true or false")
    return value


def size(value: Any) -> tuple[int, int]:
    """(width, height) from "1920x1080" or a pair."""
    allowed = f"WIDTHxHEIGHT, each from 1 to {MAXIMUM_SIDE}, such as 1920x1080"
    sides: Any = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", value)
        sides = [int(side) for side in match.groups()] if match else ()
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise Invalid(allowed)
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAXIMUM_SIDE:
            raise Invalid(allowed)
    width, height = sides
    return width, height


def parse_time(value: Any) -> Fraction:
    """Seconds as an exact fraction from 90, "90.5", "181/2", "1:30.5" or "00:01:30.500".

    Raises ValueError for anything else, negative times included.
    """
    if isinstance(value, float):
        # str() of a float keeps what was written: 0.1 is one tenth, not its binary neighbour.
        seconds = Fraction(str(value))
    elif isinstance(value, int | Fraction) and not isinstance(value, bool):
        seconds = Fraction(value)
    else:
        text = str(value).strip()
        if re.fullmatch(r"\d{1,12}/[1-9]\d{0,11}", text):
            return Fraction(text)
        if not re.fullmatch(r"(?:(?:\d{1,4}:)?\d{1,2}:)?\d{1,9}(?:[.,]\d{1,9})?", text):
            raise ValueError("not a time")
        *larger, last = text.replace(",", ".").split(":")
        seconds = Fraction(last)
        if larger and (seconds >= 60 or (len(larger) == 2 and int(larger[1]) >= 60)):
            raise ValueError("minutes and seconds stay below 60")
        for power, part in enumerate(reversed(larger), start=1):
            seconds += int(part) * 60**power
    if seconds < 0:
        raise ValueError("negative")
    return seconds


def time(*, positive: bool = False, auto: str = "") -> Parser:
    """A time as `parse_time` reads it; `positive` refuses zero; the word `auto` gives None."""
    bound = "above 0" if positive else "of 0 or more"
    allowed = f"a time {bound}, in seconds or as HH:MM:SS.mmm, such as 90.5 or 00:01:30.500"

    def parse(value: Any) -> Fraction | None:
        if auto and isinstance(value, str) and value.strip().lower() == auto:
            return None
        try:
            seconds = parse_time(value)
        except (ValueError, OverflowError):
            raise Invalid(allowed) from None
        if positive and seconds == 0:
            raise Invalid(allowed)
        return seconds

    return parse


def pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """K=V pairs from a list of "K=V", a list of pairs, or a table; a later K replaces an earlier one."""
    allowed = "KEY=VALUE, such as tune=film"
    if isinstance(value, str):
        value = [value]
    items = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise Invalid(allowed)
    found: dict[str, str] = {}
    for item in items:
        if isinstance(item, str):
            key, equals, text = item.partition("=")
        elif isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str):
            if isinstance(item[1], int) and abs(item[1]) > 10**18:
                raise Invalid(allowed, f"{item[0]} with a number of that size")
            key, equals, text = item[0], "=", str(item[1])
        else:
            raise Invalid(allowed, item)
        key = key.strip().lstrip("-")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_.:-]+", key) or "\0" in text:
            raise Invalid(allowed, item)
        found[key] = text
    return tuple(found.items())


#: Encoder parameters that read or write files (found by trying every word in the encoders' libraries
#: with a file name and watching the folder), make two passes of it, or crash the encoder.
_FILE_PARAMETERS = frozenset((
    "stats", "csv", "pass", "cqm", "scaling-list", "film-grain", "aom-film-grain", "fgs-table", "opencl",
    "opencl-clbin", "dump-yuv", "recon", "recon-y4m-exec", "input", "output", "analysis-save", "analysis-load",
    "x264opts", "dhdr10-info", "dolby-vision-rpu", "abr-ladder", "scenecut-qp-config", "multi-pass-opt-analysis",
    "multi-pass-opt-distortion", "copy-pic", "cra-nal", "ctu-info",
))  # fmt: skip
#: Those of them that also have values which are no files.
_HARMLESS_VALUES = {
    "cqm": r"flat|jvt",
    "scaling-list": r"off|default",
    "film-grain": r"\d+",
    "pass": r"0",
}


def encoder_pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """`pairs` of encoder options, refused where one can make the encoder read or write a file.

    A preset may come from a stranger, and a file that an encoder writes is replaced without a question.
    Parameters inside `x264-params` and its like are looked at one by one.
    """
    found = pairs(value)
    for key, text in found:
        nested = [part.partition("=") for part in text.split(":")] if key.endswith("-params") else []
        quoted = bool(nested) and re.search(r"[\\'\"]", text)
        for name, inner in [(key, text), *((name, inner) for name, _, inner in nested)]:
            if quoted or _names_a_file(name, inner):
                raise Invalid(f"KEY=VALUE and without files or passes ({name} is refused)", f"{key}={text}")
    return found


def _names_a_file(key: str, text: str) -> bool:
    name = key.strip().lower().replace("_", "-")
    for form in (name, name.removeprefix("no-"), name.removeprefix("no")):
        if form in _FILE_PARAMETERS:
            return not re.fullmatch(_HARMLESS_VALUES.get(form, r"(?!)"), text.strip())
    # x265's qpfile, lambda-file, zonefile, libx264's passlogfile, but not profile.
    if re.search(r"(?<!pro)file$", name) or (name == "flags" and "pass" in text.lower()):
        return True
    # A slash divides numbers (24000/1001, zones); anything else with one is a path.
    return not name.endswith("-params") and bool(re.search(r"(?<!\d)/|/(?!\d)|\\", text))


def path(value: Any) -> Path:
    """A file name that is not empty."""
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise Invalid("a file name")
    return Path(value)


def device(value: Any) -> str:
    """auto, cpu, mps, cuda, or cuda:N[,cuda:N...] without repeats."""
    allowed = "auto, cpu, mps, cuda, or one or more of cuda:N separated by commas"
    text = value.strip().lower() if isinstance(value, str) else ""
    if not re.fullmatch(r"auto|cpu|mps|cuda|cuda:\d{1,3}(,\s*cuda:\d{1,3})*", text):
        raise Invalid(allowed)
    return ",".join(dict.fromkeys(part.strip() for part in text.split(",")))
