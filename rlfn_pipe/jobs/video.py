"""One video, from file to file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rlfn_pipe.errors import OutputError
from rlfn_pipe.jobs.geometry import Geometry, output_geometry
from rlfn_pipe.jobs.temporary import finished_by_rename
from rlfn_pipe.media.avi import whole_frames
from rlfn_pipe.media.encoders import ROTATING_MUXERS, EncodePlan, muxer_for, plan_encoding
from rlfn_pipe.media.opening import open_media
from rlfn_pipe.media.sink import SinkTimes, VideoSink
from rlfn_pipe.media.source import Selection, SourceFormat, VideoSource
from rlfn_pipe.media.streams import Carrier, StreamPlan, earliest, plan_streams
from rlfn_pipe.media.tags import stream_tags
from rlfn_pipe.media.timing import Clock, Timeline, clock_for
from rlfn_pipe.media.verify import verify_video
from rlfn_pipe.pipeline.stages import Pipeline
from rlfn_pipe.types import Event, Finished, Frame, Progress, Started, Target, Warned

if TYPE_CHECKING:
    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.jobs.inputs import Item
    from rlfn_pipe.jobs.room import EngineRoom
    from rlfn_pipe.options import UpscaleOptions

_PROGRESS_SECONDS = 0.25

#: A window that begins with the clip keeps what other streams have before the first frame.
_LONG_AGO = Fraction(-(1 << 40))

#: Containers in which no stream may begin before zero.
_NO_NEGATIVE_TIMES = frozenset({"matroska", "webm", "avi", "mpegts", "nut"})


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """Everything that is settled before the first frame is computed."""

    geometry: Geometry
    encoding: EncodePlan
    streams: tuple[StreamPlan, ...]
    times: SinkTimes
    matrix: tuple[int, ...] | None
    window: tuple[Fraction, Fraction | None] | None
    notes: tuple[str, ...]


def open_source(item: Item, options: UpscaleOptions) -> VideoSource:
    """The item's frames with the options that concern reading. Enter it as a context."""
    muxer = muxer_for(item.output)
    return VideoSource(
        item.source,
        selection=Selection(options.start, options.end, options.frames, options.sample),
        on_error=options.on_error,
        deinterlace=options.deinterlace,
        bake_rotation=options.rotate == "bake" or muxer not in ROTATING_MUXERS,
        threads=options.threads or 0,
    )


def plan_video(item: Item, options: UpscaleOptions, source: VideoSource) -> VideoPlan:
    """Settle size, encoder, streams and clock for an opened source.

    Raises:
        UsageError: the options cannot be met for this source.
        OutputError: the container cannot hold this source's times.
    """
    form = source.format
    swapped = form.matrix is not None and form.matrix.swaps_axes
    geometry = output_geometry(
        options, form.width, form.height, swapped=swapped, even=True, name=str(item.source)
    )
    encoding = encoding_for(item.output, options, form, (geometry.width, geometry.height))
    notes = list(encoding.notes)
    matrix = None
    if form.matrix is not None:
        matrix = form.matrix.scaled(geometry.width / form.width, geometry.height / form.height)
    elif source.baked and options.rotate == "keep":
        notes.append(
            f"{item.output.suffix} cannot say that a picture is turned, so the frames were turned upright"
        )
    if (
        sample_aspect(source) not in (None, 1)
        and encoding.codec == "mpeg2video"
        and encoding.muxer == "mpegts"
    ):
        notes.append("mpeg2video in .ts knows few picture aspects: the nearest one is written")
    with open_media(item.source) as container:
        streams = plan_streams(
            container,
            source.stream_index,
            encoding.muxer,
            audio=cast("Literal['copy', 'none']", options.audio),
            subtitles=cast("Literal['copy', 'none']", options.subtitles),
        )
        kept = {plan.index for plan in streams if plan.action != "drop"}
        rates = [stream.rate for stream in container.streams.audio if stream.index in kept and stream.rate]
    timeline = source.timeline
    if encoding.muxer == "avi" and not timeline.constant:
        raise OutputError(
            f"{item.output}: avi cannot hold the varying frame rate of {item.source.name}; write .mkv or .mp4 instead"
        )
    window = _window(source)
    clock = clock_for(encoding.muxer, timeline, timeline.rate, rates)
    if not clock.exact and not _on_ticks(timeline, clock):
        per_second = 1 / clock.tick
        notes.append(
            f"{item.output.suffix} counts time in 1/{float(per_second):g} s: times are the nearest of those"
        )
    times = SinkTimes(
        time_base=timeline.time_base,
        rate=timeline.rate,
        last_duration=_last_duration(source),
        base=_base(item, source, streams, encoding.muxer, window),
        clock=clock,
    )
    return VideoPlan(geometry, encoding, streams, times, matrix, window, tuple(notes))


def encoding_for(
    path: Path, options: UpscaleOptions, form: SourceFormat, picture: tuple[int, int]
) -> EncodePlan:
    """The encoder settings for an output whose picture has this width and height."""
    return plan_encoding(
        path,
        tags=form.tags,
        resolved=form.colour,
        picture=picture,
        codec=options.codec,
        crf=options.crf,
        encoder_preset=options.encoder_preset,
        pix_fmt=options.pix_fmt,
        encoder_options=options.encoder_options,
        mastering=form.mastering,
        light_level=form.light_level,
    )


def _window(source: VideoSource) -> tuple[Fraction, Fraction | None] | None:
    """The chosen part in source seconds, for the other streams; None for all of it."""
    timeline = source.timeline
    if source.whole or not timeline.frames:
        return None
    start = timeline.seconds(source.first) if source.first else _LONG_AGO
    end = timeline.seconds(source.last) if source.last < timeline.frames else None
    return start, end


def _last_duration(source: VideoSource) -> int:
    timeline = source.timeline
    if timeline.frames and source.last < timeline.frames:
        return int(timeline.pts[source.last] - timeline.pts[source.last - 1])
    return timeline.last_duration


def _base(
    item: Item,
    source: VideoSource,
    streams: tuple[StreamPlan, ...],
    muxer: str,
    window: tuple[Fraction, Fraction | None] | None,
) -> Fraction:
    """Source seconds that become the output's zero: the start of the earliest kept stream."""
    timeline = source.timeline
    first = timeline.seconds(source.first) if timeline.frames else Fraction(0)
    if window is not None and source.first > 0:
        return first
    shown, packets = earliest(lambda: open_media(item.source), streams, muxer)
    start = min(first, shown) if shown is not None else first
    if muxer in _NO_NEGATIVE_TIMES and packets is not None:
        start = min(start, packets)
    return first - whole_frames(first - start, timeline.rate) if muxer == "avi" else start


def _on_ticks(timeline: Timeline, clock: Clock) -> bool:
    ratio = timeline.time_base / clock.tick
    return bool((timeline.pts * ratio.numerator % ratio.denominator == 0).all())


def upscale_video(
    item: Item,
    options: UpscaleOptions,
    room: EngineRoom,
    *,
    on_event: Callable[[Event], None],
    stop: threading.Event,
    position: tuple[int, int] = (0, 1),
) -> Finished:
    """Upscale one video. `position`: items done before this one, and items in all.

    Raises:
        RlfnPipeError: the item failed or was interrupted; its output was not touched.
    """
    begin = time.monotonic()
    name = str(item.source)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(item, options))
        plan = plan_video(item, options, source)
        engine = room.engine_for(plan.geometry.factor)
        on_event(Started(name, str(item.output), source.frames, _describe(source, plan, engine)))
        for note in plan.notes:
            on_event(Warned(name, note))
        temporary = stack.enter_context(finished_by_rename(item.output, overwrite=options.overwrite))
        carrier = stack.enter_context(
            Carrier(lambda: open_media(item.source), plan.streams, base=plan.times.base, window=plan.window)
        )
        stream = source.stream
        sink = VideoSink(
            temporary,
            plan.encoding,
            plan.times,
            name=str(item.output),
            sample_aspect_ratio=sample_aspect(source),
            display_matrix=plan.matrix,
            carrier=carrier,
            stream_plans=plan.streams,
            tags=stream_tags(stream.metadata, plan.encoding.muxer, copied=False, whole=source.whole),
            disposition=stream.disposition,
            threads=options.threads or 0,
        )
        meter = _Meter(name, source, sink, temporary, on_event, position)
        target = Target(plan.geometry.width, plan.geometry.height, plan.encoding.colour)
        pipeline: Pipeline[Frame, Frame] = Pipeline(
            source, lambda frames: engine.run(_work(frames, target)), meter.write, stop=stop
        )
        meter.clock = pipeline.clock
        try:
            pipeline.run()
            if not sink.frames:
                raise OutputError(f"{item.output}: no frame reached the encoder")
            sink.close()
        except BaseException:
            sink.abort()
            raise
        expected, tick = sink.expected_ticks()
        shifted = plan.encoding.muxer in ("mpegts", "avi")
        muxer = plan.encoding.muxer
        verify_video(
            temporary, str(item.output), sink.stream_index, expected, tick, shifted=shifted, muxer=muxer
        )
        size = temporary.stat().st_size
        late = list(dict.fromkeys((*source.notes, *sink.notes, *carrier.notes)))
        notes = (*plan.notes, *late)
        if source.concealed:
            late.append(f"{source.concealed} of {sink.frames} frames did not decode and repeat a neighbour")
    for note in late:
        on_event(Warned(name, note))
    return Finished(
        input=name,
        output=str(item.output),
        frames=sink.frames,
        concealed=source.concealed,
        seconds=time.monotonic() - begin,
        bytes_written=size,
        width=plan.encoding.width,
        height=plan.encoding.height,
        notes=tuple(dict.fromkeys(notes)),
        stage_seconds=dict(pipeline.clock.busy),
    )


def _work(frames: Iterable[Frame], target: Target) -> Iterator[tuple[Frame, Target]]:
    for frame in frames:
        yield frame, target


def sample_aspect(source: VideoSource) -> Fraction | None:
    """The stored picture's sample aspect ratio (turned with the pixels when rotation is baked)."""
    ratio = source.stream.sample_aspect_ratio
    if not ratio:
        return None
    ratio = Fraction(ratio)
    return 1 / ratio if source.baked and source.baked.swaps_axes else ratio


def _describe(source: VideoSource, plan: VideoPlan, engine: Engine) -> str:
    form, encoding = source.format, plan.encoding
    return (
        f"{form.width}x{form.height} to {encoding.width}x{encoding.height}, {engine.spec.name} x{engine.spec.scale} "
        f"on {engine.device} in {engine.precision}, {encoding.codec} {encoding.pix_fmt}"
    )


class _Meter:
    """Writes frames and tells how it goes, a few times a second."""

    clock: Any = None

    def __init__(
        self,
        name: str,
        source: VideoSource,
        sink: VideoSink,
        temporary: Any,
        on_event: Callable[[Event], None],
        position: tuple[int, int],
    ) -> None:
        self._name, self._source, self._sink, self._file = name, source, sink, temporary
        self._on_event, self._position = on_event, position
        self._begin = self._last = time.monotonic()

    def write(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._sink.write(frame)
        now = time.monotonic()
        if now - self._last >= _PROGRESS_SECONDS or self._sink.frames == self._source.frames:
            self._last = now
            self._on_event(self._progress(now - self._begin))

    def _progress(self, elapsed: float) -> Progress:
        done, total = self._sink.frames, self._source.frames
        fps = done / elapsed if elapsed > 0 else 0.0
        return Progress(
            input=self._name,
            frames_done=done,
            frames_total=total or None,
            fps=fps,
            eta_seconds=max(0, total - done) / fps if fps and total else None,
            bytes_written=self._file.stat().st_size,
            limit=self.clock.limit if self.clock is not None else None,
            items_done=self._position[0],
            items_total=self._position[1],
        )
