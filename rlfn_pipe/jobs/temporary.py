"""Outputs appear by rename: work goes to an unpredictable private name beside the output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlfn_pipe.errors import OutputError
from rlfn_pipe.media.signatures import TEMPORARY_SUFFIX


@contextmanager
def finished_by_rename(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary file beside `output`; at the end of the block it takes that name, whole.

    When the block raises, the temporary file is removed and `output` stays as it was.

    Raises:
        OutputError: the folder cannot be made or written, the disk is full, or `output`
            appeared meanwhile and may not be replaced.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=TEMPORARY_SUFFIX, dir=output.parent)
        os.close(handle)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"{output}: cannot be written ({reason}); choose another folder") from None
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, output, overwrite)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _publish(temporary: Path, output: Path, overwrite: bool) -> None:
    """Flush to disk, give the usual permissions, rename."""
    try:
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        if not overwrite and output.exists():
            raise OutputError(f"{output}: appeared while its frames were made; use -y to replace it")
        os.replace(temporary, output)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"{output}: cannot be put in place ({reason})") from None
