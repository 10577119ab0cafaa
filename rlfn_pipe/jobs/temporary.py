"""Outputs appear by rename: work goes to an unpredictable private name beside the output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlfn_pipe.errors import OutputError, advice_for, reason_of
from rlfn_pipe.files import TEMPORARY_SUFFIX, atomic_path


@contextmanager
def finished_by_rename(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary file beside `output`; at the end of the block it takes that name, whole.

    When the block raises, the temporary file is removed and `output` stays as it was.

    Raises:
        OutputError: the folder cannot be made or written, the disk is full, or `output`
            appeared meanwhile and may not be replaced.
    """
    with ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(atomic_path(output, overwrite=overwrite))
        except OSError as error:
            raise OutputError(
                f"{output}: cannot be written ({reason_of(error)}); choose another folder"
            ) from None
        yield temporary
        try:
            stack.close()
        except FileExistsError:
            raise OutputError(
                f"{output}: appeared while its frames were made; use -y to replace it"
            ) from None
        except OSError as error:
            advice = advice_for(error, "check its folder")
            raise OutputError(f"{output}: cannot be put in place ({reason_of(error)}); {advice}") from None


@contextmanager
def private_file(folder: Path) -> Iterator[Path]:
    """An empty file with an unpredictable name that only the user can read, gone after the block.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=".", suffix=TEMPORARY_SUFFIX, dir=folder)
        os.close(handle)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({reason_of(error)}); choose another folder"
        ) from None
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
