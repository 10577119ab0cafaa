"""Which files of a run with many are finished, so that the same command goes on behind them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlfn_pipe.errors import OutputError, advice_for, reason_of
from rlfn_pipe.files import TEMPORARY_SUFFIX
from rlfn_pipe.jobs.fingerprint import file_identity, lasting_options
from rlfn_pipe.jobs.lines import append_line, read_lines
from rlfn_pipe.models.registry import checksums

if TYPE_CHECKING:
    from rlfn_pipe.jobs.inputs import Item
    from rlfn_pipe.options import UpscaleOptions


class Ledger:
    """The finished items of one command; kept beside the outputs until all of them are done.

    An item counts as finished while its source and its output are as they were then (size and
    time of change). Another command (other input, output, options or weights) has a ledger of its own.

    Raises WeightsError when the weights cannot be read, OutputError when the ledger cannot.
    """

    def __init__(self, input: str, output: str, options: UpscaleOptions, *, mend: bool = True) -> None:
        from rlfn_pipe import __version__

        chosen = {**lasting_options(options), "model": checksums(options.model)}
        what = [os.path.abspath(input), os.path.abspath(output), chosen, __version__]
        mark = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()
        self._path = (options.work_dir or Path(output)) / f".files-{mark}{TEMPORARY_SUFFIX}"
        records = read_lines(self._path, mend=mend) if self._path.is_file() else []
        self._done = {record["output"]: record for record in records if record and "output" in record}

    def has(self, output: Path) -> bool:
        """Whether an output was finished by an earlier run of the same command and is unchanged."""
        record = self._done.get(os.path.abspath(output))
        return record is not None and record.get("written") == file_identity(output)

    def finished(self, item: Item) -> bool:
        """Whether an item needs no work: `has`, and its source is unchanged."""
        record = self._done.get(os.path.abspath(item.output))
        return (
            record is not None and self.has(item.output) and record.get("read") == file_identity(item.source)
        )

    def add(self, source: Path, output: Path) -> None:
        """Say that an item is finished.

        Raises:
            OutputError: the ledger cannot be written.
        """
        record: dict[str, Any] = {
            "output": os.path.abspath(output),
            "read": file_identity(source),
            "written": file_identity(output),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self._path.parent}: cannot be made ({reason_of(error)}); {advice_for(error, 'check the folder')}"
            ) from None
        append_line(self._path, record)
        self._done[record["output"]] = record

    def remove(self) -> None:
        """Everything is done: the next run is a new one."""
        self._path.unlink(missing_ok=True)
