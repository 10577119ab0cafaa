"""A job that ends anywhere goes on where it was, and its output is that of a job which never ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from media_maker import Sound, bars, make, noise
from PIL import Image
from resume_child import AFTERWARDS, POINTS

from rlfn_pipe.errors import Interrupted, OutputError, Taken
from rlfn_pipe.jobs.plan import describe
from rlfn_pipe.jobs.run import run
from rlfn_pipe.jobs.work import work_path
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Event, Finished, Started, Warned

TESTS = Path(__file__).resolve().parent
FRAMES = 60  # three segments of 0.8 s
CHILD = {"segment": "0.8", "crf": 30}


def clip(path: Path, **more: Any) -> Path:
    """60 frames with B-frames, varying times and two sounds, of which one begins late."""
    times = [i * 40 + (i % 7) for i in range(FRAMES)]
    sounds = [Sound(seconds=2.6), Sound("pcm_s16le", start=Fraction(1, 2), seconds=1.0)]
    if path.suffix == ".mp4":
        sounds = sounds[:1]
    settings: dict[str, Any] = {
        "frames": FRAMES, "times": times, "time_base": Fraction(1, 1000), "last": 55,
        "picture": lambda i: noise(i) if i % 9 else bars(i), "sounds": sounds,
        "options": {"bf": "2", "g": "12"}, "subtitles": [("subrip", 0.3, 1.9, "hello")] if path.suffix == ".mkv" else (),
    }  # fmt: skip
    return make(path, **{**settings, **more})


@dataclass(frozen=True)
class Packed:
    stream: int
    pts: int | None
    dts: int | None
    duration: int
    key: bool
    data: bytes


def packets(path: Path) -> list[Packed]:
    """All packets of a file, and its headers, as libav tells them."""
    with av.open(str(path)) as container:
        found = [
            Packed(p.stream.index, p.pts, p.dts, p.duration or 0, p.is_keyframe, bytes(p))
            for p in container.demux()
            if p.size
        ]
        heads = [
            Packed(
                s.index,
                s.start_time,
                None,
                s.duration or 0,
                False,
                bytes(getattr(s.codec_context, "extradata", b"") or b""),
            )
            for s in container.streams
        ]
    return heads + found


def child(
    source: Path, output: Path, point: str = "-", count: int = 1, how: str = "kill", **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TESTS / "resume_child.py"), str(source), str(output), json.dumps({**CHILD, **options}), point, str(count), how],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Packed]]]:
    """A source, and the packets of its uninterrupted output in one process."""
    folder = tmp_path_factory.mktemp("whole")
    source = clip(folder / "in.mkv")
    with pytest.MonkeyPatch.context() as patch:
        from conftest import use_nearest_engine

        use_nearest_engine(patch)
        run(str(source), str(folder / "whole.mkv"), UpscaleOptions(scale=2, threads=1, **CHILD))
    yield source, packets(folder / "whole.mkv")


#: (point, count): moments of every phase; frames are counted over segments of about 20.
MOMENTS = [
    ("decode", 1), ("decode", 33), ("compute", 25), ("encode", 1), ("encode", 47), ("flush", 2),
    ("rename", 1), ("rename", 3), ("renamed", 2), ("half line", 1), ("half line", 2), ("journal", 2), ("journal", 3),
    ("join", 1), ("join", 3), ("copy", 20), ("trailer", 1), ("publish", 1), ("announced", 1),
]  # fmt: skip


def test_every_phase_has_a_moment() -> None:
    assert {point for point, _ in MOMENTS} | set(AFTERWARDS) == set(POINTS)


@pytest.mark.parametrize(("point", "count"), MOMENTS)
def test_killed_anywhere_it_goes_on(
    whole: tuple[Path, list[Packed]], tmp_path: Path, nearest_engine: None, point: str, count: int
) -> None:
    source, expected = whole
    output = tmp_path / "whole.mkv"
    killed = child(source, output, point, count)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists()
    run(str(source), str(output), UpscaleOptions(scale=2, threads=1, **CHILD))
    assert packets(output) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mkv"]


@pytest.mark.parametrize("point", AFTERWARDS)
@pytest.mark.parametrize("leave", [False, True])
def test_killed_when_the_output_was_in_place_it_is_finished(
    whole: tuple[Path, list[Packed]], tmp_path: Path, nearest_engine: None, point: str, leave: bool
) -> None:
    if leave and point == "linked":
        pytest.skip("with -y the name is taken by one rename")
    source, expected = whole
    output = tmp_path / "whole.mkv"
    # The folder is swept once at the beginning, too.
    count = 2 if point in ("half removed", "journal left") else 1
    killed = child(source, output, point, count, overwrite=leave)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert packets(output) == expected
    before = output.stat()
    report = run(str(source), str(output), UpscaleOptions(scale=2, threads=1, **CHILD))
    (finished,) = report.finished
    assert finished.frames == FRAMES and finished.bytes_written == before.st_size
    assert any("had put the output in place" in note for note in finished.notes)
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mkv"]
    with pytest.raises(OutputError, match="exists; -y overwrites"):
        run(str(source), str(output), UpscaleOptions(scale=2, threads=1, **CHILD))


def test_a_file_that_came_in_the_place_of_the_finished_one_is_not_taken_for_it(
    whole: tuple[Path, list[Packed]], tmp_path: Path, nearest_engine: None
) -> None:
    output = tmp_path / "whole.mkv"
    assert child(whole[0], output, "in place").returncode == -signal.SIGKILL
    output.write_bytes(b"another's")
    with pytest.raises(OutputError, match="exists; -y overwrites"):
        run(str(whole[0]), str(output), UpscaleOptions(scale=2, threads=1, **CHILD))
    assert output.read_bytes() == b"another's"


def test_a_folder_that_was_emptied_and_not_removed_goes(
    whole: tuple[Path, list[Packed]], tmp_path: Path, nearest_engine: None
) -> None:
    """Killed between the last two steps nothing is known any more: the output stands, and is not touched."""
    output = tmp_path / "whole.mkv"
    output.write_bytes(b"somebody's")
    work_path(output).mkdir(0o700)
    with pytest.raises(OutputError, match="exists; -y overwrites"):
        run(str(whole[0]), str(output), UpscaleOptions(scale=2, threads=1, **CHILD))
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mkv"]
    assert output.read_bytes() == b"somebody's"


@pytest.mark.parametrize(
    ("point", "count"), [("encode", 47), ("flush", 2), ("half line", 2), ("join", 1), ("trailer", 1)]
)
def test_a_full_disk_anywhere_is_one_sentence_and_it_goes_on(
    whole: tuple[Path, list[Packed]], tmp_path: Path, nearest_engine: None, point: str, count: int
) -> None:
    source, expected = whole
    output = tmp_path / "whole.mkv"
    failed = child(source, output, point, count, "error")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    assert not output.exists() and (work_path(output) / "journal").exists()
    run(str(source), str(output), UpscaleOptions(scale=2, threads=1, **CHILD))
    assert packets(output) == expected


# ------------------------------------------------------------------- in one process


def stop_after(frames: int) -> tuple[threading.Event, Any, list[Event]]:
    """A stop token that is set after so many frames, without patience for the segment."""
    stop, events = threading.Event(), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        done = getattr(event, "frames_done", 0)
        if done >= frames and not isinstance(event, Finished):
            stop.set()

    return stop, on_event, events


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".webm"])
@pytest.mark.parametrize("codec", ["auto", "libx265", "ffv1", "libsvtav1"])
def test_stopped_and_continued_equals_uninterrupted(
    tmp_path: Path, nearest_engine: None, suffix: str, codec: str
) -> None:
    fits = {
        ".mp4": ("auto", "libx265", "libsvtav1"),
        ".mov": ("auto", "libx265"),
        ".ts": ("auto", "libx265"),
        ".webm": ("auto", "libsvtav1"),
    }
    if codec not in fits.get(suffix, (codec,)):
        pytest.skip(f"{suffix} does not hold {codec}")
    source = clip(tmp_path / "in.mp4")
    options = UpscaleOptions(scale=2, threads=1, codec=codec, segment=Fraction(8, 10))
    run(str(source), str(tmp_path / f"whole{suffix}"), options)
    output = tmp_path / f"out{suffix}"
    for frames in (1, 21):
        stop, on_event, _ = stop_after(frames)
        with pytest.raises(Interrupted):
            run(str(source), str(output), options, on_event=on_event, stop=stop)
        assert not output.exists()
    events: list[Event] = []
    run(str(source), str(output), options, on_event=events.append)
    assert packets(output) == packets(tmp_path / f"whole{suffix}")
    assert not work_path(output).exists()


def interrupted_job(tmp_path: Path, **more: Any) -> tuple[Path, Path, UpscaleOptions]:
    """A job of three segments that was stopped when one was done."""
    source, output = clip(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    options = UpscaleOptions(scale=2, threads=1, **{**CHILD, **more})
    stop, on_event, _ = stop_after(20)
    with pytest.raises(Interrupted, match="of 3 segments are kept, the same command goes on"):
        run(str(source), str(output), options, on_event=on_event, stop=stop)
    return source, output, options


def test_finished_segments_are_not_made_again(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlfn_pipe.jobs import workers

    source, output, options = interrupted_job(tmp_path)
    kept = len(list(work_path(output).glob("segment-*")))
    assert kept in (1, 2)
    made: list[int] = []
    real = workers.run_segment
    monkeypatch.setattr(
        workers, "run_segment", lambda task, *a, **k: made.append(task.part.first) or real(task, *a, **k)
    )
    events: list[Event] = []
    report = run(str(source), str(output), options, on_event=events.append)
    assert len(made) == 3 - kept
    assert f"{kept} of 3 segments done" in next(e.description for e in events if isinstance(e, Started))
    assert report.finished[0].frames == FRAMES


def test_a_film_that_was_only_to_be_put_together_is_kept_and_that_is_said(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlfn_pipe.media.sink import VideoSink

    source, output = clip(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    options = UpscaleOptions(scale=2, threads=1, **CHILD)
    stop, write = threading.Event(), VideoSink.write_segment

    def stopping(self: VideoSink, *given: Any, **more: Any) -> None:
        stop.set()
        write(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(VideoSink, "write_segment", stopping)
        with pytest.raises(Interrupted, match="computed and kept, the same command puts it together"):
            run(str(source), str(output), options, stop=stop)
    assert not output.exists() and len(list(work_path(output).glob("segment-*"))) == 3
    events: list[Event] = []
    run(str(source), str(output), options, on_event=events.append)
    assert "3 of 3 segments done" in next(e.description for e in events if isinstance(e, Started))
    assert output.exists() and not work_path(output).exists()


def test_a_plan_tells_what_a_run_would_make_of_earlier_work(tmp_path: Path, nearest_engine: None) -> None:
    source, output, options = interrupted_job(tmp_path)
    kept = len(list(work_path(output).glob("segment-*")))
    journal = work_path(output) / "journal"
    with journal.open("ab") as file:
        file.write(b"torn")
    before = {path.name: path.read_bytes() for path in work_path(output).iterdir()}

    def notes(**other: Any) -> tuple[str, ...]:
        return describe(str(source), str(output), replace(options, **other)).notes

    assert f"{kept} of 3 segments are done, by an earlier run" in notes()
    with pytest.raises(OutputError, match=r"--crf was 30.0 and is 20.0.*-y to start anew"):
        notes(crf=20.0)
    assert any("thrown away (--crf was 30.0" in note for note in notes(crf=20.0, overwrite=True))
    assert any(f"thrown away (segments: {kept}; --no-resume)" in note for note in notes(resume=False))
    elsewhere = tmp_path / "elsewhere"
    assert not any("segments" in note for note in notes(work_dir=elsewhere))
    assert not any("segments" in note for note in describe(str(source), None, options).notes)
    whole = journal.read_bytes()
    journal.write_bytes(b"{}" + whole)
    assert any("journal of an earlier run cannot be used" in note for note in notes())
    journal.write_bytes(whole)
    output.write_bytes(b"another's")
    with pytest.raises(Taken, match="exists"):
        notes()
    output.unlink()
    assert {path.name: path.read_bytes() for path in work_path(output).iterdir()} == before
    run(str(source), str(output), options)
    with pytest.raises(OutputError, match="exists"):
        notes()


def test_other_options_are_named_and_need_leave(tmp_path: Path, nearest_engine: None) -> None:
    source, output, _ = interrupted_job(tmp_path)
    other = UpscaleOptions(scale=2, threads=1, **{**CHILD, "crf": 20})
    with pytest.raises(OutputError, match=r"--crf was 30.0 and is 20.0.*-y to start anew"):
        run(str(source), str(output), other)
    assert work_path(output).exists() and not output.exists()
    warned: list[Event] = []
    run(
        str(source),
        str(output),
        UpscaleOptions(scale=2, threads=1, overwrite=True, **{**CHILD, "crf": 20}),
        on_event=warned.append,
    )
    assert any(isinstance(e, Warned) and "thrown away" in e.message for e in warned)
    fresh = tmp_path / "fresh.mkv"
    run(str(source), str(fresh), other)
    assert packets(output) == packets(fresh)


def test_an_encoder_that_is_set_up_otherwise_makes_another_job(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another version, whose defaults are others: the options say the same."""
    from rlfn_pipe.jobs import video_plan

    source, output, options = interrupted_job(tmp_path)
    real = video_plan.plan_encoding
    monkeypatch.setattr(
        video_plan,
        "plan_encoding",
        lambda *a, **k: replace(plan := real(*a, **k), options={**plan.options, "bf": "0"}),
    )
    with pytest.raises(OutputError, match=r"encoder settings was .* and is"):
        run(str(source), str(output), options)
    with pytest.raises(OutputError, match=r"encoder settings was .* and is"):
        describe(str(source), str(output), options)


def test_a_changed_input_is_named(tmp_path: Path, nearest_engine: None) -> None:
    source, output, options = interrupted_job(tmp_path)
    clip(source, picture=lambda i: bars(i))
    with pytest.raises(OutputError, match="the input file has changed"):
        run(str(source), str(output), options)


def test_no_resume_keeps_nothing(tmp_path: Path, nearest_engine: None) -> None:
    source, output = clip(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    stop, on_event, _ = stop_after(20)
    with pytest.raises(Interrupted, match="unfinished output was removed"):
        run(
            str(source),
            str(output),
            UpscaleOptions(scale=2, threads=1, resume=False, **CHILD),
            on_event=on_event,
            stop=stop,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_an_existing_output_with_leave_at_the_beginning(tmp_path: Path, nearest_engine: None) -> None:
    """The first run had -y; the second goes on without, and replaces the file in the end."""
    output = tmp_path / "out.mkv"
    output.write_bytes(b"old")
    source, _, _ = interrupted_job(tmp_path, overwrite=True)
    assert output.read_bytes() == b"old"
    run(str(source), str(output), UpscaleOptions(scale=2, threads=1, **CHILD))
    assert output.stat().st_size > 1000


def test_an_output_that_appeared_is_not_replaced_without_leave(tmp_path: Path, nearest_engine: None) -> None:
    source, output, options = interrupted_job(tmp_path)
    output.write_bytes(b"another's")
    with pytest.raises(OutputError, match="exists; -y overwrites"):
        run(str(source), str(output), options)
    assert output.read_bytes() == b"another's" and work_path(output).exists()


def test_work_dir(tmp_path: Path, nearest_engine: None) -> None:
    place = tmp_path / "work"
    source, output, options = interrupted_job(tmp_path, work_dir=place)
    assert work_path(output, place).is_dir() and not work_path(output).exists()
    run(str(source), str(output), options)
    assert output.exists() and not list(place.iterdir())


def test_damaged_work_is_made_again(tmp_path: Path, nearest_engine: None) -> None:
    source, output, options = interrupted_job(tmp_path)
    segment = next(iter(sorted(work_path(output).glob("segment-*"))))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 255
    segment.write_bytes(bytes(data))
    run(str(source), str(output), options)
    fresh = tmp_path / "fresh.mkv"
    run(str(source), str(fresh), options)
    assert packets(output) == packets(fresh)


def test_a_folder_goes_on_behind_what_is_done(tmp_path: Path, nearest_engine: None) -> None:
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for number in range(3):
        make(inputs / f"{number}.mp4", frames=12)
    options = UpscaleOptions(scale=2, threads=1)
    stop = threading.Event()
    with pytest.raises(Interrupted):
        run(
            str(inputs),
            str(outputs),
            options,
            on_event=lambda e: stop.set() if isinstance(e, Finished) else None,
            stop=stop,
        )
    assert describe(str(inputs), str(outputs), options).items == 2
    first = outputs / "0.mp4"
    before = first.stat().st_mtime_ns
    report = run(str(inputs), str(outputs), options)
    assert first.stat().st_mtime_ns == before
    assert len(report.finished) == 2 and report.skipped == (str(inputs / "0.mp4"),)
    assert sorted(path.name for path in outputs.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]
    with pytest.raises(OutputError, match="exist"):
        run(str(inputs), str(outputs), options)


def test_a_folder_does_not_go_on_with_other_weights(tmp_path: Path, nearest_engine: None) -> None:
    inputs, outputs, weights = tmp_path / "in", tmp_path / "out", tmp_path / "mine.safetensors"
    inputs.mkdir()
    Image.new("RGB", (30, 20)).save(inputs / "good.png")
    (inputs / "bad.png").write_bytes(b"no picture")
    options = UpscaleOptions(scale=2, model=str(weights))
    weights.write_bytes(b"some")
    assert run(str(inputs), str(outputs), options).exit_code == 1
    assert len(run(str(inputs), str(outputs), options).skipped) == 1
    weights.write_bytes(b"others")
    with pytest.raises(OutputError, match=r"good.png exists; -y overwrites"):
        run(str(inputs), str(outputs), options)
    report = run(str(inputs), str(outputs), replace(options, overwrite=True))
    assert not report.skipped and len(report.finished) == 1


# ------------------------------------------------------------------- the command itself


@pytest.mark.slow
def test_twenty_kills_of_the_real_command(tmp_path: Path) -> None:
    """SIGKILL at random moments with the real engine and worker processes, then a run to the end."""
    import random

    source = clip(tmp_path / "in.mkv", size=(96, 64), picture=lambda i: noise(i, size=(96, 64)))
    command = [sys.executable, "-m", "rlfn_pipe", "upscale", str(source)]
    options = ["-s", "2", "--threads", "1", "--segment", "0.25", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    whole, output = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    subprocess.run([*command, str(whole), *options], check=True, env=environment, timeout=120)
    expected = packets(whole)
    chance = random.Random(5)
    killed = 0
    while killed < 20:
        with subprocess.Popen(
            [*command, str(output), *options], env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            try:
                process.wait(chance.uniform(1.0, 5.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            else:
                assert process.returncode == 0, process.stderr.read()
        killed += 1
        # The kill may have come after the output was in place, never with a part of it there.
        if output.exists():
            assert packets(output) == expected
            if process.returncode == 0 or not work_path(output).exists():
                output.unlink()
    subprocess.run([*command, str(output), *options], check=True, env=environment, timeout=120)
    assert packets(output) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv", "whole.mkv"]
