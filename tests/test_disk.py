"""A disk that fills up in the middle of a job: one sentence, nothing lost, and on it goes with more room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from media_maker import make, noise
from test_resume import packets

from rlfn_pipe.errors import MORE_ROOM, InputError, OutputError, advice_for, is_full
from rlfn_pipe.jobs import lines, work
from rlfn_pipe.jobs.plan import describe
from rlfn_pipe.jobs.run import run
from rlfn_pipe.jobs.work import work_path
from rlfn_pipe.options import UpscaleOptions

CLIP = Path(__file__).parent / "data" / "bunny.mp4"
OPTIONS: dict[str, Any] = {"scale": 2, "threads": 1, "segment": "0.4", "crf": 20}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file system in memory and a way to set its size in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int, *more: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*more, f"size={size}k"]), "tmpfs", str(folder)]
        return (
            shutil.which("mount") is not None
            and not subprocess.run(command, capture_output=True, check=False).returncode
        )

    if not mount(4096):
        pytest.skip("mounting is not allowed here; test_video_errors.py has full disks by other means")
    try:
        yield folder, lambda size: None if mount(size, "remount") else pytest.fail("cannot remount")
    finally:
        subprocess.run(["umount", str(folder)], check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source of noise, and what an undisturbed job makes of it: in four segments."""
    folder = tmp_path_factory.mktemp("whole")
    source = make(
        folder / "in.mkv", frames=50, size=(96, 64), codec="ffv1", picture=lambda i: noise(i, size=(96, 64))
    )
    with pytest.MonkeyPatch.context() as patch:
        from conftest import use_nearest_engine

        use_nearest_engine(patch)
        run(str(source), str(folder / "out.mkv"), UpscaleOptions(**OPTIONS))
    return source, folder / "out.mkv"


def test_a_disk_that_is_full_from_the_start_keeps_no_empty_work(
    disk: tuple[Path, Callable[[int], None]],
) -> None:
    folder, _ = disk
    with pytest.raises(OSError, match="No space"), (folder / "fill").open("wb", buffering=0) as fill:
        while True:
            fill.write(bytes(1 << 16))
    with pytest.raises(OutputError, match=MORE_ROOM):
        run(str(CLIP), str(folder / "out.mp4"), UpscaleOptions(**OPTIONS))
    assert [path.name for path in folder.iterdir()] == ["fill"]


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9, 1.4, 1.7])
def test_with_more_room_it_goes_on(
    whole: tuple[Path, Path],
    disk: tuple[Path, Callable[[int], None]],
    nearest_engine: None,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """The disk holds so much of the output's size: segments do not fit, or the joined file beside them."""
    monkeypatch.setattr("rlfn_pipe.jobs.video._RESERVE", 0)
    (source, expected), (folder, resize) = whole, disk
    size = expected.stat().st_size // 1024
    resize(max(64, int(size * share)))
    output = folder / "out.mkv"
    with pytest.raises(OutputError, match=MORE_ROOM) as caught:
        run(str(source), str(output), UpscaleOptions(**OPTIONS))
    assert "\n" not in str(caught.value) and not output.exists()
    kept = len(list(work_path(output).glob("segment-*")))
    assert kept == 4 if share > 1.1 else kept < 4, str(caught.value)
    assert not list(work_path(output).glob("making-*"))
    resize(4 * size)
    run(str(source), str(output), UpscaleOptions(**OPTIONS))
    assert packets(output) == packets(expected)
    assert [path.name for path in folder.iterdir()] == ["out.mkv"]


@pytest.mark.parametrize("error", [OSError, av.error.OSError])
def test_a_full_disk_is_known_by_its_number_and_not_by_its_words(error: Any) -> None:
    """The system's words follow the language of the machine, and a folder may be called "space"."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert is_full(error(number, "kein Platz")) and advice_for(error(number, "?"), "no") == MORE_ROOM
    assert not is_full(error(errno.EACCES, "the space is locked"))
    assert advice_for(error(errno.EROFS, "no space"), "check the folder") == "check the folder"
    assert not is_full(InputError("no space"))


def test_what_is_written_in_the_work_folder_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = errno.EDQUOT

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lines.os, "write", fails)
    with pytest.raises(OutputError, match=MORE_ROOM):
        lines.append_line(tmp_path / "journal", {})
    number = errno.EIO
    with pytest.raises(OutputError, match="check the folder"):
        lines.append_line(tmp_path / "journal", {})


def test_it_stops_before_a_segment_that_may_not_fit(
    whole: tuple[Path, Path], tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = [1 << 30, 1 << 30, 100]
    monkeypatch.setattr(
        work.shutil, "disk_usage", lambda path: usage(1 << 31, 0, free.pop(0) if len(free) > 1 else free[0])
    )
    output = tmp_path / "out.mkv"
    with pytest.raises(OutputError, match=r"the disk has 0 MiB left and the next segment may need 2 MiB"):
        run(str(whole[0]), str(output), UpscaleOptions(**OPTIONS))
    assert len(list(work_path(output).glob("segment-*"))) == 2


def test_the_plan_says_what_the_work_needs(
    whole: tuple[Path, Path], tmp_path: Path, nearest_engine: None
) -> None:
    plan = describe(str(whole[0]), str(tmp_path / "out.mp4"), UpscaleOptions(**OPTIONS, codec="libx264"))
    assert plan.segments == 4 and plan.estimated_bytes and plan.work_bytes == 2 * plan.estimated_bytes
    assert plan.free_bytes and plan.free_bytes > 1 << 20


def command(*arguments: str, stdout: str) -> subprocess.CompletedProcess[str]:
    with open(stdout, "w") as sink:
        return subprocess.run(
            [sys.executable, "-m", "rlfn_pipe", "upscale", str(CLIP), *arguments],
            stdout=sink,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_sentence(tmp_path: Path) -> None:
    done = command(str(tmp_path / "out.mp4"), "-s", "2", "--frames", "2", "--json", stdout="/dev/full")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "rlfn-pipe: error: standard output cannot be written: no space left on device"
    )
    assert "internal" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_any_more_stops_no_job(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    done = command(
        str(output), "-s", "2", "--frames", "2", "-q", "--log-file", "/dev/full", stdout="/dev/null"
    )
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 1000
    assert "log file /dev/full: no space left on device; going on without it" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
