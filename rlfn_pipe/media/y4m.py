"""Raw video through pipes: YUV4MPEG2 on standard input and output.

A pipe cannot be read twice, so there is no table of times: frames come at the constant rate
that the header states.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from io import BufferedIOBase
from pathlib import Path
from typing import IO

import av
import av.error
import numpy as np

from rlfn_pipe.errors import InputError, OutputError, UsageError
from rlfn_pipe.media.colour import LAYOUTS
from rlfn_pipe.media.decoding import Decoding, started
from rlfn_pipe.media.opening import describe_av_error
from rlfn_pipe.media.part import Selection
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.media.timing import Timeline, select_by_rate
from rlfn_pipe.types import RANGE_FULL, RANGE_LIMITED, ColourInfo, Frame

STANDARD_INPUT = Path("standard input")
_FORMAT = "yuv4mpegpipe"
_FRAME = b"FRAME\n"
#: As much of a stream as its first line, and a frame's, can take.
_HEADER_BYTES = 4096

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
        file: BufferedIOBase,
        *,
        selection: Selection | None = None,
        on_error: str = "conceal",
        deinterlace: str = "auto",
        threads: int = 0,
    ) -> None:
        super().__init__(
            STANDARD_INPUT, selection=selection, on_error=on_error, deinterlace=deinterlace, threads=threads
        )
        self._file = file
        if self._selection.sample is not None:
            raise UsageError("--sample needs a file: the middle of a pipe is not known before its end")

    def _open(self) -> None:
        self._bytes = _Counted(self._file)
        try:
            container = self._stack.enter_context(av.open(self._bytes, "r", format=_FORMAT))
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
        chosen = self._selection
        self.first = self.last = 0
        self._counted = select_by_rate(rate, chosen.start, chosen.end, chosen.frames)
        decoding = Decoding(container, self.stream, self.timeline, threads=self._threads)
        self._begin(started(decoding, self._decoding_failed))

    def __iter__(self) -> Iterator[Frame]:
        size = 0
        for frame in super().__iter__():
            size = len(_FRAME) + sum(plane.nbytes for plane in frame.planes)
            yield frame
        whole, rest = divmod(self._bytes.bytes - len(self._bytes.header), size)
        last = self._counted[1]
        if self._bytes.plain and self._bytes.ended and rest and (last is None or whole < last):
            cut = f"the stream ends inside frame {whole}"
            if self._on_error == "fail":
                raise InputError(f"{self.path}: {cut}; send all of it or use --on-error conceal")
            self.notes.append(f"{cut}, which is left out")


class _Counted:
    """A file that counts what is read, and gives what there is without waiting for more.

    `header` is its first line, `plain` whether frames' headers have no parameters, `ended` whether
    there is no more.
    """

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._begin = b""
        self.bytes, self.ended = 0, False

    def read(self, size: int) -> bytes:
        part = self._file.read1(size)
        self.ended = not part
        if len(self._begin) < _HEADER_BYTES:
            self._begin += part[:_HEADER_BYTES]
        self.bytes += len(part)
        return part

    @property
    def header(self) -> bytes:
        return self._begin[: self._begin.find(b"\n") + 1]

    @property
    def plain(self) -> bool:
        return self._begin[len(self.header) :].startswith(_FRAME)


class PipeSink:
    """Writes frames as YUV4MPEG2 to a stream that cannot seek.

    `tags` have the range and where chroma lies: PyAV cannot tell libavformat's writer the latter, so that the
    header is made here.

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
        aspect = sample_aspect_ratio or Fraction(0)
        header = [
            *("YUV4MPEG2", f"W{width}", f"H{height}", f"F{rate.numerator}:{rate.denominator}", "Ip"),
            f"A{aspect.numerator}:{aspect.denominator if aspect else 0}",
            *_chroma(pix_fmt, tags),
            *_RANGES.get(tags.range, ()),
        ]
        self._file = file
        self.bytes = 0
        self._header = (" ".join(header) + "\n").encode("ascii")
        self.frames = 0

    def write(self, frames: list[Frame]) -> None:
        """Write frames in order; their times must be those of the constant rate."""
        for frame in frames:
            self._send(self._header, _FRAME, *map(np.ascontiguousarray, frame.planes))
            self._header = b""
            self.frames += 1

    def close(self) -> None:
        """Flush."""
        self._send(self._header)
        self._header = b""
        try:
            self._file.flush()
        except OSError as error:
            self._raise(error)

    def _send(self, *parts: bytes | np.ndarray) -> None:
        try:
            for part in parts:
                self._file.write(part if isinstance(part, bytes) else part.data)
                self.bytes += len(part) if isinstance(part, bytes) else part.nbytes
        except OSError as error:
            self._raise(error)

    def _raise(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputError(f"standard output: writing failed ({error.strerror or error})") from None


_RANGES = {RANGE_LIMITED: ("XCOLORRANGE=LIMITED",), RANGE_FULL: ("XCOLORRANGE=FULL",)}
_PLACES = {"left": "mpeg2", "centre": "jpeg", "topleft": "paldv"}


def _chroma(pix_fmt: str, tags: ColourInfo) -> tuple[str, ...]:
    """The header's words for a planar format."""
    layout = LAYOUTS[pix_fmt]
    deep = layout.bit_depth > 8
    if layout.subsampling == "grey":
        return (f"Cmono{layout.bit_depth}" if deep else "Cmono",)
    name: str = layout.subsampling
    if deep:
        name += f"p{layout.bit_depth}"
    elif name == "420":
        name += _PLACES[tags.chroma_location]
    return f"C{name}", f"XYSCSS={name.upper()}"
