"""Audio that a container does not hold as it is: decoded and encoded anew, sample for sample in time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream

#: A difference to the running sample count beyond this is a gap (filled) or an overlap (cut), in seconds.
_TOLERANCE = Fraction(1, 10)
_SILENCE_CHUNK = 48_000
#: A longer jump, in seconds, is a broken time stamp and not a gap.
_LONGEST_GAP = 600

_ENCODERS = {"aac": "aac", "opus": "libopus", "mp3": "libmp3lame", "ac3": "ac3", "flac": "flac"}
_BITS_PER_CHANNEL = {"aac": 96_000, "opus": 80_000, "mp3": 112_000, "ac3": 112_000}
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_LARGEST = {"mp3": 2, "ac3": 6, "aac": 8, "opus": 8}
_RATES = {
    "opus": (48_000,),
    "ac3": (32_000, 44_100, 48_000),
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "aac": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
}

#: Samples that an encoder puts before the first one it was given.
PRIMING = {"aac": 1024, "mp3": 1105, "ac3": 256, "opus": 312}


@dataclass(frozen=True, slots=True)
class AudioTarget:
    """What a stream is encoded to: codec, sample rate in Hz, channel count, layout name, bits per second."""

    codec: str
    rate: int
    channels: int
    layout: str
    bit_rate: int


def audio_target(stream: Stream, muxer: str) -> AudioTarget | None:
    """The codec and format that a container takes instead of `stream`; None when nothing is known of it."""
    context = stream.codec_context
    rate, channels = int(getattr(context, "sample_rate", 0) or 0), int(getattr(context, "channels", 0) or 0)
    if rate <= 0 or channels <= 0:
        return None
    if muxer in ("webm", "ogg"):
        codec = "opus"
    elif muxer == "avi":
        codec = "mp3" if channels <= 2 else "ac3"
    else:
        codec = "aac"
    if channels > _LARGEST[codec]:
        channels = _LARGEST[codec] if channels <= 8 else 2
    if codec == "aac" and channels == 7:
        channels = 6
    layout = "4.0" if (codec, channels) == ("aac", 4) else _LAYOUTS[channels]
    rates = _RATES[codec]
    target_rate = min((r for r in rates if r >= rate), default=rates[-1])
    return AudioTarget(codec, target_rate, channels, layout, _BITS_PER_CHANNEL[codec] * max(channels, 1))


def assumed_layout(stream: AudioStream) -> str:
    """The usual layout for a stream that states its channel count only; "" when it states a layout.

    mp4 cannot write PCM whose layout is open.
    """
    layout = stream.codec_context.layout
    return _LAYOUTS.get(layout.nb_channels, "") if layout.name.endswith(" channels") else ""


def silent_packet(stream: AudioStream) -> tuple[bytes, int] | None:
    """One packet of silence in the codec and format of `stream`, and the samples in it; None if unknown."""
    context = stream.codec_context
    name, rate = context.codec.canonical_name, context.sample_rate
    if match := re.fullmatch(r"pcm_([suf])(\d+)(?:le)?", name):
        size = int(match[2]) // 8 * context.channels
        return (b"\x80" if match[1] == "u" else b"\0") * size, 1
    if name not in _ENCODERS:
        return None
    layout = assumed_layout(stream) or context.layout.name
    target = AudioTarget(
        name, rate, context.channels, layout, _BITS_PER_CHANNEL.get(name, 0) * context.channels
    )
    try:
        with av.open(io.BytesIO(), "w", format="matroska") as output:
            encoder = add_encoder(output, target)
            output.start_encoding()
            samples = encoder.codec_context.frame_size
            frame = _silence(encoder.codec_context.format.name, layout, rate, 8 * samples)
            frame.pts, frame.time_base = 0, Fraction(1, rate)
            packets = [bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]]
    except (av.error.FFmpegError, ValueError):
        return None
    return packets[4], samples


def _silence(sample_format: str, layout: str, rate: int, samples: int) -> AudioFrame:
    frame = AudioFrame(format=sample_format, layout=layout, samples=samples)
    frame.sample_rate = rate
    for plane in frame.planes:
        plane.update((b"\x80" if sample_format.startswith("u8") else b"\0") * plane.buffer_size)
    return frame


def add_encoder(output: OutputContainer, target: AudioTarget) -> AudioStream:
    """Add an encoded audio stream to `output`.

    Raises:
        ValueError, av.error.FFmpegError: the encoder or the container does not take it.
    """
    stream = output.add_stream(_ENCODERS[target.codec], rate=target.rate)
    assert isinstance(stream, AudioStream)
    stream.layout = target.layout
    stream.bit_rate = target.bit_rate
    stream.time_base = Fraction(1, target.rate)
    return stream


def can_encode(stream: Stream, target: AudioTarget, muxer: str) -> bool:
    """Whether `stream` has a decoder and the target's encoder opens for a file of format `muxer`."""
    if stream.codec_context is None:
        return False
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as output:
            add_encoder(output, target)
            output.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


class AudioConverter:
    """Packets of one audio stream in, packets of another codec out, on the same time line.

    The encoder counts samples; where the source's times run away from the count by more than
    0.1 s, silence fills the gap or the doubled sound is cut, so that sound and picture stay
    together (also from `start` seconds on, where given); a jump of more than ten minutes is
    taken for a broken stamp. `damaged` counts packets that did not decode, `gaps` the places
    that were filled or cut.
    """

    def __init__(
        self, source: Stream, encoder: AudioStream, target: AudioTarget, start: Fraction | None = None
    ) -> None:
        assert isinstance(source, AudioStream)
        self._source = source
        self._encoder = encoder
        self._rate = target.rate
        self._layout = target.layout
        self._format = encoder.codec_context.format.name
        self._resampler = self._fresh_resampler()
        self._tolerance = round(_TOLERANCE * target.rate)
        self._longest_gap = _LONGEST_GAP * target.rate
        self._start = None if start is None else round(start * target.rate)
        self._position: int | None = None
        self.damaged = 0
        self.gaps = 0

    def _fresh_resampler(self) -> AudioResampler:
        return AudioResampler(format=self._format, layout=self._layout, rate=self._rate)

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Encoded packets that became ready with `packet`; times in 1/rate seconds of the source's clock."""
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            self.damaged += 1
            return
        for frame in frames:
            assert isinstance(frame, AudioFrame)
            yield from self._encode(frame)

    def flush(self) -> Iterator[Packet[Any]]:
        """What decoder, resampler and encoder still hold at the end of the stream."""
        try:
            last = self._source.codec_context.decode(None)
        except av.error.FFmpegError:
            last = []
        for frame in last:
            assert isinstance(frame, AudioFrame)
            yield from self._encode(frame)
        if self._position is not None:
            for frame in self._resampler.resample(None):
                yield from self._take(frame)
            yield from self._encoder.encode(None)

    def _encode(self, frame: AudioFrame) -> Iterator[Packet[Any]]:
        if frame.pts is not None and frame.time_base:
            target = round(frame.pts * Fraction(frame.time_base) * self._rate)
            if self._position is None:
                self._position = target if self._start is None else min(self._start, target)
                yield from self._fill(target - self._position)
            ahead = target - self._position
            if self._tolerance < ahead <= self._longest_gap:
                self.gaps += 1
                yield from self._fill(ahead)
            elif -self._longest_gap <= ahead < -self._tolerance:
                self.gaps += 1
                return
        elif self._position is None:
            self._position = 0
        # Times are counted here; the resampler's own would restart at each format change.
        frame.pts = None
        try:
            frames = self._resampler.resample(frame)
        except ValueError:
            # The source changed its format in midstream.
            for rest in self._resampler.resample(None):
                yield from self._take(rest)
            self._resampler = self._fresh_resampler()
            frames = self._resampler.resample(frame)
        for ready in frames:
            yield from self._take(ready)

    def _fill(self, samples: int) -> Iterator[Packet[Any]]:
        while samples > 0:
            length = min(samples, _SILENCE_CHUNK)
            yield from self._take(_silence(self._format, self._layout, self._rate, length))
            samples -= length

    def _take(self, frame: AudioFrame) -> Iterator[Packet[Any]]:
        assert self._position is not None
        frame.pts, frame.time_base = self._position, Fraction(1, self._rate)
        self._position += frame.samples
        yield from self._encoder.encode(frame)
