"""The journal of one job: plain lines, appended and flushed to disk, so that work survives anything.

The first line is the header: what the job is (`fingerprint`) and how it computes (`settings`). Each
further line says that one segment is whole, or how far the joined file is. A damaged line costs its
segment, a damaged header the whole journal (`rlfn_pipe.jobs.lines` tells how lines are kept).
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rlfn_pipe.files import flush_folder
from rlfn_pipe.jobs.lines import append_line, read_lines
from rlfn_pipe.types import StageTimes

FORMAT = 1
_STAGES = {field.name for field in fields(StageTimes)}
#: Beyond what 64 bits hold.
_FAR = 1 << 63


@dataclass(frozen=True, slots=True)
class Header:
    """What a job is. Two jobs with equal fingerprints and settings give equal segments.

    `fingerprint`: input, options that change pixels or bits, weights, versions, machine kind;
    `settings`: what was resolved at the start and is pinned from then on (tile, batch, memory
    budget); `cuts`: first frame of each segment, and the end; `overwrite`: the job may replace
    an output that exists.
    """

    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    cuts: list[int]
    overwrite: bool = False
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Done:
    """A segment that is whole: what joining and the summary need to know of it.

    `bytes` and `digest` (BLAKE2b) are of its file; `pts` are source times of its frames; `stages`
    busy seconds; `exception` says what was not as planned (a smaller tile after memory ran out); `reuse`
    the engine's counts.
    """

    number: int
    bytes: int
    digest: str
    pts: list[int]
    concealed: int = 0
    damaged: int = 0
    notes: list[str] = field(default_factory=list)
    stages: dict[str, Any] = field(default_factory=dict)
    exception: str = ""
    reuse: dict[str, int | float] = field(default_factory=dict)


class JournalDamaged(Exception):
    """The journal cannot be used; the text says why."""


class Journal:
    """Appends to a journal file. Every `append` is on disk when it returns.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(
        self, path: Path, temporaries: tuple[Path, ...] = (), published: tuple[list[int], ...] = ()
    ) -> None:
        self._path = path
        #: Files in which an earlier run put the output together, and what they were (`file_identity`)
        #: when they were whole and about to take its name.
        self.temporaries, self.published = temporaries, published

    @classmethod
    def create(cls, path: Path, header: Header) -> Journal:
        """Begin a new journal; `path` must not exist."""
        append_line(path, asdict(header), new=True)
        flush_folder(path.parent)
        return cls(path)

    @classmethod
    def load(cls, path: Path, *, mend: bool = True) -> tuple[Journal, Header, dict[int, Done]]:
        """Read a journal and, with `mend`, mend its end.

        Raises:
            JournalDamaged: its header is of another format or damaged.
            OutputError: it cannot be read or mended.
        """
        lines = read_lines(path, mend=mend)
        if not lines:
            raise JournalDamaged("it holds no header")
        header = _header(lines[0])
        entries = [entry for line in lines[1:] if (entry := _done(line)) is not None]
        temporaries = [line["joining"] for line in lines[1:] if line and "joining" in line]
        published = [line["published"] for line in lines[1:] if line and "published" in line]
        journal = cls(
            path,
            tuple(Path(name) for name in temporaries if isinstance(name, str) and "\0" not in name),
            tuple(one for one in published if isinstance(one, list)),
        )
        return journal, header, {entry.number: entry for entry in entries}

    def joining(self, temporary: Path) -> None:
        """Say which file the output is put together in, so that a later run can remove it."""
        append_line(self._path, {"joining": str(temporary)})

    def publishing(self, identity: list[int]) -> None:
        """Say that the output is whole and will take its name next; it is known by `identity` then."""
        append_line(self._path, {"published": identity})

    def append(self, done: Done) -> None:
        """Say that a segment is whole; its file must be on disk under its name already."""
        append_line(self._path, asdict(done))


def _header(record: dict[str, Any] | None) -> Header:
    if record is None:
        raise JournalDamaged("its header does not read")
    if record.get("format") != FORMAT:
        raise JournalDamaged("another version wrote it")
    try:
        header = Header(**record)
    except TypeError:
        raise JournalDamaged("its header is of another kind") from None
    cuts = header.cuts
    if not (
        isinstance(header.fingerprint, dict)
        and type(header.overwrite) is bool
        and isinstance(header.settings, dict)
        and isinstance(cuts, list)
        and len(cuts) > 1
        and all(type(cut) is int and 0 <= cut < 1 << 48 for cut in cuts)
        and all(a <= b for a, b in itertools.pairwise(cuts))
    ):
        raise JournalDamaged("its header is of another kind")
    return header


def _done(record: dict[str, Any] | None) -> Done | None:
    """The segment that a line speaks of; None where the line is damaged."""
    try:
        done = Done(**(record or {}))
    except TypeError:
        return None
    whole = (
        all(type(value) is int and value >= 0 for value in (done.number, done.bytes))
        and all(type(value) is int and value >= 0 for value in (done.concealed, done.damaged))
        and all(isinstance(value, str) for value in (done.digest, done.exception))
        and isinstance(done.pts, list)
        and all(type(pts) is int and -_FAR < pts < _FAR for pts in done.pts)
        and isinstance(done.notes, list)
        and all(isinstance(note, str) for note in done.notes)
        and isinstance(done.stages, dict)
        and done.stages.keys() <= _STAGES
        and isinstance(done.reuse, dict)
        and all(type(value) in (float, int) for value in (*done.stages.values(), *done.reuse.values()))
    )
    return done if whole else None
