"""Video in: decoded frames with their presentation times, concealed where they do not decode.

`VideoSource` matches what the decoder gives with the table of times that `timing.scan` read
from the packets, so that nothing shifts in time: a frame that is missing after damage is
repeated from the last good one, leading frames that cannot be decoded repeat the first good one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av.codec.codec
import av.error
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlfn_pipe.errors import InputError
from rlfn_pipe.media.colour import colour_of, planar_format, planes_of
from rlfn_pipe.media.deinterlace import Deinterlacer, is_interlaced
from rlfn_pipe.media.limits import check_picture_size
from rlfn_pipe.media.opening import describe_av_error, open_media
from rlfn_pipe.media.orientation import DisplayMatrix, display_matrix
from rlfn_pipe.media.timing import Timeline, scan, select
from rlfn_pipe.types import ColourInfo, Frame, Subsampling

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideDataContainer

#: Of the decoders for these codecs only libvpx's reads the alpha that WebM keeps beside the picture.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

#: A gap this many frames after a decoding error is still put down to it (frame threads, reordering).
_ERROR_REACH = 48

#: Subsampling of a picture turned by 90 degrees, where it changes.
_TURNED: dict[Subsampling, Subsampling] = {"422": "440", "440": "422"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of the clip to take: seconds from the clip's start, and a number of frames.

    `sample` takes that many seconds from the middle instead.
    """

    start: Fraction | None = None
    end: Fraction | None = None
    frames: int | None = None
    sample: Fraction | None = None


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """What the first decoded frame tells of all of them.

    `width`, `height`: stored picture as the frames are handed out (after baking a rotation);
    `pix_fmt`: planar format of the planes; `tags`: colour as found; `colour`: resolved;
    `matrix`: display matrix that the output must carry (None: upright or baked);
    `mastering`, `light_level`: HDR10 side data as libav's structures (None: absent).
    """

    width: int
    height: int
    pix_fmt: str
    tags: ColourInfo
    colour: ColourInfo
    matrix: DisplayMatrix | None
    mastering: bytes | None
    light_level: bytes | None


def main_video(container: InputContainer, path: Path) -> VideoStream:
    """The stream to upscale: the one a player would show, cover pictures left aside.

    Raises:
        InputError: no video, or of a codec that cannot be decoded.
    """
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
        raise InputError(f"{path}: holds no video to upscale (only {kinds})")
    best = container.streams.best("video")
    preferred = [s for s in films if s.disposition & Disposition.default] or films
    stream = best if best in preferred else preferred[0]
    if stream.codec_context is None:
        raise InputError(
            f"{path}: its video is encrypted or of a codec that is not known here; convert it first"
        )
    return stream


class VideoSource:
    """The shown frames of a video file, in order. Use as a context manager, iterate once.

    After iteration `concealed`, `damaged` and `notes` tell what happened.

    Args:
        path: the media file.
        selection: which part to decode.
        on_error: "conceal" repeats the last good frame for one that does not decode,
            "fail" raises instead.
        deinterlace: "auto" (interlaced streams only), "on" (every frame) or "off".
        bake_rotation: turn the pixels upright instead of keeping the display matrix.
        threads: decoder threads (0: libav decides).
    """

    def __init__(
        self,
        path: Path,
        *,
        selection: Selection | None = None,
        on_error: str = "conceal",
        deinterlace: str = "auto",
        bake_rotation: bool = False,
        threads: int = 0,
    ) -> None:
        self.path = path
        self.concealed = 0
        self.damaged = 0
        self.notes: list[str] = []
        self._selection = selection or Selection()
        self._on_error = on_error
        self._deinterlace = deinterlace
        self._bake = bake_rotation
        self._threads = threads
        self._stack = ExitStack()

    def __enter__(self) -> VideoSource:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------------ opening

    def _open(self) -> None:
        with open_media(self.path) as container:
            stream = main_video(container, self.path)
            self.timeline: Timeline = scan(container, stream)
        if not self.timeline.packets:
            raise InputError(f"{self.path}: its video stream holds no frames; the file is cut off or damaged")
        self._container = self._stack.enter_context(open_media(self.path))
        self.stream = main_video(self._container, self.path)
        self.stream_index = self.stream.index
        for other in self._container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all
        check_picture_size(self.path, self.stream.width or 1, self.stream.height or 1)
        self.first, self.last = self._selected_range()
        self.stream.codec_context.thread_count = self._threads
        self.stream.thread_type = "AUTO"
        self._decoded = self._decode_from(self.first)
        self._head = self._first_frame()
        self.format = self._read_format(self._head)

    def _selected_range(self) -> tuple[int, int]:
        chosen, table = self._selection, self.timeline
        if not table.frames:
            return 0, 0
        origin = table.seconds(0)
        start = None if chosen.start is None else origin + chosen.start
        end = None if chosen.end is None else origin + chosen.end
        if chosen.sample is not None:
            length = table.end - origin
            start = origin + max(Fraction(0), (length - chosen.sample) / 2)
            end = start + chosen.sample
        first, last = select(table, start, end, chosen.frames)
        if first == last:
            seconds = float(table.end - origin)
            raise InputError(f"{self.path}: nothing lies in the chosen part; the video lasts {seconds:.3f} s")
        return first, last

    def _first_frame(self) -> VideoFrame:
        frame = next(self._decoded, None)
        if frame is None:
            raise InputError(
                f"{self.path}: not one frame could be decoded; the video is damaged or encrypted"
            )
        return frame

    def _read_format(self, frame: VideoFrame) -> SourceFormat:
        pix_fmt = planar_format(frame.format.name)
        context = self.stream.codec_context
        fallback = ColourInfo(
            matrix=int(context.colorspace),
            transfer=int(context.color_trc),
            primaries=int(context.color_primaries),
            range=int(context.color_range),
        )
        tags = colour_of(frame, context.name, pix_fmt, fallback)
        # Converted by swscale: full-range RGB or grey stays what it is.
        matrix, mastering, light = _side_data(frame)
        width, height = frame.width, frame.height
        self._size = (width, height)
        self._pix_fmt = pix_fmt
        self._orientation = matrix if self._bake else None
        if self._orientation is not None:
            if self._orientation.swaps_axes:
                width, height = height, width
                tags = replace(tags, subsampling=_TURNED.get(tags.subsampling, tags.subsampling))
            matrix = None
        self._colour = tags.resolved(frame.height)
        return SourceFormat(width, height, pix_fmt, tags, self._colour, matrix, mastering, light)

    # ----------------------------------------------------------------- decoding

    @property
    def whole(self) -> bool:
        """Whether the selection leaves nothing out."""
        return self.first == 0 and self.last == self.timeline.frames

    @property
    def baked(self) -> DisplayMatrix | None:
        """The display matrix that was applied to the pixels, if one was."""
        return self._orientation

    @property
    def interlaced(self) -> bool:
        """Whether the header or the first frame says so."""
        return is_interlaced(self.stream, self._head)

    @property
    def frames(self) -> int:
        """Frames that iteration is expected to give (exact for tables that are trusted)."""
        return self.last - self.first if self.timeline.trusted else self.timeline.packets

    def _decode_from(self, first: int) -> Iterator[VideoFrame]:
        """Decoded (and deinterlaced) frames from the one shown at table index `first` on."""
        if first > 0:
            wanted = int(self.timeline.pts[first])
            self._container.seek(wanted, stream=self.stream)
            frames = self._filtered(self._decoded_frames())
            head = next(frames, None)
            if head is not None and head.pts is not None and head.pts <= wanted:
                yield head
                yield from frames
                return
            # The index led past the wanted frame: decode from the beginning instead.
            self._container.seek(int(self.timeline.pts[0]), stream=self.stream)
        yield from self._filtered(self._decoded_frames())

    def _decoder(self) -> VideoCodecContext:
        """The stream's own decoder, or for WebM with transparency the one that sees it."""
        context = self.stream.codec_context
        name = _ALPHA_DECODERS.get(context.codec.canonical_name)
        tags = {key.lower(): value for key, value in self.stream.metadata.items()}
        if name is None or tags.get("alpha_mode") != "1":
            return context
        try:
            decoder = CodecContext.create(name, "r")
        except av.codec.codec.UnknownCodecError:
            return context
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_count = self._threads
        return decoder

    def _decoded_frames(self) -> Iterator[VideoFrame]:
        self._errors = 0
        decoder = self._decoder()
        for packet in self._packets():
            try:
                frames = decoder.decode(packet)
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                self._decoding_failed(error, packet)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damaged += 1
                yield frame

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        try:
            for packet in self._container.demux(self.stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            self._decoding_failed(error, None)
        yield None

    def _decoding_failed(self, error: av.error.FFmpegError, packet: Packet[VideoStream] | None) -> None:
        self._errors += 1
        if self._on_error == "fail":
            at = ""
            if packet is not None and packet.pts is not None:
                at = f" at {float(packet.pts * self.timeline.time_base):.3f} s"
            raise InputError(
                f"{self.path}: a frame{at} does not decode ({describe_av_error(error)}); "
                "repair the file or use --on-error conceal"
            )

    def _filtered(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        if self._deinterlace == "off":
            return frames
        return Deinterlacer(self.stream, force=self._deinterlace == "on", notes=self.notes).run(frames)

    # ---------------------------------------------------------------- iteration

    def __iter__(self) -> Iterator[Frame]:
        time_base = self.timeline.time_base
        for index, (pts, frame, concealed) in enumerate(self._shown()):
            self.concealed += concealed
            yield replace(frame, index=index, pts=pts, time_base=time_base, concealed=concealed)
        if self.damaged:
            self.notes.append(f"{self.damaged} frames were decoded with damage")

    def _shown(self) -> Iterator[tuple[int, Frame, bool]]:
        """(pts, picture, concealed) for every frame to show, times strictly increasing."""
        table, trusted = self.timeline.pts, self.timeline.trusted
        expected, stop = self.first, self.last
        begin = int(table[self.first]) if len(table) else None
        last_pts: int | None = None
        last_good: Frame | None = None
        errors_seen, error_at = 0, -_ERROR_REACH
        step = max(1, round(1 / (self.timeline.rate * self.timeline.time_base)))
        for decoded in self._with_head():
            if self._errors > errors_seen:
                errors_seen, error_at = self._errors, expected
            pts = (
                decoded.pts
                if decoded.pts is not None
                else (last_pts + step if last_pts is not None else begin or 0)
            )
            if begin is not None and pts < begin:
                continue
            if trusted and expected < stop and pts > int(table[stop - 1]):
                break
            if not trusted and stop < len(table) and pts >= int(table[stop]):
                break
            if last_pts is not None and pts <= last_pts:
                self._note_time_once()
                pts = last_pts + 1
            frame = self._frame(decoded)
            if trusted:
                position = int(np.searchsorted(table, pts))
                missing = range(expected, min(position, stop))
                if missing and self._is_loss(decoded, last_good is None, expected - error_at):
                    for gap in missing:
                        yield int(table[gap]), last_good or frame, True
                expected = position + (position < len(table) and int(table[position]) == pts)
            yield pts, frame, False
            last_pts, last_good = pts, frame
            if trusted and expected >= stop:
                return
        if trusted and last_good is not None and expected < stop and self._errors:
            for gap in range(expected, stop):
                if last_pts is None or int(table[gap]) > last_pts:
                    yield int(table[gap]), last_good, True

    def _with_head(self) -> Iterator[VideoFrame]:
        yield self._head
        yield from self._decoded

    def _is_loss(self, decoded: VideoFrame, leading: bool, since_error: int) -> bool:
        """Whether a gap in the table is lost pictures rather than ones never meant to be shown.

        Field-coded streams have two packets a frame, so their tables have gaps that mean nothing.
        """
        if leading or since_error < _ERROR_REACH:
            return True
        return not decoded.interlaced_frame and self.stream.codec_context.name in (
            "h264",
            "hevc",
            "mpeg2video",
        )

    def _note_time_once(self) -> None:
        note = "some frames repeat or go back in time; they were moved on by the least step"
        if note not in self.notes:
            self.notes.append(note)

    def _frame(self, decoded: VideoFrame) -> Frame:
        if (decoded.width, decoded.height) != self._size or planar_format(
            decoded.format.name
        ) != self._pix_fmt:
            note = "the picture changes size or format within the stream; all frames were brought to the first one's"
            if note not in self.notes:
                self.notes.append(note)
            check_picture_size(self.path, decoded.width, decoded.height)
            decoded = _reformatted(decoded, self._pix_fmt, *self._size)
        elif decoded.format.name.replace("yuvj", "yuv") != self._pix_fmt:
            decoded = _reformatted(decoded, self._pix_fmt, *self._size)
        planes = planes_of(decoded)
        if self._orientation is not None:
            planes = tuple(self._orientation.apply(plane) for plane in planes)
        return Frame(planes, self._colour)


def _reformatted(frame: VideoFrame, pix_fmt: str, width: int, height: int) -> VideoFrame:
    """swscale to a planar format; ranges are left as they are."""
    colour_range = int(frame.color_range) or None
    return frame.reformat(width, height, pix_fmt, src_color_range=colour_range, dst_color_range=colour_range)


def _side_data(frame: VideoFrame) -> tuple[DisplayMatrix | None, bytes | None, bytes | None]:
    try:
        items = cast("SideDataContainer", frame.side_data)
        data = {item.type.name: bytes(item) for item in items}
    except ValueError:
        # PyAV knows no name for a newer kind of side data and then shows none of it; the
        # rotation is read by another road.
        return display_matrix(None, frame.rotation), None, None
    return (
        display_matrix(data.get("DISPLAYMATRIX"), frame.rotation),
        data.get("MASTERING_DISPLAY_METADATA"),
        data.get("CONTENT_LIGHT_LEVEL"),
    )
