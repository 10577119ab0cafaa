"""The command: options in, exit codes and sentences out; stopping by signals and closed pipes.

Most tests call `main` in this process with a job put in place of the real one; signals and pipes
are tried on real processes.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from media_maker import make, noise

from rlfn_pipe import __version__
from rlfn_pipe.cli import app as app_module
from rlfn_pipe.cli.app import COMMANDS, main
from rlfn_pipe.engine.reuse import Statistics
from rlfn_pipe.errors import (
    InputError,
    Interrupted,
    OutputError,
    RlfnPipeError,
    UsageError,
    WeightsError,
)
from rlfn_pipe.jobs.summary import PlanSummary, Report, StreamPlan
from rlfn_pipe.options import UpscaleOptions, option_infos
from rlfn_pipe.types import (
    ColourInfo,
    Event,
    Failed,
    Finished,
    MediaInfo,
    Progress,
    Started,
    StreamInfo,
    VideoStreamInfo,
    Warned,
)

Job = Callable[..., Report]
CLIP = Path(__file__).parent / "data" / "bunny.mp4"
DONE = Finished("in.mp4", "out.mp4", 50, 0, 4.0, 123456, 1280, 720, notes=("a note",))


def put_module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    module = ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], list[UpscaleOptions]]:
    """Put a function in the place of `jobs.run.run`; returns the options that it was called with."""

    def install(function: Job) -> list[UpscaleOptions]:
        seen: list[UpscaleOptions] = []

        def run(
            input: str, output: str, options: UpscaleOptions, *, isolate: bool, worker: Any, **more: Any
        ) -> Report:
            assert isolate and worker is None  # there is no such input
            seen.append(options)
            return function(**more)

        put_module(monkeypatch, "rlfn_pipe.jobs.run", run=run)
        return seen

    return install


def done(on_event: Callable[[Event], None], stop: threading.Event) -> Report:
    on_event(Started("in.mp4", "out.mp4", 50, "320x180 -> 1280x720"))
    on_event(Progress("in.mp4", 25, 50, 12.5, 2.0, 1000, "compute"))
    on_event(DONE)
    return Report(finished=(DONE,), seconds=4.0)


def raising(error: BaseException) -> Job:
    def run(on_event: Callable[[Event], None], stop: threading.Event) -> Report:
        raise error

    return run


# ------------------------------------------------------------------ usage


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlfn-pipe {__version__}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    help = capsys.readouterr().out
    for name, (_, _, line) in COMMANDS.items():
        assert name in help and line.split(".")[0][:30] in help


def test_no_command_shows_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out and "Commands:" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: rlfn-pipe {name}" in capsys.readouterr().out


def test_help_of_upscale_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", "--help"]) == 0
    help = " ".join(capsys.readouterr().out.split())
    for info in option_infos():
        assert info.long in help and " ".join(info.help.split()) in help
    for later in ("--cluster", "--watch"):
        assert later not in help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upscal", "a", "b"], "no command 'upscal', did you mean 'upscale'?"),
        (["in.mp4", "out.mp4"], "rlfn-pipe upscale INPUT OUTPUT"),
        (["upscale", "a"], "missing argument 'OUTPUT'; see rlfn-pipe upscale --help"),
        (["upscale", "a.png", "b.png", "out"], "(out); a pattern goes in quotes"),
        (["upscale", "a", "b", "--scal", "2"], "no such option: --scal"),
        (["upscale", "a", "b", "-s", "0"], "--scale must be a number from 1 to 8, not 0"),
        (["upscale", "a", "b", "--size", "0x0"], "--size must be WIDTHxHEIGHT"),
        (["upscale", "a", "b", "--tile", "5"], "--tile must be auto"),
        (["upscale", "a", "b", "-s", "2", "--height", "9"], "exclude one another"),
        (["upscale", "a", "b", "-p", "wbe"], "did you mean 'web'"),
        (["presets"], "missing command; see rlfn-pipe presets --help"),
        (["presets", "show", "nope"], "there is no preset 'nope'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and err.startswith("rlfn-pipe: error: ") and err.count("\n") == 1 and not out


# ------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 1),
        (OutputError("x"), 1),
        (WeightsError("x"), 1),
        (RlfnPipeError("x"), 1),
        (UsageError("x"), 2),
        (Interrupted(), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    job(raising(error))
    assert main(["upscale", "a", "b"]) == code
    assert capsys.readouterr().err.startswith("rlfn-pipe: error: ")


def test_unexpected_errors_are_one_sentence_without_traceback(
    job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job(raising(ZeroDivisionError("by nought")))
    monkeypatch.delenv("RLFN_PIPE_DEBUG", raising=False)
    assert main(["upscale", "a", "b"]) == 1
    err = capsys.readouterr().err
    assert (
        "internal error: ZeroDivisionError: by nought; set RLFN_PIPE_DEBUG=1" in err and err.count("\n") == 1
    )
    monkeypatch.setenv("RLFN_PIPE_DEBUG", "1")
    assert main(["upscale", "a", "b"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_item_is_1_and_named(job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str]) -> None:
    def run(on_event: Callable[[Event], None], stop: threading.Event) -> Report:
        failure = Failed("b.mp4", "b.mp4 is empty")
        on_event(DONE)
        on_event(failure)
        return Report(finished=(DONE,), failed=(failure,), skipped=("c.mp4",), seconds=2.0)

    job(run)
    assert main(["upscale", "a", "b"]) == 1
    err = capsys.readouterr().err
    assert err.count("failed: b.mp4 is empty") == 2  # when it happens, and in the summary
    assert "1 file done, 1 failed, 1 skipped (there already) in 2.0 s" in err


def test_control_characters_do_not_reach_the_terminal(
    job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\x1b]0;owned\x07\n\u202ebad\udcff.mp4"
    job(raising(InputError(f"{name} is missing")))
    assert main(["upscale", name, "b"]) == 1
    err = capsys.readouterr().err
    assert "a\\x1b]0;owned\\x07\\x0a\\u202ebad\\xff.mp4 is missing" in err and err.count("\n") == 1


# ---------------------------------------------------------------- upscale


def test_options_reach_the_job(job: Callable[[Job], list[UpscaleOptions]], tmp_path: Path) -> None:
    seen = job(done)
    arguments = [
        "upscale",
        "in.mp4",
        "out.mp4",
        "-s",
        "2",
        "-m",
        "rlfn",
        "-y",
        "--no-recursive",
        "--tile",
        "0",
    ]
    arguments += ["--encoder-option", "tune=film", "--encoder-option", "bf=2", "--start", "1:00", "-j", "3"]
    arguments += ["-p", "web", "--crf", "20", "-v"]
    assert main(arguments) == 0
    options = seen[0]
    assert (options.scale, options.model, options.overwrite, options.recursive) == (2, "rlfn", True, False)
    assert options.encoder_options == {"tune": "film", "bf": "2"} and options.start == Fraction(60)
    assert (options.tile, options.jobs, options.crf, options.quality) == (0, 3, 20, 85)
    assert options.preset == "web" and options.verbose


def test_parameters_are_made_from_the_options() -> None:
    from rlfn_pipe.cli.upscale import upscale

    names = list(inspect.signature(upscale).parameters)
    expected = ["input", "output"]
    for info in option_infos():
        expected += [info.name, *(name.replace("-", "_") for name in info.shorthands)]
    assert names == expected


def test_no_reuse_stands_for_reuse_off(
    job: Callable[[Job], list[UpscaleOptions]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = job(done)
    for arguments in (["--no-reuse"], ["--no-reuse", "--reuse", "off"], []):
        assert main(["upscale", "in.mp4", "out.mp4", *arguments]) == 0
    assert [options.reuse for options in seen] == ["off", "off", "exact"]
    capsys.readouterr()
    assert main(["upscale", "in.mp4", "out.mp4", "--no-reuse", "--reuse", "near"]) == 2
    assert "--no-reuse and --reuse near exclude one another" in capsys.readouterr().err
    assert len(seen) == 3


def test_plain_lines_without_a_terminal(
    job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    job(done)
    assert main(["upscale", "in.mp4", "out.mp4"]) == 0
    out, err = capsys.readouterr()
    assert not out and "\x1b" not in err
    assert "in.mp4 -> out.mp4: 320x180 -> 1280x720" in err
    assert "out.mp4: 50 frames, 1280x720, 123 KB in 4.0 s (12.5 fps)" in err


def test_quiet_says_errors_only(job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str]) -> None:
    job(done)
    assert main(["upscale", "in.mp4", "out.mp4", "-q"]) == 0
    assert capsys.readouterr() == ("", "")

    def run(on_event: Callable[[Event], None], stop: threading.Event) -> Report:
        failure = Failed("in.mp4", "in.mp4 is empty")
        on_event(failure)
        return Report(failed=(failure,))

    job(run)
    assert main(["upscale", "in.mp4", "out.mp4", "-q"]) == 1
    assert capsys.readouterr() == ("", "failed: in.mp4 is empty\n")


def test_json_is_one_object_a_line(job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str]) -> None:
    def run(on_event: Callable[[Event], None], stop: threading.Event) -> Report:
        on_event(Warned("in\udcff\n.mp4", "odd name"))
        return done(on_event, stop)

    job(run)
    assert main(["upscale", "in.mp4", "out.mp4", "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["warned", "started", "progress", "finished", "summary"]
    assert events[2]["frames_done"] == 25 and events[3]["notes"] == ["a note"]
    assert events[4] == {
        "event": "summary",
        "finished": 1,
        "failed": [],
        "skipped": [],
        "seconds": 4.0,
        "exit_code": 0,
    }
    assert err == ""


def test_json_ends_in_the_error(job: Callable[[Job], Any], capsys: pytest.CaptureFixture[str]) -> None:
    job(raising(InputError("in.mp4 is missing")))
    assert main(["upscale", "in.mp4", "out.mp4", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"event": "error", "message": "in.mp4 is missing", "exit_code": 1}
    assert err == "rlfn-pipe: error: in.mp4 is missing\n"


def test_log_file_holds_everything_even_when_quiet(job: Callable[[Job], Any], tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    job(done)
    assert main(["upscale", "in.mp4", "out.mp4", "-q", "--log-file", str(log)]) == 0
    job(raising(InputError("in.mp4 is missing")))
    assert main(["upscale", "in.mp4", "out.mp4", "-q", "--log-file", str(log)]) == 1
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(line[:4].isdigit() and line[10] == " " for line in lines)
    text = "\n".join(lines)
    assert "in.mp4 -> out.mp4" in text and "error: in.mp4 is missing" in text
    assert text.count("out.mp4: ") == 2, "what becomes of it, and what became of it, once"


def test_log_file_that_cannot_be_written(
    job: Callable[[Job], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(done)
    assert main(["upscale", "in.mp4", "out.mp4", "--log-file", str(tmp_path / "no" / "x.log")]) == 1
    assert "x.log cannot be written: No such file" in capsys.readouterr().err


# --------------------------------------------------------- plan and probe

PLAN = PlanSummary(
    input="in.mkv",
    output=None,
    kind="video",
    items=1,
    model="rlfn-s",
    scale=4.0,
    native_scale=4,
    source_size=(320, 180),
    output_size=(1280, 720),
    display_size=(720, 1280),
    codec="libx264",
    container="matroska",
    pix_fmt="yuv420p",
    frames=50,
    streams=(StreamPlan(1, "audio", "aac", "copy", language="eng"),),
    estimated_bytes=2_000_000,
    notes=("colour is untagged",),
    warnings=("the disk is nearly full",),
    media=MediaInfo(
        path=Path("in.mkv"),
        container="matroska",
        duration=Fraction(2),
        start=Fraction(0),
        size_bytes=100_000,
        video=VideoStreamInfo(
            index=0,
            codec="h264",
            width=320,
            height=180,
            pix_fmt="yuv420p",
            time_base=Fraction(1, 1000),
            average_rate=Fraction(30000, 1001),
            duration=Fraction(2),
            frames=0,
            sample_aspect_ratio=Fraction(4, 3),
            colour=ColourInfo(matrix=1, transfer=16, primaries=9, range=1),
            rotation=90,
        ),
        streams=(StreamInfo(1, "audio", "aac", language="eng", title="com\x1bmentary"),),
        chapters=3,
        tags={"title": "A title"},
    ),
)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    put_module(monkeypatch, "rlfn_pipe.jobs.plan", describe=lambda input, output, options: PLAN)


@pytest.mark.usefixtures("plan")
def test_probe_says_what_is_there_and_what_would_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "in.mkv"]) == 0
    out, err = capsys.readouterr()
    for words in (
        "h264",
        "320x180 -> 1280x720 (x4), shown as 720x1280",
        "29.970 (30000/1001) frames/s on average",
        "matrix BT.709, transfer PQ, primaries BT.2020, limited range, 8 bit 420",
        "90 degrees counter-clockwise",
        "4/3",
        "title=A title",
        "aac (eng): copied",
        "about 2.0 MB",
        "note: colour is untagged",
        "warning: the disk is nearly full",
        "com\\x1bmentary",
    ):
        assert words in out
    assert err == ""


@pytest.mark.usefixtures("plan")
def test_probe_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "in.mkv", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["media"]["video"]["average_rate"] == "30000/1001"
    assert answer["upscale"]["output_size"] == [1280, 720] and answer["refused"] is None


def test_probe_of_what_upscale_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def describe(*_: Any) -> PlanSummary:
        raise InputError("a.mp3 holds no video")

    put_module(monkeypatch, "rlfn_pipe.jobs.plan", describe=describe)
    put_module(monkeypatch, "rlfn_pipe.media.probe", probe=lambda path: PLAN.media)
    assert main(["probe", "a.mp3"]) == 0
    assert "upscale would refuse it: a.mp3 holds no video" in capsys.readouterr().out

    def probe(path: Path) -> MediaInfo:
        raise InputError("not media")

    put_module(monkeypatch, "rlfn_pipe.media.probe", probe=probe)
    assert main(["probe", "a.mp3"]) == 1
    assert capsys.readouterr().err == "rlfn-pipe: error: a.mp3 holds no video\n"


@pytest.mark.usefixtures("plan")
def test_dry_run_prints_the_plan_and_runs_nothing(
    job: Callable[[Job], list[UpscaleOptions]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = job(done)
    assert main(["upscale", "in.mkv", "out.mkv", "--dry-run"]) == 0
    assert "320x180 -> 1280x720" in capsys.readouterr().out
    assert main(["upscale", "in.mkv", "out.mkv", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["codec"] == "libx264"
    assert seen == []


# ---------------------------------------------------------------- presets


def test_presets_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "archive",
        "fast",
        "quality",
        "web",
    ]
    assert main(["presets", "show", "web"]) == 0
    assert "--crf 23" in capsys.readouterr().out
    assert main(["presets", "show", "web", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["pix-fmt"] == "yuv420p"


# --------------------------------------------------------- real processes

FAKE_JOB = """
import sys, time, types
from rlfn_pipe.errors import Interrupted
from rlfn_pipe.types import Progress, Started, Warned

def run(input, output, options, *, on_event, stop, **how):
    on_event(Started(input, output, None, "ready"))
    {body}

module = types.ModuleType("rlfn_pipe.jobs.run")
module.run = run
sys.modules["rlfn_pipe.jobs.run"] = module
from rlfn_pipe.cli.app import main
sys.exit(main({arguments!r}))
"""
OBEYS = "stop.wait(60); print('cleaned', file=sys.stderr, flush=True); raise Interrupted"
DEAF = """stop.wait(60)
    try:
        print('asked', file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print('cleaned', file=sys.stderr, flush=True)"""


def start(body: str, *more: str, **how: Any) -> subprocess.Popen[str]:
    script = FAKE_JOB.format(body=body, arguments=["upscale", "in.mp4", "out.mp4", *more])
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_the_job_cleanly(signum: signal.Signals, code: int) -> None:
    with start(OBEYS) as process:
        assert process.stderr is not None
        assert "ready" in process.stderr.readline()
        process.send_signal(signum)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == code
    assert rest.startswith("cleaned\n") and "stopped before the end" in rest and "Traceback" not in rest


def test_a_second_interrupt_stops_at_once() -> None:
    with start(DEAF) as process:
        assert process.stderr is not None
        assert "ready" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 130
    assert rest.startswith("cleaned\n") and "Traceback" not in rest


@pytest.mark.skipif(os.name == "nt", reason="the folder could not be removed there")
def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    lines = (
        "import os, sys; from rlfn_pipe.cli.app import main; os.rmdir(os.getcwd());"
        "sys.exit(main(['upscale', '/in.png', '/out.png']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=gone, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "called in is gone" in done.stderr


def test_a_closed_pipe_stops_the_job_quietly() -> None:
    body = """
    for n in range(100_000):
        on_event(Progress(input, n, None, 1.0, None, 0, None))
        if stop.is_set():
            raise Interrupted"""
    with start(body, "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["upscale", "--help"], ["presets", "list"]])
def test_text_into_a_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rlfn_pipe", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == "" and done.returncode == 1


def test_module_and_command_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlfn_pipe", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"rlfn-pipe {__version__}\n"


def test_program_name_is_not_taken_from_argv() -> None:
    assert app_module.PROGRAM == "rlfn-pipe"


# ------------------------------------------------------- the real things


def test_the_first_command_on_the_real_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.mp4"
    assert main(["upscale", str(CLIP), str(output), "-s", "2", "--frames", "2", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "started" and events[-1]["exit_code"] == 0
    (finished,) = (event for event in events if event["event"] == "finished")
    assert (finished["frames"], finished["width"], finished["height"]) == (2, 640, 360)
    assert output.stat().st_size == finished["bytes_written"]
    assert main(["upscale", str(CLIP), str(output), "--frames", "2"]) == 1
    assert "-y" in capsys.readouterr().err
    assert main(["probe", str(output), "--json"]) == 0
    media = json.loads(capsys.readouterr().out)["media"]
    assert media["video"]["width"] == 640 and [stream["kind"] for stream in media["streams"]] == ["audio"]


def test_reuse_is_counted_over_segments_and_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 frames of which three in a row are equal, in two segments by two worker processes."""
    source = make(
        tmp_path / "held.mkv",
        codec="ffv1",
        frames=24,
        size=(48, 32),
        picture=lambda i: noise(i // 3, size=(48, 32)),
    )
    common = [str(source), "-s", "2", "--segment", "0.48", "--threads", "2", "-j", "2"]
    assert main(["upscale", *common, str(tmp_path / "out.mkv"), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (counted,) = (event["reuse"] for event in events if event["event"] == "finished")
    assert counted["frames"] == 24 and counted["frames_repeated"] == 16
    assert counted["tiles_computed"] == 8 and counted["tiles_reused"] == 0
    assert set(counted) == {field.name for field in fields(Statistics)}
    assert main(["upscale", *common, str(tmp_path / "off.mkv"), "--no-reuse", "-v"]) == 0
    assert "reuse: frames 24, frames repeated 0, tiles computed 24, tiles reused 0" in capsys.readouterr().err


def test_interrupting_a_real_run_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "rlfn_pipe", "upscale", str(CLIP), str(output), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "started"
        process.send_signal(signal.SIGINT)
        rest, err = process.stdout.read(), process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "stopped before the end" in err and "Traceback" not in err
    assert json.loads(rest.splitlines()[-1])["exit_code"] == 130
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_everything_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for words in ("device", "precision", "libx264", "verified: ", "free in", "image formats"):
        assert words in text
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] and {check["status"] for check in answer["checks"]} <= {"ok", "warning"}


def test_doctor_tells_whether_a_gpu_has_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from rlfn_pipe.cli.doctor import _kernels
    from rlfn_pipe.models.cuda import library

    cuda = torch.device("cuda")
    monkeypatch.delenv("RLFN_PIPE_KERNELS", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def check() -> Any:
        library.why_not.cache_clear()
        return _kernels(cuda)

    try:
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
        found = check()
        assert (found.status, found.advice) == ("warning", "pip install 'cuda-bindings==13.*'")
        assert "cuda-bindings is not installed" in found.detail
        monkeypatch.delitem(sys.modules, "cuda.bindings")
        nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
        driver = pytest.importorskip("cuda.bindings.driver")
        compiler = nvrtc.nvrtcVersion()[1]
        for version, words in (
            (compiler * 1000, "used for fp16"),
            (11080, "the driver is for CUDA 11 and the compiler of CUDA"),
        ):
            monkeypatch.setattr(
                driver, "cuDriverGetVersion", lambda v=version: (driver.CUresult.CUDA_SUCCESS, v)
            )
            assert words in check().detail
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "compute capability 7.5, 8.0 is needed" in check().detail
        monkeypatch.setenv("RLFN_PIPE_KERNELS", "off")
        assert check().detail == "not used: RLFN_PIPE_KERNELS=off"
        monkeypatch.delenv("RLFN_PIPE_KERNELS")
        monkeypatch.setattr(torch.version, "cuda", None)
        assert check().status == "warning"
    finally:
        library.why_not.cache_clear()


def test_doctor_names_what_is_missing_and_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlfn_pipe.cli import doctor

    monkeypatch.setattr(doctor, "NEEDED_ENCODERS", ("libx264", "libnone"))
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "MISSING  encoders" in text and "libnone" in text and "pip install no-such-package" in text
    assert "cv2 does not load" in text
