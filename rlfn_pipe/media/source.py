"""Video in: decoded frames with their presentation times, concealed where they do not decode.

`VideoSource` matches what the decoder gives with the table of times that `timing.scan` read
from the packets, so that nothing shifts in time: a frame that is missing after damage is
repeated from the last good one, leading frames that cannot be decoded repeat the first good one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlfn_pipe.errors import HardwareFailed, InputError
from rlfn_pipe.media.colour import colour_of, is_transparent, planar_format, planes_of, reformatted
from rlfn_pipe.media.decoding import Run, begin, main_video, with_delay
from rlfn_pipe.media.deinterlace import Deinterlacer, is_interlaced
from rlfn_pipe.media.hardware import SEMI_PLANAR, Hardware, by_hardware, samples_of
from rlfn_pipe.media.limits import check_picture_size
from rlfn_pipe.media.matching import Item, Matcher
from rlfn_pipe.media.matroska import Crop, pixel_crop
from rlfn_pipe.media.opening import describe_av_error, open_media
from rlfn_pipe.media.orientation import DisplayMatrix, display_matrix
from rlfn_pipe.media.part import Part, Selection, SourceFormat
from rlfn_pipe.media.side_data import left_out, side_data_of, stereo_mode
from rlfn_pipe.media.timing import Timeline, scan, select, select_by_rate
from rlfn_pipe.types import ColourInfo, Frame, Subsampling

#: Table entries before the first wanted frame that a deinterlacer must have seen (two a frame where fields are coded).
_FILTER_HISTORY = 8

#: Subsampling of a picture turned by 90 degrees, where it changes.
_TURNED: dict[Subsampling, Subsampling] = {"422": "440", "440": "422"}


class VideoSource:
    """The shown frames of a video file, in order. Use as a context manager, iterate once.

    After iteration `concealed`, `damaged` and `notes` tell what happened.

    Args:
        path: the media file.
        selection: which part to decode.
        on_error: "conceal" repeats the last good frame for one that does not decode,
            "fail" raises instead.
        deinterlace: "auto" (interlaced streams only), "on" (every frame) or "off".
        bake_rotation: turn the pixels upright instead of keeping the display matrix, where it
            turns by a multiple of 90 degrees.
        threads: decoder threads (0: libav decides).
        part: the range to decode, of an opened source of the same file (`selection` and
            `bake_rotation` were settled there). Its frames equal those that the whole gives
            for these entries of the table, counted from 0; only what happens to them is counted.
        hardware: what decodes a part of planar 4:2:0 (`rlfn_pipe.media.hardware.SEMI_PLANAR`) where it can; with
            its `planes`, and where nothing but the engine wants to see a frame, those are what `Frame` has. What fails
            of it, at entering or later, is a HardwareFailed; the same part may be read without it.
        on_step: called at each packet that is looked at and each picture that is decoded, also those that are
            not chosen; what it raises ends the reading.
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
        part: Part | None = None,
        hardware: Hardware | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        assert hardware is None or (part is not None and part.format.pix_fmt in SEMI_PLANAR)
        self.path = path
        self.concealed = 0
        self.damaged = 0
        self.notes: list[str] = []
        self._selection = selection or Selection()
        self._on_error = on_error
        self._deinterlace = deinterlace
        self._bake = bake_rotation
        self._threads = threads
        self._given = part
        self._hardware = hardware
        self._on_step = on_step
        self._stack = ExitStack()
        self._run: Run | None = None
        self._items: Iterator[Item] = iter(())

    def __enter__(self) -> VideoSource:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        # An abandoned iteration would hold on to its decoder otherwise.
        self._run, self._items = None, iter(())

    def part(self, first: int, last: int) -> Part:
        """A range of the table, for a source of its own. Only of an entered source."""
        if not self.first <= first <= last <= self.last:
            raise ValueError(f"{first} to {last} does not lie within {self.first} to {self.last}")
        return Part(
            self.timeline,
            self.format,
            first,
            last,
            self._size,
            self._orientation,
            self._is_interlaced,
            self._counted,
        )

    # ------------------------------------------------------------------ opening

    def _open(self) -> None:
        given = self._given
        if given is None:
            with open_media(self.path) as container:
                stream = main_video(container, self.path)
                check_picture_size(self.path, stream.width or 1, stream.height or 1)
                self.timeline: Timeline = scan(container, stream, self._on_step)
            if not self.timeline.packets:
                raise InputError(
                    f"{self.path}: its video stream holds no frames; the file is cut off or damaged"
                )
            if self.timeline.turns is not None:
                self.timeline = with_delay(self.path, self.timeline, self.timeline.turns)
            self._select()
        else:
            self.timeline, self.first, self.last = given.timeline, given.first, given.last
            self._counted = given.counted
        history = _FILTER_HISTORY if self._filters_in_time() else 0
        hardware = self._hardware
        with nullcontext() if hardware is None else hardware.inside():
            run = begin(
                self.path,
                self.timeline,
                self.first,
                early=history,
                threads=self._threads,
                on_failure=self._decoding_failed,
                hwaccel=None if hardware is None else hardware.accel(stays=self._stays()),
            )
        self._stack.callback(run.decoding.close)
        if hardware is not None and (run.head is None or not by_hardware(run.head)):
            raise HardwareFailed(f"the GPU does not take this {run.decoding.stream.codec_context.name}")
        self._begin(run)

    def _stays(self) -> bool:
        """Whether pictures may stay in a GPU's memory: no filter looks at them, nothing turns them."""
        hardware, given = self._hardware, self._given
        if hardware is None or hardware.planes is None or given is None:
            return False
        even = all(side % 2 == 0 for side in given.coded_size)
        return even and given.baked is None and not self._filters_in_time()

    def _filters_in_time(self) -> bool:
        if self._given is not None and self._deinterlace == "auto":
            return self._given.interlaced
        return self._deinterlace != "off"

    def _begin(self, run: Run) -> None:
        """Settle what all pictures are brought to: by the first that is shown, or as the part says."""
        self._run, self.stream = run, run.decoding.stream
        self.stream_index = self.stream.index
        given = self._given
        if given is not None:
            self.format, self._size, self._pix_fmt = given.format, given.coded_size, given.format.pix_fmt
            self._colour, self._orientation = given.format.colour, given.baked
            self._is_interlaced = given.interlaced
            self._items = self._shown(run)
            return
        self._is_interlaced = run.head is not None and is_interlaced(self.stream, run.head)
        self._items = self._shown(run)
        first = next(self._items, None)
        if first is None:
            raise InputError(
                f"{self.path}: not one frame could be decoded; the video is damaged or encrypted"
            )
        self.format = self._read_format(first[1])
        self._items = chain([first], self._items)

    def _select(self) -> None:
        """Settle the range of frames: by the table, or by their numbers where it has no entries."""
        chosen, table = self._selection, self.timeline
        length = table.end - table.seconds(0) if table.frames else table.packets / table.rate
        start, end = chosen.start, chosen.end
        if chosen.sample is not None:
            start = max(Fraction(0), (length - chosen.sample) / 2)
            end = start + chosen.sample
        self.first = self.last = 0
        self._counted = select_by_rate(table.rate, start, end, chosen.frames)
        if table.frames:
            origin = table.seconds(0)
            start = None if start is None else origin + start
            end = None if end is None else origin + end
            self.first, self.last = select(table, start, end, chosen.frames)
            empty = self.first == self.last
        else:
            empty = table.packets <= self._counted[0]
        if empty:
            raise self._nothing_chosen(f"the video lasts {float(length):.3f} s")

    def _nothing_chosen(self, why: str) -> InputError:
        return InputError(f"{self.path}: nothing lies in the chosen part; {why}")

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
        data = side_data_of(frame)
        matrix = display_matrix(data.get("DISPLAYMATRIX"), frame.rotation)
        self.notes += left_out(data)
        width, height = frame.width, frame.height
        self._size = (width, height)
        self._pix_fmt = pix_fmt
        self._orientation = matrix if self._bake and matrix is not None and matrix.upright else None
        if self._orientation is not None:
            if self._orientation.swaps_axes:
                width, height = height, width
                tags = replace(tags, subsampling=_TURNED.get(tags.subsampling, tags.subsampling))
            matrix = None
        self._colour = tags.resolved(frame.height)
        return SourceFormat(
            width,
            height,
            pix_fmt,
            tags,
            self._colour,
            matrix,
            data.get("MASTERING_DISPLAY_METADATA"),
            data.get("CONTENT_LIGHT_LEVEL"),
            context.name,
            stereo_mode(data.get("STEREO3D")),
            tags.alpha and is_transparent(planes_of(reformatted(frame, pix_fmt, *self._size))[-1], tags),
        )

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
    def crop(self) -> Crop | None:
        """What the container has players cut off the stored picture."""
        films = [stream.index for stream in self.stream.container.streams.video]
        return pixel_crop(self.path, films.index(self.stream_index))

    @property
    def interlaced(self) -> bool:
        """Whether the header or the first frame says so."""
        return self._is_interlaced

    @property
    def frames(self) -> int:
        """Frames that iteration is expected to give (exact where the table knows every frame)."""
        table = self.timeline
        if table.trusted or table.numbered:
            return self.last - self.first
        first, last = (0, None) if table.frames else self._counted
        return max(0, (table.packets if last is None else min(last, table.packets)) - first)

    def _within(self, pts: int | None) -> bool:
        """Whether a time belongs to the chosen range (true where it is not known)."""
        table = self.timeline.pts
        if pts is None or not len(table):
            return True
        return pts >= int(table[self.first]) and (self.last >= len(table) or pts < int(table[self.last]))

    def _decoding_failed(self, error: Exception, packet: Packet[VideoStream] | None) -> None:
        pts = None if packet is None else packet.pts
        if self._on_error == "fail" and self._within(pts):
            raise self._undecodable(pts, describe_av_error(error))

    def _undecodable(self, pts: int | None, reason: str) -> InputError:
        # Decoders with several threads report a packet when they are a few further on.
        near = "" if pts is None else f" near {float(pts * self.timeline.time_base):.3f} s"
        return InputError(
            f"{self.path}: a frame{near} does not decode ({reason}); repair the file or use --on-error conceal"
        )

    def _decoded(self, pictures: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Pictures as they are decoded, with those that are harmed counted."""
        for picture in pictures:
            self._on_step()
            if picture.is_corrupt and self._within(picture.pts):
                if self._on_error == "fail":
                    raise self._undecodable(picture.pts, "part of it is lost")
                self.damaged += 1
            yield picture

    def _filtered(self, pictures: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        decoded = self._decoded(pictures)
        if self._deinterlace == "off":
            return decoded
        forced = self._deinterlace == "on"
        return Deinterlacer(self.stream, interlaced=self._is_interlaced, force=forced, notes=self.notes).run(
            decoded
        )

    # ---------------------------------------------------------------- iteration

    def __iter__(self) -> Iterator[Frame]:
        time_base = self.timeline.time_base
        items, index = self._items, -1
        if not self.timeline.frames:
            # Not a frame more is asked for: a pipe may wait before it gives one.
            items = islice(items, *self._counted)
        for index, (pts, decoded, concealed) in enumerate(items):
            if concealed and self._on_error == "fail":
                raise self._undecodable(pts, "no picture came of it")
            self.concealed += concealed
            frame = self._frame(decoded)
            yield replace(frame, index=index, pts=pts, time_base=time_base, concealed=concealed)
        if index < 0 and not self.timeline.frames:
            raise self._nothing_chosen("the video ends before")

    def _shown(self, run: Run) -> Iterator[Item]:
        """What to show, in order.

        Pictures before the first one are gone through in the same way, so that a range of the
        whole comes out as the whole has it there.
        """
        table, decoding = self.timeline.pts, run.decoding
        begin = int(table[self.first]) if len(table) else None
        matcher = Matcher(
            self.timeline,
            decoding.start or 0,
            self.last,
            errors=lambda: decoding.errors,
            codec=self.stream.codec_context.name,
            interlaced=self.interlaced,
            notes=self.notes,
        )
        for item in matcher.run(self._filtered(run.pictures)):
            if begin is None or item[0] >= begin:
                yield item

    def _frame(self, decoded: VideoFrame) -> Frame:
        samples = samples_of(decoded)
        if self._hardware is not None and (decoded.width, decoded.height) != self._size:
            # Of what is to be cut off on the left and at the top libav cuts nothing off a GPU's pictures.
            raise HardwareFailed(
                f"the GPU gives {decoded.width}x{decoded.height} instead of {self._size[0]}x{self._size[1]}"
            )
        if (decoded.width, decoded.height) != self._size or planar_format(samples) != self._pix_fmt:
            note = "the picture changes size or format within the stream; all frames were brought to the first one's"
            if note not in self.notes:
                self.notes.append(note)
            check_picture_size(self.path, decoded.width, decoded.height)
            decoded = reformatted(decoded, self._pix_fmt, *self._size)
        elif samples != decoded.format.name:
            assert self._hardware is not None and self._hardware.planes is not None, "see `_stays`"
            return Frame(self._hardware.planes(decoded.planes, self._colour.bit_depth), self._colour)
        elif samples.replace("yuvj", "yuv") != self._pix_fmt:
            decoded = reformatted(decoded, self._pix_fmt, *self._size)
        planes = planes_of(decoded)
        if self._orientation is not None:
            planes = tuple(self._orientation.apply(plane) for plane in planes)
        return Frame(planes, self._colour)
