"""The work on one segment: what a worker is told, what it does, what it gives back."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlfn_pipe.errors import HardwareFailed, OutputError
from rlfn_pipe.jobs.hardware import Road, road_for
from rlfn_pipe.jobs.pace import Pace
from rlfn_pipe.media.colour import is_transparent
from rlfn_pipe.media.encoders import EncodePlan
from rlfn_pipe.media.part import Part
from rlfn_pipe.media.segment import SegmentSink
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.pipeline.stages import Pipeline, StageClock
from rlfn_pipe.types import Frame, StageTimes, Target

if TYPE_CHECKING:
    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.jobs.room import EngineRoom


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """One segment to make. Picklable; a pure function of its fields.

    `path`: the file to write; `name`: how messages call the output; `factor`: what the engine is
    chosen by; `settings`: the resolved settings that the engine is pinned to; `rate`: the
    encoder's frames a second.
    """

    input: Path
    part: Part
    encoding: EncodePlan
    target: Target
    factor: float
    rate: Fraction
    sample_aspect_ratio: Fraction | None
    path: Path
    name: str
    options: UpscaleOptions
    settings: dict[str, Any]
    threads: int


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """A segment that lies in its file, flushed to disk.

    `exception`: what was not as planned; `reuse`: see `rlfn_pipe.types.Finished`.
    """

    bytes: int
    digest: str
    pts: list[int]
    concealed: int
    damaged: int
    notes: list[str]
    stages: StageTimes
    exception: str = ""
    reuse: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SegmentProgress:
    """How far a segment is. Told for decoded frames as well: any word shows that the worker lives."""

    frames: int
    limit: str | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a worker says of the engine for a factor, before it is used.

    `settings`: all that was resolved; `machine`: the part of it that must be the same for a
    resumed job.
    """

    model: str
    scale: int
    device: str
    precision: str
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)


def engine_facts(room: EngineRoom, factor: float) -> EngineFacts:
    """Ask a room for its engine. Raises UsageError and WeightsError as the room does."""
    engine = room.engine_for(factor)
    settings: dict[str, Any] = room.resolved(factor)
    # Free memory differs from run to run; a resumed job keeps the budget that it began with.
    machine = {key: value for key, value in settings.items() if key != "budget"}
    machine["weights"] = engine.spec.sha256 or engine.spec.name
    return EngineFacts(
        engine.spec.name, engine.spec.scale, str(engine.device), engine.precision, settings, machine
    )


def run_segment(
    task: SegmentTask,
    room: EngineRoom,
    *,
    on_progress: Callable[[SegmentProgress], None],
    stop: threading.Event,
) -> SegmentResult:
    """Decode, upscale and encode one segment into its file, once more where a GPU's decoder fails.

    Raises:
        RlfnPipeError: it failed or `stop` was set; the file is of no use then.
    """
    engine = room.engine_for(task.factor)
    road = road_for(task.options, engine, task.part, task.encoding, task.target)
    try:
        return _made(task, engine, road, on_progress, stop)
    except HardwareFailed as error:
        made = _made(task, engine, replace(road, hardware=None), on_progress, stop)
        return replace(made, notes=[str(error), *made.notes])


def _made(
    task: SegmentTask,
    engine: Engine,
    road: Road,
    on_progress: Callable[[SegmentProgress], None],
    stop: threading.Event,
) -> SegmentResult:
    """`run_segment` by one road."""
    options, part = task.options, task.part
    before, limits = asdict(engine.statistics), engine.sizes.limits
    shrunk, shortages = limits.shrunk, limits.shortages
    source = VideoSource(
        task.input,
        on_error=options.on_error,
        deinterlace=options.deinterlace,
        threads=task.threads,
        part=part,
        hardware=road.hardware,
        # Where keyframes are rare there is much to decode before the first frame of the part.
        on_step=lambda: meter.tell(),
    )
    with source:
        sink = SegmentSink(
            task.path,
            task.encoding,
            task.rate,
            name=task.name,
            sample_aspect_ratio=task.sample_aspect_ratio,
            threads=task.threads,
            surfaces=road.surfaces,
        )
        clock = StageClock()
        meter = _Meter(sink, on_progress, clock)
        opacity = _Opacity(task.encoding.opaque)
        pipeline: Pipeline[Frame, Frame] = Pipeline(
            meter.watch(opacity.watch(source)),
            lambda frames: engine.run((frame, road.target) for frame in frames),
            meter.write,
            stop=stop,
            clock=clock,
        )
        try:
            pipeline.run()
            if not sink.frames:
                raise OutputError(f"{task.name}: no frame reached the encoder")
            sink.close()
        except BaseException:
            sink.abort()
            raise
        meter.tell(always=True)
    return SegmentResult(
        bytes=task.path.stat().st_size,
        digest=file_digest(task.path),
        pts=sink.pts,
        concealed=source.concealed,
        damaged=source.damaged,
        notes=[*source.notes, *opacity.notes],
        stages=clock.times(),
        exception=(
            "memory ran out: smaller tiles or batches" if shrunk or limits.shortages > shortages else ""
        ),
        reuse=counted_since(before, engine),
    )


def counted_since(before: Mapping[str, int | float], engine: Engine) -> dict[str, int | float]:
    """What an engine has counted since its statistics were `before`."""
    return {name: value - before[name] for name, value in asdict(engine.statistics).items()}


def added(counts: Iterable[Mapping[str, int | float]]) -> dict[str, int | float]:
    """The sum of such counts, field by field."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def file_digest(path: Path) -> str:
    """BLAKE2b of a file, as the journal has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class _Opacity:
    """Looks for transparent pixels in frames with alpha, and then says `note` (empty: does not look)."""

    def __init__(self, note: str) -> None:
        self._note = note
        self.notes: list[str] = []

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if self._note and not self.notes and is_transparent(frame.planes[-1], frame.colour):
                self.notes.append(self._note)
            yield frame


class _Meter:
    """Tells a few times a second how far the segment is, at each frame that comes in or goes out."""

    def __init__(
        self, sink: SegmentSink, on_progress: Callable[[SegmentProgress], None], clock: StageClock
    ) -> None:
        self._sink, self._on_progress, self._clock = sink, on_progress, clock
        self._pace = Pace()

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self.tell()
            yield frame

    def write(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._sink.write(frame)
        self.tell()

    def tell(self, *, always: bool = False) -> None:
        if self._pace.due(always=always):
            self._on_progress(SegmentProgress(self._sink.frames, self._clock.times().limit))
