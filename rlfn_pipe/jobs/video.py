"""One video, from file to file: segments are made, kept in a work folder, joined, checked, put in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlfn_pipe.errors import MORE_ROOM, EngineError, Interrupted, OutputError, RlfnPipeError
from rlfn_pipe.jobs.fingerprint import fingerprint
from rlfn_pipe.jobs.join import Joined, join, work_threads
from rlfn_pipe.jobs.journal import Done, Header
from rlfn_pipe.jobs.patience import Patience
from rlfn_pipe.jobs.progress import Meter
from rlfn_pipe.jobs.segments import Segment
from rlfn_pipe.jobs.summary import loss_notes
from rlfn_pipe.jobs.task import EngineFacts, SegmentTask, added, file_digest
from rlfn_pipe.jobs.together import for_each
from rlfn_pipe.jobs.video_plan import VideoPlan
from rlfn_pipe.jobs.work import Work, entered
from rlfn_pipe.jobs.workers import TaskDefect
from rlfn_pipe.media.segment import count_segment
from rlfn_pipe.pipeline.stages import interrupted
from rlfn_pipe.types import Event, Finished, StageTimes, Started, Target, Warned

if TYPE_CHECKING:
    from rlfn_pipe.jobs.inputs import Item
    from rlfn_pipe.jobs.workers import Workers
    from rlfn_pipe.options import UpscaleOptions

#: Free bytes that are left alone.
_RESERVE = 1 << 20
_DONE_BEFORE = "an earlier run had put the output in place already"


def upscale_video(
    item: Item,
    options: UpscaleOptions,
    workers: Workers,
    *,
    on_event: Callable[[Event], None],
    stop: threading.Event,
    position: tuple[int, int] = (0, 1),
) -> Finished:
    """Upscale one video. `position`: items done before this one, and items in all.

    What is returned was told to `on_event` already, before the work folder is removed: a run that is
    killed between the two finds in one of them that this item is done.

    Raises:
        RlfnPipeError: the item failed or was interrupted; its output was not touched, and the
            segments that are done are kept for the next run (unless `options.resume` is off).
    """
    begin = time.monotonic()
    name = str(item.source)
    with ExitStack() as stack:
        folder = stack.enter_context(
            entered(item.output, options.work_dir, lasting=options.resume, anew=options.overwrite)
        )
        plan, facts = workers.plan(item, options, stop)
        segments = plan.segments(options.segment)
        header = header_of(item, options, plan, segments, facts.machine, facts.settings)
        work = folder.begin(header, segments, _is_whole)
        description = _describe(plan, facts)
        if work.done:
            description += f", going on with {len(work.done)} of {len(segments)} segments done"
        on_event(Started(name, str(item.output), plan.frames or None, description))
        for note in (*plan.notes, *folder.notes):
            on_event(Warned(name, note))
        if work.published:
            joined = Joined(item.output.stat().st_size, (_DONE_BEFORE,))
        else:
            job = _Job(item, options, workers, plan, work)
            meter = Meter(name, plan.frames, on_event, position, work.done.values())
            tasks = [segment for segment in segments if segment.number not in work.done]
            try:
                job.make(tasks, meter, stop)
                joined = join(item, options, plan, work, segments, stop)
            except Interrupted as stopped:
                raise _with_what_is_kept(stopped, work, segments, options) from stopped.__cause__
        folder.spent()
        finished = _finished(item, plan, work, segments, joined, folder.notes, begin, on_event)
        on_event(finished)
    return finished


def _finished(
    item: Item,
    plan: VideoPlan,
    work: Work,
    segments: tuple[Segment, ...],
    joined: Joined,
    earlier: list[str],
    begin: float,
    on_event: Callable[[Event], None],
) -> Finished:
    """What became of the film; what is worth knowing of it is told at once."""
    name = str(item.source)
    done = [work.done[segment.number] for segment in segments]
    stages = sum((StageTimes(**one.stages) for one in done), StageTimes())
    concealed, damaged = sum(one.concealed for one in done), sum(one.damaged for one in done)
    told = (*plan.notes, *earlier)
    found = dict.fromkeys((*(note for one in done for note in one.notes), *joined.notes))
    late = [note for note in found if note not in told]
    frames = sum(len(one.pts) for one in done)
    late += loss_notes(frames, concealed, damaged)
    for note in late:
        on_event(Warned(name, note))
    return Finished(
        input=name,
        output=str(item.output),
        frames=frames,
        concealed=concealed,
        seconds=time.monotonic() - begin,
        bytes_written=joined.bytes,
        width=plan.encoding.width,
        height=plan.encoding.height,
        notes=tuple(dict.fromkeys((*told, *late))),
        stages=stages,
        reuse=added(one.reuse for one in done),
    )


class _Job:
    """The segments of one film on their way through the workers."""

    def __init__(
        self,
        item: Item,
        options: UpscaleOptions,
        workers: Workers,
        plan: VideoPlan,
        work: Work,
    ) -> None:
        self._item, self._options, self._workers = item, options, workers
        self._plan, self._work = plan, work
        self._settings = dict(work.settings)
        #: Held by whoever looks through the finished segments, or adds one.
        self._finishing = threading.Lock()

    def make(self, segments: list[Segment], meter: Meter, stop: threading.Event) -> None:
        """Make all of `segments`; what one worker fails at does not keep the others from going on.

        Raises:
            RlfnPipeError, TaskDefect: the first failure, after the others have ended.
        """
        failed: list[RlfnPipeError | TaskDefect] = []

        def one(segment: Segment) -> None:
            if any(not isinstance(error, EngineError) for error in failed):
                return
            try:
                self._make_one(segment, meter, stop)
            except (RlfnPipeError, TaskDefect) as error:
                failed.append(error)

        for_each(segments, one, self._workers.count, on_abort=self._workers.close)
        if stop.is_set() and (failed or any(s.number not in self._work.done for s in segments)):
            raise interrupted(stop)
        if failed:
            raise failed[0]

    def _make_one(self, segment: Segment, meter: Meter, stop: threading.Event) -> None:
        if stop.is_set():
            raise interrupted(stop)
        self._watch_disk()
        made = self._work.new_file()
        try:
            result = self._workers.run(
                self._task(segment, made),
                on_progress=lambda progress: meter.update(segment.number, progress, made),
                patience=Patience(stop, segment.frames),
            )
            self._check(segment, made, result.pts)
            done = Done(
                number=segment.number,
                bytes=result.bytes,
                digest=result.digest,
                pts=result.pts,
                concealed=result.concealed,
                damaged=result.damaged,
                notes=result.notes,
                stages=asdict(result.stages),
                exception=result.exception,
                reuse=result.reuse,
            )
            with self._finishing:
                self._work.finish(segment, made, done)
            meter.finished(segment.number, done)
        finally:
            meter.dropped(segment.number)
            made.unlink(missing_ok=True)

    def _task(self, segment: Segment, made: Path) -> SegmentTask:
        plan = self._plan
        return SegmentTask(
            input=self._item.source,
            part=replace(plan.part, first=segment.first, last=segment.last),
            encoding=plan.encoding,
            target=Target(plan.geometry.width, plan.geometry.height, plan.encoding.colour),
            factor=plan.geometry.factor,
            rate=plan.times.rate,
            sample_aspect_ratio=plan.sample_aspect_ratio,
            path=made,
            name=str(self._item.output),
            options=self._options,
            settings=self._settings,
            threads=work_threads(self._work),
        )

    def _check(self, segment: Segment, made: Path, pts: list[int]) -> None:
        """What lies in the file is what was reported, at times of this stretch of the table."""
        name, table = str(self._item.output), self._plan.part.timeline
        frames = count_segment(made, name)
        inside = not table.trusted or (
            int(table.pts[segment.first]) <= pts[0] and pts[-1] <= int(table.pts[segment.last - 1])
        )
        if frames != len(pts) or not inside:
            raise OutputError(
                f"{name}: segment {segment.number} holds {frames} frames of {len(pts)}, or others than it should; "
                "this is a defect, please report it"
            )

    def _watch_disk(self) -> None:
        """Stop while there is still room, rather than with half a segment."""
        with self._finishing:
            needed = max((one.bytes for one in self._work.done.values()), default=0) + _RESERVE
        free = self._work.free_bytes()
        if free < needed:
            raise OutputError(
                f"{self._item.output}: the disk has {free >> 20} MiB left and the next segment may need "
                f"{-(-needed >> 20)} MiB; {MORE_ROOM}"
            )


def header_of(
    item: Item,
    options: UpscaleOptions,
    plan: VideoPlan,
    segments: tuple[Segment, ...],
    machine: dict[str, Any],
    settings: dict[str, Any],
) -> Header:
    """What the job on an item is; `machine` and `settings` as in `EngineFacts`."""
    cuts = [segment.first for segment in segments] + [segments[-1].last]
    encoding = {
        "encoder": plan.encoding.codec,
        "pixel format": plan.encoding.pix_fmt,
        "encoder settings": plan.encoding.options,
    }
    return Header(fingerprint(item.source, options, machine, encoding), settings, cuts, options.overwrite)


def _is_whole(path: Path, done: Done) -> bool:
    """Whether a finished segment's file is still what the journal says."""
    try:
        return path.stat().st_size == done.bytes and file_digest(path) == done.digest
    except OSError:
        return False


def _with_what_is_kept(
    stopped: Interrupted, work: Work, segments: tuple[Segment, ...], options: UpscaleOptions
) -> Interrupted:
    """The same, with what is kept for the next run."""
    if not work.done or not options.resume:
        return stopped
    kept = f"{len(work.done)} of {len(segments)} segments are kept, the same command goes on from there"
    if len(work.done) == len(segments):
        kept = "the film is computed and kept, the same command puts it together"
    return Interrupted(stopped.signum, f"stopped before the end; {kept}")


def _describe(plan: VideoPlan, facts: EngineFacts) -> str:
    form, encoding = plan.part.format, plan.encoding
    return (
        f"{form.width}x{form.height} to {encoding.width}x{encoding.height}, {facts.model} x{facts.scale} "
        f"on {facts.device} in {facts.precision}, {encoding.codec} {encoding.pix_fmt}"
    )
