"""Inside a worker process: take work from a pipe, tell progress and results back."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rlfn_pipe.errors import Interrupted, RlfnPipeError
from rlfn_pipe.jobs.heard import warnings_heard
from rlfn_pipe.jobs.image_task import ImageTask
from rlfn_pipe.jobs.inputs import Item
from rlfn_pipe.jobs.pace import Pace
from rlfn_pipe.jobs.process import STOPPING, load_torch_beside
from rlfn_pipe.jobs.room import EngineRoom
from rlfn_pipe.jobs.task import EngineFacts, SegmentTask, engine_facts, run_segment
from rlfn_pipe.jobs.video_plan import VideoPlan, plan_item
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.pipeline.stages import interrupted

#: Sent to a worker instead of work.
STOP = "stop"


@dataclass(frozen=True, slots=True)
class PlanTask:
    """Ask for the plan of a video and the engine that it needs."""

    item: Item
    options: UpscaleOptions


@dataclass(frozen=True, slots=True)
class Warn:
    """The engine warns."""

    text: str


@dataclass(frozen=True, slots=True)
class Alive:
    """The work goes on: a film is looked through, a picture has one more of its tiles."""


@dataclass(frozen=True, slots=True)
class Done:
    """The work is done; its result."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The work failed with an error of ours (`error`), or by a defect: what it is, where it was met, and its `trace`."""

    error: RlfnPipeError | None = None
    defect: str = ""
    trace: str = ""
    interrupted: bool = False


class Rooms:
    """The engines of one process, one of `workers`, by the settings that they are pinned to.

    `on_step` is called again and again, from any thread, while a film is planned or an engine computes.
    """

    def __init__(
        self,
        options: UpscaleOptions,
        on_warning: Callable[[str], None],
        workers: int = 1,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._options, self._on_warning, self._workers = options, on_warning, workers
        self._on_step = on_step
        self._rooms: dict[str, EngineRoom] = {}
        #: The room with settings of its own choice.
        self.first = EngineRoom(options, on_warning, workers=workers, on_step=on_step)

    def plan(
        self, item: Item, options: UpscaleOptions, stop: threading.Event
    ) -> tuple[VideoPlan, EngineFacts]:
        """A video's plan and its engine; a segment pinned to that one's settings will meet it again.

        Raises as `plan_item`; Interrupted when `stop` is set.
        """

        on_step = _unless_stopped(stop, self._on_step)
        plan = plan_item(item, options, on_step)
        on_step()
        facts = engine_facts(self.first, plan.geometry.factor)
        self._rooms[_key(facts.settings)] = self.first
        return plan, facts

    def room(self, task: SegmentTask) -> EngineRoom:
        """The room that computes with a task's settings."""
        key = _key(task.settings)
        if key not in self._rooms:
            self._rooms[key] = EngineRoom(
                self._options,
                self._on_warning,
                task.settings,
                workers=self._workers,
                on_step=self._on_step,
            )
        return self._rooms[key]


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def serve(connection: Connection) -> None:
    """Work until the other end closes the pipe, which also happens when its process dies.

    The first message is the engines' UpscaleOptions with the number of workers; each one after it a
    task, or `STOP`.
    """
    # The terminal sends these to every process; the coordinator decides what becomes of them.
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    sending = threading.Lock()

    def send(message: object) -> None:
        with sending:
            try:
                connection.send(message)
            except OSError:
                os._exit(1)  # nobody is there any more

    work: queue.Queue[Any] = queue.Queue()
    stop = threading.Event()

    def listen() -> None:
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            if message == STOP:
                stop.set()
            else:
                stop.clear()
                work.put(message)

    threading.Thread(target=listen, name="rlfn-pipe control", daemon=True).start()
    options, workers = work.get()
    if _wants_torch(options):
        load_torch_beside()
    # A picture may have tiles for minutes; what was computed of it is of no use to anybody.
    on_step = _unless_stopped(stop, _now_and_then(lambda: send(Alive())))

    def warn(text: str) -> None:
        send(Warn(text))

    rooms = Rooms(options, warn, workers, on_step)
    while True:
        task = work.get()
        try:
            with warnings_heard(warn):
                result = _run(task, rooms, send, stop)
            send(Done(result))
        except Interrupted:
            send(Failed(interrupted=True))
        except RlfnPipeError as error:
            send(Failed(error))
        except Exception as error:
            met = getattr(error, "__notes__", [])
            said = ", ".join([f"{type(error).__name__}: {error}", *met])
            send(Failed(defect=said, trace=traceback.format_exc()))


def _wants_torch(options: UpscaleOptions) -> bool:
    """Whether PyTorch will be needed for more than rare pictures, though there is a compiled part."""
    return options.compile == "on" or options.precision == "fp16"


def _unless_stopped(stop: threading.Event, step: Callable[[], None]) -> Callable[[], None]:
    """`step`, or Interrupted once `stop` is set."""

    def on_step() -> None:
        if stop.is_set():
            raise interrupted(stop)
        step()

    return on_step


def _now_and_then(say: Callable[[], None]) -> Callable[[], None]:
    """`say`, but not more often than a word is due."""
    pace = Pace()

    def on_step() -> None:
        if pace.due():
            say()

    return on_step


def _run(task: Any, rooms: Rooms, send: Callable[[object], None], stop: threading.Event) -> Any:
    if isinstance(task, PlanTask):
        return rooms.plan(task.item, task.options, stop)
    if isinstance(task, SegmentTask):
        return run_segment(task, rooms.room(task), on_progress=send, stop=stop)
    assert isinstance(task, ImageTask)
    return task.run(rooms.first, send, stop)
