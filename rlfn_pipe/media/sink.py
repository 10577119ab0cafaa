"""Video out: encoded frames at exactly the times of the table, with the other streams beside them.

The encoder counts frames; this module puts pts, dts and duration of every packet on the
output's clock itself, since encoders know neither variable rates nor durations.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from rlfn_pipe.errors import OutputError, UsageError
from rlfn_pipe.media.avi import write_starts
from rlfn_pipe.media.colour import frame_from_planes
from rlfn_pipe.media.encoders import EncodePlan
from rlfn_pipe.media.matroska import TrackChange, amend_tracks
from rlfn_pipe.media.opening import describe_av_error
from rlfn_pipe.media.streams import Carrier, StreamPlan
from rlfn_pipe.media.timing import Clock
from rlfn_pipe.types import Frame

# SVT-AV1 writes its settings to standard error unless told otherwise before it is loaded.
os.environ.setdefault("SVT_LOG", "1")

#: More frames than any encoder here holds back to put them in order.
_DEEPEST_REORDERING = 250


@dataclass(frozen=True, slots=True)
class SinkTimes:
    """How source times become output times.

    `time_base`: of the frames' pts; `rate`: nominal frames a second; `last_duration`: source
    ticks that the last frame is shown; `base`: source seconds that become zero; `clock`: the
    output's ticks.
    """

    time_base: Fraction
    rate: Fraction
    last_duration: int
    base: Fraction
    clock: Clock


class VideoSink:
    """Encodes frames into a new file at `path`.

    `write` frames in order, then `close`; on failure call `abort`. The caller renames.

    Raises:
        UsageError: the encoder refuses its settings.
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        plan: EncodePlan,
        times: SinkTimes,
        *,
        name: str,
        sample_aspect_ratio: Fraction | None = None,
        display_matrix: tuple[int, ...] | None = None,
        carrier: Carrier | None = None,
        stream_plans: tuple[StreamPlan, ...] = (),
        tags: Mapping[str, str] | None = None,
        disposition: Disposition | None = None,
        threads: int = 0,
    ) -> None:
        self._sample_aspect_ratio = sample_aspect_ratio
        self._plan, self._times, self._name = plan, times, name
        self._carrier = carrier
        self.notes: list[str] = []
        self._path = path
        self._pts = array("q")
        self._ticks = array("q")
        self._first_dts: int | None = None
        self._starts: dict[int, Fraction] = {}
        self._pending: deque[Packet[Any]] = deque()
        self._output = self._open(path)
        try:
            if carrier is not None:
                carrier.copy_globals(self._output)
            self._set_container_options()
            self._add_streams(
                stream_plans,
                lambda: self._add_video(
                    threads, sample_aspect_ratio, display_matrix, tags or {}, disposition
                ),
            )
            self._write_header()
        except BaseException:
            self.abort()
            raise

    # ------------------------------------------------------------------ set-up

    def _open(self, path: Path) -> OutputContainer:
        try:
            return av.open(str(path), "w", format=self._plan.muxer)
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise OutputError(f"{self._name}: cannot be written ({describe_av_error(error)})") from None

    def _set_container_options(self) -> None:
        options = self._output.container_options
        if self._plan.muxer in ("mp4", "mov"):
            clock = self._times.clock
            tags = self._plan.tags
            tagged = (tags.matrix, tags.transfer, tags.primaries, tags.range) != (2, 2, 2, 0)
            # An empty colour box would be read as limited range.
            flags = "+faststart" + ("+write_colr" if tagged else "-write_colr")
            if self._carrier is not None and self._carrier.needs_metadata_keys(self._plan.muxer):
                flags += "+use_metadata_tags"
            options["movflags"] = flags
            options["video_track_timescale"] = str(clock.timescale)
            options["movie_timescale"] = str(clock.movie_timescale)
        if self._plan.muxer in ("matroska", "webm", "nut", "avi"):
            # Decoding times are not stored; B-frames' early ones must not shift the film.
            options["avoid_negative_ts"] = "disabled"
            if self._plan.muxer == "matroska":
                options["default_mode"] = "passthrough"

    def _add_streams(self, stream_plans: tuple[StreamPlan, ...], add_video: Callable[[], None]) -> None:
        """All streams in the source's order; the video alone when nothing else is known."""
        for plan in stream_plans:
            if plan.action == "main":
                add_video()
            elif self._carrier is not None:
                self._carrier.add_stream(self._output, plan)
        if not stream_plans:
            add_video()

    def _add_video(
        self,
        threads: int,
        sample_aspect_ratio: Fraction | None,
        display_matrix: tuple[int, ...] | None,
        tags: Mapping[str, str],
        disposition: Disposition | None,
    ) -> None:
        plan, rate = self._plan, _encoder_rate(self._plan.codec, self._times.rate)
        try:
            added = self._output.add_stream(plan.codec, rate=rate, options=dict(plan.options))
        except (av.error.FFmpegError, ValueError) as error:
            raise UsageError(
                f"{self._name}: {plan.codec} cannot be used here ({describe_av_error(error)})"
            ) from None
        assert isinstance(added, VideoStream)
        stream = added
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = plan.width, plan.height, plan.pix_fmt
        context.time_base = 1 / rate
        context.thread_count = threads
        context.thread_type = "AUTO"
        context.colorspace = plan.tags.matrix
        context.color_trc = plan.tags.transfer
        context.color_primaries = plan.tags.primaries
        context.color_range = plan.tags.range
        if sample_aspect_ratio:
            context.sample_aspect_ratio = sample_aspect_ratio
        if plan.codec in ("libx265", "hevc_nvenc") and plan.muxer in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # Apple's players want it
        if display_matrix is not None:
            stream.set_display_matrix(display_matrix)
        stream.time_base = self._times.clock.tick
        # Matroska's muxer says by itself whether there is alpha.
        stream.metadata.update({key: value for key, value in tags.items() if key.lower() != "alpha_mode"})
        if disposition is not None:
            stream.disposition = disposition
        self._stream = stream
        self.stream_index = stream.index

    def _write_header(self) -> None:
        try:
            self._output.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            plan = self._plan
            given = " ".join(f"{k}={v}" for k, v in plan.options.items())
            raise UsageError(
                f"{self._name}: {plan.codec} does not accept these settings for {plan.width}x{plan.height} {plan.pix_fmt} "
                f"({given or 'defaults'}: {describe_av_error(error)}); change --codec, --encoder-preset or --encoder-option"
            ) from None
        unknown = [key for key in self._stream.codec_context.options if key in self._plan.options]
        if unknown:
            raise UsageError(f"--encoder-option {unknown[0]}: {self._plan.codec} has no such option")
        self._packet_tick = self._stream.time_base or self._times.clock.tick

    # ----------------------------------------------------------------- writing

    def write(self, frame: Frame) -> None:
        """Encode one frame. `frame.pts` must exceed that of the frame before.

        Raises:
            OutputError: the file cannot be written (disk full, say) or the encoder fails.
        """
        plan = self._plan
        picture = frame_from_planes(frame.planes, plan.pix_fmt, plan.width, plan.height)
        picture.colorspace = plan.tags.matrix
        picture.color_range = plan.tags.range
        picture.color_trc = plan.tags.transfer
        picture.color_primaries = plan.tags.primaries
        picture.pts = len(self._pts)
        picture.time_base = self._stream.codec_context.time_base
        assert frame.pts is not None
        self._append(frame.pts)
        self._guarded(lambda: self._pending.extend(self._stream.encode(picture)))
        self._guarded(lambda: self._mux_ready(final=False))

    def close(self) -> None:
        """Flush encoder and other streams, write the trailer."""
        self._guarded(lambda: self._pending.extend(self._stream.encode(None)))
        self._guarded(lambda: self._mux_ready(final=True))
        if self._carrier is not None:
            for packet in self._carrier.packets_until(None):
                self._guarded(lambda p=packet: self._mux_other(p))
        changes = self._matroska_changes()
        self._guarded(self._output.close)
        if changes:
            self._guarded(lambda: amend_tracks(self._path, self._name, changes))
        if self._plan.muxer == "avi":
            self._guarded(lambda: write_starts(self._path, self._starts))

    def _matroska_changes(self) -> dict[int, TrackChange]:
        """What a Matroska header needs beyond its muxer, by the place in its track list."""
        if self._plan.muxer not in ("matroska", "webm"):
            return {}
        # Attachments have no entry in the list.
        order = [stream.index for stream in self._output.streams if stream.type != "attachment"]
        delays = self._carrier.codec_delays() if self._carrier is not None else {}
        changes = {order.index(i): TrackChange(codec_delay=delay) for i, delay in delays.items()}
        if self._sample_aspect_ratio not in (None, 1):
            size = (round(self._plan.width * self._sample_aspect_ratio), self._plan.height)
            changes[order.index(self.stream_index)] = TrackChange(display_size=size)
        return changes

    def abort(self) -> None:
        """Give up; the file is left as it is for the caller to remove."""
        try:
            self._output.close()
        except (av.error.FFmpegError, ValueError, OSError):
            return  # the output is being thrown away; why it cannot be finished does not matter

    def _append(self, pts: int) -> None:
        """Enter a frame into the table; frames closer than the output's ticks are moved apart."""
        self._pts.append(pts)
        tick = round(self._seconds(len(self._pts) - 1) / self._packet_tick)
        if self._ticks and tick <= self._ticks[-1]:
            tick = self._ticks[-1] + 1
            self._say(
                "some frames lie closer together than the output's ticks; they were moved on by the least step"
            )
        self._ticks.append(tick)

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except (av.error.FFmpegError, OSError) as error:
            reason = describe_av_error(error)
            hint = "; free some space and run the command again" if "space" in reason else ""
            raise OutputError(f"{self._name}: writing failed ({reason}){hint}") from error

    def _mux_ready(self, *, final: bool) -> None:
        """Mux what the encoder gave, as soon as the next frame's time (the duration) is known."""
        rate_base = self._stream.codec_context.time_base
        while self._pending:
            packet = self._pending[0]
            assert packet.pts is not None
            index = round(packet.pts * packet.time_base / rate_base)
            if index + 1 >= len(self._pts) and not final:
                return
            self._pending.popleft()
            order = index if packet.dts is None else round(packet.dts * packet.time_base / rate_base)
            if not index - _DEEPEST_REORDERING <= order <= index:
                order = index  # libx265 leaves it unset where there is but a frame or two
            start, end = self._tick(index), self._tick(index + 1)
            packet.pts, packet.dts = start, min(self._tick(order), start)
            packet.time_base = self._packet_tick
            packet.duration = end - start
            if self._first_dts is None:
                self._first_dts = packet.dts
            if final and not self._pending and self._plan.muxer in ("mp4", "mov"):
                packet.duration = max(packet.duration, self._closing_duration(packet.dts, start))
            packet.stream = self._stream
            if self._carrier is not None:
                for other in self._carrier.packets_until(packet.dts * self._packet_tick):
                    self._mux_other(other)
            if index == 0 and start > 0 and self._plan.muxer == "avi":
                self._output.mux(self._empty_packet())
            self._output.mux(packet)

    def _closing_duration(self, dts: int, pts: int) -> int:
        """Duration of the last packet in decoding order, after which mp4's media last to the film's end.

        mp4 stores the steps between decoding times; with B-frames and varying rates the last step
        is not the last frame's own duration.
        """
        assert self._first_dts is not None
        end = self._tick(len(self._ticks))
        missing = (end - self._ticks[0]) - (dts - self._first_dts)
        return min(missing, end - pts)

    def _mux_other(self, packet: Packet[Any]) -> None:
        if packet.pts is not None and packet.time_base:
            self._starts.setdefault(packet.stream.index, packet.pts * Fraction(packet.time_base))
        self._output.mux(packet)

    def _empty_packet(self) -> Packet[Any]:
        """An AVI frame that shows nothing yet; the muxer adds more up to the first real one."""
        packet: Packet[Any] = Packet(b"")
        packet.stream, packet.time_base = self._stream, self._packet_tick
        packet.pts = packet.dts = 0
        packet.duration = 1
        return packet

    def _seconds(self, index: int) -> Fraction:
        """Output presentation time of a frame; indices before the first or after the last extrapolate."""
        times = self._times
        if index < 0:
            return self._seconds(0) + index / times.rate
        if index >= len(self._pts):
            return (self._pts[-1] + times.last_duration) * times.time_base - times.base
        return self._pts[index] * times.time_base - times.base

    def _tick(self, index: int) -> int:
        if index < 0:
            return min(round(self._seconds(index) / self._packet_tick), self._ticks[0] + index)
        if index < len(self._ticks):
            return self._ticks[index]
        return max(round(self._seconds(index) / self._packet_tick), self._ticks[-1] + 1)

    # ------------------------------------------------------------------ checks

    @property
    def frames(self) -> int:
        """Frames written so far."""
        return len(self._pts)

    def expected_ticks(self) -> tuple[np.ndarray, Fraction]:
        """Presentation time of every frame in ticks, and the tick in seconds."""
        return np.array(self._ticks, dtype=np.int64), self._packet_tick


def _encoder_rate(codec: str, rate: Fraction) -> Fraction:
    """The rate as the encoder can hold it (MPEG-4 part 2 counts in 16 bits, MPEG-2 knows a few)."""
    if codec == "mpeg4" and (rate.numerator > 65535 or rate.denominator > 65535):
        return rate.limit_denominator(max(1, 65535 // max(1, round(rate))))
    if codec == "mpeg2video":
        whole = [Fraction(n) for n in (24, 25, 30, 50, 60)]
        known = [*whole, Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)]
        return min(known, key=lambda k: abs(k - rate))
    return rate
