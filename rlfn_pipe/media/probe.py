"""What is in a media file, without decoding more than its first frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from rlfn_pipe.errors import InputError
from rlfn_pipe.media.decoding import main_video
from rlfn_pipe.media.opening import open_media
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.types import MediaInfo, StreamInfo, VideoStreamInfo

_MICROSECONDS = 1_000_000


def probe(path: Path) -> MediaInfo:
    """Describe a media file. A file without video is described too, with `video` None.

    Raises:
        InputError: the file cannot be opened as media, or its video cannot be decoded at all.
    """
    with open_media(path) as container:
        try:
            main: VideoStream | None = main_video(container, path)
        except InputError:
            if any(
                s.type == "video" and not s.disposition & Disposition.attached_pic for s in container.streams
            ):
                raise
            main = None
        streams = tuple(_stream_info(s) for s in container.streams if main is None or s.index != main.index)
        chapters = len(container.chapters())
        tags = dict(container.metadata)
        start, duration = _seconds(container.start_time), _seconds(container.duration)
        name = container.format.name
    video, warnings = (None, ()) if main is None else _video_info(path)
    return MediaInfo(
        path=path,
        container=name,
        duration=duration,
        start=start,
        size_bytes=path.stat().st_size,
        video=video,
        streams=streams,
        chapters=chapters,
        tags=tags,
        warnings=warnings,
    )


def _video_info(path: Path) -> tuple[VideoStreamInfo, tuple[str, ...]]:
    with VideoSource(path, deinterlace="off") as source:
        return video_info(source), source_warnings(source)


def video_info(source: VideoSource) -> VideoStreamInfo:
    """The main stream of an opened source, tags as its first frame has them."""
    stream, form, timeline = source.stream, source.format, source.timeline
    context = stream.codec_context
    ratio = stream.sample_aspect_ratio
    duration = timeline.end - timeline.seconds(0) if timeline.frames else None
    return VideoStreamInfo(
        index=stream.index,
        codec=context.codec.canonical_name,
        width=form.width,
        height=form.height,
        pix_fmt=context.pix_fmt or form.pix_fmt,
        time_base=timeline.time_base,
        average_rate=timeline.rate,
        duration=duration,
        frames=timeline.frames or timeline.packets,
        sample_aspect_ratio=Fraction(ratio) if ratio else None,
        colour=form.tags,
        rotation=form.matrix.rotation if form.matrix is not None else 0,
        interlaced=source.interlaced,
        profile=context.profile,
        constant_rate=timeline.constant,
    )


def source_warnings(source: VideoSource, *, planned: bool = False) -> tuple[str, ...]:
    """What may go wrong with an opened source; where the output is `planned`, this holds its times."""
    timeline, warnings = source.timeline, []
    if not timeline.constant and not planned:
        warnings.append("the frame rate varies: write mp4, mov or mkv, which keep the times (avi does not)")
    if not timeline.trusted:
        warnings.append(
            "some packets have no time of their own or share one: lost frames cannot all be noticed"
        )
    if source.interlaced:
        warnings.append("the video is interlaced: it is deinterlaced unless --deinterlace off is given")
    return tuple(warnings)


def _stream_info(stream: Stream) -> StreamInfo:
    context = stream.codec_context
    codec = (
        context.codec.canonical_name if context is not None else str(getattr(stream, "name", "") or "unknown")
    )
    return StreamInfo(
        index=stream.index,
        kind="cover"
        if stream.type == "video" and stream.disposition & Disposition.attached_pic
        else stream.type,
        codec=codec,
        language=stream.metadata.get("language"),
        title=stream.metadata.get("title"),
        dispositions=tuple(flag.name or "" for flag in Disposition if flag & stream.disposition),
        detail=_detail(stream),
    )


def _detail(stream: Stream) -> str:
    if stream.type == "audio" and stream.codec_context is not None:
        context = stream.codec_context
        return f"{context.sample_rate} Hz, {context.layout.name}"  # type: ignore[attr-defined]
    if stream.type == "video" and stream.codec_context is not None:
        return f"{stream.codec_context.width}x{stream.codec_context.height}"  # type: ignore[attr-defined]
    if stream.type == "attachment":
        return stream.metadata.get("filename", "")
    return ""


def _seconds(microseconds: int | None) -> Fraction | None:
    return None if microseconds is None else Fraction(microseconds, _MICROSECONDS)
