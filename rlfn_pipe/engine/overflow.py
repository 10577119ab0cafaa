"""Results that may not be finite, asked about late: the device is not waited for after each batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from rlfn_pipe.engine.arrays import Arrival

__all__ = ["Doubts"]

P = TypeVar("P")


class Doubts(Generic[P]):
    """What was computed and not yet checked: flags on their way from the device, and what each of them is about."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Arrival, Sequence[P]]] = deque()
        self._bad: list[P] = []
        self._settled = 0

    @property
    def added(self) -> int:
        """How many times something was added."""
        return self._settled + len(self._waiting)

    def add(self, finite: Arrival, items: Sequence[P]) -> None:
        """Flags (N,) of at most N `items`, on their way; spare ones at the end are about nothing."""
        self._waiting.append((finite, items))

    def settle(self, until: int | None = None) -> list[P]:
        """The items that are not finite, of what was added before there were `until` additions (None: of all).

        They stay on the list, which is the caller's to empty.
        """
        while self._waiting and (until is None or self._settled < until):
            arrival, items = self._waiting[0]
            flags = arrival.tensors()[0].tolist()
            self._waiting.popleft()
            self._settled += 1
            self._bad += [item for item, finite in zip(items, flags, strict=False) if not finite]
        return self._bad
