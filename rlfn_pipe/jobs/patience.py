"""How long a stop request waits for the segment in hand."""

from __future__ import annotations

import threading
import time

#: A segment that needs less than this many seconds more is finished before the job stops.
QUICK_SECONDS = 10.0


class Patience(threading.Event):
    """The stop token of one segment: set when `stop` is, unless the segment is nearly done.

    At the first look after `stop` was set the time that is left is reckoned from the progress so
    far; when it is below `QUICK_SECONDS`, the token stays unset for at most that long.
    """

    def __init__(self, stop: threading.Event, frames: int) -> None:
        super().__init__()
        self._stop, self._frames = stop, frames
        self._begin = time.monotonic()
        self._done = 0
        self._deadline: float | None = None

    @property
    def signum(self) -> int:
        """The signal that asked to stop, 0 for none."""
        return getattr(self._stop, "signum", 0)

    def progress(self, done: int) -> None:
        """`done` frames of the segment are finished."""
        self._done = done

    def is_set(self) -> bool:
        if super().is_set():
            return True
        if not self._stop.is_set():
            return False
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + (QUICK_SECONDS if self._left(now) < QUICK_SECONDS else 0.0)
        if now >= self._deadline:
            self.set()
        return super().is_set()

    def _left(self, now: float) -> float:
        """Seconds until the segment is done, at the rate so far."""
        if not self._done:
            return float("inf")
        return (self._frames - self._done) * (now - self._begin) / self._done
