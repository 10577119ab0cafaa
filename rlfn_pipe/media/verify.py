"""The end check: what was written is read back and compared with what was meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlfn_pipe.errors import InputError, OutputError
from rlfn_pipe.media.colour import planar_format
from rlfn_pipe.media.encoders import EncodePlan, carried_tags
from rlfn_pipe.media.opening import describe_av_error, open_media
from rlfn_pipe.media.stream_plan import stream_kind
from rlfn_pipe.media.timing import Timeline, scan
from rlfn_pipe.types import RANGE_LIMITED

#: Containers that may move all times by the same amount.
_SHIFTING = frozenset({"mpegts", "avi"})
#: Packets after which a picture that does not come will not come.
_FIRST_PICTURE = 300


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a finished file must hold.

    `plan`: of its video; `stream_index`: the video's; `ticks`: int64 presentation times of its
    frames, `tick` seconds each; `length`: ticks that the container says it lasts (Matroska: to
    the end of its last frame; mp4, mov: the steps between decoding times, up to the same end);
    `streams`: how many streams there are of each kind (as in `StreamPlan.kind`).
    """

    plan: EncodePlan
    stream_index: int
    ticks: np.ndarray
    tick: Fraction
    length: int
    streams: Mapping[str, int]


def verify_video(path: Path, name: str, expectation: Expectation) -> None:
    """Read a finished file back: packets throughout, and its first picture.

    Compared are the streams' kinds, frame count and every presentation time (and so every
    frame's duration), the film's length, and size, pixel format and colour tags as far as the
    codec or the container can say them. `name` is how messages call the file.

    Raises:
        OutputError: the file cannot be read back, or is not what was meant.
    """
    muxer = expectation.plan.muxer
    try:
        # A transport stream of a few packets cannot be told from its content.
        with open_media(path, muxer) as container:
            stream = container.streams[expectation.stream_index]
            _check_streams(container, name, expectation.streams)
            assert isinstance(stream, VideoStream)
            _check_picture(container, stream, name, expectation.plan)
        with open_media(path, muxer) as container:
            timeline = scan(container, container.streams[expectation.stream_index])  # type: ignore[arg-type]
            _check_times(timeline, name, expectation.ticks, expectation.tick, muxer in _SHIFTING)
            _check_length(container, timeline, name, expectation)
    except (InputError, IndexError) as error:
        raise OutputError(f"{name}: the finished file cannot be read back ({error})") from None


def _failed(name: str, what: str) -> OutputError:
    return OutputError(f"{name}: the end check failed, {what}; run it again or write another container")


# ------------------------------------------------------------------------- streams


def _check_streams(container: InputContainer, name: str, expected: Mapping[str, int]) -> None:
    found = Counter(stream_kind(stream) for stream in container.streams)
    for kind, count in expected.items():
        # Readers show some attached pictures as covers and some chapters as data.
        loose = kind in ("attachment", "cover", "data", "unknown")
        there = found[kind] + (
            found["attachment"] + found["cover"] - found[kind] if kind in ("attachment", "cover") else 0
        )
        if there < count if loose else there != count:
            raise _failed(name, f"it has {there} {kind} streams instead of {count}")


# --------------------------------------------------------------------------- picture


def _check_picture(container: InputContainer, stream: VideoStream, name: str, plan: EncodePlan) -> None:
    picture = _first_picture(container, stream, name)
    if (picture.width, picture.height) != (plan.width, plan.height):
        size = f"{picture.width}x{picture.height}"
        raise _failed(name, f"its picture has {size} pixels instead of {plan.width}x{plan.height}")
    found, wanted = planar_format(picture.format.name), planar_format(plan.pix_fmt)
    if _comparable(found) != _comparable(wanted) and not _is_shown_grey(found, wanted, plan.codec):
        raise _failed(name, f"its pixel format is {found} instead of {wanted}")
    context = stream.codec_context
    tags = {
        "matrix": (int(picture.colorspace), int(context.colorspace)),
        "transfer": (int(picture.color_trc), int(context.color_trc)),
        "primaries": (int(picture.color_primaries), int(context.color_primaries)),
        "range": (int(picture.color_range), int(context.color_range)),
    }
    for kind, value in carried_tags(plan).items():
        # Limited range is what goes without saying, and what encoders leave unsaid.
        unsaid = kind == "range" and value == RANGE_LIMITED and not any(tags[kind])
        if value not in tags[kind] and not unsaid:
            raise _failed(name, f"its colour {kind} reads as {tags[kind][0]} instead of {value}")


def _first_picture(container: InputContainer, stream: VideoStream, name: str) -> VideoFrame:
    stream.codec_context.thread_count = 1
    try:
        for count, packet in enumerate(container.demux(stream)):
            for picture in packet.decode():
                return picture
            if count > _FIRST_PICTURE:
                break
    except av.error.FFmpegError as error:
        raise _failed(name, f"its first picture does not decode ({describe_av_error(error)})") from None
    raise _failed(name, "no picture can be decoded")


def _is_shown_grey(found: str, wanted: str, codec: str) -> bool:
    """H.264's decoder shows pictures without chroma as 4:2:0 with nothing in it."""
    return "264" in codec and wanted.startswith("gray") and found == wanted.replace("gray", "yuv420p")


def _comparable(pix_fmt: str) -> str:
    """Formats that are one to the file: most decoders of VP9 show no alpha, and ProRes' has 12 bits."""
    name = pix_fmt.replace("yuva", "yuv")
    return name.replace("yuv444p10", "yuv444p12")


# ----------------------------------------------------------------------------- times


def _check_times(timeline: Timeline, name: str, expected: np.ndarray, tick: Fraction, shifted: bool) -> None:
    if timeline.frames != len(expected):
        raise OutputError(
            f"{name}: {len(expected)} frames were written and {timeline.frames} are in the file"
        )
    factor = timeline.time_base / tick
    ticks = timeline.pts * factor.numerator
    wanted = expected * factor.denominator
    if shifted and len(ticks):
        # What most frames are moved by, so that the frame that is really off is the one named.
        ((move, _),) = Counter((ticks - wanted).tolist()).most_common(1)
        ticks = ticks - move
    # A container that rounds (its ticks are not ours) may be off by half of one of its ticks.
    off = np.abs(ticks - wanted) > (factor.numerator if factor.denominator == 1 and factor != 1 else 0)
    if off.any():
        first = int(np.argmax(off))
        raise OutputError(
            f"{name}: the end check failed, frame {first} is shown at "
            f"{float(Fraction(int(ticks[first]), factor.denominator) * tick):.6f} s "
            f"instead of {float(expected[first] * tick):.6f} s; write another container"
        )


def _check_length(container: InputContainer, timeline: Timeline, name: str, expectation: Expectation) -> None:
    """The video's length within a tick, where a header tells it.

    Matroska's is that of the whole film, which sound may outlast.
    """
    muxer, tick = expectation.plan.muxer, expectation.tick
    wanted = expectation.length * tick
    stream = container.streams[expectation.stream_index]
    if muxer in ("mp4", "mov") and stream.duration is not None:
        found, allowed, longer = stream.duration * timeline.time_base, tick, False
    elif muxer in ("matroska", "webm") and container.duration is not None:
        found, allowed = Fraction(container.duration, 1_000_000), tick + Fraction(1, 1_000_000)
        longer = sum(expectation.streams.values()) > 1
    else:
        return
    if found < wanted - allowed or (found > wanted + allowed and not longer):
        raise _failed(name, f"it lasts {float(found):.6f} s instead of {float(wanted):.6f} s")
