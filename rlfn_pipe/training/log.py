"""A run's log: one JSON object a line, cut back to the checkpoint when a run goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.files import write_atomically
from rlfn_pipe.training.events import Progress, Validated


class Log:
    """Appends records to `path`; each has `kind` ("train", "validation"), `stage` and `step`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def cut(self, stage: int, step: int) -> None:
        """Drop the records after (stage, step): what was done after the checkpoint is done again."""
        kept = [r for r in read_log(self._path) if (r["stage"], r["step"]) <= (stage, step)]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        try:
            write_atomically(self._path, text.encode("utf-8"))
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, event: Progress | Validated) -> None:
        """Append an event."""
        kind = "train" if isinstance(event, Progress) else "validation"
        try:
            with self._path.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"kind": kind, **asdict(event)}) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"{self._path}: the log cannot be written ({error.strerror or error});"
            " make room, then go on with --resume"
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole records of a log (a line cut off by a crash is left out)."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records
