"""One carried stream: packets of the source in, packets for the output out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from rlfn_pipe.media import subtitles
from rlfn_pipe.media.audio import PRIMING, AudioConverter, add_encoder, audio_target, silent_packet
from rlfn_pipe.media.clock import (
    Clock,
    SampleClock,
    Times,
    is_end_mark,
    is_trimmed_away,
    priming_seconds,
)
from rlfn_pipe.media.gate import Gate
from rlfn_pipe.media.stream_plan import add_copy, codec_name, cover_file
from rlfn_pipe.media.tags import MATROSKA_FAMILY, MOV_FAMILY, NO_EDIT_LISTS

#: Where AVI gets silence, in seconds: not for rounding, not for a broken stamp.
_SHORTEST_GAP, _LONGEST_GAP = Fraction(15, 1000), 600

#: AVI's muxer gives up at a larger jump, in packets.
_LARGEST_JUMP = 50_000

#: Start and end (None: the file's) in seconds of the source; half open.
Window = tuple[Fraction, Fraction | None]


@dataclass(frozen=True, slots=True)
class Ready:
    """A packet with its exact times (source seconds), not yet on the output's clock."""

    packet: Packet[Any]
    times: Times
    track: Track

    def stamped(self, base: Fraction) -> Packet[Any]:
        """The packet with stream and times of the output, moved by `-base` seconds."""
        return self.track.stamp(self.packet, self.times, base)


class Track(ABC):
    """A stream on its way: `out` is its place in the output, `dense` says that packets follow closely."""

    def __init__(self, source: Stream, out: Stream, muxer: str, window: Window | None) -> None:
        self.source = source
        self.out = out
        self.dense = source.type in ("audio", "video")
        self.clock = Clock(source)
        # Not read from the stream later: notes are asked for after the input is closed.
        self._name = f"{source.type} stream {source.index}"
        self._window = window
        # Matroska allows equal times (its tick of 1 ms can be coarser than the packets).
        self._step = 0 if muxer in MATROSKA_FAMILY else 1
        self._counts = muxer == "avi"
        self._last: int | None = None

    @abstractmethod
    def push(self, packet: Packet[Any], times: Times) -> Iterator[Ready]:
        """What becomes ready with the next packet of the source."""

    def advance(self, position: Fraction) -> Iterable[Ready]:
        """What becomes ready because other streams were read up to `position` (source seconds)."""
        return ()

    def flush(self) -> Iterable[Ready]:
        """What is still held back at the end of the source."""
        return ()

    def notes(self) -> list[str]:
        """Sentences on what had to be repaired."""
        if not self.clock.repaired:
            return []
        return [f"{self._name}: {self.clock.repaired} missing or disordered time stamps mended"]

    def _inside(self, time: Fraction) -> bool:
        if self._window is None:
            return True
        start, end = self._window
        return time >= start and (end is None or time < end)

    def stamp(self, packet: Packet[Any], times: Times, base: Fraction) -> Packet[Any]:
        """Put a packet on the output's clock: nearest ticks, decoding times in order."""
        unit = Fraction(self.out.time_base or self.source.time_base or Fraction(1, 1000))
        dts, pts = round((times.dts - base) / unit), round((times.pts - base) / unit)
        end = round((times.pts + times.duration - base) / unit)
        if self._last is not None:
            dts = max(dts, self._last + self._step)
        if self._counts and dts > (self._last or 0) + _LARGEST_JUMP:
            dts = 0 if self._last is None else self._last + self._step
        self._last = dts
        packet.stream = self.out
        packet.time_base = unit
        packet.dts, packet.pts, packet.duration = dts, max(pts, dts), max(end - pts, 0)
        return packet


class CopyTrack(Track):
    """Packets as they are. Text subtitles that reach over the window's edge are shortened to it."""

    def __init__(self, source: Stream, output: OutputContainer, window: Window | None) -> None:
        super().__init__(source, add_copy(output, source), output.format.name, window)
        self._cuttable = source.type == "subtitle" and codec_name(source) in subtitles.TEXT_SUBTITLES
        self._cut_video = source.type == "video" and window is not None
        self._even: SampleClock | None = None
        self._started = False
        self._plays_all = output.format.name in NO_EDIT_LISTS
        self._too_early = 0
        self._gate = Gate(source, output.format.name)
        # Matroska says priming as a codec delay. Its muxer does so where the demuxer knew the delay
        # (Opus, Matroska sources); for an mp4's edit list it is done here.
        context = source.codec_context
        self._delays = (
            output.format.name in MATROSKA_FAMILY and context is not None and not int(context.delay)
        )
        #: Seconds of priming that the header must state; packets are stamped later by as much.
        self.codec_delay = Fraction(0)

    def push(self, packet: Packet[Any], times: Times) -> Iterator[Ready]:
        if self._cuttable:
            cut = cut_to(times, self._window)
            if cut is not None:
                yield Ready(packet, cut, self)
            return
        if not self._inside(times.pts):
            return
        if self.clock.too_early(times):
            self._too_early += 1
            return
        if self._plays_all and is_trimmed_away(packet, times, self.source):
            return
        if packet.is_discard and self._started:
            return  # behind the end of an edit list; before its start it is priming and stays
        if not self._started and self._cut_video and not packet.is_keyframe:
            return
        if not self._gate.admits(packet):
            return
        if self._delays:
            self._delays = False
            self.codec_delay = priming_seconds(packet, self.source)
        if not packet.is_discard:
            self._started = True
        if self.source.type == "audio":
            times = self._evenly(packet, times)
        yield Ready(packet, times, self)

    def stamp(self, packet: Packet[Any], times: Times, base: Fraction) -> Packet[Any]:
        """As `Track.stamp`, behind the codec delay."""
        return super().stamp(packet, times, base - self.codec_delay)

    def notes(self) -> list[str]:
        found = super().notes()
        if self._too_early:
            found.append(f"{self._name}: {self._too_early} packets far before its start left out")
        if self._gate.refused:
            found.append(f"{self._name}: {self._gate.refused} damaged packets could not be written")
        return found

    def _evenly(self, packet: Packet[Any], times: Times) -> Times:
        if self._even is None:
            self._even = SampleClock(self.source)
        if not self._even.useful(Fraction(self.out.time_base or 0)):
            return times
        return self._even.even(times, packet.size)


class FilledTrack(CopyTrack):
    """Audio for AVI, which counts packets and knows no times: silence goes where the source has none.

    `origin` is the source time (seconds) at which the output begins.
    """

    def __init__(
        self, source: Stream, output: OutputContainer, window: Window | None, origin: Fraction
    ) -> None:
        super().__init__(source, output, window)
        assert isinstance(source, AudioStream)
        self._silence = silent_packet(source)
        self._rate = source.codec_context.sample_rate
        samples = self._silence[1] if self._silence else 1
        self._length = Fraction(samples, self._rate) if samples > 1 else Fraction(0)
        self._end = origin
        self._filled = Fraction(0)

    def push(self, packet: Packet[Any], times: Times) -> Iterator[Ready]:
        for ready in super().push(packet, times):
            gap = ready.times.pts - self._end
            if self._silence is not None and _SHORTEST_GAP < gap < _LONGEST_GAP:
                yield from self._fill(gap)
                self._filled += gap
            yield ready
            # Matroska's first packet states no duration.
            self._end = ready.times.pts + max(ready.times.duration, self._length)

    def _fill(self, gap: Fraction) -> Iterator[Ready]:
        assert self._silence is not None
        payload, samples = self._silence
        repeat = self._rate if samples == 1 else 1  # PCM goes in pieces of a second
        left = round(gap * self._rate / samples)
        while left > 0:
            pieces = min(left, repeat)
            length = Fraction(pieces * samples, self._rate)
            packet = Packet(payload * pieces)
            packet.is_keyframe = True
            yield Ready(packet, Times(self._end, self._end, length), self)
            self._end += length
            left -= pieces

    def notes(self) -> list[str]:
        found = super().notes()
        if self._filled:
            found.append(f"{self._name}: {float(self._filled):.3f} s of silence put in, avi holds no gaps")
        return found


def cut_to(times: Times, window: Window | None) -> Times | None:
    """The part of a subtitle's time that lies in the window; None when nothing does."""
    if window is None:
        return times
    start, end = window
    if (end is not None and times.pts >= end) or (times.pts < start and times.pts + times.duration <= start):
        return None
    first = max(times.pts, start)
    last = times.pts + times.duration
    last = max(first, last if end is None else min(last, end))
    return Times(first, first, last - first)


class AudioTrack(Track):
    """Audio that is encoded anew. `origin` is the source time (seconds) at which the output begins."""

    def __init__(
        self, source: Stream, output: OutputContainer, window: Window | None, origin: Fraction
    ) -> None:
        muxer = output.format.name
        target = audio_target(source, muxer)
        if target is None:
            raise ValueError(f"audio stream {source.index} has no sample rate")
        out = add_encoder(output, target)
        out.disposition = int(source.disposition)  # type: ignore[assignment]
        super().__init__(source, out, muxer, window)
        lead = Fraction(PRIMING[target.codec], target.rate)
        start = origin + lead if muxer == "avi" and window is None else origin if muxer == "avi" else None
        self._converter = AudioConverter(source, out, target, start)
        # Where neither an edit list nor a codec delay hides it, priming before the window has no place.
        self._drop_priming = window is not None and muxer not in MATROSKA_FAMILY | MOV_FAMILY

    def push(self, packet: Packet[Any], times: Times) -> Iterator[Ready]:
        if self._inside(times.pts) or (packet.is_discard and self._window is None):
            # Nothing else must move the decoder's clock.
            unit = Fraction(packet.time_base or 1)
            packet.pts, packet.dts = round(times.pts / unit), round(times.dts / unit)
            yield from self._ready(self._converter.convert(packet))

    def flush(self) -> Iterator[Ready]:
        return self._ready(self._converter.flush())

    def notes(self) -> list[str]:
        found = super().notes()
        if self._converter.damaged:
            found.append(f"{self._name}: {self._converter.damaged} damaged packets replaced by silence")
        if self._converter.gaps:
            found.append(f"{self._name}: {self._converter.gaps} gaps filled or overlaps cut to stay in time")
        return found

    def _ready(self, packets: Iterable[Packet[Any]]) -> Iterator[Ready]:
        for packet in packets:
            unit = Fraction(packet.time_base or 1)
            if packet.pts is None or packet.dts is None:
                continue
            times = Times(packet.pts * unit, packet.dts * unit, (packet.duration or 0) * unit)
            if self._drop_priming and self._window is not None and times.pts < self._window[0]:
                continue
            yield Ready(packet, times, self)


class SubtitleTrack(Track):
    """Text subtitles in another text format."""

    def __init__(self, source: Stream, output: OutputContainer, codec: str, window: Window | None) -> None:
        out = subtitles.add_encoder(output, source, codec)
        out.disposition = int(source.disposition)  # type: ignore[assignment]
        super().__init__(source, out, output.format.name, window)
        self._converter = subtitles.SubtitleConverter(source, out)

    def push(self, packet: Packet[Any], times: Times) -> Iterator[Ready]:
        for cue in self._converter.convert(packet, times.pts, times.duration):
            yield from self._ready(cue)

    def advance(self, position: Fraction) -> Iterator[Ready]:
        for cue in self._converter.advance(position):
            yield from self._ready(cue)

    def flush(self) -> Iterator[Ready]:
        for cue in self._converter.flush():
            yield from self._ready(cue)

    def notes(self) -> list[str]:
        found = super().notes()
        if self._converter.damaged:
            found.append(f"{self._name}: {self._converter.damaged} unreadable subtitles left out")
        return found

    def _ready(self, cue: subtitles.Cue) -> Iterator[Ready]:
        times = cut_to(Times(cue.start, cue.start, cue.duration), self._window)
        if times is None:
            return
        packet = Packet(cue.payload)
        packet.is_keyframe = True
        yield Ready(packet, times, self)


class CoverTrack(Track):
    """A picture attached to the file: one packet, or an attachment in Matroska."""

    def __init__(self, source: Stream, output: OutputContainer, picture: bytes) -> None:
        super().__init__(source, add_copy(output, source), output.format.name, None)
        self._picture = picture

    def push(self, packet: Packet[Any], times: Times) -> Iterator[Ready]:
        return iter(())

    def first(self) -> Ready:
        """The one packet."""
        packet = Packet(self._picture)
        packet.is_keyframe = True
        return Ready(packet, Times(Fraction(0), Fraction(0), Fraction(0)), self)

    def stamp(self, packet: Packet[Any], times: Times, base: Fraction) -> Packet[Any]:
        return super().stamp(packet, times, Fraction(0))


def read_cover(container: InputContainer, index: int) -> bytes:
    """The picture of an attached_pic stream as stored (JPEG or PNG); empty when there is none."""
    for packet in container.demux(container.streams[index]):
        if not is_end_mark(packet):
            return bytes(packet)
    return b""


def attach_cover(output: OutputContainer, source: Stream, picture: bytes) -> Stream:
    """Write a cover as a Matroska attachment, where readers look for it."""
    name, mimetype = cover_file(source)
    return output.add_attachment(name, mimetype, picture)
