"""Events drawn: the bar on a terminal, plain lines elsewhere, numbers in words, safe text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlfn_pipe.cli.sentences import progress_line, summary_lines
from rlfn_pipe.cli.text import (
    clock,
    count_of,
    human_bytes,
    human_seconds,
    json_line,
    printable,
    shortened,
)
from rlfn_pipe.cli.ui import Reporter
from rlfn_pipe.cli.views import BarView, LineView
from rlfn_pipe.jobs.summary import Report
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Failed, Finished, Progress, StageTimes, Started, Warned

STEP = Progress("dir/in.mp4", 120, 240, 9.84, 12.2, 1_234_567, "compute")
DONE = Finished(
    "in.mp4",
    "out.mp4",
    240,
    2,
    24.0,
    10**7,
    1280,
    720,
    ("padded",),
    StageTimes(decode=6.0, compute=24.0, waited_in=0.3),
)


def test_progress_line() -> None:
    assert progress_line(STEP) == "dir/in.mp4: 120/240 frames, 9.8 fps, 12 s left, 1.2 MB, compute limits"
    unknown = Progress("-", 7, None, 0.0, None, 0, None, items_done=3, items_total=20)
    assert progress_line(unknown) == "-: 7 frames (3/20 files done)"


def test_plain_lines_come_at_intervals() -> None:
    file = io.StringIO()
    LineView(file, interval=3600).progress(STEP)
    assert file.getvalue() == ""
    view = LineView(file, interval=0)
    view.progress(STEP)
    view.progress(STEP)
    assert file.getvalue().count("120/240") == 2


@pytest.fixture
def terminal() -> Iterator[tuple[Console, io.StringIO]]:
    file = io.StringIO()
    yield Console(file=file, force_terminal=True, width=120, color_system=None, legacy_windows=False), file


def test_bar_shows_frames_rate_time_size_and_limit(terminal: tuple[Console, io.StringIO]) -> None:
    console, file = terminal
    view = BarView(console)
    view.progress(STEP)
    view.close()
    shown = file.getvalue()
    for words in ("in.mp4", "120/240 frames", "9.8 fps", "12 s left", "1.2 MB", "compute limits"):
        assert words in shown
    assert "files" not in shown
    view.close()


def test_bar_for_all_with_several_items(terminal: tuple[Console, io.StringIO]) -> None:
    console, file = terminal
    view = BarView(console)
    view.progress(Progress("a.png", 1, 1, 2.0, None, 0, None, items_done=3, items_total=20))
    view.close()
    assert "all" in file.getvalue() and "3/20 files" in file.getvalue()


def test_bar_does_not_obey_names(terminal: tuple[Console, io.StringIO]) -> None:
    console, file = terminal
    reporter = Reporter(UpscaleOptions(), view=BarView(console))
    with reporter:
        reporter.on_event(Started("[red]\x1b[31m\n.mp4", "[/nope].mp4", 1, "[bold]x[/bold]"))
        reporter.on_event(Progress("[red]\x1b[31m\n.mp4", 1, 2, 1.0, None, 0, None))
    shown = file.getvalue()
    assert "[red]\\x1b[31m\\x0a.mp4 -> [/nope].mp4: [bold]x[/bold]" in shown and "\x1b[31m" not in shown


def test_repeated_warnings_are_shown_once_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(UpscaleOptions()) as reporter:
        for n in range(5):
            reporter.on_event(Warned(f"{n}.png", "ICC profile dropped"))
        reporter.summary(Report(finished=(DONE, DONE), seconds=1.0))
    err = capsys.readouterr().err
    assert err.count("ICC profile dropped") == 2
    assert "warning: 0.png: ICC profile dropped" in err and "warning: ICC profile dropped (5 times)" in err


def test_verbose_shows_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(UpscaleOptions(verbose=True)) as reporter:
        reporter.on_event(DONE)
    err = capsys.readouterr().err
    assert "decode    6.0 s               25 %  25.0 ms\n" in err
    assert "compute   24 s               100 %  100.0 ms  limits\n" in err
    assert "compute waited 0.3 s for frames, 0.0 s for the encoder" in err


def test_summary_of_one_and_of_many() -> None:
    one = summary_lines(Report(finished=(DONE,)))
    assert one == ["out.mp4: 240 frames, 1280x720, 10.0 MB in 24 s (10.0 fps)"]
    assert summary_lines(Report(skipped=("a",))) == ["a: skipped, its output is there already"]
    many = summary_lines(Report(finished=(DONE, DONE), failed=(Failed("x", "broken"),), seconds=75))
    assert many == ["2 files done, 1 failed in 1:15", "failed: x: broken"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (10**6, "1.0 MB"), (10**14, "100 TB")],
)
def test_bytes_in_words(count: int | None, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0.25, "0.2 s"),
        (59.4, "59 s"),
        (75.3, "1:15"),
        (3600, "1:00:00"),
        (float("inf"), "unknown"),
    ],
)
def test_seconds_in_words(seconds: float | None, text: str) -> None:
    assert human_seconds(seconds) == text


def test_clock() -> None:
    assert clock(Fraction(181, 2)) == "00:01:30.500"
    assert clock(Fraction(-1, 3)) == "-00:00:00.333"
    assert clock(7322.0004) == "02:02:02.000"


def test_counts() -> None:
    assert (count_of(1, "frame"), count_of(0, "frame")) == ("1 frame", "0 frames")


@given(st.text(), st.integers(5, 60))
def test_shortened_fits(text: str, width: int) -> None:
    short = shortened(text, width)
    assert len(short) <= width and (len(text) > width or short == text)


@given(st.text(alphabet=st.characters()))
def test_printable_is_one_safe_encodable_line(text: str) -> None:
    safe = printable(text)
    safe.encode("utf-8")  # raises on a lone surrogate
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in safe)
    assert len(safe.splitlines()) <= 1


def test_json_of_anything() -> None:
    line = json_line(
        {"a": Fraction(1, 3), "b": Path("x"), "c": float("nan"), "d": "\udcff\n", "e": DONE, "f": (1,)}
    )
    assert line.isascii() and "\n" not in line
    back = json.loads(line)
    assert (back["a"], back["b"], back["c"], back["f"]) == ("1/3", "x", None, [1])
    assert back["e"]["stages"]["decode"] == 6.0 and back["e"]["stages"]["waited_in"] == 0.3
