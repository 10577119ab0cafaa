"""Raw video through a shell pipe: `-` as INPUT, as OUTPUT, or as both."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from rlfn_pipe.errors import InputError, OutputError, UsageError
from rlfn_pipe.jobs.geometry import output_geometry, shape_notes
from rlfn_pipe.jobs.pace import Pace
from rlfn_pipe.jobs.standard import PatientInput, PatientOutput
from rlfn_pipe.jobs.summary import loss_notes
from rlfn_pipe.jobs.task import counted_since
from rlfn_pipe.jobs.temporary import check_free, finished_by_rename, private_file
from rlfn_pipe.jobs.video_plan import check_matrix, encoding_for, odd_turn, sample_aspect
from rlfn_pipe.media.colour import LAYOUTS, with_assumed_matrix
from rlfn_pipe.media.opening import open_media
from rlfn_pipe.media.part import Selection
from rlfn_pipe.media.segment import SegmentSink
from rlfn_pipe.media.signatures import read_head, sniff
from rlfn_pipe.media.sink import SinkTimes, VideoSink
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.media.timing import clock_for
from rlfn_pipe.media.verify import verify_video
from rlfn_pipe.media.y4m import STANDARD_INPUT, Y4M_FORMATS, PipeSink, PipeSource
from rlfn_pipe.pipeline.stages import Cancelled, Pipeline, interrupted
from rlfn_pipe.types import (
    MATRIX_UNSPECIFIED,
    PRIMARIES_NAMES,
    RANGE_LIMITED,
    TRANSFER_NAMES,
    ColourInfo,
    Event,
    Finished,
    Frame,
    Progress,
    Started,
    Target,
    Warned,
)

if TYPE_CHECKING:
    from rlfn_pipe.jobs.room import EngineRoom
    from rlfn_pipe.options import UpscaleOptions

PIPE = "-"

#: Transfers and primaries (ITU-T H.273) that no reader assumes.
_HDR_TRANSFERS, _WIDE_PRIMARIES = frozenset({16, 18}), frozenset({9, 11, 12})


def upscale_pipe(
    input: str,
    output: str,
    options: UpscaleOptions,
    room: EngineRoom,
    *,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> Finished:
    """Upscale a YUV4MPEG2 stream, or a file into one. Only pictures travel, no other streams.

    Raises:
        UsageError: the options cannot be met through a pipe.
        InputError, OutputError: a stream is unusable or ends badly.
        BrokenPipeError: the reader of standard output went away.
    """
    if output == PIPE and options.json:
        raise UsageError("--json and OUTPUT - both want standard output; give one of them")
    if output == PIPE and sys.stdout.isatty():
        raise UsageError(
            "OUTPUT - writes raw video, which is no use on a terminal; send it to a pipe or a file"
        )
    begin = time.monotonic()
    abort = threading.Event()

    def check() -> None:
        """What whoever waits for the other end of a pipe asks: whether that is still of use."""
        if abort.is_set():
            raise Cancelled
        if stop.is_set():
            raise interrupted(stop)

    with ExitStack() as stack:
        source = stack.enter_context(pipe_source(input, options, check))
        form = source.format
        geometry = output_geometry(options, form.width, form.height, video=True, name=input)
        size = (geometry.width, geometry.height)
        work = (
            _PipeOut(options, source, size, check)
            if output == PIPE
            else _FileOut(Path(output), options, source, size, stack)
        )
        engine = room.engine_for(geometry.factor)
        on_event(
            Started(
                input,
                output,
                source.frames or None,
                f"{form.width}x{form.height} to {geometry.width}x{geometry.height}, {engine.spec.name} "
                f"x{engine.spec.scale} on {engine.device} in {engine.precision}, {work.description}",
            )
        )
        notes = (*work.notes, *shape_notes(options, geometry, form.width, form.height))
        if options.hwaccel != "none":
            notes += ("--hwaccel has no effect where a pipe is",)
        for note in notes:
            on_event(Warned(input, note))
        pace = Pace()
        before = asdict(engine.statistics)

        def write(frames: list[Frame]) -> None:
            work.write(frames)
            if pace.due():
                fps = work.frames / (time.monotonic() - begin)
                on_event(Progress(input, work.frames, source.frames or None, fps, None, 0, None))

        target = Target(geometry.width, geometry.height, work.colour)
        pipeline: Pipeline[Frame, Frame] = Pipeline(
            source,
            lambda frames: engine.run((frame, target) for frame in frames),
            write,
            stop=stop,
            abort=abort,
        )
        try:
            pipeline.run()
            work.close()
        except BaseException:
            work.abort()
            raise
    late = (*source.notes, *loss_notes(work.frames, source.concealed, source.damaged))
    for note in late:
        on_event(Warned(input, note))
    return Finished(
        input=input,
        output=output,
        frames=work.frames,
        concealed=source.concealed,
        seconds=time.monotonic() - begin,
        bytes_written=work.size,
        width=geometry.width,
        height=geometry.height,
        notes=(*notes, *late),
        stages=pipeline.clock.times(),
        reuse=counted_since(before, engine),
    )


def pipe_source(input: str, options: UpscaleOptions, check: Callable[[], None] = lambda: None) -> VideoSource:
    """The frames of a pipe, or of a file that goes into one. Enter it as a context.

    While a pipe gives nothing, `check` is called; what that raises ends the waiting.

    Raises:
        UsageError: the options choose a part that a pipe cannot give.
        InputError: the file is a picture.
    """
    selection = Selection(options.start, options.end, options.frames, options.sample)
    if input == PIPE:
        return PipeSource(
            io.BufferedReader(PatientInput(sys.stdin.fileno(), check)),
            selection=selection,
            on_error=options.on_error,
            deinterlace=options.deinterlace,
            threads=options.threads or 0,
        )
    found = sniff(read_head(Path(input))) if Path(input).is_file() else None
    if found is not None and found[0] == "image":
        raise InputError(f"{input}: is a picture, and OUTPUT - takes films only; name a file for it")
    return VideoSource(
        Path(input),
        selection=selection,
        on_error=options.on_error,
        deinterlace=options.deinterlace,
        bake_rotation=True,
        threads=options.threads or 0,
    )


@dataclass(frozen=True, slots=True)
class RawPlan:
    """How frames go out as YUV4MPEG2.

    `colour`: layout of the frames; `tags`: what the header says; `notes`: what the person should know.
    """

    pix_fmt: str
    colour: ColourInfo
    tags: ColourInfo
    notes: tuple[str, ...]


def plan_raw(options: UpscaleOptions, source: VideoSource, height: int) -> RawPlan:
    """Settle the raw video for a source whose upscaled picture has `height` lines.

    Raises:
        UsageError: YUV4MPEG2 does not hold the pixel format.
        InputError: the source's colour matrix is not supported.
        OutputError: YUV4MPEG2 does not hold a frame rate that varies.
    """
    if not source.timeline.constant:
        raise OutputError(
            f"{source.path}: its frame rate varies, which YUV4MPEG2 cannot hold; write a .mkv or .mp4 file"
        )
    check_matrix(source)
    form = source.format
    pix_fmt = _raw_format(options.pix_fmt, form.colour)
    layout = LAYOUTS[pix_fmt]
    colour, tags = form.colour, form.tags
    notes = list(_left_behind(source, options))
    if form.transparent:
        notes.append("transparency was dropped; YUV4MPEG2 does not hold it")
    if colour.subsampling == "rgb":
        # Nothing in the stream says the matrix: the one that is assumed for this height.
        tags = replace(tags, matrix=MATRIX_UNSPECIFIED, range=RANGE_LIMITED, subsampling=layout.subsampling)
        colour = tags.resolved(height)
    elif layout.subsampling != "grey":
        tags, colour, said = with_assumed_matrix(tags, colour, height, "YUV4MPEG2")
        notes += said
    colour = replace(
        colour,
        bit_depth=layout.bit_depth,
        subsampling=layout.subsampling,
        alpha=False,
        chroma_location="left",
    )
    return RawPlan(pix_fmt, colour, replace(tags, chroma_location="left"), tuple(notes))


class _PipeOut:
    """YUV4MPEG2 on standard output."""

    description = "raw video"

    def __init__(
        self,
        options: UpscaleOptions,
        source: VideoSource,
        size: tuple[int, int],
        check: Callable[[], None],
    ) -> None:
        plan = plan_raw(options, source, size[1])
        self.colour, self.notes = plan.colour, plan.notes
        self._sink = PipeSink(
            cast("IO[bytes]", PatientOutput(sys.stdout.fileno(), check)),
            width=size[0],
            height=size[1],
            pix_fmt=plan.pix_fmt,
            rate=source.timeline.rate,
            tags=plan.tags,
            sample_aspect_ratio=sample_aspect(source),
        )

    @property
    def frames(self) -> int:
        return self._sink.frames

    @property
    def size(self) -> int:
        return self._sink.bytes

    def write(self, frames: list[Frame]) -> None:
        self._sink.write(frames)

    def close(self) -> None:
        self._sink.close()

    def abort(self) -> None:
        """What was sent cannot be taken back."""


def _left_behind(source: VideoSource, options: UpscaleOptions) -> Iterator[str]:
    """What YUV4MPEG2 does not hold of a source."""
    form = source.format
    tags, colours = form.tags, []
    if tags.transfer in _HDR_TRANSFERS:
        colours.append(f"the transfer {TRANSFER_NAMES[tags.transfer]}")
    if tags.primaries in _WIDE_PRIMARIES:
        colours.append(f"the primaries {PRIMARIES_NAMES[tags.primaries]}")
    if form.mastering or form.light_level:
        colours.append("HDR10 metadata")
    if colours:
        yield f"YUV4MPEG2 cannot say {', '.join(colours)}: tell the program that reads it"
    if source.path == STANDARD_INPUT:
        return
    if form.matrix is not None:
        yield f"{odd_turn(form.matrix)}: their turn is left out"
    if source.crop:
        yield "YUV4MPEG2 cannot say that players crop the picture: all of it is sent"
    unwanted = {"audio": options.audio == "none", "subtitle": options.subtitles == "none"}
    with open_media(source.path) as container:
        kinds = Counter(s.type for s in container.streams if s.index != source.stream_index)
    left = [f"{count} {kind}" for kind, count in sorted(kinds.items()) if not unwanted.get(kind)]
    if left:
        yield f"YUV4MPEG2 holds the picture alone; streams left out: {', '.join(left)}"


def _raw_format(wanted: str, colour: ColourInfo) -> str:
    """The planar format to send: the one asked for, or the least that holds the source's without alpha."""
    if wanted == "auto":
        if colour.subsampling == "rgb":
            raise UsageError("YUV4MPEG2 holds no RGB; give --pix-fmt yuv444p or write a file")
        held = [name for name in Y4M_FORMATS if LAYOUTS[name].bit_depth >= colour.bit_depth]
        # A 4:2:2 film that is turned is 4:4:0, which has no name there.
        same = [name for name in held if LAYOUTS[name].subsampling == colour.subsampling]
        full = [name for name in held if LAYOUTS[name].subsampling == "444"]
        wanted = min(same or full, key=lambda name: LAYOUTS[name].bit_depth, default="yuv444p16le")
    name = wanted.replace("yuvj", "yuv")
    if name not in Y4M_FORMATS:
        raise UsageError(f"--pix-fmt {wanted}: YUV4MPEG2 holds {', '.join(sorted(Y4M_FORMATS))}")
    return name


class _FileOut:
    """A video file made from a pipe: one segment, which cannot be resumed, then the file."""

    size = 0

    def __init__(
        self,
        path: Path,
        options: UpscaleOptions,
        source: VideoSource,
        size: tuple[int, int],
        stack: ExitStack,
    ) -> None:
        check_free(path, options.overwrite)
        form, self._timeline = source.format, source.timeline
        self._plan = plan = encoding_for(path, options, form, size)
        self.colour, self.notes = plan.colour, plan.notes
        self.description = f"{plan.codec} {plan.pix_fmt}"
        self._path, self._threads = path, options.threads or 0
        self._aspect = sample_aspect(source)
        self._temporary = stack.enter_context(finished_by_rename(path, overwrite=options.overwrite))
        self._packets = stack.enter_context(private_file(path.parent))
        self._segment = SegmentSink(
            self._packets,
            plan,
            self._timeline.rate,
            name=str(path),
            sample_aspect_ratio=self._aspect,
            threads=self._threads,
        )

    @property
    def frames(self) -> int:
        return self._segment.frames

    def write(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._segment.write(frame)

    def close(self) -> None:
        self._segment.close()
        plan, line = self._plan, self._timeline
        clock = clock_for(plan.muxer, line, line.rate)
        times = SinkTimes(line.time_base, line.rate, line.last_duration, Fraction(0), clock)
        sink = VideoSink(
            self._temporary,
            plan,
            times,
            self._segment.pts,
            name=str(self._path),
            sample_aspect_ratio=self._aspect,
            threads=self._threads,
        )
        try:
            sink.write_segment(self._packets, 0)
            sink.close()
        except BaseException:
            sink.abort()
            raise
        verify_video(self._temporary, str(self._path), sink.expectation())
        self.size = self._temporary.stat().st_size

    def abort(self) -> None:
        self._segment.abort()
