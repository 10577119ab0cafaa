"""What becomes of each stream beside the upscaled video: copied, converted or left out, and why.

Tables say what a container is known to hold; a trial header in memory confirms it for the
stream at hand, so that no side stream can stop the job later.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream

from rlfn_pipe.media.audio import AudioTarget, assumed_layout, audio_target, can_encode
from rlfn_pipe.media.subtitles import TEXT_SUBTITLES, can_convert
from rlfn_pipe.media.tags import MATROSKA_FAMILY, MOV_FAMILY

Action = Literal["copy", "convert", "drop", "main"]

#: What libav raises for a stream that a container or codec does not take.
REFUSALS = (av.error.FFmpegError, ValueError)

#: Containers whose muxer accepts codecs that no reader would find again: only these are copied.
_TS_AUDIO = frozenset({"mp2", "mp3", "aac", "aac_latm", "ac3", "eac3", "dts", "truehd", "opus", "s302m"})
_AVI_AUDIO = re.compile(
    r"mp[123]|ac3|dts|aac|pcm_(u8|s16le|s24le|s32le|f32le|f64le|alaw|mulaw)|adpcm_(ms|ima_wav)|wmav[12]"
)
_AVI_VIDEO = frozenset({"mpeg4", "mjpeg", "mpeg1video", "mpeg2video", "ffv1", "huffyuv", "rawvideo", "png"})
_WEBM_AUDIO = frozenset({"opus", "vorbis"})

_SUBTITLE_COPY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "mp4": frozenset({"mov_text", "dvd_subtitle", "eia_608"}),
        "mov": frozenset({"mov_text", "eia_608"}),
        "matroska": frozenset({"subrip", "ass", "webvtt", "text", "hdmv_pgs_subtitle", "hdmv_text_subtitle"})
        | frozenset({"dvd_subtitle", "dvb_subtitle", "arib_caption"}),
        "webm": frozenset({"webvtt"}),
        "mpegts": frozenset({"dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "arib_caption"}),
        "avi": frozenset(),
    }
)
_SUBTITLE_TARGET = {"matroska": "subrip", "webm": "webvtt", "nut": ""} | dict.fromkeys(MOV_FAMILY, "mov_text")

_TS_DATA = frozenset({"timed_id3", "klv", "smpte_klv", "scte_35"})
_COVER_CODECS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png"), "bmp": ("bmp", "image/bmp")}
_FIXED_STSD = b"\x00\x00\x00\x10stsd"


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What happens to one source stream.

    `index`: in the source; `kind`: audio, subtitle, video, cover, attachment, data or unknown;
    `codec`: codec name in the output ("" when left out); `reason`: a sentence for the summary,
    "" for a plain copy.
    """

    index: int
    kind: str
    action: Action
    codec: str
    reason: str


def stream_kind(stream: Stream) -> str:
    """Media type of a stream, with `cover` for a still picture attached to the file."""
    if stream.type == "video" and Disposition.attached_pic in stream.disposition:
        return "cover"
    return str(stream.type)


def codec_name(stream: Stream) -> str:
    """Canonical codec name (`subrip`, `mp3`, ...), "" when the codec is unknown."""
    context = stream.codec_context
    if context is not None:
        return str(context.codec.canonical_name)
    return "" if stream.type == "attachment" else str(getattr(stream, "name", "") or "")


def cover_file(stream: Stream) -> tuple[str, str]:
    """File name and MIME type under which Matroska attaches a cover picture."""
    extension, mimetype = _COVER_CODECS.get(codec_name(stream), ("jpg", "image/jpeg"))
    tags = stream.metadata
    return tags.get("filename", f"cover.{extension}"), tags.get("mimetype", mimetype)


def plan_streams(
    source: InputContainer,
    main_index: int,
    muxer: str,
    *,
    audio: Literal["copy", "none"] = "copy",
    subtitles: Literal["copy", "none"] = "copy",
) -> tuple[StreamPlan, ...]:
    """Decide for every stream of `source`, in its order, what an output of format `muxer` gets.

    `main_index` is the video stream that is upscaled (action `main`). `audio` and `subtitles`
    set to "none" leave those streams out. Never raises for an odd stream: it is left out and
    the reason names it.
    """
    wanted = {"audio": audio, "subtitle": subtitles}
    plans = []
    for stream in source.streams:
        if stream.index == main_index:
            plans.append(StreamPlan(stream.index, "video", "main", "", ""))
        elif wanted.get(str(stream.type)) == "none":
            plans.append(_drop(stream, "left out as asked"))
        else:
            plans.append(_PLANNERS.get(stream_kind(stream), _plan_unknown)(source, stream, muxer))
    return tuple(plans)


# --------------------------------------------------------------- one kind at a time


def _name(stream: Stream) -> str:
    """How the summary calls a stream: kind, number, codec and language."""
    kind, language = stream_kind(stream), stream.metadata.get("language", "und")
    words = f"{kind} stream {stream.index}"
    detail = ", ".join(word for word in (codec_name(stream), "" if language == "und" else language) if word)
    if kind == "attachment":
        detail = stream.metadata.get("filename", "")
    return f"{words} ({detail})" if detail else words


def _drop(stream: Stream, why: str) -> StreamPlan:
    return StreamPlan(stream.index, stream_kind(stream), "drop", "", f"{_name(stream)} {why}")


def _copy(stream: Stream, reason: str = "") -> StreamPlan:
    return StreamPlan(stream.index, stream_kind(stream), "copy", codec_name(stream), reason)


def _convert(stream: Stream, codec: str, why: str) -> StreamPlan:
    reason = f"{_name(stream)} converted to {codec}: {why}"
    return StreamPlan(stream.index, stream_kind(stream), "convert", codec, reason)


def _plan_audio(source: InputContainer, stream: Stream, muxer: str) -> StreamPlan:
    name = codec_name(stream)
    if not name:
        return _drop(stream, "left out: its codec is unknown")
    if _audio_listed(muxer, name) and accepts(muxer, lambda out: add_copy(out, stream)):
        return _copy(stream)
    target: AudioTarget | None = audio_target(stream, muxer)
    if target is None or not can_encode(stream, target, muxer):
        return _drop(stream, f"left out: {muxer} does not hold it and it cannot be converted")
    why = f"{muxer} does not hold {name}"
    if target.channels < int(getattr(stream.codec_context, "channels", 0) or 0):
        why += f", mixed down to {target.layout}"
    return _convert(stream, target.codec, why)


def _audio_listed(muxer: str, name: str) -> bool:
    if muxer == "mpegts":
        return name in _TS_AUDIO
    if muxer == "avi":
        return _AVI_AUDIO.fullmatch(name) is not None
    return name in _WEBM_AUDIO if muxer == "webm" else True


def _plan_subtitle(source: InputContainer, stream: Stream, muxer: str) -> StreamPlan:
    name = codec_name(stream)
    family = "mp4" if muxer in MOV_FAMILY and muxer != "mov" else muxer
    copied = _SUBTITLE_COPY.get(family)
    if name and (copied is None or name in copied) and accepts(muxer, lambda out: add_copy(out, stream)):
        return _copy(stream)
    target = _SUBTITLE_TARGET.get(muxer, "")
    if name in TEXT_SUBTITLES and target and can_convert(stream, target, muxer):
        loss = ", without its styling" if name == "ass" else ""
        return _convert(stream, target, f"{muxer} does not hold {name or 'it'}{loss}")
    return _drop(stream, f"left out: {muxer} does not hold such subtitles")


def _plan_video(source: InputContainer, stream: Stream, muxer: str) -> StreamPlan:
    context = stream.codec_context
    fits = context is not None and accepts(muxer, lambda out: add_copy(out, stream))
    if fits and muxer == "avi":
        # AVI has no presentation times, so pictures stored out of order would be shown so.
        fits = codec_name(stream) in _AVI_VIDEO and not getattr(context, "has_b_frames", False)
    if not fits:
        return _drop(stream, f"left out: one video is upscaled and {muxer} does not hold this one as it is")
    return _copy(stream, f"{_name(stream)} copied in its own size: only one video is upscaled")


def _plan_cover(source: InputContainer, stream: Stream, muxer: str) -> StreamPlan:
    if muxer == "matroska":
        return _copy(stream)
    if (
        muxer == "mp4"
        and codec_name(stream) in _COVER_CODECS
        and accepts(muxer, lambda out: add_copy(out, stream))
    ):
        return _copy(stream)
    return _drop(stream, f"left out: {muxer} holds no cover pictures of this kind")


def _plan_attachment(source: InputContainer, stream: Stream, muxer: str) -> StreamPlan:
    if muxer != "matroska":
        return _drop(stream, f"left out: {muxer} holds no attachments")
    name = stream.metadata.get("filename", f"attachment-{stream.index}")
    return StreamPlan(stream.index, "attachment", "copy", name, "")


def _plan_data(source: InputContainer, stream: Stream, muxer: str) -> StreamPlan:
    name = codec_name(stream)
    from_mov = "mp4" in source.format.name.split(",")
    if from_mov and "timecode" in stream.metadata and muxer in MOV_FAMILY:
        return _drop(stream, "written anew from the timecode tag")
    if from_mov and name == "bin_data" and source.chapters() and not _writes_sample_entry(stream, muxer):
        return _drop(stream, "holds chapter titles, which come along as chapters")
    if from_mov and muxer in MOV_FAMILY and _writes_sample_entry(stream, muxer):
        return _copy(stream)
    from_ts = source.format.name == "mpegts" and name in _TS_DATA
    if from_ts and muxer == "mpegts" and accepts(muxer, lambda out: add_copy(out, stream)):
        return _copy(stream)
    return _drop(stream, f"left out: {muxer} does not hold this kind of data")


def _plan_unknown(source: InputContainer, stream: Stream, muxer: str) -> StreamPlan:
    return _drop(stream, "left out: its kind is unknown")


_PLANNERS: Mapping[str, Callable[[InputContainer, Stream, str], StreamPlan]] = MappingProxyType(
    {
        "audio": _plan_audio,
        "subtitle": _plan_subtitle,
        "video": _plan_video,
        "cover": _plan_cover,
        "attachment": _plan_attachment,
        "data": _plan_data,
    }
)


# --------------------------------------------------------------------------- trial


def add_copy(output: OutputContainer, stream: Stream) -> Stream:
    """Add a stream for the packets of `stream` to `output`, with its parameters and disposition.

    Raises:
        ValueError, av.error.FFmpegError: the container does not take the codec.
    """
    copy: Stream = output.add_stream_from_template(stream, opaque=True)
    if isinstance(copy, AudioStream) and (layout := assumed_layout(copy)):
        copy.codec_context.layout = layout
    copy.disposition = int(stream.disposition)  # type: ignore[assignment]
    return copy


def accepts(muxer: str, add: Callable[[OutputContainer], object]) -> bool:
    """Whether an in-memory output of format `muxer` takes the stream that `add` adds to it."""
    return _trial(muxer, add) is not None


def _trial(muxer: str, add: Callable[[OutputContainer], object]) -> bytes | None:
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=muxer) as output:
            add(output)
            output.start_encoding()
    except REFUSALS:
        return None
    return buffer.getvalue()


def _writes_sample_entry(stream: Stream, muxer: str) -> bool:
    """Whether a mov-like muxer describes this data stream; most it only pretends to write."""
    written = _trial(muxer, lambda out: add_copy(out, stream)) if muxer in MOV_FAMILY else None
    return written is not None and b"stsd" in written and _FIXED_STSD not in written


__all__ = ["MATROSKA_FAMILY", "StreamPlan", "accepts", "add_copy", "codec_name", "cover_file", "plan_streams"]
