"""Raw video through pipes: YUV4MPEG2 on standard input and output.

A pipe cannot be read twice, so there is no table of times: frames come at the constant rate
that the header states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame

from rlfn_pipe.errors import InputError, OutputError, UsageError
from rlfn_pipe.media.colour import LAYOUTS, frame_from_planes
from rlfn_pipe.media.decoding import Decoding, started
from rlfn_pipe.media.opening import describe_av_error
from rlfn_pipe.media.source import Selection, VideoSource
from rlfn_pipe.media.timing import Timeline
from rlfn_pipe.types import ColourInfo, Frame

STANDARD_INPUT = Path("standard input")
_FORMAT = "yuv4mpegpipe"

#: Layouts that YUV4MPEG2 can hold, planar formats of `LAYOUTS`.
Y4M_FORMATS = frozenset(
    name
    for name in LAYOUTS
    if name.startswith(("yuv420p", "yuv422p", "yuv444p", "gray")) and not name.endswith(("gray14le", "p9le"))
)


class PipeSource(VideoSource):
    """Frames of a YUV4MPEG2 stream. `frames` is 0: a pipe does not tell its length.

    Raises:
        InputError: the stream is empty, no YUV4MPEG2, or cut off before its first frame.
    """

    def __init__(
        self,
        file: IO[bytes],
        *,
        selection: Selection | None = None,
        deinterlace: str = "auto",
        threads: int = 0,
    ) -> None:
        super().__init__(STANDARD_INPUT, deinterlace=deinterlace, threads=threads)
        self._file = file
        self._chosen = selection or Selection()
        if self._chosen.sample is not None:
            raise UsageError("--sample needs a file: the middle of a pipe is not known before its end")

    def _open(self) -> None:
        try:
            container = self._stack.enter_context(av.open(self._file, "r", format=_FORMAT))
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise InputError(
                f"{self.path}: is not a YUV4MPEG2 stream ({describe_av_error(error)}); "
                "make one with -f yuv4mpegpipe or give a file"
            ) from None
        self.stream = container.streams.video[0]
        rate = Fraction(self.stream.average_rate or self.stream.base_rate or 25)
        time_base = Fraction(self.stream.time_base or 1 / rate)
        nothing = np.array([], dtype=np.int64)
        self.timeline = Timeline(
            nothing, time_base, max(1, round(1 / (rate * time_base))), rate, True, False, 0
        )
        self.first = self.last = 0
        decoding = Decoding(container, self.stream, self.timeline, threads=self._threads)
        self._begin(started(decoding, self._decoding_failed))

    def __iter__(self) -> Iterator[Frame]:
        part, index = self._chosen, 0
        for frame in super().__iter__():
            assert frame.pts is not None
            seconds = frame.pts * self.timeline.time_base
            if part.start is not None and seconds < part.start:
                continue
            if (part.end is not None and seconds >= part.end) or (
                part.frames is not None and index >= part.frames
            ):
                return
            yield replace(frame, index=index)
            index += 1


class PipeSink:
    """Writes frames as YUV4MPEG2 to a stream that cannot seek.

    Raises:
        UsageError: YUV4MPEG2 cannot hold the pixel format.
        OutputError: the stream cannot be written.
    """

    def __init__(
        self,
        file: IO[bytes],
        *,
        width: int,
        height: int,
        pix_fmt: str,
        rate: Fraction,
        tags: ColourInfo,
        sample_aspect_ratio: Fraction | None,
    ) -> None:
        if pix_fmt not in Y4M_FORMATS:
            raise UsageError(f"--pix-fmt {pix_fmt}: YUV4MPEG2 holds {', '.join(sorted(Y4M_FORMATS))}")
        self._size, self._pix_fmt = (width, height), pix_fmt
        self.frames = 0
        self._output = av.open(file, "w", format=_FORMAT, container_options={"strict": "-1"})
        stream = self._output.add_stream("rawvideo", rate=rate)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, pix_fmt
        context.time_base = 1 / rate
        context.color_range = tags.range
        if sample_aspect_ratio:
            context.sample_aspect_ratio = sample_aspect_ratio
        self._stream = stream

    def write(self, frames: list[Frame]) -> None:
        """Write frames in order; their times must be those of the constant rate."""
        for frame in frames:
            picture = frame_from_planes(frame.planes, self._pix_fmt, *self._size)
            picture.pts = self.frames
            self.frames += 1
            self._mux(picture)

    def close(self) -> None:
        """Flush."""
        self._mux(None)
        try:
            self._output.close()
        except (av.error.FFmpegError, OSError) as error:
            self._raise(error)

    def _mux(self, picture: VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(picture):
                self._output.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            self._raise(error)

    def _raise(self, error: Exception) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputError(f"standard output: writing failed ({describe_av_error(error)})") from None
