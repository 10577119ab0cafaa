"""From the progress of segments to that of their film."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rlfn_pipe.jobs.journal import Done
from rlfn_pipe.jobs.pace import Pace
from rlfn_pipe.jobs.task import SegmentProgress
from rlfn_pipe.types import Event, Progress


class Meter:
    """Adds up what segments report, from any thread, and tells it a few times a second.

    The rate counts only what this run has made.
    """

    def __init__(
        self,
        name: str,
        total: int,
        on_event: Callable[[Event], None],
        position: tuple[int, int],
        done: Iterable[Done],
    ) -> None:
        earlier = list(done)
        self._name, self._total, self._on_event, self._position = name, total, on_event, position
        self._earlier = sum(len(one.pts) for one in earlier)
        self._bytes = sum(one.bytes for one in earlier)
        self._frames = 0
        self._running: dict[int, tuple[int, Path]] = {}
        self._limit: str | None = None
        self._lock = threading.Lock()
        self._begin, self._pace = time.monotonic(), Pace()

    def update(self, number: int, progress: SegmentProgress, file: Path) -> None:
        """A segment in the making has come so far; `file` is what it is written to."""
        with self._lock:
            self._running[number] = (progress.frames, file)
            self._limit = progress.limit
            if not self._pace.due():
                return
            event = self._event()
        self._on_event(event)

    def finished(self, number: int, done: Done) -> None:
        """A segment is whole."""
        with self._lock:
            self._running.pop(number, None)
            self._frames += len(done.pts)
            self._bytes += done.bytes
            self._pace.due(always=True)
            event = self._event()
        self._on_event(event)

    def dropped(self, number: int) -> None:
        """A segment is not made any more, whole or not."""
        with self._lock:
            self._running.pop(number, None)

    def _event(self) -> Progress:
        now = time.monotonic()
        made = self._frames + sum(frames for frames, _ in self._running.values())
        fps = made / (now - self._begin) if now > self._begin else 0.0
        left = max(0, self._total - self._earlier - made)
        return Progress(
            input=self._name,
            frames_done=self._earlier + made,
            frames_total=self._total or None,
            fps=fps,
            eta_seconds=left / fps if fps and self._total else None,
            bytes_written=self._bytes + sum(_size(file) for _, file in self._running.values()),
            limit=self._limit,
            items_done=self._position[0],
            items_total=self._position[1],
        )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # renamed or removed a moment ago
        return 0
