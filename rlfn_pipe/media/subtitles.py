"""Text subtitles carried over into the text format that the output container holds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

#: Canonical names of the text subtitle codecs that can be decoded to styled lines.
TEXT_SUBTITLES = frozenset(
    {"subrip", "ass", "mov_text", "webvtt", "text", "microdvd", "subviewer"}
) | frozenset({"subviewer1", "sami", "realtext", "jacosub", "mpl2", "stl", "pjs", "vplayer"})
#: Shown this long (seconds) where the source states no duration.
_FALLBACK_DURATION = Fraction(5)
_NO_END = (0, 0xFFFFFFFF)
_LONGEST_MS = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Cue:
    """One encoded subtitle: payload, and start and duration in exact seconds."""

    payload: bytes
    start: Fraction
    duration: Fraction


def _decoder(stream: Stream) -> SubtitleCodecContext | None:
    context = stream.codec_context
    if not isinstance(context, SubtitleCodecContext):
        return None
    context.open(strict=False)
    return context


def add_encoder(output: OutputContainer, stream: Stream, codec: str) -> Stream:
    """Add a subtitle stream of `codec` to `output`, styled as `stream` is.

    Raises:
        ValueError, av.error.FFmpegError: decoder, encoder or container do not take it.
    """
    decoder = _decoder(stream)
    if decoder is None:
        raise ValueError("no decoder for these subtitles")
    added = output.add_stream(codec)
    encoder = added.codec_context
    assert isinstance(encoder, SubtitleCodecContext)
    encoder.subtitle_header = decoder.subtitle_header
    added.time_base = stream.time_base or Fraction(1, 1000)
    return added


def can_convert(stream: Stream, codec: str, muxer: str) -> bool:
    """Whether the subtitles of `stream` can be written as `codec` into a file of format `muxer`."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as output:
            add_encoder(output, stream, codec)
            output.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Shown:
    """A line of ASS dialogue and the half-open span of seconds in which it is seen."""

    line: bytes
    start: Fraction
    end: Fraction


class SubtitleConverter:
    """Subtitle packets of one codec in, cues of another out, in order of their start.

    A mov_text track shows one sample at a time, so cues that overlap in time are cut into
    pieces there, each with all the lines that are to be seen. `damaged` counts packets that did
    not decode.
    """

    def __init__(self, source: Stream, encoder: Stream) -> None:
        decoder, target = _decoder(source), encoder.codec_context
        assert decoder is not None and isinstance(target, SubtitleCodecContext)
        self._decoder, self._encoder = decoder, target
        self._one_at_a_time = target.codec.canonical_name == "mov_text"
        self._shown: list[_Shown] = []
        self._written = Fraction(0)
        self.damaged = 0

    def convert(self, packet: Packet[Any], start: Fraction, duration: Fraction) -> Iterator[Cue]:
        """Cues that became ready with `packet`, which is shown from `start` for `duration` seconds."""
        try:
            subtitle = self._decoder.decode2(packet)
        except (av.error.FFmpegError, ValueError):
            self.damaged += 1
            return
        if subtitle is None:
            return
        lines = [bytes(rect.ass) for rect in subtitle if isinstance(rect, AssSubtitle) and rect.ass]
        if duration <= 0:
            shown = subtitle.end_display_time
            duration = _FALLBACK_DURATION if shown in _NO_END else Fraction(shown, 1000)
        if not lines:
            return
        if self._one_at_a_time:
            yield from self._pieces(start)
            first = max(start, self._written) if self._shown else start
            self._shown.extend(_Shown(line, first, start + duration) for line in lines)
        else:
            yield from self._encode(lines, start, duration)

    def advance(self, position: Fraction) -> Iterator[Cue]:
        """Cues held back that are over at `position` seconds, where no earlier one can follow."""
        if self._shown and all(cue.end <= position for cue in self._shown):
            yield from self._pieces(position)

    def flush(self) -> Iterator[Cue]:
        """All cues that are still held back."""
        if self._shown:
            yield from self._pieces(max(cue.end for cue in self._shown))

    def _pieces(self, until: Fraction) -> Iterator[Cue]:
        while self._shown:
            start = max(self._written, min(cue.start for cue in self._shown))
            seen = [cue for cue in self._shown if cue.start <= start < cue.end]
            if start >= until:
                return
            later = [cue.start for cue in self._shown if cue.start > start]
            end = min([cue.end for cue in seen] + later + [until])
            if seen:
                yield from self._encode([cue.line for cue in seen], start, end - start)
            self._written = end
            self._shown = [cue for cue in self._shown if cue.end > end]

    def _encode(self, lines: list[bytes], start: Fraction, duration: Fraction) -> Iterator[Cue]:
        body = b"\\N".join([lines[0], *(line.split(b",", 8)[-1] for line in lines[1:])])
        milliseconds = min(round(duration * 1000), _LONGEST_MS)
        try:
            subtitle = SubtitleSet.create(body, 0, milliseconds, pts=round(start * 1_000_000))
            payload = bytes(self._encoder.encode_subtitle(subtitle))
        except (av.error.FFmpegError, ValueError):
            self.damaged += 1
            return
        if payload:
            yield Cue(payload, start, duration)
