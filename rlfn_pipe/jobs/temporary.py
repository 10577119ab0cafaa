"""Outputs appear by rename: work goes to an unpredictable private name beside the output."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rlfn_pipe.errors import OutputError, Taken, advice_for, reason_of
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
            raise Taken(f"{output}: appeared while its frames were made; use -y to replace it") from None
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


def check_place(path: Path) -> None:
    """Raise OutputError where an output's name is that of something else than a file, which would be lost."""
    with suppress(OSError):
        mode = path.lstat().st_mode
        if path.is_dir():
            raise OutputError(f"{path} is a folder, and a file is to be written; choose another OUTPUT")
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OutputError(
                f"{path} is a pipe or a device and no file; choose another OUTPUT, or - for a pipe"
            )


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `Taken` where an output exists and is not to be replaced, OutputError as `check_place`."""
    check_place(path)
    if os.path.lexists(path) and not overwrite:
        raise Taken(f"{path} exists; -y overwrites, --skip-existing leaves what is there")


def check_folder(folder: Path) -> None:
    """Raise OutputError where nothing can be written to a folder, or to the nearest one above that is there."""
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if os.path.isdir(place) and not os.access(place, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
        reason = "read-only file system" if read_only else "permission denied"
        raise OutputError(f"{place}: cannot be written ({reason}); choose another folder")
