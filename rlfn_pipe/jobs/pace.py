"""How often a word of progress is worth its way: a few times a second."""

from __future__ import annotations

import time

__all__ = ["SECONDS", "Pace"]

#: Between two words.
SECONDS = 0.25


class Pace:
    """Tells when `SECONDS` have passed since the last word; the first is due so long after the beginning."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self, *, always: bool = False) -> bool:
        """Whether a word is due, or given `always`; it counts as said then."""
        now = time.monotonic()
        if not always and now - self._last < SECONDS:
            return False
        self._last = now
        return True
