"""Interlaced video is woven into whole frames before it is upscaled (libavfilter's bwdif)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import groupby

import av.error
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

#: AVFieldOrder values above 1 (progressive) are the interlaced ones.
_PROGRESSIVE = 1


def is_interlaced(stream: VideoStream, frame: VideoFrame) -> bool:
    """Whether the stream's header or its first frame says that it is interlaced."""
    return int(stream.codec_context.field_order) > _PROGRESSIVE or bool(frame.interlaced_frame)


class Deinterlacer:
    """Passes progressive streams through, sends interlaced ones through bwdif, a frame for a frame.

    Args:
        interlaced: whether the stream is (see `is_interlaced`).
        force: treat every frame as interlaced, whatever it says.
        notes: gets a sentence on what was done.
    """

    def __init__(self, stream: VideoStream, *, interlaced: bool, force: bool, notes: list[str]) -> None:
        self._stream = stream
        self._interlaced = interlaced
        self._force = force
        self._notes = notes

    def run(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Frames with the times that they came with."""
        if not (self._force or self._interlaced):
            yield from self._watched(frames)
            return
        if not self._force:
            self._notes.append(
                "interlaced video was deinterlaced (bwdif); --deinterlace off enlarges frames as they are"
            )
        # A filter takes pictures of one size and format.
        for _, pictures in groupby(frames, lambda frame: (frame.width, frame.height, frame.format.name)):
            yield from self._deinterlaced(pictures)

    def _watched(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        warned = False
        for frame in frames:
            if frame.interlaced_frame and not warned:
                warned = True
                self._notes.append(
                    "some frames are interlaced and were kept so; use --deinterlace on for them"
                )
            yield frame

    def _deinterlaced(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        first = next(frames)
        time_base = self._stream.time_base or Fraction(1, 90000)
        graph = Graph()
        source = graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=time_base, name="in"
        )
        which = "all" if self._force else "interlaced"
        bwdif = graph.add("bwdif", f"mode=send_frame:parity=auto:deint={which}")
        sink = graph.add("buffersink")
        try:
            graph.link_nodes(source, bwdif, sink).configure()
        except av.error.FFmpegError:
            note = (
                f"pictures of {first.width}x{first.height} cannot be deinterlaced and were kept as they are"
            )
            if note not in self._notes:
                self._notes.append(note)
            yield first
            yield from frames
            return

        def push(frame: VideoFrame | None) -> Iterator[VideoFrame]:
            graph.push(frame)
            while True:
                try:
                    out = graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    return
                if out.pts is not None and out.time_base:
                    out.pts = round(out.pts * out.time_base / time_base)
                    out.time_base = time_base
                yield out  # type: ignore[misc]

        yield from push(first)
        for frame in frames:
            yield from push(frame)
        yield from push(None)
