"""Worker processes die, hang, are stopped; the job goes on or says what happened, and none is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import odd_workers
import pytest
from conftest import children_of
from PIL import Image
from test_resume import clip, packets, stop_after
from test_video_errors import damaged

from rlfn_pipe.errors import EngineError, InputError, Interrupted
from rlfn_pipe.jobs import pace, workers
from rlfn_pipe.jobs.image_task import ImageTask
from rlfn_pipe.jobs.inputs import Item
from rlfn_pipe.jobs.patience import Patience
from rlfn_pipe.jobs.process import WorkerProcess
from rlfn_pipe.jobs.run import run
from rlfn_pipe.jobs.task import SegmentProgress, SegmentTask
from rlfn_pipe.jobs.work import work_path
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Event, Failed, Finished, Progress, Target, Warned

BUNNY = Path(__file__).parent / "data" / "bunny.mp4"

TESTS = Path(__file__).resolve().parent
OPTIONS: dict[str, Any] = {"scale": 2, "threads": 1, "segment": "0.8", "crf": 30}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned workers find the test modules."""
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.fixture
def serve_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    return lambda serve: monkeypatch.setattr(workers, "WorkerProcess", partial(WorkerProcess, serve))


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Process numbers of all workers that were started; at the end none of them lives."""
    found: list[int] = []
    start = workers._Worker.start

    def noting(self: Any, *first: Any) -> WorkerProcess:
        process = start(self, *first)
        if process.pid not in found:
            found.append(process.pid)
        return process

    monkeypatch.setattr(workers._Worker, "start", noting)
    yield found
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("whole")
    source = clip(folder / "in.mkv")
    with pytest.MonkeyPatch.context() as patch:
        from conftest import use_nearest_engine

        use_nearest_engine(patch)
        run(str(source), str(folder / "out.mkv"), UpscaleOptions(**OPTIONS))
    return source, packets(folder / "out.mkv")


def test_processes_make_what_the_caller_makes(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.nearest)
    source, expected = whole
    report = run(str(source), str(tmp_path / "out.mkv"), UpscaleOptions(**OPTIONS), isolate=True)
    assert packets(tmp_path / "out.mkv") == expected
    assert len(pids) == 1 and not report.failed
    assert report.finished[0].stages is not None and report.finished[0].stages.encode > 0


def test_several_workers_share_a_film_and_several_films(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.nearest)
    source, expected = whole
    inputs = tmp_path / "in"
    inputs.mkdir()
    for name in "abc":
        os.link(source, inputs / f"{name}.mkv")
    options = UpscaleOptions(**OPTIONS, jobs=2)
    report = run(str(inputs), str(tmp_path / "out"), options, isolate=True)
    assert len(pids) == 2 and len(report.finished) == 3
    for name in "abc":
        assert packets(tmp_path / "out" / f"{name}.mkv") == expected
    run(str(source), str(tmp_path / "out.mkv"), options, isolate=True)
    assert packets(tmp_path / "out.mkv") == expected


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_costs_its_segment_only(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int], signum: signal.Signals
) -> None:
    serve_with(odd_workers.nearest)
    source, expected = whole
    struck, told = [], list[Event]()

    def on_event(event: Event) -> None:
        told.append(event)
        if isinstance(event, Progress) and event.frames_done >= 15 and not struck:
            struck.append(os.kill(pids[-1], signum))

    report = run(
        str(source), str(tmp_path / "out.mkv"), UpscaleOptions(**OPTIONS), on_event=on_event, isolate=True
    )
    assert struck and len(pids) == 2
    assert packets(tmp_path / "out.mkv") == expected
    assert any(
        isinstance(e, Warned) and f"was ended by {signum.name}" in e.message and "tried again" in e.message
        for e in told
    )
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("serve", "fate"), [(odd_workers.segfault, "ended by SIGSEGV"), (odd_workers.leave, "ended with code 7")]
)
def test_a_segment_that_always_kills_is_reported_after_three_attempts(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int], serve: Any, fate: str
) -> None:
    serve_with(serve)
    source, expected = whole
    output = tmp_path / "out.mkv"
    with pytest.raises(
        EngineError,
        match=rf"frames \d+ to \d+: the worker was {fate} 3 times"
        if "SIG" in fate
        else rf"the worker {fate} 3 times",
    ):
        run(str(source), str(output), UpscaleOptions(**OPTIONS), isolate=True)
    assert not output.exists() and len(list(work_path(output).glob("segment-*"))) == 1
    serve_with(odd_workers.nearest)
    run(str(source), str(output), UpscaleOptions(**OPTIONS), isolate=True)
    assert packets(output) == expected


def test_a_worker_that_hangs_is_replaced(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.hang)
    with pytest.raises(EngineError, match="made no progress for 2 s 3 times"):
        run(
            str(whole[0]), str(tmp_path / "out.mkv"), UpscaleOptions(**OPTIONS, stall_timeout=2), isolate=True
        )


def test_planning_and_a_pictures_tiles_are_progress_and_planning_stops(
    tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.slow)
    options = UpscaleOptions(scale=2, threads=1, tile=48, overlap=0)
    plain: dict[str, Any] = {"times": None, "sounds": [], "subtitles": ()}
    short, long = (
        Item(clip(tmp_path / f"{n}.mkv", frames=n, **plain), tmp_path / "out.mkv", "video") for n in (1, 9)
    )
    Image.fromarray(np.zeros((96, 192, 3), np.uint8)).save(tmp_path / "in.png")
    picture = Item(tmp_path / "in.png", tmp_path / "out.png", "image")
    told: list[Event] = []
    stop, warned = threading.Event(), list[str]()
    processes = workers.Processes(options, lambda input, text: warned.append(text))
    try:
        processes.plan(short, options, stop)  # by then its process is there
        processes._stall = 0.6
        plan, _ = processes.plan(long, options, stop)
        assert plan.frames == 9
        processes.images(ImageTask((picture,), options, 1, 1), told.append, stop)
        assert any(isinstance(event, Finished) for event in told)
        threading.Timer(0.3, stop.set).start()
        begin = time.monotonic()
        with pytest.raises(Interrupted):
            processes.plan(long, options, stop)
        assert time.monotonic() - begin < 1.0
    finally:
        processes.close()
    assert len(pids) == 1 and not warned


def test_what_is_decoded_before_a_segment_is_progress(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film with one keyframe is decoded from there for each of its segments."""
    options = {"g": "1000", "bf": "0", "sc_threshold": "0"}
    source = clip(tmp_path / "in.mkv", sounds=[], subtitles=(), options=options)
    told, real = Counter[int](), workers.run_segment

    def watched(task: SegmentTask, room: Any, *, on_progress: Any, stop: Any) -> Any:
        def heard(progress: SegmentProgress) -> None:
            told[task.part.first] += not progress.frames
            on_progress(progress)

        return real(task, room, on_progress=heard, stop=stop)

    monkeypatch.setattr(workers, "run_segment", watched)
    monkeypatch.setattr(pace, "SECONDS", 0)
    run(str(source), str(tmp_path / "out.mkv"), UpscaleOptions(**OPTIONS))
    assert max(told) >= 40 and told[max(told)] >= max(told)


def two_films(long: Path, tmp_path: Path) -> Path:
    """A folder with `long` and a film that has one segment."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    os.link(long, inputs / "long.mkv")
    clip(inputs / "short.mkv", frames=10, times=None, sounds=[], subtitles=())
    return inputs


def test_others_go_on_when_one_film_fails(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.segfault)
    inputs = two_films(whole[0], tmp_path)
    report = run(str(inputs), str(tmp_path / "out"), UpscaleOptions(**OPTIONS, jobs=2), isolate=True)
    assert [Path(f.input).name for f in report.failed] == ["long.mkv"]
    assert [Path(f.input).name for f in report.finished] == ["short.mkv"] and report.exit_code == 1
    # Each warning is told of the film that it is about, whatever else is under way.
    assert {(Path(w.input).name, "SIGSEGV" in w.message) for w in report.warned} == {("long.mkv", True)}


@pytest.mark.parametrize("jobs", [1, 2])
def test_others_go_on_when_one_film_meets_a_defect(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int], jobs: int
) -> None:
    serve_with(odd_workers.defect)
    inputs = two_films(whole[0], tmp_path)
    report = run(str(inputs), str(tmp_path / "out"), UpscaleOptions(**OPTIONS, jobs=jobs), isolate=True)
    (failed,) = report.failed
    assert Path(failed.input).name == "long.mkv" and "internal error: ZeroDivisionError" in failed.message
    assert [Path(f.input).name for f in report.finished] == ["short.mkv"] and report.exit_code == 1


def test_processes_that_were_closed_start_nothing_and_blame_nobody(
    tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    """What runs ends as interrupted, also what waited for a worker meanwhile."""
    serve_with(odd_workers.hang)
    source = clip(tmp_path / "in.mkv", frames=20, times=None, sounds=[], subtitles=())
    item, options = Item(source, tmp_path / "out.mkv", "video"), UpscaleOptions(**OPTIONS)
    warned: list[str] = []
    processes = workers.Processes(options, lambda input, text: warned.append(text))
    plan, facts = processes.plan(item, options, threading.Event())
    target = Target(plan.geometry.width, plan.geometry.height, plan.encoding.colour)
    task = SegmentTask(
        source, replace(plan.part, first=15, last=18), plan.encoding, target, plan.geometry.factor, plan.times.rate, None,
        tmp_path / "made", "film", options, facts.settings, 1,
    )  # fmt: skip

    def work() -> None:
        processes.run(task, on_progress=lambda progress: None, patience=Patience(threading.Event(), 3))

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work) for _ in range(3)]
        time.sleep(0.5)
        processes.close()
        for future in futures:
            assert isinstance(future.exception(timeout=10), Interrupted)
    assert len(pids) == 1 and not warned


def test_what_is_slower_than_meant_is_told_as_every_warning_is(
    whole: tuple[Path, list[Any]],
    tmp_path: Path,
    serve_with: Any,
    pids: list[int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Kernels warn by Python's means; a worker's standard error is no place for them, the progress bar is there."""
    serve_with(odd_workers.slower)
    source, _ = whole
    report = run(str(source), str(tmp_path / "out.mkv"), UpscaleOptions(**OPTIONS), isolate=True)
    assert Warned(str(source), "the fast way is not used") in report.warned
    assert "a library's own words" not in {warned.message for warned in report.warned}
    assert "the fast way" not in capfd.readouterr().err


def test_a_film_that_kills_when_it_is_opened_fails_alone(
    tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.crash_at_opening)
    inputs = tmp_path / "in"
    inputs.mkdir()
    for name in ("deadly.mkv", "good.mkv"):
        clip(inputs / name, frames=10, times=None, sounds=[], subtitles=())
    report = run(str(inputs), str(tmp_path / "out"), UpscaleOptions(**OPTIONS), isolate=True)
    assert "deadly.mkv: the worker was ended by SIGSEGV 3 times" in report.failed[0].message
    assert [Path(f.input).name for f in report.finished] == ["good.mkv"]


def test_an_error_of_ours_is_not_tried_again(tmp_path: Path, serve_with: Any, pids: list[int]) -> None:
    serve_with(odd_workers.nearest)
    source = damaged(clip(tmp_path / "whole.mkv"), tmp_path / "in.mkv", {20, 21, 22})
    told: list[Event] = []
    with pytest.raises(InputError, match=r"does not decode.*--on-error conceal"):
        run(
            str(source),
            str(tmp_path / "out.mkv"),
            UpscaleOptions(**OPTIONS, on_error="fail"),
            on_event=told.append,
            isolate=True,
        )
    assert len(pids) == 1 and not any("tried again" in getattr(e, "message", "") for e in told)


def test_a_defect_shows_where_it_is(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.defect)
    with pytest.raises(workers.TaskDefect, match="ZeroDivisionError: by design, while reading frame 0"):
        run(str(whole[0]), str(tmp_path / "out.mkv"), UpscaleOptions(**OPTIONS), isolate=True)


def test_stop_ends_workers_and_keeps_segments(
    whole: tuple[Path, list[Any]], tmp_path: Path, serve_with: Any, pids: list[int]
) -> None:
    serve_with(odd_workers.nearest)
    source, expected = whole
    output = tmp_path / "out.mkv"
    stop, on_event, _ = stop_after(20)
    with pytest.raises(Interrupted, match="of 3 segments are kept"):
        run(str(source), str(output), UpscaleOptions(**OPTIONS), on_event=on_event, stop=stop, isolate=True)
    run(str(source), str(output), UpscaleOptions(**OPTIONS), isolate=True)
    assert packets(output) == expected


def test_an_image_that_kills_fails_alone(tmp_path: Path, serve_with: Any, pids: list[int]) -> None:
    serve_with(odd_workers.picky_about_images)
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number in range(14):
        name = "07-deadly.png" if number == 7 else f"{number:02d}.png"
        Image.fromarray(np.full((20, 30, 3), number * 10, np.uint8)).save(inputs / name)
    told: list[Event] = []
    report = run(
        str(inputs),
        str(tmp_path / "out"),
        UpscaleOptions(scale=2, threads=1),
        on_event=told.append,
        isolate=True,
    )
    assert [Path(f.input).name for f in report.failed] == ["07-deadly.png"]
    assert "ended with code 9 3 times" in report.failed[0].message
    assert len(list((tmp_path / "out").glob("*.png"))) == 13
    done = [e.input for e in told if isinstance(e, Finished | Failed)]
    assert len(done) == len(set(done)) == 14
    last = [e for e in told if isinstance(e, Progress)][-1]
    assert last.items_total == 14


# ------------------------------------------------------------------- the command


def command(*arguments: str) -> subprocess.Popen[str]:
    """`rlfn-pipe upscale`, begun, on one thread and with events."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlfn_pipe", "upscale", *arguments, "--threads", "1", "--json"],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], event: str) -> None:
    """Until the command has told of an event."""
    assert process.stdout is not None
    for line in process.stdout:
        if f'"{event}"' in line:
            return


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_worker_outlives_the_command(tmp_path: Path, signum: signal.Signals) -> None:
    source = clip(tmp_path / "in.mkv", frames=800, times=[40 * i for i in range(800)])  # some seconds of work
    process = command(str(source), str(tmp_path / "out.mkv"), "-s", "4")
    try:
        wait_for(process, "progress")
        below = children_of(process.pid)
        assert below
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum), err
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in below) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in below)
    assert not (tmp_path / "out.mkv").exists()


@pytest.mark.slow
def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mkv", frames=800, times=[40 * i for i in range(800)])  # some seconds of work
    process = command(str(source), str(tmp_path / "out.mkv"))
    try:
        wait_for(process, "progress")
        below = children_of(process.pid)
        # A frozen worker never answers the first request, however fast the machine.
        (worker,) = (pid for pid in below if b"jobs.process" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - begin < 10
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in below) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in below)
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopped at once; the same command goes on from what was finished" in err


@pytest.mark.slow
def test_a_large_picture_is_left_when_asked_to_stop(tmp_path: Path) -> None:
    """Between two of its tiles: it would take half a minute, and a worker that does not answer is ended after 15 s."""
    source, output = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)).save(source)
    process = command(str(source), str(output), "-s", "2", "--tta", "--tile", "192")
    try:
        wait_for(process, "started")
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - begin < 10
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_ctrl_c_while_a_worker_starts_is_one_sentence(tmp_path: Path, delay: float) -> None:
    """A terminal sends it to the whole group: Python starting up in a worker must not answer with a traceback."""
    # With --tta none of it is finished before the signal, which would be kept.
    command = [sys.executable, "-m", "rlfn_pipe", "upscale", str(BUNNY), str(tmp_path / "out.mp4"), "--tta"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not children_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said and "ended by" not in said and "stopped before" in said
    assert list(tmp_path.iterdir()) == []
