"""Video out: encoded frames at exactly the times of the table, with the other streams beside them.

The encoder counts frames; this module puts pts, dts and duration of every packet on the
output's clock itself, since encoders know neither variable rates nor durations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from rlfn_pipe.errors import MORE_ROOM, OutputError, is_full
from rlfn_pipe.media.avi import write_starts
from rlfn_pipe.media.encoders import EncodePlan
from rlfn_pipe.media.encoding import (
    check_options,
    configure,
    encoder_options,
    encoder_rate,
    refused,
    unusable,
)
from rlfn_pipe.media.headers import missing_headers
from rlfn_pipe.media.matroska import Crop, TrackChange, amend_tracks
from rlfn_pipe.media.opening import describe_av_error
from rlfn_pipe.media.segment import SegmentHeader, read_header, read_packets
from rlfn_pipe.media.side_data import side_by_side
from rlfn_pipe.media.stream_plan import codec_name
from rlfn_pipe.media.streams import Carrier, StreamPlan
from rlfn_pipe.media.tags import MATROSKA_FAMILY
from rlfn_pipe.media.ticks import FrameTicks, SinkTimes
from rlfn_pipe.media.verify import Expectation

__all__ = ["SinkTimes", "VideoSink"]

_MOVED_APART = "some frames lie closer together than the output's ticks; they were moved on by the least step"
_PACKETS_BETWEEN_CHECKS = 64
#: What Blu-ray's form of a transport stream has names for; all else would be private data in it.
_BLU_RAY_CODECS = frozenset(
    {"h264", "hevc", "mpeg2video", "ac3", "eac3", "dts", "truehd", "pcm_bluray", "hdmv_pgs_subtitle"}
)

#: With so many packets an encoder has given its first one the decoding time that it gives in long films.
_TELLING_PACKETS = 3
#: Encoders that do not say by how many frames they reorder, and the most that they do.
_SILENT_REORDERING = {"libx265": 2, "hevc_nvenc": 4, "h264_nvenc": 4}

#: More frames than any encoder here holds back to put them in order.
_DEEPEST_REORDERING = 250


class VideoSink:
    """Joins segments into a new file at `path`, at their frames' times and beside the other streams.

    `write_segment` for every segment in order, then `close`; on failure call `abort`. The caller
    renames.

    Args:
        path: the file to write; `name` is how messages call it.
        plan: the encoder's settings; it is opened for its headers, the segments are encoded already.
        times: how source times become output times.
        pts: source time of every frame of the output, strictly increasing.
        carrier, stream_plans: the other streams.
        threads: as the segments' encoders had.

    Raises:
        UsageError: the encoder refuses its settings.
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        plan: EncodePlan,
        times: SinkTimes,
        pts: Sequence[int] | np.ndarray,
        *,
        name: str,
        sample_aspect_ratio: Fraction | None = None,
        display_matrix: tuple[int, ...] | None = None,
        crop: Crop | None = None,
        carrier: Carrier | None = None,
        stream_plans: tuple[StreamPlan, ...] = (),
        tags: Mapping[str, str] | None = None,
        disposition: Disposition | None = None,
        threads: int = 0,
    ) -> None:
        self._sample_aspect_ratio, self._crop = sample_aspect_ratio, crop
        self._plan, self._times, self._name = plan, times, name
        self._carrier = carrier
        self.notes: list[str] = []
        self._path = path
        self._first_dts: int | None = None
        self._starts: dict[int, Fraction] = {}
        self._kinds: Counter[str] = Counter()
        #: Carried streams that no packet has come for, by their index in the output.
        self._unfed: dict[int, StreamPlan] = {}
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
        self._joined = 0
        self._mixed = False
        self._delay = self._media = 0
        self._last_dts: int | None = None
        self._ticks = FrameTicks(pts, times, self._packet_tick)
        if self._ticks.moved:
            self.notes.append(_MOVED_APART)

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
            if self._plan.muxer in MATROSKA_FAMILY:
                # No random identifiers: the same film is the same file.
                options["fflags"] = "+bitexact"

    def _add_streams(self, stream_plans: tuple[StreamPlan, ...], add_video: Callable[[], None]) -> None:
        """All streams in the source's order; the video alone when nothing else is known."""
        for plan in stream_plans:
            if plan.action == "main":
                add_video()
                self._kinds["video"] += 1
            elif (
                self._carrier is not None
                and (out := self._carrier.add_stream(self._output, plan)) is not None
            ):
                self._kinds[plan.kind] += 1
                self._unfed[out.index] = plan
        if not stream_plans:
            add_video()
            self._kinds["video"] += 1

    def _add_video(
        self,
        threads: int,
        sample_aspect_ratio: Fraction | None,
        display_matrix: tuple[int, ...] | None,
        tags: Mapping[str, str],
        disposition: Disposition | None,
    ) -> None:
        plan, rate = self._plan, encoder_rate(self._plan.codec, self._times.rate)
        try:
            added = self._output.add_stream(plan.codec, rate=rate, options=encoder_options(plan))
        except (av.error.FFmpegError, ValueError) as error:
            raise unusable(plan, self._name, error) from None
        assert isinstance(added, VideoStream)
        stream = added
        configure(stream.codec_context, plan, rate, sample_aspect_ratio, threads)
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
        if self._plan.muxer == "mpegts":
            self._output.container_options["mpegts_m2ts_mode"] = str(int(self._is_blu_ray()))
        try:
            self._output.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            raise refused(self._plan, self._name, error) from None
        check_options(self._stream.codec_context, self._plan)
        self._packet_tick = self._stream.time_base or self._times.clock.tick

    def _is_blu_ray(self) -> bool:
        """Whether Blu-ray's packets are wanted (libav goes by the name, a temporary one here) and know all streams."""
        if not self._name.lower().endswith(".m2ts"):
            return False
        foreign = sorted({codec_name(stream) for stream in self._output.streams} - _BLU_RAY_CODECS)
        if foreign:
            self.notes.append(
                f"Blu-ray's packets know no {' or '.join(foreign)}: the file has those of a plain transport stream"
            )
        return not foreign

    # ----------------------------------------------------------------- writing

    def write_segment(self, path: Path, first: int, *, check_stop: Callable[[], None] | None = None) -> None:
        """Mux the packets of a segment (see `segment.SegmentSink`) whose first frame is `first`.

        `check_stop` is called every few packets and may raise.

        Raises:
            OutputError: the segment is damaged or not the one that follows, or writing fails.
        """
        if first != self._joined:
            raise ValueError(f"segment of frame {first} given where frame {self._joined} follows")
        header = read_header(path, self._name)
        own = self._stream.codec_context.extradata or b""
        ahead = missing_headers(self._plan, own, header.extradata, self._name)
        if self._mixed and not ahead:
            ahead = header.extradata  # a decoder still has those of the segment before
        self._mixed = self._mixed or bool(ahead)
        packets = read_packets(path, self._name)
        begin = list(islice(packets, _TELLING_PACKETS))
        if self._joined == 0:
            self._delay = self._reordering(header, begin)
        for packet in chain(begin, packets):
            if check_stop is not None and self._joined % _PACKETS_BETWEEN_CHECKS == 0:
                check_stop()
            assert packet.pts is not None
            index = first + packet.pts
            if not first <= index < len(self._ticks) or self._joined >= len(self._ticks):
                raise OutputError(f"{self._name}: {path.name} holds more frames than belong there; remove it")
            if ahead:
                packet, ahead = _with_headers(packet, ahead), b""
            self._guarded(lambda p=packet, i=index: self._mux_video(p, i, self._joined - self._delay))
            self._joined += 1

    def _reordering(self, header: SegmentHeader, begin: Sequence[Packet[Any]]) -> int:
        """How many frames the whole film is decoded ahead of what is shown.

        Decoding times are counted anew over all segments: each encoder restarts its own, with
        less of a lead where it had but a frame or two (libx265 then leaves them unset).
        """
        depth = header.reordering
        if len(begin) == _TELLING_PACKETS:
            early = -(begin[0].dts or 0)
            depth = max(depth, early) if early <= _DEEPEST_REORDERING else depth
        elif header.codec in _SILENT_REORDERING:
            depth = max(depth, _SILENT_REORDERING[header.codec])
        # A film of n frames has no more than n - 1 to wait for.
        return min(depth, len(self._ticks) - 1)

    def _mux_video(self, packet: Packet[Any], index: int, order: int) -> None:
        """Mux the picture of frame `index`, which is the one that is decoded at frame `order`'s time."""
        start, end = self._ticks.at(index), self._ticks.at(index + 1)
        packet.pts, packet.dts = start, min(self._ticks.at(order), start)
        if self._plan.muxer == "nut":
            # NUT stores no times of decoding, but its muxer writes one of them down now and then, without a sign.
            packet.dts = min(max(packet.dts, self._joined), start)
        packet.time_base = self._packet_tick
        packet.duration = end - start
        if self._first_dts is None:
            self._first_dts = packet.dts
        if self._last_dts is not None and packet.dts <= self._last_dts:
            raise OutputError(
                f"{self._name}: frame {index} would be decoded after it is shown; use fewer B-frames (--encoder-option bf=2)"
            )
        self._last_dts = packet.dts
        if self._joined == len(self._ticks) - 1 and self._plan.muxer in ("mp4", "mov"):
            packet.duration = max(packet.duration, self._closing_duration(packet.dts, start))
        self._media = packet.dts + packet.duration - self._first_dts
        packet.stream = self._stream
        if self._carrier is not None:
            for other in self._carrier.packets_until(packet.dts * self._packet_tick):
                self._mux_other(other)
        if index == 0 and start > 0 and self._plan.muxer == "avi":
            self._output.mux(self._empty_packet())
        self._output.mux(packet)

    def close(self) -> None:
        """Flush the other streams, write the trailer."""
        if self._joined != len(self._ticks):
            raise OutputError(f"{self._name}: {self._joined} of {len(self._ticks)} frames were joined")
        if self._carrier is not None:
            for packet in self._carrier.packets_until(None):
                self._guarded(lambda p=packet: self._mux_other(p))
        self._leave_out_empty()
        changes = self._matroska_changes()
        self._guarded(self._output.close)
        if changes:
            self._guarded(lambda: amend_tracks(self._path, self._name, changes))
        if self._plan.muxer == "avi":
            self._guarded(lambda: write_starts(self._path, self._starts))

    def _matroska_changes(self) -> dict[int, TrackChange]:
        """What a Matroska header needs beyond its muxer, by the place in its track list."""
        if self._plan.muxer not in MATROSKA_FAMILY:
            return {}
        # Attachments have no entry in the list.
        order = [stream.index for stream in self._output.streams if stream.type != "attachment"]
        delays = self._carrier.codec_delays() if self._carrier is not None else {}
        changes = {order.index(i): TrackChange(codec_delay=delay) for i, delay in delays.items()}
        if self._crop or self._sample_aspect_ratio not in (None, 1):
            left, top, right, bottom = self._crop or (0, 0, 0, 0)
            width, height = self._plan.width - left - right, self._plan.height - top - bottom
            # Of two eyes' views that share the picture, Matroska means one.
            beside, above = side_by_side(self._stream.metadata.get("stereo_mode", ""))
            size = (round(width * (self._sample_aspect_ratio or 1)) // beside, height // above)
            change = TrackChange(display_size=size, crop=self._crop)
            changes[order.index(self.stream_index)] = change
        return changes

    def abort(self) -> None:
        """Give up; the file is left as it is for the caller to remove."""
        try:
            self._output.close()
        except (av.error.FFmpegError, ValueError, OSError):
            return  # the output is being thrown away; why it cannot be finished does not matter

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except (av.error.FFmpegError, OSError) as error:
            reason = describe_av_error(error)
            hint = f"; {MORE_ROOM}" if is_full(error) else ""
            raise OutputError(f"{self._name}: writing failed ({reason}){hint}") from error

    def _closing_duration(self, dts: int, pts: int) -> int:
        """Duration of the last packet in decoding order, after which mp4's media last to the film's end.

        mp4 stores the steps between decoding times; with B-frames and varying rates the last step
        is not the last frame's own duration.
        """
        assert self._first_dts is not None
        end = self._ticks.at(len(self._ticks))
        missing = (end - self._ticks.at(0)) - (dts - self._first_dts)
        return min(missing, end - pts)

    def _leave_out_empty(self) -> None:
        """Sound and films of mp4 and mov without a packet are not in the file, which their muxer does not say."""
        if self._plan.muxer not in ("mp4", "mov"):
            return
        for plan in self._unfed.values():
            if plan.kind in ("audio", "video"):
                self._kinds[plan.kind] -= 1
                self.notes.append(
                    f"{plan.kind} stream {plan.index} has nothing in the chosen part and is left out"
                )

    def _mux_other(self, packet: Packet[Any]) -> None:
        self._unfed.pop(packet.stream.index, None)
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

    # ------------------------------------------------------------------ checks

    @property
    def frames(self) -> int:
        """Frames written so far."""
        return self._joined

    def expectation(self) -> Expectation:
        """What the closed file must hold, for `verify.verify_video`."""
        ticks = self._ticks
        # Matroska tells when the film ends; mp4 how long its media last, cut by its edit list.
        length = ticks.at(len(ticks))
        if self._plan.muxer in ("mp4", "mov"):
            length = min(length - ticks.at(0), self._media)
        return Expectation(
            self._plan, self.stream_index, ticks.array, self._packet_tick, length, dict(self._kinds)
        )


def _with_headers(packet: Packet[Any], headers: bytes) -> Packet[Any]:
    """The packet with an encoder's headers before its picture."""
    whole: Packet[Any] = Packet(headers + bytes(packet))
    whole.is_keyframe = packet.is_keyframe
    for item in packet.iter_sidedata():
        whole.set_sidedata(item)
    return whole
