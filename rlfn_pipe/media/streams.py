"""Everything beside the upscaled video on its way into the output: packets, tags, chapters.

`plan_streams` decides, `earliest` tells where the kept streams begin, and a `Carrier` reads them
in a demuxer of its own and hands out packets that are ready to mux.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from itertools import count
from typing import Any

import av.error
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Discard, Stream

from rlfn_pipe.media.audio import PRIMING
from rlfn_pipe.media.clock import Clock, is_end_mark, is_trimmed_away, priming_seconds
from rlfn_pipe.media.opening import readable_packets
from rlfn_pipe.media.stream_plan import StreamPlan, plan_streams
from rlfn_pipe.media.tags import (
    MATROSKA_FAMILY,
    MOV_FAMILY,
    NO_EDIT_LISTS,
    container_tags,
    lost_tags,
    needs_metadata_keys,
    shifted_chapters,
    stream_tags,
)
from rlfn_pipe.media.tracks import (
    AudioTrack,
    CopyTrack,
    CoverTrack,
    FilledTrack,
    Ready,
    SubtitleTrack,
    Track,
    Window,
    attach_cover,
    read_cover,
)

__all__ = ["LOOKAHEAD", "Carrier", "StreamPlan", "earliest", "plan_streams"]

OpenInput = Callable[[], AbstractContextManager[InputContainer]]

#: How far, in seconds, the file is read beyond the time that was asked for, to put packets in order.
LOOKAHEAD = Fraction(3, 2)
#: Seeking for a window starts this much before it (seconds), so that long subtitles are met.
_RUN_UP = 30
_EARLIEST_PACKETS = 400


def _kept(plans: Sequence[StreamPlan]) -> dict[int, StreamPlan]:
    return {plan.index: plan for plan in plans if plan.action in ("copy", "convert")}


def _select(container: InputContainer, plans: Sequence[StreamPlan]) -> list[Stream]:
    """Streams that deliver packets; all others are discarded by the demuxer already."""
    kept = _kept(plans)
    timed = []
    for stream in container.streams:
        if stream.index in kept and kept[stream.index].kind not in ("attachment", "cover"):
            timed.append(stream)
        else:
            stream.discard = Discard.all
    return timed


def earliest(
    open_input: OpenInput, plans: Sequence[StreamPlan], muxer: str = ""
) -> tuple[Fraction | None, Fraction | None]:
    """Where the kept side streams begin: earliest presentation and earliest packet time, in seconds.

    The second value includes audio priming, of the source's packets or of our encoder, but not
    what `muxer` keeps as a codec delay of its own (Matroska). Both are None without such streams.
    Reads at most some hundred packets.
    """
    shown: list[Fraction] = []
    packets: list[Fraction] = []
    with open_input() as container:
        streams = _select(container, plans)
        kept = _kept(plans)
        waiting = set()
        clocks: dict[int, Clock] = {}
        for stream in streams:
            if stream.start_time is not None and stream.time_base:
                shown.append(stream.start_time * Fraction(stream.time_base))
            waiting.add(stream.index)
        dense = {stream.index for stream in streams if stream.type in ("audio", "video")}
        seen = 0
        for packet in readable_packets(container, *streams) if streams else ():
            seen += 1
            if seen > _EARLIEST_PACKETS or not (waiting & dense or (waiting and not dense)):
                break
            if is_end_mark(packet) or packet.stream.index not in waiting:
                continue
            stream = packet.stream
            clock = clocks.setdefault(stream.index, Clock(stream))
            times = clock.times(packet)
            if clock.too_early(times) or (muxer in NO_EDIT_LISTS and is_trimmed_away(packet, times, stream)):
                continue
            waiting.discard(stream.index)
            skipped = priming_seconds(packet, stream)
            if stream.start_time is None:
                shown.append(times.pts + skipped)
            plan = kept[stream.index]
            if plan.action == "convert" and plan.kind == "audio":
                lead = Fraction(PRIMING.get(plan.codec, 0), int(getattr(stream, "rate", 0)) or 48_000)
                packets.append(times.pts + skipped - (0 if muxer in MATROSKA_FAMILY else lead))
            elif muxer in MATROSKA_FAMILY:
                # The delay is exact and the time rounded: they meet within a tick.
                start = (stream.start_time or 0) * clock.time_base
                heard = times.dts + skipped
                packets.append(start if abs(heard - start) < clock.time_base else heard)
            else:
                packets.append(min(times.dts, times.pts))
    packets.extend(shown)
    return min(shown, default=None), min(packets, default=None)


class Carrier:
    """Carries the other streams of a file into the output.

    Reads the file in a demuxer of its own with the main video discarded. All times are exact
    seconds; every time stamp is moved by `-base`. `window` = (start, end) in source time keeps
    packets whose presentation time lies in it (text subtitles are cut to it). Use: `add_stream`
    for each plan in source order and `copy_globals` before the header is written, then
    `packets_until` with rising times, last with None, then `close` (or use as a context).
    """

    def __init__(
        self,
        open_input: OpenInput,
        plans: Sequence[StreamPlan],
        *,
        base: Fraction = Fraction(0),
        window: Window | None = None,
    ) -> None:
        self._stack = ExitStack()
        self._open_input = open_input
        self._input = self._stack.enter_context(open_input())
        self._plans = tuple(plans)
        self._base = base
        self._window = window
        self._tracks: dict[int, Track] = {}
        self._heap: list[tuple[Fraction, int, Ready]] = []
        self._order = count()
        self._read_to: dict[int, Fraction] = {}
        self._demux: Iterator[Packet[Any]] | None = None
        self._ended = False
        self._notes: list[str] = [plan.reason for plan in self._plans if plan.reason]

    def __enter__(self) -> Carrier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ before the header

    def add_stream(self, output: OutputContainer, plan: StreamPlan) -> Stream | None:
        """Add the stream of `plan` to `output`; None for what is left out or is the main video.

        Attachments (and covers in Matroska) are written with the header and deliver no packets.
        """
        if plan.action not in ("copy", "convert"):
            return None
        source = self._input.streams[plan.index]
        muxer = output.format.name
        if plan.kind == "attachment":
            assert isinstance(source, AttachmentStream)
            added = output.add_attachment(plan.codec, source.metadata.get("mimetype", ""), source.data)
            added.metadata.update(source.metadata)
            return added
        if plan.kind == "cover":
            return self._add_cover(output, source)
        track: Track
        if plan.action == "copy":
            filled = muxer == "avi" and plan.kind == "audio"
            track = (
                FilledTrack(source, output, self._window, self._base)
                if filled
                else CopyTrack(source, output, self._window)
            )
        elif plan.kind == "audio":
            track = AudioTrack(source, output, self._window, self._base)
        else:
            track = SubtitleTrack(source, output, plan.codec, self._window)
        copied = plan.action == "copy"
        track.out.metadata.update(
            stream_tags(source.metadata, muxer, copied=copied, whole=self._window is None)
        )
        self._tracks[plan.index] = track
        return track.out

    def _add_cover(self, output: OutputContainer, source: Stream) -> Stream | None:
        with self._open_input() as container:
            picture = read_cover(container, source.index)
        if not picture:
            self._notes.append(f"cover stream {source.index} is empty and left out")
            return None
        if output.format.name in MATROSKA_FAMILY:
            return attach_cover(output, source, picture)
        cover = CoverTrack(source, output, picture)
        cover.out.metadata.update(stream_tags(source.metadata, output.format.name, copied=True))
        self._put([cover.first()])
        return cover.out

    def copy_globals(self, output: OutputContainer) -> None:
        """Copy container tags, and chapters moved by `-base` and cut to the window."""
        muxer = output.format.name
        tags = container_tags(self._input.metadata)
        output.metadata.update(tags)
        if lost := lost_tags(tags, muxer, metadata_keys=self.needs_metadata_keys(muxer)):
            self._notes.append(f"tags that {muxer} does not hold are left out: {', '.join(lost)}")
        chapters = shifted_chapters(self._input.chapters(), self._base, self._window)
        if not chapters:
            return
        if muxer in MATROSKA_FAMILY or muxer in MOV_FAMILY or muxer in ("nut", "ogg"):
            output.set_chapters(chapters)
        else:
            self._notes.append(f"{len(chapters)} chapters left out: {muxer} does not hold chapters")

    def needs_metadata_keys(self, muxer: str) -> bool:
        """Whether a mov/mp4 output should be opened with `movflags=use_metadata_tags`.

        That is so for files with `com.apple...` keys; not with a cover, which needs the other
        kind of tag table.
        """
        covers = any(plan.kind == "cover" and plan.action == "copy" for plan in self._plans)
        return needs_metadata_keys(container_tags(self._input.metadata), muxer) and not covers

    # ------------------------------------------------------------- after the header

    def packets_until(self, t: Fraction | None) -> Iterator[Packet[Any]]:
        """Packets whose (moved) decoding time is at most `t` seconds, in order; None: all the rest.

        They belong to the output streams and carry times in those streams' time bases, so the
        header must have been written. Reads at most `LOOKAHEAD` seconds ahead of `t`.
        """
        while True:
            self._read_until(t)
            if not self._heap or (t is not None and self._heap[0][0] > t):
                return
            yield heapq.heappop(self._heap)[2].stamped(self._base)

    def codec_delays(self) -> dict[int, Fraction]:
        """Output stream index -> seconds of priming that a Matroska header must state; known after the packets."""
        tracks = (track for track in self._tracks.values() if isinstance(track, CopyTrack))
        return {track.out.index: track.codec_delay for track in tracks if track.codec_delay}

    def close(self) -> None:
        """Close the input."""
        self._demux = None
        self._stack.close()

    @property
    def notes(self) -> list[str]:
        """Sentences for the summary: what was converted, left out or mended."""
        mended = [note for track in self._tracks.values() for note in track.notes()]
        return [*self._notes, *mended]

    def _put(self, ready: Iterable[Ready]) -> None:
        for item in ready:
            heapq.heappush(self._heap, (item.times.dts - self._base, next(self._order), item))

    def _read_until(self, t: Fraction | None) -> None:
        """Read on until everything up to `t` (None: the next packet) is known to be in the heap."""
        while not self._ended:
            target = t
            if target is None and self._heap:
                target = self._heap[0][0]
            if target is not None and self._enough(target):
                return
            self._read_one()

    def _enough(self, target: Fraction) -> bool:
        furthest = max(self._read_to.values(), default=None)
        if furthest is None:
            return False
        if furthest > target + LOOKAHEAD:
            return True
        pool = [i for i, track in self._tracks.items() if track.dense] or list(self._tracks)
        return all(i in self._read_to and self._read_to[i] > target for i in pool)

    def _read_one(self) -> None:
        if self._demux is None:
            self._demux = self._start()
        try:
            packet = next(self._demux, None)
        except (av.error.FFmpegError, OSError) as error:
            self._notes.append(f"the other streams end early: reading failed ({error})")
            packet = None
        if packet is None or self._beyond(packet):
            self._finish()
            return
        track = self._tracks.get(packet.stream.index)
        if track is None or is_end_mark(packet):
            return
        times = track.clock.times(packet)
        self._read_to[packet.stream.index] = times.dts - self._base
        self._put(track.push(packet, times))
        if track.dense:
            for other in self._tracks.values():
                self._put(other.advance(times.dts))

    def _start(self) -> Iterator[Packet[Any]]:
        """Begin to read, near the window where it lies far inside the file."""
        streams = [stream for stream in _select(self._input, self._plans) if stream.index in self._tracks]
        if not streams:
            return iter(())
        if self._window is not None:
            self._seek(streams, self._window[0] - _RUN_UP)
        return self._input.demux(streams)

    def _seek(self, streams: Sequence[Stream], time: Fraction) -> None:
        anchor = next((stream for stream in streams if stream.type in ("audio", "video")), None)
        if anchor is None or not anchor.time_base:
            return
        if time <= (anchor.start_time or 0) * Fraction(anchor.time_base) + _RUN_UP:
            return
        main = next((plan.index for plan in self._plans if plan.action == "main"), anchor.index)
        if not self._input.format.name.startswith("mpeg"):
            # The index is the main video's; MPEG has none and looks for packets, which the video's are not.
            anchor = self._input.streams[main]
        try:
            self._input.seek(int(time / Fraction(anchor.time_base or 1)), stream=anchor)
        except av.error.FFmpegError:
            self._notes.append("this file cannot be searched by time and was read from its start")

    def _beyond(self, packet: Packet[Any]) -> bool:
        """Whether the window is surely over."""
        end = self._window[1] if self._window is not None else None
        if end is None or packet.dts is None or not packet.time_base:
            return False
        return packet.dts * Fraction(packet.time_base) > end + LOOKAHEAD

    def _finish(self) -> None:
        self._ended = True
        for track in self._tracks.values():
            self._put(track.flush())
