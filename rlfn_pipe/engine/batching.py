"""Buckets of tiles that can run together; pure bookkeeping, no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Buckets(Generic[K, T]):
    """Items waiting under a key; items of one key may share a batch, whatever frame they are from.

    First in, first out within a key; keys are offered in the order in which they became non-empty.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[K, list[T]] = OrderedDict()

    def add(self, key: K, item: T) -> None:
        """Append an item."""
        self._waiting.setdefault(key, []).append(item)

    def oldest_first(self) -> Iterator[K]:
        """The non-empty keys, oldest first (a snapshot)."""
        return iter(list(self._waiting))

    def waiting(self, key: K) -> int:
        """How many items wait under `key`."""
        return len(self._waiting.get(key, ()))

    def take(self, key: K, count: int) -> list[T]:
        """Remove and return up to `count` items, oldest first."""
        items = self._waiting[key]
        taken, rest = items[:count], items[count:]
        if rest:
            self._waiting[key] = rest
        else:
            del self._waiting[key]
        return taken

    def put_back(self, key: K, items: list[T]) -> None:
        """Return items that were taken and not computed, to the front."""
        self._waiting[key] = items + self._waiting.get(key, [])
        self._waiting.move_to_end(key, last=False)

    def clear(self) -> None:
        """Drop everything."""
        self._waiting.clear()
