"""Events shown to the person or printed for a script.

On a terminal a progress bar, otherwise plain lines every few seconds, both on standard error;
with `--json` one object a line on standard output instead.
"""

from __future__ import annotations

import io
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from rlfn_pipe.cli.sentences import finished_line, named, reuse_line, stage_lines, summary_lines
from rlfn_pipe.cli.text import json_line, plain
from rlfn_pipe.cli.views import LineView, LogFile, Silent, View, view_for
from rlfn_pipe.errors import OutputError, RlfnPipeError, reason_of
from rlfn_pipe.jobs.summary import Report
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Event, Failed, Finished, Progress, Started, Warned


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
        view: View | None = None,
    ) -> None:
        self._options, self._stop = options, stop
        self._lock = threading.RLock()
        self._log = LogFile(options.log_file) if options.log_file else None
        self._view = view or view_for(silent=options.quiet or options.json)
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
                    text = f"warning: {named(event.input, event.message)}"
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
                    self._tell(f"failed: {named(event.input, event.message)}", error=True)

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
        if error and isinstance(self._view, Silent):
            LineView(sys.stderr).message(text)
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
