"""Options: every value parsed and refused in one place, in the same way for text, TOML and Python."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlfn_pipe.errors import UsageError
from rlfn_pipe.options import (
    EXCLUSIVE,
    PANELS,
    UpscaleOptions,
    option_info,
    option_infos,
    option_names,
    parse_option,
)
from rlfn_pipe.values import parse_time


def test_every_field_is_an_option_with_help_and_a_section() -> None:
    assert [f.name for f in dataclasses.fields(UpscaleOptions)] == list(option_names())
    for info in option_infos():
        assert info.help.endswith("."), info.name
        assert info.panel in PANELS
        assert info.flag or info.metavar, f"{info.name} takes a value but shows none"
        assert info.default is None or parse_option(info, info.default) == info.default


def test_short_options_are_those_of_the_contract() -> None:
    assert {i.short: i.name for i in option_infos() if i.short} == {
        "s": "scale",
        "m": "model",
        "p": "preset",
        "j": "jobs",
        "y": "overwrite",
        "q": "quiet",
        "v": "verbose",
    }


def test_defaults() -> None:
    options = UpscaleOptions()
    assert options.factor == 4.0 and not options.asks_size
    assert (options.model, options.device, options.precision) == ("rlfn-s", "auto", "auto")
    assert options.tile is options.overlap is options.batch is options.crf is None
    assert options.recursive and not options.overwrite
    assert UpscaleOptions(scale=2).factor == 2.0
    assert UpscaleOptions(height=720).factor is None


@pytest.mark.parametrize(
    ("name", "value", "typed"),
    [
        ("scale", "2", 2.0),
        ("scale", 2.5, 2.5),
        ("scale", "8", 8.0),
        ("size", "1920x1080", (1920, 1080)),
        ("size", [640, 480], (640, 480)),
        ("tile", "auto", None),
        ("tile", "0", 0),
        ("tile", 192.0, 192),
        ("crf", "18.5", 18.5),
        ("crf", "AUTO", None),
        ("device", "CUDA:0, cuda:1,cuda:0", "cuda:0,cuda:1"),
        ("precision", "BF16", "bf16"),
        ("reuse", "Near", "near"),
        ("reuse_tolerance", "1.5", 1.5),
        ("compile", True, "on"),
        ("encoder_preset", 6, "6"),
        ("encoder_option", ["tune=film", "x=a=b"], (("tune", "film"), ("x", "a=b"))),
        ("encoder_option", {"g": 1, "-bf": "2"}, (("g", "1"), ("bf", "2"))),
        ("encoder_option", "a=1", (("a", "1"),)),
        ("deinterlace", True, "on"),
        ("start", "90.5", Fraction(181, 2)),
        ("start", "00:01:30.500", Fraction(181, 2)),
        ("start", "1:30,5", Fraction(181, 2)),
        ("start", 0.1, Fraction(1, 10)),
        ("start", "0", Fraction(0)),
        ("sample", "2", Fraction(2)),
        ("log_file", "x.log", Path("x.log")),
    ],
)
def test_values(name: str, value: Any, typed: Any) -> None:
    assert parse_option(name, value) == typed
    assert getattr(UpscaleOptions(**{name: value}), name) == typed


BAD: list[tuple[str, Any, str]] = [
    ("scale", "0", "--scale must be a number from 1 to 8, not 0"),
    ("scale", "nan", "from 1 to 8"),
    ("scale", "1e999", "from 1 to 8"),
    ("scale", "four", "from 1 to 8"),
    ("scale", True, "from 1 to 8"),
    ("size", "0x0", "--size must be WIDTHxHEIGHT, each from 1 to 32768, such as 1920x1080, not 0x0"),
    ("size", "1920", "WIDTHxHEIGHT"),
    ("size", [1, 2, 3], "WIDTHxHEIGHT"),
    ("size", "99999x99999", "WIDTHxHEIGHT"),
    ("height", "-4", "from 1 to 32768"),
    ("height", "1.5", "whole number"),
    ("tile", "5", "--tile must be auto, 0 (whole frames) or a whole number from 32 to 4096, not 5"),
    ("tile", "9" * 400, "from 32 to 4096"),
    ("tile", float("inf"), "from 32 to 4096"),
    ("overlap", "-1", "from 0 to 512"),
    ("batch", "0", "from 1 to 1024"),
    ("threads", "0", "from 1 to 1024"),
    ("nice", "-5", "from 0 to 19"),
    ("crf", "64", "from 0 to 63"),
    ("quality", "0", "from 1 to 100"),
    ("frames", "0", "from 1 to"),
    ("device", "gpu", "cuda:N"),
    ("precision", "int8", "auto, fp32, bf16, fp16"),
    ("reuse", "maybe", "one of exact, near, off"),
    ("reuse_tolerance", "17", "from 0 to 16"),
    ("codec", "lib x264", "encoder"),
    ("pix_fmt", "yuv-420", "pixel format"),
    ("encoder_option", ["novalue"], "--encoder-option must be KEY=VALUE, such as tune=film, not novalue"),
    ("encoder_option", ["=1"], "KEY=VALUE"),
    ("encoder_option", 3, "KEY=VALUE"),
    ("format", "gif", "one of same, png"),
    ("start", "1:70", "HH:MM:SS.mmm"),
    ("start", "-1", "HH:MM:SS.mmm"),
    ("start", "", "HH:MM:SS.mmm"),
    ("start", float("nan"), "HH:MM:SS.mmm"),
    ("start", True, "HH:MM:SS.mmm"),
    ("end", "0", "above 0"),
    ("sample", "0", "above 0"),
    ("audio", "mute", "one of copy, none"),
    ("recursive", "yes", "true or false"),
    ("model", "", "weights file"),
    ("log_file", " ", "file name"),
    ("model", None, "weights file"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_bad_values_are_one_sentence_with_the_range(name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        UpscaleOptions(**{name: value})
    message = str(caught.value)
    assert words in message and message.startswith(f"--{option_info(name).key} must be ")
    assert "\n" not in message and len(message) < 250
    assert caught.value.exit_code == 2


EXAMPLES: dict[str, Any] = {"size": "64x64", "scale": 2, "height": 64, "width": 64, "sample": 1}
EXAMPLES |= {"start": 1, "end": 2, "frames": 3}


@pytest.mark.parametrize(("one", "other"), EXCLUSIVE)
def test_exclusive_options(one: str, other: str) -> None:
    with pytest.raises(UsageError, match="exclude one another"):
        UpscaleOptions(**{one: EXAMPLES.get(one, True), other: EXAMPLES.get(other, True)})


def test_options_that_contradict_in_value() -> None:
    with pytest.raises(UsageError, match="must lie after --start"):
        UpscaleOptions(start=2, end="2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at most 31"):
        UpscaleOptions(tile=64, overlap=32)
    assert UpscaleOptions(tile=64, overlap=31).overlap == 31
    assert UpscaleOptions(tile=0, overlap=512).tile == 0
    assert UpscaleOptions(height=10, width=20).asks_size


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        UpscaleOptions().scale = 3.0  # type: ignore[misc]


@given(
    st.fractions(min_value=0, max_value=10**6, max_denominator=10**6),
    st.integers(1, 8),
    st.sampled_from([None, 0, 64, 200]),
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.from_regex(r"[a-z0-9=]{0,5}", fullmatch=True)
    ),
)
def test_options_survive_json(start: Fraction, scale: int, tile: int | None, pairs: dict[str, str]) -> None:
    options = UpscaleOptions(start=start, scale=scale, tile=tile, encoder_option=tuple(pairs.items()))
    assert UpscaleOptions(**json.loads(json.dumps(options.to_dict()))) == options
    assert options.encoder_options == pairs


@given(st.integers(0, 9999), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999_999))
def test_times_are_exact(hours: int, minutes: int, seconds: int, nanoseconds: int) -> None:
    expected = hours * 3600 + minutes * 60 + seconds + Fraction(nanoseconds, 10**9)
    assert parse_time(f"{hours}:{minutes:02d}:{seconds:02d}.{nanoseconds:09d}") == expected
    assert parse_time(expected) == expected


@given(st.text(max_size=20))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_time(text) >= 0
