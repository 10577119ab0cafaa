"""What is settled for one video before the first frame is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from rlfn_pipe.errors import InputError, OutputError
from rlfn_pipe.jobs.geometry import Geometry, output_geometry, shape_notes
from rlfn_pipe.jobs.hardware import hindrance
from rlfn_pipe.jobs.segments import Segment, plan_segments, segment_seconds
from rlfn_pipe.media.avi import whole_frames
from rlfn_pipe.media.cut_short import missing_bytes
from rlfn_pipe.media.encoders import ROTATING_MUXERS, EncodePlan, muxer_for, plan_encoding
from rlfn_pipe.media.matroska import Crop
from rlfn_pipe.media.opening import open_media
from rlfn_pipe.media.orientation import DisplayMatrix
from rlfn_pipe.media.part import Part, Selection, SourceFormat
from rlfn_pipe.media.side_data import side_by_side
from rlfn_pipe.media.sink import SinkTimes
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.media.streams import StreamPlan, earliest, plan_streams
from rlfn_pipe.media.tags import MATROSKA_FAMILY, later_timecode, stream_tags
from rlfn_pipe.media.timing import Clock, Timeline, clock_for
from rlfn_pipe.types import MATRIX_NAMES, SUPPORTED_MATRICES

if TYPE_CHECKING:
    from rlfn_pipe.jobs.inputs import Item
    from rlfn_pipe.options import UpscaleOptions

#: A window that begins with the clip keeps what other streams have before the first frame.
_LONG_AGO = Fraction(-(1 << 40))

#: A gap in a transport stream that is worth a word: pictures come several times a second there.
_LEAP_SECONDS = 30
#: Containers in which no stream may begin before zero.
_NO_NEGATIVE_TIMES = frozenset({"matroska", "webm", "avi", "mpegts", "nut"})


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """Everything that is settled before the first frame is computed. Picklable.

    `part`: the chosen frames of the source; `frames`: how many are expected of them.
    """

    geometry: Geometry
    encoding: EncodePlan
    streams: tuple[StreamPlan, ...]
    times: SinkTimes
    matrix: tuple[int, ...] | None
    crop: Crop | None
    window: tuple[Fraction, Fraction | None] | None
    sample_aspect_ratio: Fraction | None
    tags: dict[str, str]
    disposition: Any
    part: Part
    frames: int
    notes: tuple[str, ...]

    def segments(self, seconds: Fraction | None) -> tuple[Segment, ...]:
        """Where the film is cut, into pieces of `seconds` (None: by the output's size)."""
        part, encoding = self.part, self.encoding
        length = segment_seconds(encoding.width, encoding.height, seconds)
        return plan_segments(part.timeline, part.first, part.last, length)


def open_source(
    item: Item, options: UpscaleOptions, on_step: Callable[[], None] = lambda: None
) -> VideoSource:
    """The item's frames with the options that concern reading. Enter it as a context."""
    muxer = muxer_for(item.output)
    return VideoSource(
        item.source,
        selection=Selection(options.start, options.end, options.frames, options.sample),
        on_error=options.on_error,
        deinterlace=options.deinterlace,
        bake_rotation=options.rotate == "bake" or muxer not in ROTATING_MUXERS,
        threads=options.threads or 0,
        on_step=on_step,
    )


def plan_item(item: Item, options: UpscaleOptions, on_step: Callable[[], None]) -> VideoPlan:
    """Open an item and settle everything. Raises as `open_source` and `plan_video`.

    `on_step` is called again and again while the file is gone through; what it raises ends that.
    """
    with open_source(item, options, on_step) as source:
        return plan_video(item, options, source)


def check_matrix(source: VideoSource) -> None:
    """Raise InputError where the conversions do not know the source's colour matrix."""
    colour = source.format.colour
    if colour.subsampling != "rgb" and colour.matrix not in SUPPORTED_MATRICES:
        name = MATRIX_NAMES.get(colour.matrix, f"number {colour.matrix} of ITU-T H.273")
        raise InputError(
            f"{source.path}: its colour matrix, {name}, is not supported; convert it to BT.601, BT.709 or BT.2020 first"
        )


def plan_video(item: Item, options: UpscaleOptions, source: VideoSource) -> VideoPlan:
    """Settle size, encoder, streams and clock for an opened source.

    Raises:
        UsageError: the options cannot be met for this source.
        InputError: the source's colour matrix is not supported.
        OutputError: the container cannot hold this source's times.
    """
    check_matrix(source)
    form = source.format
    turn = form.matrix if muxer_for(item.output) in ROTATING_MUXERS else None
    swapped = turn is not None and turn.swaps_axes
    geometry = output_geometry(
        options, form.width, form.height, swapped=swapped, video=True, name=str(item.source)
    )
    encoding = encoding_for(item.output, options, form, (geometry.width, geometry.height))
    notes = [*source.notes, *encoding.notes, *shape_notes(options, geometry, form.width, form.height)]
    if (hindered := hindrance(options, form)) is not None:
        notes.append(hindered)
    tags = _video_tags(source, encoding.muxer)
    two_eyes = form.stereo != "" or source.stream.metadata.get("stereo_mode", "mono") != "mono"
    if two_eyes and "stereo_mode" not in tags:
        notes.append(f"its stereo 3D layout is left out; {item.output.suffix} does not get it")
    if source.interlaced and options.deinterlace == "off":
        notes.append("interlaced video is enlarged as it is: two fields as one picture, marked progressive")
    missing = missing_bytes(item.source)
    if missing:
        notes.append(f"it is cut short, {missing} bytes are missing at its end")
    matrix = None
    if turn is not None:
        matrix = turn.scaled(geometry.width / form.width, geometry.height / form.height)
        if options.rotate == "bake":
            notes.append(f"{odd_turn(turn)}, so the output has players turn it as the source does")
    elif form.matrix is not None:
        notes.append(f"{odd_turn(form.matrix)}, which {item.output.suffix} cannot say: its turn is left out")
    elif source.baked and options.rotate == "keep":
        notes.append(
            f"{item.output.suffix} cannot say that a picture is turned, so the frames were turned upright"
        )
    crop = _crop(source, geometry)
    if crop and (encoding.muxer not in MATROSKA_FAMILY or source.baked is not None):
        crop = None
        notes.append(f"its header has players crop the picture; {item.output.suffix} does not get that")
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
        counted, broadcast = (container.format.name == kind for kind in ("avi", "mpegts"))
    if broadcast and (leap := _leap(source)) is not None:
        notes.append(leap)
    timeline = source.timeline
    rate = _avi_rate(item, timeline, counted) if encoding.muxer == "avi" else timeline.rate
    window = _window(source)
    clock = clock_for(encoding.muxer, timeline, rate, rates)
    if not clock.exact and not _on_ticks(timeline, clock):
        per_second = 1 / clock.tick
        notes.append(
            f"{item.output.suffix} counts time in 1/{float(per_second):g} s: times are the nearest of those"
        )
    times = SinkTimes(
        time_base=timeline.time_base,
        rate=rate,
        last_duration=_last_duration(source),
        base=_base(item, source, streams, encoding.muxer, window, rate),
        clock=clock,
    )
    return VideoPlan(
        geometry=geometry,
        encoding=encoding,
        streams=streams,
        times=times,
        matrix=matrix,
        crop=crop,
        window=window,
        sample_aspect_ratio=sample_aspect(source),
        tags=tags,
        disposition=source.stream.disposition,
        part=source.part(source.first, source.last),
        frames=source.frames,
        notes=tuple(notes),
    )


def _avi_rate(item: Item, timeline: Timeline, counted: bool) -> Fraction:
    """The rate of an AVI, which holds no other times; `counted`: the source is one, too.

    Raises OutputError for times that no rate gives.
    """
    if counted and not (timeline.constant and _on_ticks(timeline, clock_for("avi", timeline, timeline.rate))):
        # Its frames have numbers, some of which may be without a picture, as those that a capture dropped.
        return 1 / timeline.time_base
    if not timeline.constant:
        raise OutputError(
            f"{item.output}: avi cannot hold the varying frame rate of {item.source.name}; write .mkv or .mp4 instead"
        )
    return timeline.rate


def _leap(source: VideoSource) -> str | None:
    """What to say of a recording whose clock leaps ahead within the chosen part."""
    table, base = source.timeline.pts[source.first : source.last], source.timeline.time_base
    steps = np.diff(table)
    if not len(steps) or int(steps.max()) * base < _LEAP_SECONDS:
        return None
    at = int(np.argmax(steps))
    seconds, place = int(steps[at]) * base, int(table[at] - table[0]) * base
    return f"its clock leaps ahead by {float(seconds):.0f} s after {float(place):.1f} s; the gap is kept"


def odd_turn(matrix: DisplayMatrix) -> str:
    """What to say of a turn that is no multiple of 90 degrees, before what becomes of it."""
    return f"frames turned by {abs(matrix.rotation)} degrees cannot be turned upright"


def _crop(source: VideoSource, geometry: Geometry) -> Crop | None:
    """What the source's container has players cut off, in pixels of the upscaled picture."""
    crop, form = source.crop, source.format
    if crop is None:
        return None
    left, top, right, bottom = crop
    if left + right >= form.width or top + bottom >= form.height:
        return None  # no picture would be left, and players show all of it
    across, down = Fraction(geometry.width, form.width), Fraction(geometry.height, form.height)
    return round(left * across), round(top * down), round(right * across), round(bottom * down)


def _video_tags(source: VideoSource, muxer: str) -> dict[str, str]:
    tags = stream_tags(source.stream.metadata, muxer, copied=False, whole=source.whole)
    for key in tags:
        if key.lower() == "timecode":
            tags[key] = later_timecode(tags[key], source.first, source.timeline.rate)
    stereo = tags.pop("stereo_mode", "")
    mode = stereo if source.format.stereo == "" else source.format.stereo
    # Turned pixels, and eyes whose rows or pixels alternate, are no longer what the tag says.
    if mode and muxer in MATROSKA_FAMILY and source.baked is None and side_by_side(mode) != (1, 1):
        tags["stereo_mode"] = mode
    return tags


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
        transparent=form.transparent,
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
    rate: Fraction,
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
    return first - whole_frames(first - start, rate) if muxer == "avi" else start


def _on_ticks(timeline: Timeline, clock: Clock) -> bool:
    ratio = timeline.time_base / clock.tick
    return bool((timeline.pts * ratio.numerator % ratio.denominator == 0).all())


def sample_aspect(source: VideoSource) -> Fraction | None:
    """The stored picture's sample aspect ratio (turned with the pixels when rotation is baked)."""
    ratio = source.stream.sample_aspect_ratio
    if not ratio:
        return None
    ratio = Fraction(ratio)
    return 1 / ratio if source.baked and source.baked.swaps_axes else ratio
