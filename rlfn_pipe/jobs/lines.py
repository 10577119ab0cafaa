"""Files of plain lines that survive a power cut: JSON, a tab, and a checksum of the JSON.

Lines are only appended, each flushed to the disk before the call returns. A last line that is torn
is cut off when the file is read, a damaged line elsewhere reads as None.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any

from rlfn_pipe.errors import OutputError, advice_for, reason_of

#: The names can be known beforehand: a link is not followed, a pipe in a file's place not waited for.
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def append_line(path: Path, record: dict[str, Any], *, new: bool = False) -> None:
    """Write one more line, whole or not at all; `new`: the file must not exist yet.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps(record, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    line = b"%s\t%08x\n" % (text, zlib.crc32(text))
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CAREFUL | (os.O_EXCL if new else 0)
    try:
        descriptor = os.open(path, flags, 0o600)
        try:
            _check_plain(descriptor)
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError:
                # Half a line must not stand before later ones.
                os.ftruncate(descriptor, before)
                if new:
                    path.unlink()
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({reason_of(error)}); {advice_for(error, 'check the folder')}"
        ) from error


def read_lines(path: Path, *, mend: bool = True) -> list[dict[str, Any] | None]:
    """The records of all whole lines, None for damaged ones; `mend` cuts a torn last line off the file.

    Raises:
        OutputError: the file cannot be read or mended.
    """
    try:
        with open(os.open(path, os.O_RDONLY | _CAREFUL), "rb") as file:
            _check_plain(file.fileno())
            data = file.read()
        *whole, torn = data.split(b"\n")
        if torn and mend:
            os.truncate(path, len(data) - len(torn))
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({reason_of(error)}); remove it and run again") from None
    return [_parse(line) for line in whole]


def _check_plain(descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "is no plain file")


def _parse(line: bytes) -> dict[str, Any] | None:
    text, _, check = line.rpartition(b"\t")
    if check != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
