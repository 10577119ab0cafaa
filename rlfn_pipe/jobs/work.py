"""The work folder of one job: segments and journal, private, locked, removed at success."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from rlfn_pipe.errors import OutputError, Taken, advice_for, reason_of
from rlfn_pipe.files import TEMPORARY_SUFFIX, flush_folder
from rlfn_pipe.jobs.earlier import Earlier, Verdict, judge, read_earlier
from rlfn_pipe.jobs.fingerprint import file_identity
from rlfn_pipe.jobs.journal import Done, Header, Journal, JournalDamaged
from rlfn_pipe.jobs.segments import Segment
from rlfn_pipe.jobs.temporary import check_folder

_JOURNAL, _LOCK = "journal", "lock"
_LONGEST_NAME = 200  # bytes; file systems allow 255


def work_path(output: Path, work_dir: Path | None = None) -> Path:
    """The folder for the work on `output`: hidden beside it, or inside `work_dir`."""
    place = os.fsencode(output.absolute())
    mark = hashlib.blake2b(place, digest_size=6).hexdigest()
    name = output.name if len(os.fsencode(output.name)) <= _LONGEST_NAME else "long-name"
    if work_dir is not None or name != output.name:
        name = f"{name}.{mark}"
    return (work_dir or output.parent) / f".{name}{TEMPORARY_SUFFIX}"


def foreseen(
    output: Path, work_dir: Path | None, header: Header, *, lasting: bool, anew: bool
) -> tuple[str, ...]:
    """What a run of the job `header` would say of earlier work on `output`, which is left as it is.

    The machine is not compared: nobody knows it before the network is loaded. `lasting` and `anew` as in `entered`.

    Raises:
        OutputError: the run would not begin.
    """
    try:
        found = read_earlier(work_path(output, work_dir) / _JOURNAL, mend=False)
    except OutputError:
        found = None  # the run says so, once it holds the folder's lock
    if isinstance(found, tuple):
        machine = found[1].fingerprint.get("machine")
        header = replace(header, fingerprint={**header.fingerprint, "machine": machine})
    verdict = judge(output, found, header, lasting=lasting, anew=anew)
    if verdict.published or not verdict.done:
        return verdict.notes
    return (f"{len(verdict.done)} of {len(header.cuts) - 1} segments are done, by an earlier run",)


def has_work(output: Path, work_dir: Path | None = None) -> bool:
    """Whether a folder of earlier work on `output` is there."""
    return work_path(output, work_dir).is_dir()


class Work:
    """An entered work folder. `done` holds the segments that are whole; `settings` what is pinned.

    `published`: an earlier run put the output in place and was killed before it had tidied up.
    """

    def __init__(
        self,
        path: Path,
        journal: Journal,
        header: Header,
        done: dict[int, Done],
        *,
        published: bool = False,
    ) -> None:
        self.path, self._journal, self.header, self.done = path, journal, header, done
        self.published = published

    @property
    def settings(self) -> dict[str, object]:
        return self.header.settings

    @property
    def bytes(self) -> int:
        """Size of all finished segments."""
        return sum(done.bytes for done in self.done.values())

    def file(self, segment: Segment) -> Path:
        """Where a finished segment lies."""
        return self.path / segment.file_name

    def new_file(self) -> Path:
        """An empty private file with an unpredictable name, for a segment in the making."""
        try:
            handle, name = tempfile.mkstemp(prefix="making-", suffix=".seg", dir=self.path)
            os.close(handle)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        return Path(name)

    def finish(self, segment: Segment, made: Path, done: Done) -> None:
        """Give a whole, flushed segment its name, then say so in the journal.

        Raises:
            OutputError: the folder cannot be written; the segment does not count then.
        """
        try:
            os.replace(made, self.file(segment))
            flush_folder(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._journal.append(done)
        self.done[segment.number] = done

    def joining(self, temporary: Path) -> None:
        """Say which file the output is put together in. Raises OutputError."""
        self._journal.joining(temporary)

    def publishing(self, temporary: Path) -> None:
        """Say that this file is whole and takes the output's name next. Raises OutputError."""
        self._journal.publishing(file_identity(temporary) or [])

    def free_bytes(self) -> int:
        """Free space where the folder lies."""
        return shutil.disk_usage(self.path).free


@contextmanager
def entered(output: Path, work_dir: Path | None, *, lasting: bool, anew: bool) -> Iterator[WorkFolder]:
    """Lock the work folder of `output`, made when missing; at the end it goes unless worth keeping.

    Args:
        lasting: keep what is finished for the next run (`--resume`).
        anew: leave to throw away work of another job (`-y`).

    Raises:
        OutputError: it cannot be made, is not private, or another process works in it.
    """
    path = work_path(output, work_dir)
    notes = _make(path, output)
    lock = FileLock(path / _LOCK, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise Taken(
            f"{output}: another process is working on it; wait for that one or choose another output"
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    folder = WorkFolder(path, output, lasting=lasting, anew=anew)
    folder.notes += notes
    try:
        yield folder
    finally:
        if not folder.keep():
            _remove(path)
        lock.release()


class WorkFolder:
    """A locked work folder before it is known what lies in it."""

    def __init__(self, path: Path, output: Path, *, lasting: bool, anew: bool) -> None:
        self.path, self._output, self._lasting, self._anew = path, output, lasting, anew
        self._work: Work | None = None
        self._spent = False
        self.notes: list[str] = []

    def keep(self) -> bool:
        """Whether something in it is of use to a later run."""
        if self._spent:
            return False
        if self._work is None:
            # It failed before the job was known, or may not begin: what an earlier run left stays.
            return (self.path / _JOURNAL).exists()
        return self._lasting and bool(self._work.done)

    def spent(self) -> None:
        """The output is in place: nothing here is of use any more."""
        self._spent = True

    def begin(
        self, header: Header, segments: tuple[Segment, ...], check: Callable[[Path, Done], bool]
    ) -> Work:
        """Go on with the earlier work when it is of the same job, else begin anew.

        `check` says whether a segment's file is what the journal says.

        Raises:
            OutputError: work of another job lies here and may not be thrown away.
        """
        found = self._load()
        verdict = judge(self._output, found, header, lasting=self._lasting, anew=self._anew)
        self.notes += verdict.notes
        self._work = (
            self._go_on(found[0], verdict, segments, check)
            if verdict.done and isinstance(found, tuple)
            else self._start(verdict.header)
        )
        return self._work

    def _go_on(
        self,
        journal: Journal,
        verdict: Verdict,
        segments: tuple[Segment, ...],
        check: Callable[[Path, Done], bool],
    ) -> Work:
        done = dict(verdict.done)
        if not verdict.published:
            kept = {
                segment.number: done[segment.number]
                for segment in segments
                if segment.number in done and check(self.path / segment.file_name, done[segment.number])
            }
            if lost := len(done) - len(kept):
                self.notes.append(f"{lost} segments of the earlier run are damaged and made again")
            self._sweep({segment.file_name for segment in segments if segment.number in kept})
            done = kept
        return Work(self.path, journal, verdict.header, done, published=verdict.published)

    def _start(self, header: Header) -> Work:
        self._sweep(set(), journal=False)
        try:
            journal = Journal.create(self.path / _JOURNAL, header)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return Work(self.path, journal, header, {})

    def _load(self) -> Earlier | JournalDamaged | None:
        try:
            found = read_earlier(self.path / _JOURNAL, mend=True)
            if isinstance(found, tuple):
                for temporary in found[0].temporaries:
                    # What the journal of a private folder names is ours; it is looked at nonetheless.
                    beside = temporary.parent == self._output.absolute().parent
                    if beside and temporary.name.endswith(TEMPORARY_SUFFIX):
                        temporary.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._output.parent, error) from error
        return found

    def _sweep(self, kept: set[str], *, journal: bool = True) -> None:
        """Remove what is of no use: segments in the making when the earlier run ended, and others."""
        _clear(self.path, kept | {_LOCK} | ({_JOURNAL} if journal else set()))


def _clear(path: Path, kept: set[str]) -> None:
    """Remove everything in a folder but these."""
    for entry in list(os.scandir(path)):
        if entry.name in kept:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)


def _remove(path: Path) -> None:
    """Remove a work folder, its journal last: it tells the next run what was done if this one is killed here."""
    with suppress(OSError):
        _clear(path, {_JOURNAL})
    shutil.rmtree(path, ignore_errors=True)


def _make(path: Path, output: Path) -> list[str]:
    """Make sure of the work folder; what is to be said of it."""
    # What cannot be had is told before the work, not after it.
    try:
        with suppress(FileNotFoundError):
            output.lstat()
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({reason_of(error)}); choose another name") from None
    check_folder(output.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = False
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            made = True
        status = path.lstat()
    except OSError as error:
        raise OutputError(
            f"{output}: the folder {path.parent} for the unfinished work cannot be written ({reason_of(error)}); "
            "choose another one"
        ) from None
    # Its name can be known beforehand, so somebody else may have put something there.
    ours = stat.S_ISDIR(status.st_mode)
    private = True
    if hasattr(os, "geteuid"):
        private = not status.st_mode & 0o077
        ours = ours and status.st_uid == os.geteuid() and (private or made or _has_a_fixed_mode(path))
    if not ours:
        raise OutputError(f"{path} is not a private folder of yours; remove it or give --work-dir")
    return (
        [] if private else ["others may read the unfinished work: its file system knows no private folders"]
    )


def _has_a_fixed_mode(path: Path) -> bool:
    """Whether a folder's mode is that of its mount (FAT, NTFS, SMB), so that setting another has no effect."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        before = os.fstat(descriptor).st_mode
        with suppress(OSError):
            os.fchmod(descriptor, 0o700)
        if os.fstat(descriptor).st_mode & 0o077:
            return True
        os.fchmod(descriptor, stat.S_IMODE(before))  # somebody has opened it to others
        return False
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({reason_of(error)}); {advice_for(error, 'check the folder')}"
    )
