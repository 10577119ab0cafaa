"""Files that appear whole or not at all: the one way in which this package puts a file in place.

Work goes to a private temporary name in the same folder, is flushed to the disk, and takes the
wanted name by one rename. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Ends the names of files that are being written; whoever lists a folder leaves them out.
TEMPORARY_SUFFIX = ".rlfn-part"


@contextmanager
def atomic_path(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give an empty temporary file beside `target`; at the end of the block it becomes `target`.

    The temporary file has an unpredictable name and mode 0600. It may be written in any way, also
    by name. After the block it is flushed to the disk, gets the permissions that the umask leaves,
    is renamed, and the folder is flushed too, so that the name survives a power cut. A link at
    `target` is replaced, not followed. When the block or any of this fails, the temporary file is
    removed and `target` is as it was. The folder must exist.

    Raises:
        FileExistsError: `target` exists at the end and `overwrite` is False.
        OSError: the folder cannot be written, the name cannot be had, or the disk is full.
    """
    # A name that is too long is told now and not after hours of work.
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)
    handle, name = tempfile.mkstemp(prefix=".", suffix=TEMPORARY_SUFFIX, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o666 & ~current_umask())
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_to_free_name(temporary, target)
        flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(target: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Make `data` the content of `target`, as `atomic_path` does; raises as it does."""
    with atomic_path(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def flush_folder(folder: Path) -> None:
    """Write a folder's names to the disk, where the system can do that (Windows does it by itself)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network and FUSE file systems cannot flush folders; the rename is done nonetheless.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(kind: str) -> Path:
    """Where things of a kind are kept that can be had again: in `RLFN_PIPE_CACHE`, else in the user's cache folder.

    A user without a home (containers with a number for a user) has a place where nothing is and nothing can be written.
    """
    chosen = os.environ.get("RLFN_PIPE_CACHE")
    if chosen:
        return Path(chosen) / kind
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return (Path(base) if base else _home_cache()) / "rlfn-pipe" / kind


def _home_cache() -> Path:
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return Path(os.devnull)


def current_umask() -> int:
    """The process' umask, told without setting it where the system says (threads share it)."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_to_free_name(temporary: Path, target: Path) -> None:
    """Rename unless the name is taken; in one step where the file system has hard links."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists") from None
        os.rename(temporary, target)
