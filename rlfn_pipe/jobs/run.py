"""From INPUT and OUTPUT to finished files: what the command and the Python API both call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlfn_pipe.allowance import cores
from rlfn_pipe.errors import EngineError, InputError, OutputError, RlfnPipeError, Taken
from rlfn_pipe.jobs.heard import warnings_heard
from rlfn_pipe.jobs.image_task import ImageTask
from rlfn_pipe.jobs.inputs import Item, Plan, expand
from rlfn_pipe.jobs.ledger import Ledger
from rlfn_pipe.jobs.pipe import PIPE, upscale_pipe
from rlfn_pipe.jobs.process import WorkerProcess
from rlfn_pipe.jobs.room import EngineRoom, shortfall
from rlfn_pipe.jobs.summary import Report
from rlfn_pipe.jobs.temporary import check_folder
from rlfn_pipe.jobs.together import for_each
from rlfn_pipe.jobs.video import upscale_video
from rlfn_pipe.jobs.work import has_work
from rlfn_pipe.jobs.workers import TaskDefect, Workers, workers_for
from rlfn_pipe.media.signatures import DEFAULT_QUALITY, IMAGE_EXTENSIONS, IMAGE_FORMATS
from rlfn_pipe.options import QUALITY_IMAGES, VIDEOS, UpscaleOptions
from rlfn_pipe.pipeline.stages import interrupted
from rlfn_pipe.presets import load_preset, without_effect
from rlfn_pipe.types import Event, Failed, Finished, Warned

#: Threads that read and write images unless told otherwise; more only wait for the engine.
DEFAULT_IMAGE_WORKERS = 4


def plan_items(input: str, output: str, options: UpscaleOptions, ledger: Ledger | None = None) -> Plan:
    """The files that INPUT means, and where each goes; what `ledger` calls finished is skipped."""
    plan = expand(
        input,
        output,
        recursive=options.recursive,
        format=options.format,
        skip_existing=options.skip_existing,
        overwrite=options.overwrite,
        resumable=lambda path: (
            options.resume and (has_work(path, options.work_dir) or (ledger is not None and ledger.has(path)))
        ),
    )
    plan = replace(plan, warnings=(*plan.warnings, *_idle(options, (*plan.items, *plan.skipped))))
    if ledger is None:
        return plan
    finished = tuple(item for item in plan.items if ledger.finished(item))
    rest = tuple(item for item in plan.items if item not in finished)
    return replace(plan, items=rest, skipped=(*plan.skipped, *finished))


def ledger_of(input: str, output: str, options: UpscaleOptions, *, mend: bool = True) -> Ledger | None:
    """What earlier runs of a command for many files finished; None where none is kept. See `Ledger`."""
    one = os.path.isfile(input) or not options.resume
    return None if one else Ledger(input, output, options, mend=mend)


def named_format(input: str, output: str, options: UpscaleOptions) -> UpscaleOptions:
    """`options`, without the format of a preset where OUTPUT names one image: the name says which."""
    named = os.path.isfile(input) and Path(output).suffix.lower() in IMAGE_EXTENSIONS
    if named and options.preset and load_preset(options.preset).values.get("format") == options.format:
        return replace(options, format="same")
    return options


def _idle(options: UpscaleOptions, items: tuple[Item, ...]) -> list[str]:
    """What to say of options that have no effect on any item."""
    present = {VIDEOS for item in items if item.kind == "video"}
    formats = {IMAGE_FORMATS.get(item.output.suffix.lower()) for item in items}
    present |= {QUALITY_IMAGES} if formats & DEFAULT_QUALITY.keys() else set()
    return [
        f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect without {about}"
        for about, names in without_effect(options, present).items()
    ]


def run(
    input: str,
    output: str,
    options: UpscaleOptions,
    *,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    isolate: bool = False,
    worker: WorkerProcess | None = None,
) -> Report:
    """Upscale everything that INPUT means into OUTPUT.

    Args:
        on_event: called with each event, one at a time, from several threads.
        stop: when set, the run ends at its next step; finished segments are kept, what is
            unfinished is removed.
        isolate: compute in worker processes, which may die without taking the run along. They have
            the caller's priority; `options.nice` is the caller's to heed.
        worker: one of these processes that was started before; it is ended with the others.

    Returns:
        What was done. With several items a failed one is in `Report.failed` and the others go on.

    Raises:
        RlfnPipeError: the one item of the run failed, or nothing could begin.
        Interrupted: `stop` was set.
    """
    begin = time.monotonic()
    options = named_format(input, output, options)
    state = _Run(input, options, on_event or (lambda event: None), stop or threading.Event())
    # Wrong options must not be told once an item.
    spec = EngineRoom(options, lambda text: None).spec_for(options.factor or 1.0)
    warnings = shortfall(options, spec)
    if options.nice and not isolate:
        # Nobody could raise the caller's priority again.
        warnings.append("nice has no effect in the calling process; os.nice() lowers its priority")
    if PIPE in (input, output):
        for warning in warnings:
            state.emit(Warned(input, warning))
        there = options.skip_existing and output != PIPE and os.path.lexists(output)
        if not there:
            state.pipe(output)
        return state.report((input,) if there else (), begin)
    ledger = ledger_of(input, output, options)
    plan = plan_items(input, output, options, ledger)
    _check_folders(plan.items)
    for warning in (*plan.warnings, *warnings):
        state.emit(Warned(input, warning))
    if plan.items:
        try:
            state.work(plan.items, ledger, isolate, worker)
        except (InputError, OutputError, EngineError) as error:
            # One of many that were asked for is one of many, also where it is the only one left.
            if os.path.isfile(input) or len(plan.items) > 1 or state.stopped:
                raise
            state.emit(Failed(str(plan.items[0].source), str(error)))
    if ledger is not None and not state.failed:
        ledger.remove()
    return state.report(tuple(str(item.source) for item in plan.skipped), begin)


def _check_folders(items: tuple[Item, ...]) -> None:
    """Raise what would otherwise be told once an item, or after its work."""
    faults: list[RlfnPipeError] = []
    folders = {item.output.parent for item in items}
    for folder in folders:
        try:
            check_folder(folder)
        except RlfnPipeError as error:
            faults.append(error)
    if faults and len(faults) == len(folders):
        raise faults[0]


class _Run:
    """What is going on, and what came of it."""

    def __init__(
        self, input: str, options: UpscaleOptions, on_event: Callable[[Event], None], stop: threading.Event
    ) -> None:
        self._input = input
        self._options, self._on_event, self._stop = options, on_event, stop
        self._finished: list[Finished] = []
        self._failed: list[Failed] = []
        self._warned: list[Warned] = []
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def failed(self) -> bool:
        """Whether an item failed."""
        return bool(self._failed)

    def report(self, skipped: tuple[str, ...], begin: float) -> Report:
        return Report(
            finished=tuple(self._finished),
            failed=tuple(self._failed),
            warned=tuple(self._warned),
            skipped=skipped,
            seconds=time.monotonic() - begin,
        )

    def emit(self, event: Event) -> None:
        """Hand an event on, one at a time whatever thread it comes from."""
        with self._lock:
            self._hand_on(event)

    def _hand_on(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._warned.append(event)
        elif isinstance(event, Finished):
            self._finished.append(event)
        elif isinstance(event, Failed):
            self._failed.append(event)
        try:
            if isinstance(event, Finished) and self._ledger is not None:
                self._ledger.add(Path(event.input), Path(event.output))
        except OutputError as error:
            # The item is done all the same.
            self._ledger = None
            text = f"what is finished cannot be noted down any more, so that the next run will not know it: {error}"
            self._hand_on(Warned(event.input, text))
        self._on_event(event)

    def _warn(self, input: str, text: str) -> None:
        """`input`: "" stands for the whole of INPUT."""
        self.emit(Warned(input or self._input, text))

    def pipe(self, output: str) -> None:
        """Raw video from or to a shell pipe: computed here, since the pipe is this process'."""
        input = self._input
        room = EngineRoom(self._options, partial(self._warn, input))
        try:
            with warnings_heard(partial(self._warn, input)):
                done = upscale_pipe(input, output, self._options, room, on_event=self.emit, stop=self._stop)
        except Taken as error:
            if not self._options.skip_existing:
                raise
            self.emit(Warned(input, error.passed_over))
        else:
            self.emit(done)

    def work(
        self, items: tuple[Item, ...], ledger: Ledger | None, isolate: bool, worker: WorkerProcess | None
    ) -> None:
        """Images first, together; then the videos, as many at a time as there are workers."""
        self._ledger = ledger
        images = tuple(item for item in items if item.kind == "image")
        videos = [item for item in items if item.kind == "video"]
        workers = workers_for(self._options, self._warn, isolate=isolate, first=worker)
        try:
            if images:
                threads = self._options.jobs or min(DEFAULT_IMAGE_WORKERS, cores())
                task = ImageTask(
                    images,
                    self._options,
                    min(threads, len(images)),
                    len(items),
                    replaceable=frozenset(item.output for item in images if os.path.lexists(item.output)),
                )
                workers.images(task, self.emit, self._stop)
            for_each(
                list(enumerate(videos, len(images))),
                lambda numbered: self._video(numbered[1], workers, (numbered[0], len(items))),
                workers.count,
                on_abort=workers.close,
            )
        finally:
            workers.close()

    def _video(self, item: Item, workers: Workers, position: tuple[int, int]) -> None:
        if self._stop.is_set():
            raise interrupted(self._stop)
        name = str(item.source)
        try:
            upscale_video(
                item, self._options, workers, on_event=self.emit, stop=self._stop, position=position
            )
        except RlfnPipeError as error:
            if self._options.skip_existing and isinstance(error, Taken):
                self.emit(Warned(name, error.passed_over))
                return
            if self._stop.is_set() or position[1] == 1:
                raise
            self.emit(Failed(name, str(error)))
        except TaskDefect as defect:
            if self._stop.is_set() or position[1] == 1:
                raise
            self.emit(
                Failed(name, f"internal error: {defect}; alone, and with RLFN_PIPE_DEBUG=1, it shows where")
            )
