"""Whole frames side by side, one a thread: nothing within a frame waits for anything.

Threads that share a frame meet some 20 times in it, and whenever an encoder takes one of their cores, the others
wait for that thread. So frames that have nothing in common are computed by one thread each. Their bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from rlfn_pipe.threads import work_alone

__all__ = ["Lanes", "Lone"]

T = TypeVar("T")


class Lone(Generic[T]):
    """A piece of work that one thread does."""

    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.future: Future[T] | None = None

    @property
    def done(self) -> bool:
        return self.future is not None and self.future.done()


class Lanes(Generic[T]):
    """Threads that do a piece of work each.

    Work is held back until there is enough of it for all `count` threads, for what comes alone is sooner done by
    all of them together.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads: ThreadPoolExecutor | None = None
        self._held: list[Lone[T]] = []
        self._begun: list[Lone[T]] = []

    def add(self, work: Callable[[], T]) -> Lone[T]:
        """Take on a piece of work."""
        lone = Lone(work)
        self._held.append(lone)
        if len(self._held) + self._busy() >= self.count:
            self._begin()
        return lone

    def result(self, lone: Lone[T]) -> T | None:
        """Wait for a result; raises what the work raised.

        None when it was still held back and no thread is busy: the caller does it in another way.
        """
        if lone.future is None:
            if not self._busy():
                self._held.remove(lone)
                return None
            self._begin()
        assert lone.future is not None
        return lone.future.result()

    def close(self) -> None:
        """Wait for what is being done; the rest is cancelled."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._held, self._begun = [], []

    def _busy(self) -> int:
        """Pieces that were begun, or wait for a thread."""
        self._begun = [lone for lone in self._begun if not lone.done]
        return len(self._begun)

    def _begin(self) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.count, "rlfn-pipe compute", initializer=work_alone)
        for lone in self._held:
            lone.future = self._threads.submit(lone.work)
        self._begun += self._held
        self._held = []
