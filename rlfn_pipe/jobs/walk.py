"""Listing the files below a folder that nobody vouches for: links may loop, names may be anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rlfn_pipe.files import TEMPORARY_SUFFIX


class Walk:
    """The regular files below a folder, in natural order.

    Hidden files, unfinished outputs and the output folder are left out. Links are followed, but no
    folder is entered twice, so loops end.
    """

    def __init__(self, base: Path, output: Path, depth: int | None, hidden: bool = False) -> None:
        self.base, self.depth, self.hidden = base, depth, hidden
        self.warnings: list[str] = []
        #: Links that lead nowhere.
        self.dangling: list[Path] = []
        self.unentered = 0
        self._entered: set[tuple[int, int]] = set()
        self._output = identity_of(output)

    def files(self) -> list[Path]:
        """All files, sorted so that `img2` comes before `img10`."""
        from natsort import natsort_keygen, ns

        key = natsort_keygen(
            key=lambda path: path.relative_to(self.base).as_posix(), alg=ns.PATH | ns.IGNORECASE
        )
        return sorted(self._below(self.base), key=key)

    def _below(self, base: Path) -> Iterator[Path]:
        # A list and not recursion: folders can be nested deeper than Python's stack.
        waiting = [(base, 1)]
        while waiting:
            folder, level = waiting.pop()
            identity = identity_of(folder)
            if identity is None or identity in self._entered:
                continue
            self._entered.add(identity)
            subfolders: list[Path] = []
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.endswith(TEMPORARY_SUFFIX) or (
                            entry.name.startswith(".") and not self.hidden
                        ):
                            continue
                        path = folder / entry.name
                        if os.path.isdir(path):
                            subfolders.append(path)
                        elif os.path.isfile(path):
                            yield path
                        elif entry.is_symlink():
                            self.dangling.append(path)
            except OSError as error:
                self.warnings.append(f"{folder} cannot be read ({error.strerror or error}) and is left out")
                continue
            if self._output is not None:
                subfolders = [path for path in subfolders if identity_of(path) != self._output]
            if self.depth is not None and level >= self.depth:
                self.unentered += len(subfolders)
            else:
                # By name, so that of two ways to one folder always the same one is taken.
                waiting += [(path, level + 1) for path in sorted(subfolders, reverse=True)]


def matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a relative path fits a glob; `**` stands for any number of folders, also none, and at the
    glob's end for all files below.
    """
    if not wanted:
        return not parts
    if wanted[0] == "**":
        if len(wanted) == 1:
            return bool(parts)
        return any(matches(parts[i:], wanted[1:]) for i in range(len(parts) + 1))
    if not parts or (parts[0].startswith(".") and not wanted[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], wanted[0]) and matches(parts[1:], wanted[1:])


def identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to; None where it leads nowhere."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def is_same(one: Path, other: Path) -> bool:
    identity = identity_of(one)
    return identity is not None and identity == identity_of(other)
