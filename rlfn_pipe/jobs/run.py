"""From INPUT and OUTPUT to finished files: what the command and the Python API both call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rlfn_pipe.errors import RlfnPipeError
from rlfn_pipe.jobs.images import ImageRun
from rlfn_pipe.jobs.inputs import Item, Plan, expand
from rlfn_pipe.jobs.pipe import PIPE, upscale_pipe
from rlfn_pipe.jobs.room import EngineRoom
from rlfn_pipe.jobs.summary import Report
from rlfn_pipe.jobs.video import upscale_video
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.pipeline.stages import interrupted
from rlfn_pipe.types import Event, Failed, Finished, Warned

#: Threads that read and write images unless told otherwise; more only wait for the engine.
DEFAULT_IMAGE_WORKERS = 4


def plan_items(input: str, output: str, options: UpscaleOptions) -> Plan:
    """The files that INPUT means, and where each goes."""
    return expand(
        input,
        output,
        recursive=options.recursive,
        format=options.format,
        skip_existing=options.skip_existing,
        overwrite=options.overwrite,
    )


def run(
    input: str,
    output: str,
    options: UpscaleOptions,
    *,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Upscale everything that INPUT means into OUTPUT.

    Args:
        on_event: called with each event, one at a time, from several threads.
        stop: when set, the run ends at its next step and removes what is unfinished.

    Returns:
        What was done. With several items a failed one is in `Report.failed` and the others go on.

    Raises:
        RlfnPipeError: the one item of the run failed, or nothing could begin.
        Interrupted: `stop` was set.
    """
    begin = time.monotonic()
    if options.nice and hasattr(os, "nice"):
        os.nice(options.nice)
    if PIPE in (input, output):
        return _run_pipe(input, output, options, on_event or (lambda event: None), stop or threading.Event())
    plan = plan_items(input, output, options)
    state = _Run(options, on_event or (lambda event: None), stop or threading.Event(), len(plan.items))
    for warning in plan.warnings:
        state.emit(Warned(input, warning))
    state.work(plan.items)
    return Report(
        finished=tuple(state.finished),
        failed=tuple(state.failed),
        warned=tuple(state.warned),
        skipped=tuple(str(item.source) for item in plan.skipped),
        seconds=time.monotonic() - begin,
    )


def _run_pipe(
    input: str, output: str, options: UpscaleOptions, on_event: Callable[[Event], None], stop: threading.Event
) -> Report:
    begin = time.monotonic()
    state = _Run(options, on_event, stop, 1)
    done = upscale_pipe(input, output, options, state.room, on_event=state.emit, stop=stop)
    state.emit(done)
    return Report(finished=(done,), warned=tuple(state.warned), seconds=time.monotonic() - begin)


@dataclass
class _Run:
    options: UpscaleOptions
    on_event: Callable[[Event], None]
    stop: threading.Event
    total: int
    finished: list[Finished] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    warned: list[Warned] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._current = ""
        self.room = EngineRoom(self.options, lambda text: self.emit(Warned(self._current, text)))

    def emit(self, event: Event) -> None:
        """Hand an event on, one at a time whatever thread it comes from."""
        with self._lock:
            if isinstance(event, Warned):
                self.warned.append(event)
            self.on_event(event)

    def work(self, items: tuple[Item, ...]) -> None:
        """Images first, together; then the videos, one after another."""
        images = [item for item in items if item.kind == "image"]
        videos = [item for item in items if item.kind == "video"]
        # Wrong options must not be told once an item.
        self.room.spec_for(self.options.factor or 1.0)
        if images:
            self._images(images)
        for done, item in enumerate(videos):
            if self.stop.is_set():
                raise interrupted(self.stop)
            self._video(item, len(images) + done)

    def _images(self, items: list[Item]) -> None:
        workers = self.options.jobs or min(DEFAULT_IMAGE_WORKERS, os.cpu_count() or 1)
        run = ImageRun(
            items,
            self.options,
            self.room,
            on_event=self.emit,
            stop=self.stop,
            workers=min(workers, len(items)),
            position=(0, self.total),
        )
        try:
            run.run()
        finally:
            self.finished += run.finished
            self.failed += run.failed

    def _video(self, item: Item, done: int) -> None:
        self._current = str(item.source)
        try:
            result = upscale_video(
                item,
                self.options,
                self.room,
                on_event=self.emit,
                stop=self.stop,
                position=(done, self.total),
            )
        except RlfnPipeError as error:
            if self.stop.is_set() or self.total == 1:
                raise
            failed = Failed(self._current, str(error))
            self.failed.append(failed)
            self.emit(failed)
            return
        self.finished.append(result)
        self.emit(result)
