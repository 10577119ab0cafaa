"""Three stages that overlap: read in one thread, compute in the caller's, write in another.

::

    source ──queue──▶ compute ──queue──▶ sink
    (thread)          (caller)           (thread)

The queues are short, so memory does not grow with length. An exception in any stage ends the
others and is raised in the caller, with the stage and the frame it happened at.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Generic, TypeVar

from rlfn_pipe.errors import Interrupted
from rlfn_pipe.types import StageTimes

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")

#: Items that wait between two stages; enough to even out frames of unequal cost.
QUEUE_DEPTH = 4
_POLL_SECONDS = 0.1


class _End:
    """Marks the end of a stage's output."""


_END = _End()


class Cancelled(Exception):
    """Raised inside a stage when another one ended the run; never leaves the pipeline."""


class StageClock:
    """Counts what each stage takes, while they run; each field has one writer."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys((field.name for field in fields(StageTimes)), 0.0)

    @contextmanager
    def busy(self, stage: str) -> Iterator[None]:
        """Time a block of a stage in its own thread."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - wall)
            self.add(f"{stage}_cpu", time.thread_time() - cpu)

    def add(self, name: str, seconds: float) -> None:
        """Add to a field of `StageTimes`."""
        self._seconds[name] += seconds

    def times(self) -> StageTimes:
        """All counts so far."""
        return StageTimes(**self._seconds)


class Pipeline(Generic[In, Out]):
    """One run over `source`.

    Args:
        source: iterated in the reading thread.
        compute: takes an iterator of what the source gives, yields results in order; runs in
            the thread that calls `run`.
        sink: called in the writing thread with the results that are ready, at least one and at
            most `together`, in order.
        stop: when set, `run` raises `Interrupted` at the next step.
        abort: set when a stage has failed; a stage that waits for something else than another one looks at it and
            raises `Cancelled`.
        bytes_of: what a result takes; with `most_bytes` one waits before the sink's queue until it fits beside
            those that are not written yet (one always passes).
        clock: counts what the stages take (default: a new one).
    """

    def __init__(
        self,
        source: Iterable[In],
        compute: Callable[[Iterator[In]], Iterable[Out]],
        sink: Callable[[list[Out]], None],
        *,
        stop: threading.Event | None = None,
        abort: threading.Event | None = None,
        depth: int = QUEUE_DEPTH,
        together: int = 1,
        bytes_of: Callable[[Out], int] = lambda result: 0,
        most_bytes: int = 0,
        clock: StageClock | None = None,
    ) -> None:
        self._source, self._compute, self._sink = source, compute, sink
        self._together = together
        self._bytes_of, self._most_bytes = bytes_of, most_bytes
        self._unwritten = 0
        self._written = threading.Condition()
        self._stop = stop or threading.Event()
        self._inbox: queue.Queue[In | _End] = queue.Queue(depth)
        self._outbox: queue.Queue[Out | _End] = queue.Queue(depth)
        self._abort = abort or threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self.clock = clock or StageClock()
        self.done = 0

    def run(self) -> None:
        """Run to the end. Raises the first stage's exception, or `Interrupted`."""
        reader = threading.Thread(target=self._read, name="rlfn-pipe decode", daemon=True)
        writer = threading.Thread(target=self._write, name="rlfn-pipe encode", daemon=True)
        reader.start()
        writer.start()
        try:
            self._run_compute()
        except Cancelled:
            pass
        except BaseException as error:
            self._fail(error)
        finally:
            reader.join()
            writer.join()
        if self._failure is not None:
            raise self._failure

    # ------------------------------------------------------------------ stages

    def _read(self) -> None:
        count = 0
        try:
            iterator = iter(self._source)
            while True:
                with self.clock.busy("decode"):
                    item: In | _End = next(iterator, _END)
                self._put(self._inbox, item)
                if item is _END:
                    return
                count += 1
        except Cancelled:
            return
        except BaseException as error:
            error.add_note(f"while reading frame {count}")
            self._fail(error)

    def _run_compute(self) -> None:
        results = iter(self._compute(self._arrivals()))
        count = 0
        while True:
            try:
                with self.clock.busy("compute"):
                    result: Out | _End = next(results, _END)
            except Cancelled:
                raise
            except BaseException as error:
                error.add_note(f"while computing frame {count}")
                raise
            count += 1
            begin = time.perf_counter()
            if not isinstance(result, _End):
                self._admit(self._bytes_of(result))
            self._put(self._outbox, result)
            self.clock.add("waited_out", time.perf_counter() - begin)
            if result is _END:
                return

    def _admit(self, size: int) -> None:
        """Wait until a result of `size` bytes fits beside those that are not written yet."""
        with self._written:
            while self._unwritten and self._unwritten + size > self._most_bytes:
                self._check()
                self._written.wait(_POLL_SECONDS)
            self._unwritten += size

    def _arrivals(self) -> Iterator[In]:
        while True:
            begin = time.perf_counter()
            item = self._get(self._inbox)
            waited = time.perf_counter() - begin
            self.clock.add("waited_in", waited)
            self.clock.add("compute", -waited)  # it happens inside a step of compute
            if isinstance(item, _End):
                return
            yield item

    def _write(self) -> None:
        try:
            ended = False
            while not ended:
                results, ended = self._departures()
                if not results:
                    continue
                with self.clock.busy("encode"):
                    self._sink(results)
                self.done += len(results)
                with self._written:
                    self._unwritten -= sum(map(self._bytes_of, results))
                    self._written.notify()
                del results
        except Cancelled:
            return
        except BaseException as error:
            error.add_note(f"while writing frame {self.done}")
            self._fail(error)

    def _departures(self) -> tuple[list[Out], bool]:
        """The results that are ready (waits for the first), and whether the last one was among them."""
        results: list[Out] = []
        result = self._get(self._outbox)
        while not isinstance(result, _End):
            results.append(result)
            if len(results) == self._together:
                return results, False
            try:
                result = self._outbox.get_nowait()
            except queue.Empty:
                return results, False
        return results, True

    # ------------------------------------------------------------------ queues

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
        self._abort.set()

    def _check(self) -> None:
        if self._abort.is_set():
            raise Cancelled
        if self._stop.is_set():
            self._fail(interrupted(self._stop))
            raise Cancelled

    def _put(self, target: queue.Queue[T], item: T) -> None:
        while True:
            self._check()
            try:
                target.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def _get(self, target: queue.Queue[T]) -> T:
        while True:
            self._check()
            try:
                return target.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue


def interrupted(stop: threading.Event) -> Interrupted:
    """The error for a set stop token, with the signal that set it where the token knows it."""
    signum = getattr(stop, "signum", 0)
    return Interrupted(signum) if signum else Interrupted()
