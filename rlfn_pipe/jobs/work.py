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
from rlfn_pipe.jobs.fingerprint import differences, file_identity
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
    path = work_path(output, work_dir) / _JOURNAL
    try:
        journal, before, done = Journal.load(path, mend=False)
    except OutputError:
        refuse_existing(output, header, anew)
        return ()
    except JournalDamaged as error:
        refuse_existing(output, header, anew)
        return (_unusable(error),) if lasting else ()
    machine = before.fingerprint.get("machine")
    changes = _changes(before, replace(header, fingerprint={**header.fingerprint, "machine": machine}))
    whole = len(done) == len(before.cuts) - 1
    if lasting and not changes and whole and file_identity(output) in journal.published:
        return ()
    if not lasting:
        refuse_existing(output, header, anew)
        return (_thrown_away(len(done)),) if done else ()
    if done and changes:
        if not anew:
            raise _of_another_job(output, changes)
        return (_given_up(changes),)
    refuse_existing(output, header if changes else before, anew)
    return (f"{len(done)} of {len(before.cuts) - 1} segments are done, by an earlier run",) if done else ()


def refuse_existing(output: Path, header: Header, overwrite: bool) -> None:
    """Raise Taken where there is an output that the job may not replace."""
    if os.path.lexists(output) and not (overwrite or header.overwrite):
        raise Taken(f"{output} exists; -y overwrites, --skip-existing leaves what is there")


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
    _make(path, output)
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
        if self._spent or not self._lasting:
            return False
        if self._work is None:
            # It failed before the job was known: what an earlier run left stays.
            return (self.path / _JOURNAL).exists()
        return bool(self._work.done)

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
        if found is not None:
            journal, before, done = found
            changes = _changes(before, header)
            if not changes and self._is_published(journal, segments, done):
                self._work = Work(self.path, journal, before, done, published=True)
                return self._work
            if not changes:
                kept = {
                    segment.number: done[segment.number]
                    for segment in segments
                    if segment.number in done and check(self.path / segment.file_name, done[segment.number])
                }
                lost = len(done) - len(kept)
                if lost:
                    self.notes.append(f"{lost} segments of the earlier run are damaged and made again")
                self._sweep({segment.file_name for segment in segments if segment.number in kept})
                merged = replace(before, overwrite=before.overwrite or header.overwrite)
                self._work = Work(self.path, journal, merged, kept)
                return self._work
            if done and not self._anew:
                raise _of_another_job(self._output, changes)
            if done:
                self.notes.append(_given_up(changes))
        self._sweep(set(), journal=False)
        try:
            journal = Journal.create(self.path / _JOURNAL, header)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._work = Work(self.path, journal, header, {})
        return self._work

    def _is_published(self, journal: Journal, segments: tuple[Segment, ...], done: dict[int, Done]) -> bool:
        """Whether what lies at the output's name is what an earlier run of this job put there."""
        identity = file_identity(self._output)
        return identity in journal.published and all(segment.number in done for segment in segments)

    def _load(self) -> tuple[Journal, Header, dict[int, Done]] | None:
        path = self.path / _JOURNAL
        if not path.exists():
            return None
        try:
            found = Journal.load(path)
            for temporary in found[0].temporaries:
                # What the journal of a private folder names is ours; it is looked at nonetheless.
                beside = temporary.parent == self._output.absolute().parent
                if beside and temporary.name.endswith(TEMPORARY_SUFFIX):
                    temporary.unlink(missing_ok=True)
            if not self._lasting:
                if found[2]:
                    self.notes.append(_thrown_away(len(found[2])))
                return None
            return found
        except OSError as error:
            raise _unwritable(self._output.parent, error) from error
        except JournalDamaged as error:
            if not self._lasting:
                return None
            note = _unusable(error)
            if note not in self.notes:
                self.notes.append(note)
            return None

    def _sweep(self, kept: set[str], *, journal: bool = True) -> None:
        """Remove what is of no use: segments in the making when the earlier run ended, and others."""
        _clear(self.path, kept | {_LOCK} | ({_JOURNAL} if journal else set()))


def _changes(before: Header, now: Header) -> list[str]:
    """What makes `now` another job than `before`, in words."""
    changes = differences(before.fingerprint, now.fingerprint)
    return changes or ([] if before.cuts == now.cuts else ["the film is cut otherwise"])


def _of_another_job(output: Path, changes: list[str]) -> OutputError:
    more = f" and {len(changes) - 2} more" if len(changes) > 2 else ""
    return OutputError(
        f"{output}: unfinished work of another job is kept for it ({'; '.join(changes[:2])}{more}); "
        "continue with the earlier options and input, or use -y to start anew"
    )


def _unusable(error: JournalDamaged) -> str:
    return f"the journal of an earlier run cannot be used ({error}); starting anew"


def _given_up(changes: list[str]) -> str:
    return f"earlier work is thrown away ({'; '.join(changes[:2])})"


def _thrown_away(segments: int) -> str:
    return f"earlier work is thrown away (segments: {segments}; --no-resume)"


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


def _make(path: Path, output: Path) -> None:
    # What cannot be had is told before the work, not after it.
    try:
        with suppress(FileNotFoundError):
            output.lstat()
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({reason_of(error)}); choose another name") from None
    check_folder(output.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise OutputError(
            f"{output}: the folder {path.parent} for the unfinished work cannot be written ({reason_of(error)}); "
            "choose another one"
        ) from None
    # Its name can be known beforehand, so somebody else may have put something there.
    ours = stat.S_ISDIR(status.st_mode)
    if hasattr(os, "geteuid"):
        ours = ours and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    if not ours:
        raise OutputError(f"{path} is not a private folder of yours; remove it or give --work-dir")


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({reason_of(error)}); {advice_for(error, 'check the folder')}"
    )
