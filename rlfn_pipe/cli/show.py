"""What is in a file and what upscale would do with it, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from rlfn_pipe.cli.text import clock, human_bytes, printable
from rlfn_pipe.jobs.summary import PlanSummary, StreamPlan
from rlfn_pipe.types import (
    MATRIX_NAMES,
    PRIMARIES_NAMES,
    TRANSFER_NAMES,
    ColourInfo,
    MediaInfo,
    PictureInfo,
    StreamInfo,
    VideoStreamInfo,
)

_RANGE = {1: "limited", 2: "full"}


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two columns, the first padded; empty second cells are left out; safe to print."""
    kept = [(name, printable(value)) for name, value in rows if value]
    width = max((len(name) for name, _ in kept), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in kept]


def media_lines(media: MediaInfo) -> list[str]:
    """All that `probe` knows of a media file."""
    lines = [printable(media.path)]
    lines += table(
        [
            ("container", media.container),
            ("duration", clock(media.duration) if media.duration is not None else "unknown"),
            ("starts at", clock(media.start) if media.start else ""),
            ("size", human_bytes(media.size_bytes)),
            ("chapters", str(media.chapters) if media.chapters else ""),
            ("tags", ", ".join(f"{key}={value}" for key, value in media.tags.items())),
        ]
    )
    if media.video is not None:
        lines += ["", f"video, stream {media.video.index}", *table(_video_rows(media.video))]
    if media.streams:
        lines += ["", "other streams"]
        lines += table((f"{stream.index} {stream.kind}", _stream_text(stream)) for stream in media.streams)
    lines += [f"warning: {printable(text)}" for text in media.warnings]
    return lines


def picture_lines(picture: PictureInfo) -> list[str]:
    """All that `probe` knows of an image."""
    resolution = picture.resolution
    return [
        printable(picture.path),
        *table(
            [
                ("format", picture.format),
                ("size", f"{picture.width}x{picture.height}, {human_bytes(picture.size_bytes)}"),
                ("colour", colour_text(picture.colour)),
                ("ICC profile", f"for {picture.icc}" if picture.icc else ""),
                ("resolution", "{:g} x {:g} dots an inch".format(*resolution) if resolution else ""),
                ("metadata", ", ".join(picture.beside)),
            ]
        ),
    ]


def plan_lines(plan: PlanSummary) -> list[str]:
    """What `upscale` would do."""
    output = plan.output if plan.output is not None else "OUTPUT"
    many = plan.items > 1
    lines = [printable(f"upscale {plan.input} -> {output}")]
    lines += table(
        [
            ("items", f"{plan.items}, the sizes are the first one's" if many else ""),
            ("model", f"{plan.model}, x{plan.native_scale}"),
            ("device", ", ".join(part for part in (plan.device, plan.precision) if part)),
            ("tile", plan.tile),
            ("size", _sizes(plan)),
            ("format", _format(plan)),
            ("frames", _frames(plan)),
            ("segments", f"{plan.segments}, kept until the file is whole" if plan.segments > 1 else ""),
            ("estimated size", f"about {human_bytes(plan.estimated_bytes)}" if plan.estimated_bytes else ""),
            ("disk", _disk(plan)),
        ]
    )
    if plan.streams:
        lines += ["streams", *table((f"{s.index} {s.kind}", _action(s)) for s in plan.streams)]
    lines += [f"note: {printable(text)}" for text in plan.notes]
    lines += [f"warning: {printable(text)}" for text in plan.warnings]
    return lines


def _sizes(plan: PlanSummary) -> str:
    def by(size: tuple[int, int]) -> str:
        return f"{size[0]}x{size[1]}"

    if plan.source_size is None or plan.output_size is None or plan.display_size is None:
        return by(plan.output_size) if plan.output_size else f"x{plan.scale:g}" if plan.scale else ""
    shown = f", shown as {by(plan.display_size)}" if plan.display_size != plan.output_size else ""
    return f"{by(plan.source_size)} -> {by(plan.output_size)} (x{plan.scale:g}){shown}"


def _disk(plan: PlanSummary) -> str:
    if not plan.work_bytes or plan.free_bytes is None:
        return ""
    return f"about {human_bytes(plan.work_bytes)} while it works, {human_bytes(plan.free_bytes)} are free"


def _frames(plan: PlanSummary) -> str:
    if plan.frames is not None:
        return str(plan.frames)
    return "not stated by the container" if plan.kind == "video" and plan.source_size else ""


def _format(plan: PlanSummary) -> str:
    parts = dict.fromkeys(part for part in (plan.container, plan.codec, plan.pix_fmt) if part)
    return ", ".join(parts)


def _action(stream: StreamPlan) -> str:
    verb = {"copy": "copied", "convert": "converted", "drop": "dropped"}.get(stream.action, stream.action)
    language = f" ({stream.language})" if stream.language else ""
    return f"{stream.codec}{language}: {verb}{f', {stream.reason}' if stream.reason else ''}"


def _video_rows(video: VideoStreamInfo) -> list[tuple[str, str]]:
    profile = f" ({video.profile})" if video.profile else ""
    rate = f"{_decimal(video.average_rate)} frames/s on average" if video.average_rate else "unknown"
    aspect = video.sample_aspect_ratio
    return [
        ("codec", f"{video.codec}{profile}"),
        ("size", f"{video.width}x{video.height}{', interlaced' if video.interlaced else ''}"),
        ("pixel format", video.pix_fmt),
        ("rate", rate),
        ("time base", f"{video.time_base} s"),
        ("duration", clock(video.duration) if video.duration is not None else ""),
        ("frames", f"{video.frames} by the container" if video.frames else ""),
        ("pixel aspect", str(aspect) if aspect not in (None, 0, 1) else ""),
        ("rotation", f"{video.rotation} degrees counter-clockwise" if video.rotation else ""),
        ("colour", colour_text(video.colour)),
    ]


def colour_text(colour: ColourInfo) -> str:
    """Matrix, transfer, primaries and range in words; what the file does not say is left out."""
    parts = []
    for label, code, names in (
        ("matrix", colour.matrix, MATRIX_NAMES),
        ("transfer", colour.transfer, TRANSFER_NAMES),
        ("primaries", colour.primaries, PRIMARIES_NAMES),
    ):
        if code != 2:
            parts.append(f"{label} {names.get(code, code)}")
    if colour.range in _RANGE:
        parts.append(f"{_RANGE[colour.range]} range")
    parts.append(f"{colour.bit_depth} bit {colour.subsampling}{' with alpha' if colour.alpha else ''}")
    return ", ".join(parts) if len(parts) > 1 else f"untagged, {parts[0]}"


def _stream_text(stream: StreamInfo) -> str:
    parts = [stream.codec, stream.language or "", stream.title or "", stream.detail, *stream.dispositions]
    return ", ".join(part for part in parts if part)


def _decimal(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.3f} ({value})"


def refused_line(reason: str) -> str:
    """Why upscale would not take the file."""
    return f"upscale would refuse it: {printable(reason)}"
