"""What becomes of earlier work on an output: one rule, for the run and for `--dry-run`, which foretells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlfn_pipe.errors import OutputError, reason_of
from rlfn_pipe.jobs.fingerprint import differences, file_identity
from rlfn_pipe.jobs.journal import Done, Header, Journal, JournalDamaged
from rlfn_pipe.jobs.temporary import check_free

#: A journal, the job that it is of, and its whole segments by number.
Earlier = tuple[Journal, Header, dict[int, Done]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The job as it goes on, or begins: its header, and which segments of an earlier run count.

    `published`: that run put the output in place and was killed before it had tidied up.
    """

    header: Header
    done: Mapping[int, Done] = field(default_factory=dict)
    published: bool = False
    notes: tuple[str, ...] = ()


def read_earlier(path: Path, *, mend: bool) -> Earlier | JournalDamaged | None:
    """What a journal holds; None where there is none.

    Raises:
        OutputError: it cannot be read, or with `mend` not mended.
    """
    try:
        return Journal.load(path, mend=mend) if path.exists() else None
    except PermissionError as error:  # not a folder of ours
        raise OutputError(f"{path}: cannot be read ({reason_of(error)}); check its permissions") from None
    except JournalDamaged as error:
        return error


def judge(
    output: Path,
    found: Earlier | JournalDamaged | None,
    now: Header,
    *,
    lasting: bool,
    anew: bool,
) -> Verdict:
    """What a run of the job `now` does with what `read_earlier` found. Changes nothing.

    Args:
        lasting: earlier work may be gone on with (`--resume`).
        anew: work of another job may be thrown away, and an output replaced (`-y`).

    Raises:
        OutputError: the run may not begin.
    """
    if found is None or isinstance(found, JournalDamaged):
        check_free(output, anew or now.overwrite)
        damaged = found is not None and lasting
        return Verdict(
            now,
            notes=(f"the journal of an earlier run cannot be used ({found}); starting anew",)
            if damaged
            else (),
        )
    journal, before, done = found
    if not lasting:
        check_free(output, anew or now.overwrite)
        note = f"earlier work is thrown away (segments: {len(done)}; --no-resume)"
        return Verdict(now, notes=(note,) if done else ())
    changes = _changes(before, now)
    if changes:
        if done and not anew:
            raise _of_another_job(output, changes)
        check_free(output, anew or now.overwrite)
        return Verdict(
            now, notes=(f"earlier work is thrown away ({'; '.join(changes[:2])})",) if done else ()
        )
    if len(done) == len(before.cuts) - 1 and file_identity(output) in journal.published:
        return Verdict(before, done, published=True)
    merged = replace(before, overwrite=before.overwrite or now.overwrite)
    check_free(output, anew or merged.overwrite)
    return Verdict(merged, done)


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
