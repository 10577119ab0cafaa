"""Events drawn for the person or printed for a script. The only file that uses rich.

On a terminal a progress bar, otherwise plain lines every few seconds, both on standard error;
with `--json` one object a line on standard output instead.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rlfn_pipe.cli.text import count_of, human_bytes, human_seconds, json_line, plain, printable, shortened
from rlfn_pipe.errors import OutputError, RlfnPipeError, reason_of
from rlfn_pipe.jobs.summary import Report
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Event, Failed, Finished, Progress, StageTimes, Started, Warned

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


class ErrorView(LineView):
    """Lines on standard error; where that is on a full disk, the job goes on without them."""

    def message(self, text: str) -> None:
        try:
            super().message(text)
        except BrokenPipeError:
            raise
        except OSError:
            # There is no place to say it.
            sys.stderr = self._file = io.StringIO()


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


class Reporter:
    """Takes a job's events from any thread and shows them as the options ask.

    A context manager: leaving it takes the progress bar away. When the reader of `--json` goes
    away, `output_closed` becomes true and the job is asked to stop; `output_error` says so when it is the
    disk behind it that is full. Raises `OutputError` when the log file cannot be opened.
    """

    def __init__(
        self,
        options: UpscaleOptions,
        stop: threading.Event | None = None,
        *,
        console: Console | None = None,
        interval: float = LINE_INTERVAL,
    ) -> None:
        self._options, self._stop = options, stop
        self._lock = threading.RLock()
        self._log = LogFile(options.log_file) if options.log_file else None
        self._view = view_for(console, interval, silent=options.quiet or options.json)
        self._warned: Counter[str] = Counter()
        self._started = 0
        self._finished, self._items = 0, 1
        self.output_closed = False
        self.output_error: OutputError | None = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._view.close()
            if self._log:
                self._log.close()

    # ------------------------------------------------------------- in

    def on_event(self, event: Event) -> None:
        """Show one event."""
        with self._lock:
            if self._options.json:
                self._emit({"event": type(event).__name__.lower(), **plain(event)})
            match event:
                case Started():
                    self._started += 1
                    arrow = f"{event.input} -> {event.output}"
                    text = f"{arrow}: {event.description}" if event.description else arrow
                    self._tell(text, show=self._started == 1 or self._options.verbose)
                case Progress():
                    self._items = event.items_total
                    self._view.progress(event)
                    self._note(lambda log: log.progress(event))
                case Warned():
                    self._warned[event.message] += 1
                    first = self._warned[event.message] == 1
                    text = f"warning: {_named(event.input, event.message)}"
                    self._tell(text, show=first or self._options.verbose)
                case Finished():
                    self._finished += 1
                    # A single item's line is the summary.
                    self._tell(
                        f"done: {finished_line(event)}", show=self._options.verbose and self._items > 1
                    )
                    if event.stages:
                        for line in stage_lines(event.stages, event.frames, event.seconds):
                            self._tell(line, show=self._options.verbose)
                    if event.reuse:
                        self._tell(reuse_line(event.reuse), show=self._options.verbose)
                case Failed():
                    self._tell(f"failed: {_named(event.input, event.message)}", error=True)

    def progress_of_many(self) -> str:
        """How many files of several are done, as a clause; empty for one file."""
        return f"{self._finished} of {self._items} files are done" if self._items > 1 else ""

    def summary(self, report: Report) -> None:
        """The last words: what was done, each failure when there were several items, warnings that came more than once."""
        with self._lock:
            if self._options.json:
                self._emit(
                    {
                        "event": "summary",
                        "finished": len(report.finished),
                        "failed": [plain(failure) for failure in report.failed],
                        "skipped": list(report.skipped),
                        "seconds": report.seconds,
                        "exit_code": report.exit_code,
                    }
                )
            self._view.close()
            # The log file has a single item's line already.
            said = len(report.finished) == 1 and not (report.failed or report.skipped)
            for line in summary_lines(report):
                if said:
                    self._view.message(line)
                else:
                    self._tell(line)
            for message, times in self._warned.items():
                if times > 1:
                    self._tell(f"warning: {message} ({times} times)")

    def stopped(self, error: RlfnPipeError) -> None:
        """The run ends early; the sentence itself is printed where exit codes are made."""
        with self._lock:
            if self._options.json:
                self._emit({"event": "error", "message": str(error), "exit_code": error.exit_code})
                error.in_json = True
            self._note(lambda log: log.message(f"error: {error}"))
            self._view.close()

    # ------------------------------------------------------------ out

    def _tell(self, text: str, *, show: bool = True, error: bool = False) -> None:
        self._note(lambda log: log.message(text))
        if error and isinstance(self._view, _Silent):
            ErrorView(sys.stderr).message(text)
        elif show:
            self._view.message(text)

    def _note(self, write: Callable[[LogFile], None]) -> None:
        """Into the log file, if there is one; a log that cannot be written any more stops no job."""
        if self._log is None:
            return
        log = self._log
        try:
            write(log)
        except OSError as error:
            self._log = None
            log.close()
            text = f"log file {self._options.log_file}: {reason_of(error)}; going on without it"
            self._tell(f"warning: {text}", error=True)

    def _emit(self, value: dict[str, Any]) -> None:
        if self.output_closed:
            return
        try:
            print(json_line(value), flush=True)
        except OSError as error:
            self.output_closed = True
            if not isinstance(error, BrokenPipeError):
                self.output_error = OutputError(f"standard output cannot be written: {reason_of(error)}")
                # What Python still holds for it would fail again at the end.
                sys.stdout = io.StringIO()
            if self._stop is not None:
                self._stop.set()


class _Silent:
    """A view that shows nothing (`--quiet`, `--json`)."""

    def progress(self, event: Progress) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def view_for(console: Console | None, interval: float = LINE_INTERVAL, *, silent: bool = False) -> View:
    """A bar on a terminal, plain lines elsewhere, nothing when silent."""
    if silent:
        return _Silent()
    if console is None:
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return ErrorView(sys.stderr, interval)
        from rich.console import Console

        console = Console(stderr=True)
    return BarView(console)


# ------------------------------------------------------------------ sentences


def _named(name: str, message: str) -> str:
    """`message` with the item's name before it, unless it names the item itself."""
    return message if not name or name in message else f"{name}: {message}"


def _rate(fps: float) -> str:
    return f"{fps:.0f} fps" if fps >= 100 else f"{fps:.1f} fps" if fps >= 1 else f"{fps:.2f} fps"


def progress_detail(event: Progress) -> str:
    """Frames, rate, time left, size written and the stage that limits."""
    total = f"/{event.frames_total}" if event.frames_total else ""
    parts = [f"{event.frames_done}{total} frames"]
    if event.fps > 0:
        parts.append(_rate(event.fps))
    if event.eta_seconds is not None:
        parts.append(f"{human_seconds(event.eta_seconds)} left")
    if event.bytes_written >= 1000:  # less is a container header, no news
        parts.append(human_bytes(event.bytes_written))
    if event.limit:
        parts.append(f"{event.limit} limits")
    return ", ".join(parts)


def progress_line(event: Progress) -> str:
    """One plain line of progress."""
    files = f" ({event.items_done}/{event.items_total} files done)" if event.items_total > 1 else ""
    return f"{event.input}: {progress_detail(event)}{files}"


def finished_line(event: Finished) -> str:
    """What became of one item."""
    rate = f" ({_rate(event.frames / event.seconds)})" if event.seconds > 0 and event.frames > 1 else ""
    frames = f"{count_of(event.frames, 'frame')}, " if event.frames != 1 else ""
    return (
        f"{event.output}: {frames}{event.width}x{event.height}, {human_bytes(event.bytes_written)} "
        f"in {human_seconds(event.seconds)}{rate}"
    )


def stage_lines(stages: StageTimes, frames: int, seconds: float) -> list[str]:
    """A table of what each stage took, the one that limits marked; `seconds` is the whole time."""
    whole, count = max(seconds, 1e-9), max(frames, 1)
    lines = ["stage     busy         of the time  a frame"]
    for stage, busy in stages.busy.items():
        mark = "  limits" if stage == stages.limit else ""
        lines.append(
            f"{stage:<9} {human_seconds(busy):<12} {100 * busy / whole:>9.0f} %  {1e3 * busy / count:.1f} ms{mark}"
        )
    lines.append(
        f"compute waited {human_seconds(stages.waited_in)} for frames, {human_seconds(stages.waited_out)} for the encoder"
    )
    return lines


def reuse_line(reuse: Mapping[str, int | float]) -> str:
    """What the engine computed and what it did not have to, in the words of its counts."""
    counts = (f"{name.replace('_', ' ')} {round(value, 1):g}" for name, value in reuse.items())
    return f"reuse: {', '.join(counts)}"


def summary_lines(report: Report) -> list[str]:
    """The end of a run in words."""
    items = len(report.finished) + len(report.failed) + len(report.skipped)
    lines = []
    if items == 1:
        lines += [finished_line(done) for done in report.finished]
        lines += [f"{name}: skipped, its output is there already" for name in report.skipped]
    else:
        parts = [f"{count_of(len(report.finished), 'file')} done"]
        if report.failed:
            parts.append(f"{len(report.failed)} failed")
        if report.skipped:
            parts.append(f"{len(report.skipped)} skipped (there already)")
        lines.append(f"{', '.join(parts)} in {human_seconds(report.seconds)}")
        lines += [f"failed: {_named(failure.input, failure.message)}" for failure in report.failed]
    return lines
