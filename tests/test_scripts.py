"""The command in scripts: odd streams, log files, folders that others work in, several workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from media_maker import make, noise
from nearest import NearestNetwork
from PIL import Image
from test_resume import clip, packets, stop_after

import rlfn_pipe
from rlfn_pipe.cli.app import main
from rlfn_pipe.cli.ui import Reporter
from rlfn_pipe.cli.upscale import _stopped
from rlfn_pipe.errors import Interrupted, OutputError, UsageError
from rlfn_pipe.jobs import images, temporary
from rlfn_pipe.jobs import run as run_module
from rlfn_pipe.jobs.geometry import MAXIMUM_PIXELS, output_geometry
from rlfn_pipe.jobs.image_task import ImageTask
from rlfn_pipe.jobs.images import ImageRun
from rlfn_pipe.jobs.inputs import Item
from rlfn_pipe.jobs.plan import describe
from rlfn_pipe.jobs.room import EngineRoom
from rlfn_pipe.jobs.run import run
from rlfn_pipe.jobs.work import entered, work_path
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.presets import resolve
from rlfn_pipe.types import Event, Finished, Progress, Started, Warned

ROOT = Path(__file__).resolve().parent.parent
BUNNY = ROOT / "tests" / "data" / "bunny.mp4"


def picture(path: Path, size: tuple[int, int] = (30, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").convert("RGB").resize(size).save(path)
    return path


# ---------------------------------------------------------------- standard streams


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of the shell in which $R is the program."""
    return subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "R": f"{sys.executable} -m rlfn_pipe", "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_none_of_the_jobs_business(tmp_path: Path, closed: str) -> None:
    source = picture(tmp_path / "in.png")
    done = shell(f"$R upscale {source} out.png -s 2 --threads 1 {closed}", tmp_path)
    assert done.returncode == 0 and (tmp_path / "out.png").exists()
    assert "rror" not in done.stdout + done.stderr
    # A film's worker is spoken to through a descriptor, which must not be one of those.
    film = f"{ROOT / 'tests' / 'data' / 'bunny.mp4'} film.mkv --frames 2 --stall-timeout 20 --log-file log"
    done = shell(f"$R upscale {film} -s 2 --threads 1 {closed}", tmp_path)
    assert done.returncode == 0 and (tmp_path / "film.mkv").exists()
    assert "no progress" not in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_reader_of_messages_that_goes_away_stops_no_job(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    done = shell(
        "{ $R upscale in out -s 2 --threads 1; echo $? >code; } 2>&1 >said | true; cat code", tmp_path
    )
    assert done.stdout.strip() == "1" and len(list((tmp_path / "out").glob("*.png"))) == 3


def test_what_an_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    picture(tmp_path / "é/日.png")
    done = subprocess.run(
        [sys.executable, "-m", "rlfn_pipe", "upscale", "--dry-run", "é/日.png", "é/本.png"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1:strict"},
        timeout=60,
        check=False,
    )
    said = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == 0 and "é/\\u672c.png" in said and "rror" not in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_full_streams(tmp_path: Path) -> None:
    """What is said is lost with them; what was asked for is an error in one sentence."""
    source = picture(tmp_path / "in.png")
    done = shell(f"$R upscale {source} out.png -s 2 --threads 1 2>/dev/full", tmp_path)
    assert done.returncode == 0 and (tmp_path / "out.png").exists()
    assert shell("$R upscale missing.png out2.png 2>/dev/full", tmp_path).returncode == 1
    done = shell(f"$R probe {source} >/dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "standard output cannot be used: no space left" in done.stderr


@pytest.mark.parametrize(
    "given",
    [
        ["upscale", "missing.mp4", "out.mp4", "--json"],
        ["upscale", "{there}", "out.png", "--json", "--quality", "400"],
        ["upscale", "{there}", "out.png", "--json", "--no-such-option"],
        ["upscale", "{there}", "out.mp4", "--json", "--dry-run"],
        ["upscale", "{broken}", "out.png", "--json"],
        ["probe", "missing.mp4", "--json"],
        ["weights", "show", "no-such-name", "--json"],
    ],
)
def test_an_error_is_a_line_of_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = {"there": picture(tmp_path / "in.png"), "broken": tmp_path / "broken.png"}
    code = main([word.format(**names) for word in given])
    out, err = capsys.readouterr()
    errors = [event for event in map(json.loads, out.splitlines()) if event["event"] == "error"]
    assert code in (1, 2) and [event["exit_code"] for event in errors] == [code]
    assert err == f"rlfn-pipe: error: {errors[0]['message']}\n"


# ---------------------------------------------------------------- the log file


@pytest.mark.parametrize("log", ["in.png", "out.png", "other.png", "link.png"])
def test_a_log_never_goes_into_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log: str
) -> None:
    source, other = picture(tmp_path / "in.png"), picture(tmp_path / "other.png")
    (tmp_path / "link.png").symlink_to(source)
    before = source.read_bytes()
    given = ["upscale", str(source), str(tmp_path / "out.png"), "--log-file", str(tmp_path / log)]
    assert main(given) == (1 if log == "other.png" else 2)
    assert "choose another" in capsys.readouterr().err
    assert source.read_bytes() == other.read_bytes() == before and not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("log", ["list.txt", "link.txt", "mine.toml"])
def test_a_log_never_goes_into_the_list_or_the_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log: str
) -> None:
    picture(tmp_path / "in.png")
    texts = {tmp_path / "list.txt": "in.png\n", tmp_path / "mine.toml": "scale = 2\n"}
    for path, text in texts.items():
        path.write_text(text)
    (tmp_path / "link.txt").symlink_to("list.txt")
    given = ["upscale", f"@{tmp_path / 'list.txt'}", str(tmp_path / "out"), "-p", str(tmp_path / "mine.toml")]
    assert main([*given, "--log-file", str(tmp_path / log)]) == 2
    assert "choose another file" in capsys.readouterr().err
    assert {path: path.read_text() for path in texts} == texts and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- pictures that do not fit


def test_only_pictures_that_do_not_fit_fail(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are read ahead, or wait to be written when another one fails, are made."""
    names = [f"{number}.png" for number in range(12)]
    for name in names:
        picture(tmp_path / "in" / name, (31, 21) if name in ("2.png", "6.png") else (30, 20))

    def forward(self: NearestNetwork, x: torch.Tensor, grid: object = None) -> torch.Tensor:
        if x.shape[-1] == 31:
            raise MemoryError
        return real(self, x)

    def late(*given: Any, **more: Any) -> int:
        time.sleep(0.05)
        return write(*given, **more)

    real, write = NearestNetwork.forward, images.write_image
    monkeypatch.setattr(NearestNetwork, "forward", forward)
    monkeypatch.setattr(images, "write_image", late)
    started: list[Event] = []
    report = run(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        UpscaleOptions(scale=2, jobs=2),
        on_event=lambda event: started.append(event) if isinstance(event, Started) else None,
    )
    assert [Path(one.input).name for one in report.failed] == ["2.png", "6.png"]
    assert all("not enough memory" in one.message for one in report.failed)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {*names} - {"2.png", "6.png"}
    assert len(started) == len(names)


def test_large_results_are_written_before_more_are_made(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        picture(tmp_path / "in" / f"{number}.png")
    at_once, most = 0, 0
    lock, write = threading.Lock(), images.write_image

    def late(*given: Any, **more: Any) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return write(*given, **more)

    monkeypatch.setattr(images, "write_image", late)
    monkeypatch.setattr(images, "_MOST_UNWRITTEN", 2 * 60 * 40 * 3 + 1)
    report = run(str(tmp_path / "in"), str(tmp_path / "out"), UpscaleOptions(scale=2, jobs=4))
    assert len(report.finished) == 8 and most <= 2


# ---------------------------------------------------------------- several runs at once


def warned(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


def test_outputs_that_appear_meanwhile_are_passed_over(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with --skip-existing over one folder: the one that is late fails at nothing."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png"):
        picture(folder / name)
    there = picture(out / "there.png")

    def others(write: Callable[..., object]) -> Callable[..., object]:
        def late(self: ImageRun, *rest: object) -> object:
            for name in ("a.png", "b.png"):
                # Several threads read.
                with suppress(FileExistsError):
                    os.link(there, out / name)
            return write(self, *rest)

        return late

    for method in ("_read_one", "_write_one"):
        with monkeypatch.context() as patch:
            patch.setattr(ImageRun, method, others(getattr(ImageRun, method)))
            events: list[Event] = []
            options = UpscaleOptions(scale=2, threads=1, skip_existing=True)
            report = run(str(folder), str(out), options, on_event=events.append)
            assert report.exit_code == 0 and not report.finished
            assert len(warned(events)) == 2 and all("appeared" in text for text in warned(events))
            assert (out / "a.png").read_bytes() == there.read_bytes()
            strict = run(str(folder), str(tmp_path / method), UpscaleOptions(scale=2, threads=1))
            assert len(strict.finished) == 2
        for name in ("a.png", "b.png"):
            (out / name).unlink()


def test_what_a_dead_worker_left_is_made_again(tmp_path: Path, nearest_engine: None) -> None:
    """It may have put the output in place without living to say so."""
    options = UpscaleOptions(scale=2, threads=1, skip_existing=True)
    items = tuple(
        Item(picture(tmp_path / name), picture(tmp_path / "out" / name, (3, 3)), "image")
        for name in ("a.png", "b.png")
    )
    events: list[Event] = []
    task = ImageTask(items, options, 1, 2, replaceable=frozenset({items[1].output}))
    task.run(EngineRoom(options, print), events.append, threading.Event())
    assert [Path(event.output).name for event in events if isinstance(event, Finished)] == ["b.png"]
    assert [Path(event.input).name for event in events if isinstance(event, Warned)] == ["a.png"]


def test_a_film_in_hand_elsewhere_is_passed_over(tmp_path: Path, nearest_engine: None) -> None:
    source, output = make(tmp_path / "in.mkv", frames=4, picture=noise), tmp_path / "out.mkv"
    with entered(output, None, lasting=True, anew=False):
        with pytest.raises(OutputError, match="another process"):
            run(str(source), str(output), UpscaleOptions(scale=2, threads=1))
        events: list[Event] = []
        options = UpscaleOptions(scale=2, threads=1, skip_existing=True)
        report = run(str(source), str(output), options, on_event=events.append)
    assert report.exit_code == 0 and not report.finished and not output.exists()
    assert [text.partition(":")[0] for text in warned(events)] == ["passed over"]


def test_more_workers_make_the_same_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders make other packets with another number of threads, so that workers do not share those."""
    monkeypatch.chdir(tmp_path)
    source = str(BUNNY)
    options = {"scale": 2, "threads": 2, "segment": "0.2", "frames": "12"}
    run(source, "one.mkv", UpscaleOptions(**options), isolate=True)
    run(source, "two.mkv", UpscaleOptions(**options, jobs=2), isolate=True)
    run(source, "other.mkv", UpscaleOptions(**{**options, "threads": 1}), isolate=True)
    one = packets(Path("one.mkv"))
    assert one == packets(Path("two.mkv")) and one != packets(Path("other.mkv"))


# ---------------------------------------------------------------- what is said, and when


def test_folders_that_cannot_be_written_are_told_first(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the system's answer is made up."""
    source, frozen = make(tmp_path / "in.mkv", frames=4, picture=noise), tmp_path / "frozen"
    picture(tmp_path / "pictures" / "a.png")
    frozen.mkdir()
    monkeypatch.setattr(
        temporary.os, "access", lambda path, mode: Path(path) != frozen and os.path.exists(path)
    )
    events: list[Event] = []
    for name, output in ((source, frozen / "out.mkv"), (tmp_path / "pictures", frozen / "deep" / "er")):
        with pytest.raises(OutputError, match="frozen: cannot be written"):
            run(str(name), str(output), UpscaleOptions(scale=2, work_dir=tmp_path), on_event=events.append)
    assert not events and not list(frozen.iterdir())


def test_the_work_folder_is_named_where_it_is_at_fault(tmp_path: Path, nearest_engine: None) -> None:
    source = make(tmp_path / "in.mkv", frames=4, picture=noise)
    with pytest.raises(OutputError, match=r"the folder .*in\.mkv for the unfinished work cannot be written"):
        run(str(source), str(tmp_path / "out.mkv"), UpscaleOptions(scale=2, work_dir=source))


def test_no_resume_says_what_it_throws_away(tmp_path: Path, nearest_engine: None) -> None:
    source, output = clip(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    options = {"scale": 2, "threads": 1, "segment": "0.5"}
    stop, on_event, _ = stop_after(20)
    with pytest.raises(Interrupted):
        run(str(source), str(output), UpscaleOptions(**options), on_event=on_event, stop=stop)
    assert work_path(output).is_dir()
    events: list[Event] = []
    run(str(source), str(output), UpscaleOptions(**options, resume=False), on_event=events.append)
    assert any("earlier work is thrown away" in text for text in warned(events))


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    picture(folder / "a.png")
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "gone.txt").symlink_to(tmp_path / "nothing.txt")
    for pattern in (str(folder), str(folder / "*.png")):
        plan = run_module.plan_items(pattern, str(tmp_path / "out"), UpscaleOptions())
        assert len(plan.items) == 1
        assert [text for text in plan.warnings if "nowhere" in text] == [
            f"{folder / 'gone.png'} is a link that leads nowhere and is left out"
        ]


def test_a_stopped_run_counts_its_files() -> None:
    options = UpscaleOptions(quiet=True)
    with Reporter(options) as reporter:
        assert reporter.progress_of_many() == ""
        reporter.on_event(Progress("b.png", 2, 61, 1.0, None, 0, None, items_done=2, items_total=61))
        for name in "ab":
            reporter.on_event(Finished(f"{name}.png", f"{name}-out.png", 1, 0, 1.0, 1, 2, 2))
        done = reporter.progress_of_many()
    default = str(Interrupted())
    assert _stopped(default, "", options) == default
    assert _stopped(default, done, options) == (
        "stopped before the end; 2 of 61 files are done, the same command goes on behind them"
    )
    assert _stopped("stopped at once", done, UpscaleOptions(resume=False)) == (
        "stopped at once; 2 of 61 files are done"
    )


def test_the_api_does_not_run_dry(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="describe"):
        rlfn_pipe.upscale(BUNNY, tmp_path / "out.mp4", scale=2, dry_run=True)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- sizes


def test_pictures_that_are_stretched_are_named(tmp_path: Path, nearest_engine: None) -> None:
    source = make(tmp_path / "in.mkv", frames=2, picture=noise)
    plan = describe(str(source), str(tmp_path / "out.mkv"), UpscaleOptions(size=(400, 200)))
    assert any("narrower" in note or "wider" in note for note in plan.notes)
    kept = describe(str(source), str(tmp_path / "out.mkv"), UpscaleOptions(scale=2))
    assert not any("narrower" in note or "wider" in note for note in kept.notes)
    image = picture(tmp_path / "in.png")
    plan = describe(str(image), str(tmp_path / "out.png"), UpscaleOptions(height=40, width=90))
    assert plan.notes == ("the picture becomes 1.5 times wider than it was, since both sides were given",)


def test_images_may_be_larger_than_frames() -> None:
    side = 12000
    assert side * side * 4 > MAXIMUM_PIXELS
    assert output_geometry(UpscaleOptions(scale=2), side, side).width == 2 * side
    with pytest.raises(UsageError, match="268 megapixels"):
        output_geometry(UpscaleOptions(scale=2), side, side, video=True)


def test_a_plan_of_many_needs_no_output(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    assert describe(str(tmp_path / "*.png"), None, UpscaleOptions()).items == 2


def test_options_without_effect_are_named(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "a.png")
    film = tmp_path / "in" / "b.mp4"
    film.symlink_to(BUNNY)

    def told(input: Path, output: str, preset: str | None = None, **options: object) -> tuple[str, ...]:
        given = run_module.named_format(str(input), str(tmp_path / output), resolve(options, preset))
        return run_module.plan_items(str(input), str(tmp_path / output), given).warnings

    assert told(image, "1.png", crf=20, frames=3) == ("--crf and --frames have no effect without videos",)
    assert told(image, "1.png", quality=50) == ("--quality has no effect without jpg, webp or avif",)
    assert told(image, "1.jpg", quality=50) == told(film, "1.mp4", crf=20) == ()
    assert told(film.parent, "out", crf=20, format="jpg", quality=50) == ()
    # A preset's are for whatever comes, and its format gives way to a name that says another.
    assert told(image, "1.png", "web") == ()
    assert told(image, "1.png", "web", codec="libx265") == ("--codec has no effect without videos",)
    with pytest.raises(UsageError, match="--format webp contradicts"):
        told(image, "1.png", format="webp")


def test_a_name_wins_over_a_presets_format(tmp_path: Path, nearest_engine: None) -> None:
    image = picture(tmp_path / "a.png")
    options = resolve({"scale": 2}, "web")
    assert describe(str(image), str(tmp_path / "1.png"), options).codec == "png"
    for name in ("1.png", "1.webp", "1.jpg"):
        run(str(image), str(tmp_path / name), options)
        with Image.open(tmp_path / name) as opened:
            assert opened.format == {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}[name[2:]]
    run(str(tmp_path), str(tmp_path / "out"), options)
    assert (tmp_path / "out" / "a.webp").read_bytes()[8:12] == b"WEBP"


@pytest.mark.parametrize(("scale", "told"), [(None, 1), (3, 1), (2, 0), (1.5, 0)])
def test_a_file_that_enlarges_less_than_is_asked_for_is_told_once(
    tmp_path: Path, scale: float | None, told: int
) -> None:
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png")
    options = UpscaleOptions(model=str(ROOT / "weights" / "rlfn-s-x2.safetensors"), scale=scale)
    events: list[Event] = []
    run(str(tmp_path / "in"), str(tmp_path / "out"), options, on_event=events.append)
    said = [text for text in warned(events) if "Lanczos" in text]
    assert len(said) == told and all("enlarges 2 times" in text and "-s 2 gives" in text for text in said)
    plan = describe(str(tmp_path / "in"), str(tmp_path / "other"), options)
    assert [text for text in plan.warnings if "Lanczos" in text] == said


@pytest.mark.parametrize("name", ["a.png", "a.mkv"])
def test_one_of_many_is_that_also_when_it_is_the_only_one(tmp_path: Path, name: str) -> None:
    """A script that reads `failed` and `summary` gets them whatever the number of files that are left."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "rlfn_pipe", "upscale", str(folder), str(tmp_path / "out"), "-s", "1", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and [event["event"] for event in events][-2:] == ["failed", "summary"]
    assert events[-1]["exit_code"] == 1 and name in events[-1]["failed"][0]["input"]
