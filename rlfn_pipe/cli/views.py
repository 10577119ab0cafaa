"""Where progress and messages are shown: bar, plain lines, log file. The only file that uses rich."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rlfn_pipe.cli.sentences import progress_detail, progress_line
from rlfn_pipe.cli.text import printable, shortened
from rlfn_pipe.errors import OutputError
from rlfn_pipe.types import Progress

if TYPE_CHECKING:
    from rich.console import Console

LINE_INTERVAL = 5.0  # seconds between plain progress lines
LOG_INTERVAL = 30.0  # seconds between progress lines in the log file
NAME_WIDTH = 32


class View(Protocol):
    """Somewhere to show progress and messages."""

    def progress(self, event: Progress) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class LineView:
    """Plain lines for pipes, files and dumb terminals; progress every few seconds."""

    def __init__(self, file: TextIO, interval: float = LINE_INTERVAL) -> None:
        self._file, self._interval = file, interval
        self._last = time.monotonic()

    def progress(self, event: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self.message(progress_line(event))

    def message(self, text: str) -> None:
        """Raises OSError as the file does."""
        print(printable(text), file=self._file, flush=True)

    def close(self) -> None:
        """Nothing to undo."""


class BarView:
    """rich's progress bar: one for the item in hand and, with several items, one for all."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            refresh_per_second=4,
            expand=True,
        )
        self._bars.start()
        self._item: Any = None
        self._all: Any = None

    def progress(self, event: Progress) -> None:
        name = shortened(printable(PurePath(event.input).name or event.input), NAME_WIDTH)
        if self._item is None:
            self._item = self._bars.add_task(name, total=None, detail="")
        self._bars.update(
            self._item,
            description=name,
            total=event.frames_total,
            completed=event.frames_done,
            detail=progress_detail(event),
        )
        if event.items_total > 1:
            detail = f"{event.items_done}/{event.items_total} files"
            if self._all is None:
                self._all = self._bars.add_task("all", total=event.items_total, detail=detail)
            self._bars.update(self._all, completed=event.items_done, detail=detail)

    def message(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def share(self, description: str, completed: float, detail: str) -> None:
        """Show a share from 0 to 1 of something that is not frames."""
        if self._item is None:
            self._item = self._bars.add_task(description, total=1.0, detail="")
        self._bars.update(self._item, description=description, completed=completed, detail=detail)

    def close(self) -> None:
        if self._bars.live.is_started:
            self._bars.stop()


class LogFile:
    """Everything that is said, with its time, appended to a file."""

    def __init__(self, path: Path) -> None:
        try:
            if path.is_file():  # not a terminal or a pipe, which would be waited for
                with path.open("rb") as there:
                    if b"\0" in there.read(1 << 12):
                        raise OutputError(f"log file {path} is there and is no text; choose another name")
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            raise OutputError(f"log file {path} cannot be written: {error.strerror}") from error
        self._view = LineView(self._file, LOG_INTERVAL)

    def progress(self, event: Progress) -> None:
        """Raises OSError when the disk is full."""
        self._view.progress(event)

    def message(self, text: str) -> None:
        """Raises OSError when the disk is full."""
        stamp = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        print(f"{stamp} {printable(text)}", file=self._file)

    def close(self) -> None:
        # What could not be written has been told.
        with suppress(OSError):
            self._file.close()


class Silent:
    """A view that shows nothing (`--quiet`, `--json`)."""

    def progress(self, event: Progress) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def view_for(*, silent: bool = False) -> View:
    """A bar where standard error is a terminal, plain lines elsewhere, nothing when silent."""
    if silent:
        return Silent()
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return LineView(sys.stderr)
    from rich.console import Console

    return BarView(Console(stderr=True))
