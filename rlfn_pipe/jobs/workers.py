"""Who does the computing: processes of our own that may die or hang without taking the job along.

`Inline` works in the calling process (the Python API's default). `Processes` spawns workers and
watches them: one that dies or makes no progress is replaced, its segment tried again. Both are used
from any thread; a call returns when its work is done.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rlfn_pipe.errors import EngineError, RlfnPipeError
from rlfn_pipe.jobs.image_task import ImageTask
from rlfn_pipe.jobs.inputs import Item
from rlfn_pipe.jobs.patience import Patience
from rlfn_pipe.jobs.process import WorkerProcess
from rlfn_pipe.jobs.serve import STOP, Done, Failed, PlanTask, Rooms, Warn
from rlfn_pipe.jobs.task import EngineFacts, SegmentProgress, SegmentResult, SegmentTask, run_segment
from rlfn_pipe.jobs.video_plan import VideoPlan
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.pipeline.stages import interrupted
from rlfn_pipe.types import Event, Finished
from rlfn_pipe.types import Failed as ItemFailed

#: How often a segment is tried before its death is reported.
ATTEMPTS = 3
_POLL_SECONDS = 0.05
#: A worker that was asked to stop and does not is ended after this.
_GRACE_SECONDS = 15.0


class WorkerDied(Exception):
    """A worker process died or hung; the text says how."""


class Workers(Protocol):
    """Something that computes segments and images."""

    count: int

    def plan(
        self, item: Item, options: UpscaleOptions, stop: threading.Event
    ) -> tuple[VideoPlan, EngineFacts]:
        """Open a video, settle everything, and say which engine will do it.

        Raises RlfnPipeError; Interrupted when `stop` was set.
        """

    def run(
        self, task: SegmentTask, *, on_progress: Callable[[SegmentProgress], None], patience: Patience
    ) -> SegmentResult:
        """Make one segment. Raises RlfnPipeError; Interrupted when patience ended."""

    def images(self, task: ImageTask, on_event: Callable[[Event], None], stop: threading.Event) -> None:
        """Work on images, each of which ends in a Finished or Failed event."""

    def close(self) -> None:
        """End what is running, from any thread; nothing can be run afterwards."""


def workers_for(
    options: UpscaleOptions,
    on_warning: Callable[[str, str], None],
    *,
    isolate: bool,
    first: WorkerProcess | None = None,
) -> Workers:
    """Worker processes, `first` among them, or the calling process itself.

    `on_warning` gets the input that a warning is about ("": images that are computed together), and the warning.
    """
    return Processes(options, on_warning, first) if isolate else Inline(options, on_warning)


class Inline:
    """Computes in this process, one thing at a time."""

    count = 1

    def __init__(self, options: UpscaleOptions, on_warning: Callable[[str, str], None]) -> None:
        #: Held while something is computed: what, is `_name`.
        self._lock, self._name = threading.Lock(), ""
        self._rooms = Rooms(options, lambda text: on_warning(self._name, text))

    def close(self) -> None:
        """Nothing to end: work happens in the caller's own thread."""

    def plan(
        self, item: Item, options: UpscaleOptions, stop: threading.Event
    ) -> tuple[VideoPlan, EngineFacts]:
        with self._lock:
            self._name = str(item.source)
            return self._rooms.plan(item, options, stop)

    def run(
        self, task: SegmentTask, *, on_progress: Callable[[SegmentProgress], None], patience: Patience
    ) -> SegmentResult:
        def told(progress: SegmentProgress) -> None:
            patience.progress(progress.frames)
            on_progress(progress)

        with self._lock:
            self._name = str(task.input)
            return run_segment(task, self._rooms.room(task), on_progress=told, stop=patience)

    def images(self, task: ImageTask, on_event: Callable[[Event], None], stop: threading.Event) -> None:
        with self._lock:
            self._name = _only(task)
            task.run(self._rooms.first, on_event, stop)


class Processes:
    """Spawned worker processes, one task at a time each, until `close`.

    Args:
        options: `device` may list several, which the workers share out, as they do `threads` (or all
            cores); `jobs` is their number (else one a device).
        on_warning: gets the engines' warnings and what happens to workers; see `workers_for`.
        first: a process that was started before, ended with the others.
    """

    def __init__(
        self,
        options: UpscaleOptions,
        on_warning: Callable[[str, str], None],
        first: WorkerProcess | None = None,
    ) -> None:
        devices = options.devices
        self.count = options.jobs or len(devices)
        self._warn = on_warning
        self._stall = options.stall_timeout
        self._all = [
            _Worker(replace(options, device=devices[i % len(devices)]), self.count) for i in range(self.count)
        ]
        self._closed = threading.Event()
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in reversed(self._all):
            self._idle.put(worker)
        self._all[0].start(first)  # it loads the program while the first film is planned

    def close(self) -> None:
        """Kill all workers; what runs in other threads ends as interrupted."""
        self._closed.set()
        for worker in self._all:
            worker.end()

    def plan(
        self, item: Item, options: UpscaleOptions, stop: threading.Event
    ) -> tuple[VideoPlan, EngineFacts]:
        """See `Workers.plan`; a file that ends the worker each time is an EngineError."""
        name = str(item.source)
        result = self._insist(PlanTask(item, options), name, name, _ignore, stop)
        plan, facts = result
        assert isinstance(plan, VideoPlan) and isinstance(facts, EngineFacts)
        return plan, facts

    def run(
        self, task: SegmentTask, *, on_progress: Callable[[SegmentProgress], None], patience: Patience
    ) -> SegmentResult:
        """Make one segment; a worker that dies or hangs costs one of `ATTEMPTS`."""

        def told(message: object) -> None:
            if isinstance(message, SegmentProgress):
                patience.progress(message.frames)
                on_progress(message)

        begin, end = task.part.first, task.part.last
        what = f"{task.name}: frames {begin} to {end - 1}"
        result = self._insist(task, str(task.input), what, told, patience)
        assert isinstance(result, SegmentResult)
        return result

    def images(self, task: ImageTask, on_event: Callable[[Event], None], stop: threading.Event) -> None:
        """Work on images; one that ends the worker again and again fails, the others go on."""
        left, deaths = list(task.items), Counter[str]()
        singly = 0  # how many are to be worked on alone, to find the one that ends the worker
        retried: frozenset[Path] = frozenset()
        while left:
            batch = left[:1] if singly else left
            ended: set[str] = set()

            def told(message: object, ended: set[str] = ended) -> None:
                if isinstance(message, Finished | ItemFailed):
                    ended.add(message.input)
                if isinstance(message, Event):
                    on_event(message)

            one = replace(
                task,
                items=tuple(batch),
                before=task.before + len(task.items) - len(left),
                replaceable=task.replaceable | retried,
            )
            try:
                self._attempt(one, _only(one), told, stop)
                left = left[len(batch) :]
                singly = max(0, singly - 1)
            except WorkerDied as death:
                left = [item for item in left if str(item.source) not in ended]
                # An output may have been put in place just before the death.
                retried = frozenset(item.output for item in left)
                if len(batch) > 1:
                    singly = 4 * task.workers + 8  # more than are read ahead
                    self._warn(
                        "", f"the worker {death}; the images that it had in hand are tried again one by one"
                    )
                    continue
                name = str(batch[0].source)
                deaths[name] += 1
                if deaths[name] < ATTEMPTS:
                    continue
                error = EngineError(f"{name}: the worker {death} {ATTEMPTS} times")
                if task.total == 1:
                    raise error from None
                on_event(ItemFailed(name, str(error)))
                left = left[1:]

    def _insist(
        self, task: Any, input: str, what: str, told: Callable[[object], None], stop: threading.Event
    ) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(task, input, told, stop)
            except WorkerDied as death:
                if attempt == ATTEMPTS:
                    raise EngineError(
                        f"{what}: the worker {death} {ATTEMPTS} times; try a smaller --tile, fewer --jobs, "
                        "or leave the place out with --start and --end"
                    ) from None
                self._warn(input, f"the worker {death}; what it was doing is tried again")
        raise AssertionError("the loop above returns or raises")

    def _attempt(self, task: Any, input: str, told: Callable[[object], None], stop: threading.Event) -> Any:
        while True:
            if stop.is_set() or self._closed.is_set():
                raise interrupted(stop)
            with suppress(queue.Empty):
                worker = self._idle.get(timeout=_POLL_SECONDS)
                break
        try:
            return worker.work(task, told, stop, partial(self._warn, input), self._stall)
        except WorkerDied:
            if self._closed.is_set():  # it was ended by us
                raise interrupted(stop) from None
            raise
        finally:
            self._idle.put(worker)


def _only(task: ImageTask) -> str:
    """The one image of a task, or ""."""
    return str(task.items[0].source) if len(task.items) == 1 else ""


def _ignore(message: object) -> None:
    """For tasks that tell nothing on their way."""


class _Worker:
    """One process, started when it is first needed and again after it died."""

    def __init__(self, options: UpscaleOptions, workers: int) -> None:
        self._settings = options, workers
        self._process: WorkerProcess | None = None
        #: Held while a process is started or let go of.
        self._changing, self._ended = threading.Lock(), False

    def start(self, process: WorkerProcess | None = None) -> WorkerProcess:
        """The process; where there is none, `process` or a new one. Raises WorkerDied after `end`."""
        with self._changing:
            if self._ended:
                raise WorkerDied("was ended")
            if self._process is None:
                self._process = process or WorkerProcess()
                # One that died before it heard of its work is found out by whoever waits for it.
                with suppress(OSError):
                    self._process.connection.send(self._settings)
            return self._process

    def kill(self) -> None:
        """End the process at once; the next work has a new one."""
        with self._changing:
            process, self._process = self._process, None
        if process is not None:
            process.kill()

    def end(self) -> None:
        """End the process at once, for good."""
        self._ended = True
        self.kill()

    def work(
        self,
        task: Any,
        told: Callable[[object], None],
        stop: threading.Event,
        warn: Callable[[str], None],
        stall: float,
    ) -> Any:
        """Hand over a task and wait for its end.

        Raises:
            WorkerDied: the process died or went `stall` seconds without a word.
            RlfnPipeError: the task's own failure; Interrupted when `stop` was set.
        """
        try:
            process = self.start()
            with _watched(process):
                process.connection.send(task)
            return self._wait(process, told, stop, warn, stall)
        except (RlfnPipeError, TaskDefect):
            raise  # the worker itself is well, or was ended below
        except BaseException:
            self.kill()
            raise

    def _wait(
        self,
        process: WorkerProcess,
        told: Callable[[object], None],
        stop: threading.Event,
        warn: Callable[[str], None],
        stall: float,
    ) -> Any:
        heard, asked = time.monotonic(), None
        while True:
            with _watched(process):
                message = process.connection.recv() if process.connection.poll(_POLL_SECONDS) else None
            now = time.monotonic()
            if message is not None:
                heard = now
            match message:
                case None if asked is not None and now - asked > _GRACE_SECONDS:
                    self.kill()
                    raise interrupted(stop)
                case None if now - heard > stall:
                    raise WorkerDied(f"made no progress for {stall:g} s")
                case Done():
                    return message.value
                case Failed():
                    raise _raised(message, stop)
                case Warn():
                    warn(message.text)
                case _:
                    told(message)
            if asked is None and stop.is_set():
                asked = now
                with _watched(process):
                    process.connection.send(STOP)


@contextmanager
def _watched(process: WorkerProcess) -> Iterator[None]:
    """Turn a broken pipe into what became of the process."""
    try:
        yield
    except (EOFError, OSError):
        raise WorkerDied(process.fate()) from None


class TaskDefect(RuntimeError):
    """A defect of the program inside a worker; its traceback is the exception's note."""


def _raised(failed: Failed, stop: threading.Event) -> BaseException:
    if failed.interrupted:
        return interrupted(stop)
    if failed.error is not None:
        return failed.error
    defect = TaskDefect(failed.defect)
    defect.add_note(failed.trace)
    return defect
