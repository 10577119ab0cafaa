"""Python's warnings of our own, on their way to whoever draws messages instead of straight to standard error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rlfn_pipe.errors import SlowerThanMeant

__all__ = ["warnings_heard"]


@contextmanager
def warnings_heard(tell: Callable[[str], None]) -> Iterator[None]:
    """Within, `tell` gets the text of each `SlowerThanMeant`, from any thread; for the whole process."""
    shown = warnings.showwarning

    def heard(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SlowerThanMeant):
            tell(str(message))
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = heard
    try:
        yield
    finally:
        warnings.showwarning = shown
