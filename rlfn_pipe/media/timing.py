"""When frames are shown: read from the packets before decoding, written by the sink.

One table of presentation times drives a job. `scan` reads it from the container without
decoding; `Clock` turns it into the ticks of the output's container.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, lcm

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from rlfn_pipe.media.opening import readable_packets

#: Rates that a nearly constant rate is taken for.
_COMMON_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48000, 1001), (48, 1), (50, 1),
        (60000, 1001), (60, 1), (100, 1), (120000, 1001), (120, 1), (15, 1), (12, 1), (10, 1), (8, 1), (5, 1), (1, 1),
        (15000, 1001), (12000, 1001), (20, 1),
    )
)  # fmt: skip

#: Frame rates outside this are not believed (absurd headers).
_MAX_RATE, _MIN_RATE = Fraction(1000), Fraction(1, 3600)

#: Seconds by which times go back only where a recording begins anew, not for the order of frames.
CLOCK_SET_BACK = Fraction(1, 2)
#: Packets that may stand out of order for reordering's sake; more is a clock that was set back.
_MOST_REORDERING = 128
#: Packets without a time that the beginning of a stream may have.
_MOST_EARLY = 64
#: Packets that may share their time with another before times tell nothing: so many, or that share of all.
_MOST_REPEATS, _MOST_REPEATS_SHARE = 3, 0.02
#: Steps so many times the usual one are pauses, which say nothing of the rate.
_PAUSE = 10

#: Begins a picture of MPEG-4 part 2. DivX packs two into one packet of AVI and lets an empty one follow.
_MPEG4_PICTURE = b"\0\0\1\xb6"

_MAX_MP4_TIMESCALE = 2**31 - 1
#: libavformat's NUT muxer halves the time base until it is as fine as this.
_NUT_TICK = Fraction(1, 48_000)


def _no_keyframes() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Turns:
    """What AVI knows of the order of pictures: the n-th packet stands where the n-th picture is shown.

    `dts`: strictly increasing decoding times of the packets, as many as the table has entries; `pts`: the times that
    libav gives them; `delay`: how many packets are decoded behind a picture's turn before it comes out (0 as scanned).
    """

    dts: np.ndarray
    pts: np.ndarray
    delay: int = 0

    def of(self, dts: int) -> int:
        """Table index of the packet with a decoding time, or of the next one."""
        return int(np.searchsorted(self.dts, dts))


@dataclass(frozen=True, slots=True)
class Timeline:
    """Presentation times of a video stream's shown frames.

    `pts`: strictly increasing int64 ticks of `time_base` seconds, discarded packets (edit
    lists) left out; where a few packets share a time, each has an entry, one tick behind the
    other. `last_duration`: ticks that the last frame is shown. `rate`: nominal
    frames per second. `constant`: every time is within a tick of that rate. `trusted`: every
    packet had a time of its own, so that a time without a frame is a frame that is missing.
    `numbered`: not trusted, but every frame has its entry: frames are known by their number.
    `keyframes`: rising int64 indices into `pts` of frames at which decoding can begin (empty:
    not known). `turns`: None, or where times are those of decoding (AVI has no others, whatever order libav makes of
    them) who is told by it whose turn it is; `keyframes` count packets as they are decoded then.
    """

    pts: np.ndarray
    time_base: Fraction
    last_duration: int
    rate: Fraction
    constant: bool
    trusted: bool
    packets: int
    numbered: bool = False
    keyframes: np.ndarray = field(default_factory=_no_keyframes)
    turns: Turns | None = None

    @property
    def frames(self) -> int:
        return len(self.pts)

    def seconds(self, index: int) -> Fraction:
        """Presentation time of a frame in seconds on the source's clock."""
        return int(self.pts[index]) * self.time_base

    @property
    def end(self) -> Fraction:
        """When the last frame ends, in seconds on the source's clock."""
        return (int(self.pts[-1]) + self.last_duration) * self.time_base


def scan(
    container: InputContainer, stream: VideoStream, on_step: Callable[[], None] = lambda: None
) -> Timeline:
    """Read the presentation times of all packets of `stream`; nothing is decoded.

    A stream without packets gives an empty table. `on_step` is called at each packet; what it raises ends the
    reading.
    """
    pts, dts, keys = array("q"), array("q"), array("q")
    early = 0
    trusted, packets = True, 0
    last_pts, last_duration = None, 0
    codec = stream.codec_context.name if stream.codec_context else ""
    shown = _SHOWN.get(codec)
    avi = container.format.name == "avi"
    # Of other codecs libav tells the order by the kinds of pictures.
    unordered = avi and codec in ("h264", "hevc")
    for packet in readable_packets(container, stream):
        on_step()
        if not packet.size:
            continue
        packets += 1
        if avi and codec == "mpeg4" and not unordered:
            unordered = bytes(packet).count(_MPEG4_PICTURE) > 1
        if packet.is_discard or (shown is not None and not shown(bytes(packet))):
            continue
        if packet.pts is None:
            if pts or early >= _MOST_EARLY:
                trusted = False
            early += 1
            continue
        if packet.is_keyframe:
            keys.append(len(pts))
        pts.append(packet.pts)
        if avi:
            dts.append(packet.pts if packet.dts is None else packet.dts)
        if last_pts is None or packet.pts >= last_pts:
            last_pts, last_duration = packet.pts, packet.duration or 0
    found = np.array(pts, dtype=np.int64)
    table = _distinct(found)
    trusted = trusted and _in_order(found)
    numbered = False
    if len(table) < len(found):
        spread = _spread(found) if trusted and not early else None
        trusted, numbered = False, spread is not None
        table = table if spread is None else spread
    time_base = stream.time_base or Fraction(1, 90000)
    rate, constant = _nominal_rate(table, time_base, stream)
    if early and trusted and len(table):
        # Matroska's reader gives no times below zero: the frames before the first one that has a time.
        step = max(1, round(1 / (rate * time_base)))
        table = np.concatenate([int(table[0]) - step * np.arange(early, 0, -1), table])
    elif early:
        trusted = False
    if (
        len(table)
        and "mov" in container.format.name.split(",")
        and stream.duration
        and packets == stream.frames
    ):
        # mp4 stores steps between decoding times; with B-frames only the stream's length tells the last one.
        rest = stream.duration - int(table[-1] - table[0])
        last_duration = rest if rest > 0 else last_duration
    # Matroska files may state absurd default durations (1 ms for a 60 fps film).
    if last_duration * time_base * rate * 4 < 1:
        last_duration = max(1, round(1 / (rate * time_base)))
    turns, keyframes = None, np.array(keys, dtype=np.int64)
    decoded = np.array(dts, dtype=np.int64)
    if unordered and len(table) == len(decoded) and bool((np.diff(decoded) > 0).all()):
        turns = Turns(decoded, found)
    else:
        keyframes = np.searchsorted(table, _distinct(found[keyframes]))
    return Timeline(
        table, time_base, last_duration, rate, constant, trusted, packets, numbered, keyframes, turns
    )


def _distinct(values: np.ndarray) -> np.ndarray:
    """Each value once, in order. `numpy.unique` loads numpy's masked arrays, which takes longer than a short job's table."""
    ordered = np.sort(values)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]


def _spread(pts: np.ndarray) -> np.ndarray | None:
    """Times in order, a repeated one a tick behind the other; None where many are, or no tick is free."""
    table = np.sort(pts)
    repeats = np.flatnonzero(np.diff(table) == 0) + 1
    if len(repeats) > max(_MOST_REPEATS, _MOST_REPEATS_SHARE * len(table)):
        return None
    for at in repeats.tolist():
        table[at] = table[at - 1] + 1
    return table if bool((np.diff(table) > 0).all()) else None


def _in_order(pts: np.ndarray) -> bool:
    """Whether times in packet order go back no further than encoders reorder."""
    places = np.empty(len(pts), dtype=np.int64)
    places[np.argsort(pts, kind="stable")] = np.arange(len(pts))
    return len(pts) == 0 or int(np.abs(places - np.arange(len(pts))).max()) <= _MOST_REORDERING


def _vp8_shown(packet: bytes) -> bool:
    """RFC 6386, 9.1: bit 4 of the frame tag is show_frame (alternate references are hidden)."""
    return bool(packet[0] & 0x10)


def _vp9_shown(packet: bytes) -> bool:
    """VP9 bitstream, 6.2 and annex B: whether a packet shows a frame.

    A superframe always holds a shown frame; else show_existing_frame or show_frame tells.
    """
    marker = packet[-1]
    if marker & 0xE0 == 0xC0:
        index_size = 2 + ((marker >> 3 & 3) + 1) * ((marker & 7) + 1)
        if len(packet) >= index_size and packet[-index_size] == marker:
            return True
    bits = int.from_bytes(packet[:2].ljust(2, b"\0"), "big")
    profile_3 = bits >> 12 & 3 == 3
    at = 10 if profile_3 else 11
    return bool(bits >> at & 1) or bool(bits >> (at - 2) & 1)


#: Codecs whose packets may hold a picture that is never shown.
_SHOWN = {"vp8": _vp8_shown, "libvpx": _vp8_shown, "vp9": _vp9_shown, "libvpx-vp9": _vp9_shown}


def _nominal_rate(pts: np.ndarray, time_base: Fraction, stream: VideoStream) -> tuple[Fraction, bool]:
    """The frame rate that describes the table best, and whether it fits every time to a tick."""
    stated = [rate for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
    plausible = [Fraction(rate) for rate in stated if _MIN_RATE <= rate <= _MAX_RATE]
    if len(pts) < 2 or pts[-1] <= pts[0]:
        return (plausible[0] if plausible else Fraction(25)), True
    measured = (len(pts) - 1) / ((int(pts[-1]) - int(pts[0])) * time_base)
    for rate in dict.fromkeys((*plausible, *_COMMON_RATES, measured.limit_denominator(1001))):
        if _MIN_RATE <= rate <= _MAX_RATE and _fits(pts, time_base, rate):
            return rate, True
    steps = np.diff(pts)
    usual = steps[steps <= _PAUSE * max(1, int(np.median(steps)))]
    measured = len(usual) / (int(usual.sum()) * time_base)
    average = min(max(measured, _MIN_RATE), _MAX_RATE)
    return average.limit_denominator(1001) or Fraction(1), False


def _fits(pts: np.ndarray, time_base: Fraction, rate: Fraction) -> bool:
    step = float(1 / (rate * time_base))
    if step < 1:
        return False
    deviation = (pts - pts[0]) - np.arange(len(pts)) * step
    return bool(np.abs(deviation).max() <= 1.0)


def select(
    timeline: Timeline, start: Fraction | None, end: Fraction | None, frames: int | None
) -> tuple[int, int]:
    """Half-open range of frames shown in [start, end), at most `frames` of them.

    `start` and `end` are seconds on the source's clock.
    """
    times: Sequence[int] = timeline.pts.tolist()
    first = 0 if start is None else bisect_left(times, start / timeline.time_base)
    last = len(times) if end is None else bisect_left(times, end / timeline.time_base)
    if frames is not None:
        last = min(last, first + frames)
    return first, max(first, last)


def select_by_rate(
    rate: Fraction, start: Fraction | None, end: Fraction | None, frames: int | None
) -> tuple[int, int | None]:
    """The same by numbers of frames, where there is no table (None: up to the last).

    `start` and `end` are seconds from the first frame.
    """
    first = 0 if start is None else ceil(start * rate)
    ends = [] if end is None else [max(first, ceil(end * rate))]
    if frames is not None:
        ends.append(first + frames)
    return first, min(ends, default=None)


@dataclass(frozen=True, slots=True)
class Clock:
    """The ticks in which a container counts time, and how well they hold the source's times.

    `tick`: seconds a tick; `exact`: every source time falls on a tick; `timescale` and
    `movie_timescale`: mp4/mov header values (None elsewhere).
    """

    tick: Fraction
    exact: bool
    timescale: int | None = None
    movie_timescale: int | None = None

    def ticks(self, seconds: Fraction) -> int:
        """The nearest tick."""
        return round(seconds / self.tick)


def clock_for(muxer: str, timeline: Timeline, rate: Fraction, audio_rates: Sequence[int] = ()) -> Clock:
    """The clock of an output of format `muxer` (libavformat's name).

    mp4, mov: the source's own time base, so times stay exact; the movie's time scale is the
    least one in which video and audio offsets are exact too. nut: exact, and fine enough that
    pictures decoded ahead have times of their own from zero on (see `sink`). Matroska and WebM
    count milliseconds, MPEG-TS 1/90000 s, AVI frames.
    """
    source = timeline.time_base
    if muxer in ("mp4", "mov", "ipod", "3gp"):
        timescale = source.denominator
        if timescale > _MAX_MP4_TIMESCALE:
            return Clock(Fraction(1, 1_000_000), False, 1_000_000, 1_000_000)
        movie = timescale
        for value in audio_rates:
            common = lcm(movie, value)
            movie = common if common <= _MAX_MP4_TIMESCALE else movie
        return Clock(Fraction(1, timescale), True, timescale, movie)
    if muxer == "avi":
        return Clock(1 / rate, False)
    if muxer == "nut":
        tick = source
        while tick > _NUT_TICK:
            tick /= 2
        return Clock(tick, True)
    tick = Fraction(1, 90000) if muxer == "mpegts" else Fraction(1, 1000)
    return Clock(tick, (source / tick).denominator == 1)
