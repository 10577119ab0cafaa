"""Time stamps of one carried stream: gaps filled, order kept, sample clock restored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.packet import Packet
from av.stream import Stream

from rlfn_pipe.media.timing import CLOCK_SET_BACK

_SAMPLES_PER_FRAME = {"ac3": 1536, "mp3": 1152, "mp2": 1152}
#: Seconds before the start of a stream that packets may carry only to warm up the decoder.
_LONGEST_PRIMING = 2
#: And as many as any decoder needs: HE-AAC's delay is 0.11 s, Opus asks for 0.08.
_NEEDED_PRIMING = Fraction(3, 20)
_PCM_BITS = re.compile(r"pcm_[suf](\d+)(?:le|be)?")


@dataclass(frozen=True, slots=True)
class Times:
    """Presentation, decoding time and duration of a packet in exact seconds."""

    pts: Fraction
    dts: Fraction
    duration: Fraction


class Clock:
    """Gives every packet of one stream whole times in exact seconds of the source.

    Missing stamps are filled from the neighbours, decoding times made strictly increasing; where
    a recording begins anew, with its clock set back, it goes on behind what came before.
    `repaired` counts the packets that needed it (a missing dts beside a given pts is common
    and not counted).
    """

    def __init__(self, stream: Stream) -> None:
        self.time_base = Fraction(stream.time_base or Fraction(1, 1000))
        self.reorders = stream.type == "video"
        self.repaired = 0
        self._sound = stream.type == "audio"
        self._dense = stream.type in ("audio", "video")
        self._start = stream.start_time or 0
        self._last: int | None = None
        self._end: int | None = None
        self._jumped = 0
        self._back = round(CLOCK_SET_BACK / self.time_base)

    def times(self, packet: Packet[Any]) -> Times:
        """Times of the next packet in file order."""
        pts, dts, duration = packet.pts, packet.dts, max(packet.duration or 0, 0)
        pts = None if pts is None else pts + self._jumped
        dts = None if dts is None else dts + self._jumped
        if pts is None and dts is None:
            dts = self._start if self._end is None else self._end
            self.repaired += 1
        if pts is None:
            pts = dts
        assert pts is not None
        if dts is None:
            dts = pts if not self.reorders else self._guess_dts(pts, duration)
        if self._dense and self._last is not None and dts < self._last - self._back:
            jump = self._last + max(duration, 1) - dts
            self._jumped += jump
            pts, dts = pts + jump, dts + jump
            self.repaired += 1
        if self._last is not None and dts <= self._last:
            dts = self._last + 1
            self.repaired += 1
        pts = max(pts, dts)
        self._last, self._end = dts, pts + max(duration, 1)
        unit = self.time_base
        return Times(pts * unit, dts * unit, duration * unit)

    def too_early(self, times: Times) -> bool:
        """Whether an audio packet lies so far before its stream's start that it cannot be priming."""
        return self._sound and times.pts < self._start * self.time_base - _LONGEST_PRIMING

    def _guess_dts(self, pts: int, duration: int) -> int:
        """A decoding time for a video packet that states none: just behind its predecessor's."""
        if self._last is None:
            return pts - max(duration, 1)
        return min(self._last + 1, pts)


class SampleClock:
    """Restores the even spacing of audio packets whose source rounds times to a coarse tick.

    Matroska rounds to 1 ms, MPEG-TS to 1/90000 s. A packet of n samples that starts within
    one tick of the end of its predecessor is taken to start exactly there; any larger
    difference is a real gap and kept.
    """

    def __init__(self, stream: Stream) -> None:
        context = stream.codec_context
        self._tick = Fraction(stream.time_base or 0)
        self._rate = int(getattr(context, "sample_rate", 0) or 0)
        name = context.codec.canonical_name if context is not None else ""
        self._samples = int(getattr(context, "frame_size", 0) or 0) or _SAMPLES_PER_FRAME.get(name, 0)
        self._frame_bytes = 0
        if match := _PCM_BITS.fullmatch(name):
            self._frame_bytes = int(match[1]) // 8 * int(getattr(context, "channels", 0) or 0)
        self._next: Fraction | None = None

    def useful(self, target: Fraction) -> bool:
        """Whether the output's tick `target` (seconds) is the finer one and samples can be counted."""
        known = bool(self._rate and (self._samples or self._frame_bytes))
        return known and target < self._tick and Fraction(1, self._rate) < self._tick

    def even(self, times: Times, size: int) -> Times:
        """The times of the next packet (of `size` bytes) on the sample clock."""
        samples = size // self._frame_bytes if self._frame_bytes else self._samples
        length = Fraction(samples, self._rate)
        pts = times.pts
        if self._next is not None and abs(pts - self._next) <= self._tick:
            pts = self._next
        self._next = pts + length
        return Times(pts, pts, length)


def is_end_mark(packet: Packet[Any]) -> bool:
    """Whether this is the empty packet by which the demuxer announces the end of a stream."""
    return packet.size == 0 and packet.pts is None and packet.dts is None


def is_trimmed_away(packet: Packet[Any], times: Times, stream: Stream) -> bool:
    """Whether an edit list hides sound so long before the stream's start that no decoder needs it to get going."""
    if stream.type != "audio" or not packet.is_discard or stream.start_time is None or not stream.time_base:
        return False
    return times.pts + times.duration < stream.start_time * Fraction(stream.time_base) - _NEEDED_PRIMING


def priming_seconds(packet: Packet[Any], stream: Stream) -> Fraction:
    """How much of the start of an audio packet is not to be heard, in seconds."""
    rate = int(getattr(stream.codec_context, "sample_rate", 0) or 0)
    if stream.type != "audio" or rate <= 0 or not packet.has_sidedata("skip_samples"):
        return Fraction(0)
    return Fraction(int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little"), rate)
