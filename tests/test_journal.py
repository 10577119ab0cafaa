"""What a job keeps on disk while it runs: lines, journal, work folder, ledger; and where films are cut."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlfn_pipe.errors import OutputError
from rlfn_pipe.jobs import ledger
from rlfn_pipe.jobs.fingerprint import differences, fingerprint, input_identity
from rlfn_pipe.jobs.inputs import Item
from rlfn_pipe.jobs.journal import Done, Header, Journal, JournalDamaged
from rlfn_pipe.jobs.ledger import Ledger
from rlfn_pipe.jobs.lines import append_line, read_lines
from rlfn_pipe.jobs.patience import QUICK_SECONDS, Patience
from rlfn_pipe.jobs.run import run
from rlfn_pipe.jobs.segments import Segment, plan_segments, segment_seconds
from rlfn_pipe.jobs.work import Work, entered, has_work, work_path
from rlfn_pipe.media.timing import Timeline
from rlfn_pipe.options import UpscaleOptions

HEADER = Header(
    {"input": {"size": 3}, "options": {"crf": 18}, "machine": {}, "version": {}}, {"tile": None}, [0, 5, 9]
)
SEGMENTS = (Segment(0, 0, 5), Segment(1, 5, 9))


def done(number: int, **more: Any) -> Done:
    return Done(number, 4, "d", [number * 5 + i for i in range(4)], **more)


# ------------------------------------------------------------------------ lines


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    records: list[dict[str, Any]] = [{"a": 1}, {"name": 'ä\n\t"\u2028'}, {"big": list(range(5000))}]
    for record in records:
        append_line(path, record)
    assert read_lines(path) == records
    assert os.stat(path).st_mode & 0o777 == 0o600


@given(st.integers(0, 400), st.binary(max_size=3))
@settings(max_examples=60)
def test_any_cut_and_any_tail_costs_only_the_last_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("cut") / "lines"
    records = [{"number": number, "text": "x" * number} for number in range(9)]
    ends = []
    for record in records:
        append_line(path, record)
        ends.append(path.stat().st_size)
    data = path.read_bytes()[:cut]
    path.write_bytes(data + tail.replace(b"\n", b""))
    whole = sum(end <= len(data) for end in ends)
    assert read_lines(path) == records[:whole]
    append_line(path, {"next": True})
    assert read_lines(path) == [*records[:whole], {"next": True}]


@given(st.integers(0, 300), st.integers(1, 255))
@settings(max_examples=100)
def test_a_flipped_byte_never_reads_as_something_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "lines"
    records = [{"number": number, "text": "x" * 9} for number in range(9)]
    for record in records:
        append_line(path, record)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(bytes(data))
    for found in read_lines(path):
        assert found is None or found in records


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    append_line(path, {"a": 1})
    before = path.read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: len(data) // 2]))
    with pytest.raises(OutputError, match=r"no space left.*run the same command again"):
        append_line(path, {"b": 2})
    assert path.read_bytes() == before


# ---------------------------------------------------------------------- journal


def test_journal_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.create(path, HEADER)
    entries = [done(1, concealed=2, notes=["n"]), done(0, exception="memory")]
    for entry in entries:
        journal.append(entry)
    again, header, found = Journal.load(path)
    assert header == HEADER and found == {1: entries[0], 0: entries[1]}
    again.append(done(2))
    assert set(Journal.load(path)[2]) == {0, 1, 2}
    with pytest.raises(OutputError):
        Journal.create(path, HEADER)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"garbage\n", b'{"format":1}\t00000000\n', b"\xff" * 100],
)
def test_a_damaged_header_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(JournalDamaged):
        Journal.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"cuts": [3]},
        {"cuts": [3, 1]},
        {"cuts": "no"},
        {"cuts": [0, True]},
        {"fingerprint": 1},
        {"extra": 1},
        {"overwrite": "yes"},
    ],
)
def test_a_header_of_another_kind_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "journal"
    append_line(path, {"fingerprint": {}, "settings": {}, "cuts": [0, 1], "format": 1, **change})
    with pytest.raises(JournalDamaged):
        Journal.load(path)


@pytest.mark.parametrize(
    "change", [{"bytes": -1}, {"pts": [1.5]}, {"number": "0"}, {"notes": [1]}, {"more": 1}, {"stages": []}]
)
def test_an_entry_of_another_kind_costs_its_segment(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "journal"
    journal = Journal.create(path, HEADER)
    append_line(path, {"number": 0, "bytes": 1, "digest": "", "pts": [], **change})
    journal.append(done(1))
    assert set(Journal.load(path)[2]) == {1}


# ------------------------------------------------------------------ work folder


def begin(
    output: Path, header: Header = HEADER, *, anew: bool = False, keep: int = 0, **more: Any
) -> tuple[Work, list[str]]:
    """Enter, begin, finish segments 0 .. keep - 1, and leave as an interrupted job would."""
    with entered(output, None, lasting=True, anew=anew) as folder:
        work = folder.begin(header, SEGMENTS, lambda path, done: path.read_bytes() == b"made")
        for segment in SEGMENTS[:keep]:
            made = work.new_file()
            made.write_bytes(b"made")
            work.finish(segment, made, done(segment.number))
        return work, folder.notes


def test_work_is_kept_and_found(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    begin(output, keep=1)
    assert has_work(output)
    folder = work_path(output)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    (folder / "making-xyz.seg").write_bytes(b"half")
    work, notes = begin(output)
    assert set(work.done) == {0} and not notes
    assert sorted(path.name for path in folder.iterdir() if path.name != "lock") == [
        "journal",
        "segment-00000.seg",
    ]


def test_nothing_is_kept_without_a_finished_segment(tmp_path: Path) -> None:
    begin(tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_work_without_leave_to_last_goes(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    with entered(output, None, lasting=False, anew=False) as folder:
        work = folder.begin(HEADER, SEGMENTS, lambda path, done: True)
        made = work.new_file()
        work.finish(SEGMENTS[0], made, done(0))
    assert not list(tmp_path.iterdir())


def test_spent_work_goes(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    begin(output, keep=2)
    with entered(output, None, lasting=True, anew=False) as folder:
        folder.begin(HEADER, SEGMENTS, lambda path, done: True)
        folder.spent()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"mad", b"made!", None])
def test_a_damaged_segment_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    output = tmp_path / "out.mp4"
    begin(output, keep=2)
    path = work_path(output) / SEGMENTS[0].file_name
    path.unlink() if damage is None else path.write_bytes(damage)
    with entered(output, None, lasting=True, anew=False) as folder:
        work = folder.begin(
            HEADER, SEGMENTS, lambda path, done: path.exists() and path.read_bytes() == b"made"
        )
    assert set(work.done) == {1} and "1 segments" in folder.notes[0]


def test_work_of_another_job_is_refused_and_named(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    begin(output, keep=1)
    other = replace(HEADER, fingerprint={**HEADER.fingerprint, "options": {"crf": 23}})
    with pytest.raises(OutputError, match=r"--crf was 18 and is 23.*-y"):
        begin(output, other)
    assert set(begin(output)[0].done) == {0}
    work, notes = begin(output, other, anew=True)
    assert not work.done and "--crf was 18" in notes[0]


def test_a_journal_without_a_finished_segment_stands_in_nobodys_way(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    work_path(output).mkdir(mode=0o700)
    Journal.create(work_path(output) / "journal", HEADER)
    work, notes = begin(output, replace(HEADER, fingerprint={**HEADER.fingerprint, "options": {"crf": 23}}))
    assert not work.done and not notes


@pytest.mark.parametrize("lasting", [True, False])
def test_a_run_that_may_not_begin_throws_nothing_away(tmp_path: Path, lasting: bool) -> None:
    """`--no-resume` without -y swept the work of a run with -y, and then refused to replace the output."""
    output = tmp_path / "out.mp4"
    begin(output, replace(HEADER, overwrite=True), keep=1)
    output.write_bytes(b"an earlier film")
    other = (
        HEADER if not lasting else replace(HEADER, fingerprint={**HEADER.fingerprint, "options": {"crf": 23}})
    )
    with (
        pytest.raises(OutputError, match="-y"),
        entered(output, None, lasting=lasting, anew=False) as folder,
    ):
        folder.begin(other, SEGMENTS, lambda path, done: True)
    assert set(begin(output)[0].done) == {0}


def test_a_film_that_is_cut_otherwise_is_another_job(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    begin(output, keep=1)
    with pytest.raises(OutputError, match="cut otherwise"):
        begin(output, replace(HEADER, cuts=[0, 4, 9]))


def test_settings_stay_those_of_the_beginning(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    begin(output, replace(HEADER, settings={"budget": 5}), keep=1)
    work, _ = begin(output, replace(HEADER, settings={"budget": 7}, overwrite=True))
    assert work.settings == {"budget": 5} and work.header.overwrite


def test_a_damaged_journal_begins_anew_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    begin(output, keep=1)
    (work_path(output) / "journal").write_bytes(b"nonsense\n")
    work, notes = begin(output)
    assert not work.done and "cannot be used" in notes[0]


def _hold(path: str, ready: Any, leave: Any) -> None:
    with entered(Path(path), None, lasting=True, anew=False):
        ready.set()
        leave.wait(30)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(output), ready, leave))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(OutputError, match="another process is working on it"):
            begin(output)
        process.kill()
        process.join()
        begin(output)  # the lock goes with the process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("trap", ["link", "file", "open"])
def test_a_work_folder_that_is_not_ours_alone_is_refused(tmp_path: Path, trap: str) -> None:
    output, elsewhere = tmp_path / "out.mp4", tmp_path / "elsewhere"
    path = work_path(output)
    elsewhere.mkdir(mode=0o700)
    if trap == "link":
        path.symlink_to(elsewhere)
    elif trap == "file":
        path.write_bytes(b"")
    else:
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(OutputError, match="not a private folder"):
        begin(output)
    assert not list(elsewhere.iterdir())


def test_a_file_system_without_modes_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT, NTFS and SMB give every folder the mode of their mount, whatever is asked for."""
    output, make = tmp_path / "out.mp4", os.mkdir

    def mkdir(path: Any, mode: int = 0o777) -> None:
        make(path)
        os.chmod(path, 0o755)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    for known in ({}, {0: done(0)}):
        with entered(output, None, lasting=True, anew=False) as folder:
            work = folder.begin(HEADER, SEGMENTS, lambda path, done: True)
            assert work.done == known and len(folder.notes) == 1 and "others may read" in folder.notes[0]
            if not known:
                work.finish(SEGMENTS[0], work.new_file(), done(0))
    monkeypatch.undo()
    with pytest.raises(OutputError, match="not a private folder"):
        begin(output)  # its mode can be changed, so somebody did
    assert work_path(output).stat().st_mode & 0o777 == 0o755


def test_names_of_work_folders(tmp_path: Path) -> None:
    beside = work_path(tmp_path / "a.mp4")
    assert beside.parent == tmp_path and beside.name == ".a.mp4.rlfn-part"
    longest = work_path(tmp_path / ("ä" * 125 + ".mp4"))
    assert len(os.fsencode(longest.name)) <= 255
    one, other = (work_path(tmp_path / name / "a.mp4", tmp_path / "work") for name in ("x", "y"))
    assert one != other and one.parent == other.parent == tmp_path / "work"


# ------------------------------------------------------------------ fingerprint


def test_fingerprint_tells_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(os.urandom(5 << 20))
    options = UpscaleOptions(crf=18)
    first = fingerprint(path, options, {"device": "cpu"})
    assert not differences(
        first,
        fingerprint(
            path, replace(options, verbose=True, jobs=2, reuse="off", overwrite=True), {"device": "cpu"}
        ),
    )
    assert differences(first, fingerprint(path, replace(options, crf=19.5), {"device": "cpu"})) == [
        "--crf was 18.0 and is 19.5"
    ]
    assert differences(first, fingerprint(path, options, {"device": "cuda:0"})) == [
        "device was cpu and is cuda:0"
    ]


def test_what_the_engine_repeats_of_the_options_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"film")
    plain, eight = (
        fingerprint(path, UpscaleOptions(tta=tta), {"tta": tta, "device": "cpu"}) for tta in (False, True)
    )
    assert differences(plain, eight) == ["--tta was False and is True"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_stands_in_the_journals_place_is_one_sentence(tmp_path: Path, kind: str) -> None:
    """Neither waited for nor followed."""
    output = tmp_path / "out.mp4"
    begin(output, keep=1)
    place, other = work_path(output) / "journal", tmp_path / "other"
    other.write_bytes(journal := place.read_bytes())
    place.unlink()
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "link":
            place.symlink_to(other)
    with pytest.raises(OutputError, match=r"journal: cannot be read \(.*\); remove it and run again"):
        begin(output)
    assert other.read_bytes() == journal


@pytest.mark.parametrize("place", [0, 1 << 20, (5 << 19) + 7, (5 << 20) - 1])
def test_changed_content_is_seen(tmp_path: Path, place: int) -> None:
    path = tmp_path / "in"
    data = bytearray(os.urandom(5 << 20))
    path.write_bytes(data)
    before, status = input_identity(path), path.stat()
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    same = place == 1 << 20  # neither head, middle nor tail: only the time tells
    assert (input_identity(path) == before) is same
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert input_identity(path) != before


# --------------------------------------------------------------------- segments


def table(frames: int, *, keyframes: tuple[int, ...] = (0,), trusted: bool = True) -> Timeline:
    return Timeline(
        np.arange(frames, dtype=np.int64) * 512, Fraction(1, 12800), 512, Fraction(25), True, trusted, frames,
        keyframes=np.array(keyframes, dtype=np.int64),
    )  # fmt: skip


@given(
    st.integers(1, 4000),
    st.integers(1, 400),
    st.lists(st.integers(0, 4000), max_size=30),
    st.integers(0, 200),
)
@settings(max_examples=200)
def test_segments_cover_everything_once(frames: int, length: int, keyframes: list[int], first: int) -> None:
    first = min(first, frames - 1)
    inside = tuple(sorted({k for k in keyframes if k < frames}))
    seconds = Fraction(length, 25)
    segments = plan_segments(table(frames, keyframes=inside), first, frames, seconds)
    assert [s.number for s in segments] == list(range(len(segments)))
    assert segments[0].first == first and segments[-1].last == frames
    assert all(a.last == b.first for a, b in itertools.pairwise(segments))
    assert all(s.frames >= max(1, length // 2) for s in segments) or len(segments) == 1
    assert all(s.frames <= 2 * length + 1 for s in segments)


def test_cuts_fall_on_keyframes_that_are_near() -> None:
    cuts = [
        s.first for s in plan_segments(table(1000, keyframes=(0, 240, 360, 730, 760)), 0, 1000, Fraction(10))
    ]
    assert cuts == [0, 240, 490, 730]


def test_a_table_that_is_not_trusted_is_one_segment() -> None:
    assert plan_segments(table(1000, trusted=False), 0, 1000, Fraction(2)) == (Segment(0, 0, 1000),)


def test_larger_outputs_have_shorter_segments() -> None:
    assert segment_seconds(1280, 720) == 10 == segment_seconds(1920, 1080)
    assert segment_seconds(3840, 2160) == Fraction(5, 2)
    assert segment_seconds(15360, 8640) == 2
    assert segment_seconds(15360, 8640, Fraction(30)) == 30


# --------------------------------------------------------------------- patience


def test_patience_waits_for_what_is_nearly_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stop = threading.Event()
    quick, slow, fresh = (Patience(stop, 100) for _ in range(3))
    now += 10.0
    quick.progress(60)  # 6.7 s left
    slow.progress(40)  # 15 s left
    assert not quick.is_set() and not slow.is_set() and not fresh.is_set()
    stop.set()
    assert not quick.is_set() and slow.is_set() and fresh.is_set()
    now += QUICK_SECONDS - 0.1
    assert not quick.is_set()
    now += 0.2
    assert quick.is_set()


# ----------------------------------------------------------------------- ledger


def test_ledger_knows_finished_items_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in" / "a.png", tmp_path / "out" / "a.png"
    source.parent.mkdir()
    source.write_bytes(b"source")
    arguments = (str(source.parent), str(output.parent))
    item = Item(source, output, "image")
    first = Ledger(*arguments, UpscaleOptions())
    assert not first.has(output) and not first.finished(item)
    output.parent.mkdir()
    output.write_bytes(b"output")
    first.add(source, output)
    second = Ledger(*arguments, UpscaleOptions(verbose=True))
    assert second.has(output) and second.finished(item)
    assert not Ledger(*arguments, UpscaleOptions(quality=50)).has(output)
    monkeypatch.chdir(tmp_path)
    typed = Ledger("in", "out", UpscaleOptions())
    assert typed.finished(Item(Path("in/a.png"), Path("out/a.png"), "image"))
    os.utime(source, ns=(1, 1))
    assert second.has(output) and not second.finished(item)
    output.write_bytes(b"another's")
    assert not second.has(output)
    second.remove()
    assert list(output.parent.iterdir()) == [output]


def test_an_item_that_cannot_be_noted_down_is_finished_all_the_same(
    tmp_path: Path, nearest_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, record: dict[str, Any]) -> None:
        raise OutputError(f"{path}: cannot be written (no space left on device)")

    monkeypatch.setattr(ledger, "append_line", full)
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(inputs / name)
    report = run(str(inputs), str(outputs), UpscaleOptions(scale=2))
    assert [Path(one.output).name for one in report.finished] == ["a.png", "b.png"] and not report.failed
    (warned,) = report.warned
    assert "cannot be noted down" in warned.message and warned.input == report.finished[0].input
