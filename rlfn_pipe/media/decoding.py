"""One run of a decoder over a file's main video, from its beginning or from a certain keyframe.

Every run opens the file anew: what it gives depends on where it starts and on nothing before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av.codec.codec
import av.error
import numpy as np
from av.codec.context import CodecContext
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlfn_pipe.errors import HardwareFailed, InputError
from rlfn_pipe.media.limits import max_pixels
from rlfn_pipe.media.opening import describe_av_error, open_media
from rlfn_pipe.media.timing import Timeline, Turns

#: Of the decoders for these codecs only libvpx's reads the alpha that WebM keeps beside the picture.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

#: Seconds to look further back where an index leads past the wanted keyframe, and for another keyframe.
_FURTHER_SEEK, _FURTHER_BACK = 2, 10

#: Pictures behind a keyframe that must be the table's.
_PROVING_PICTURES = 3

#: Called with a decoding error and the packet that it came with (None: the file, or the end of it).
OnFailure = Callable[[Exception, "Packet[VideoStream] | None"], None]


def main_video(container: InputContainer, path: Path) -> VideoStream:
    """The stream to upscale: the one a player would show, cover pictures left aside.

    Raises:
        InputError: no video, or of a codec that cannot be decoded.
    """
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        kinds = {"a cover picture" if s.type == "video" else s.type for s in container.streams}
        raise InputError(
            f"{path}: holds no video to upscale (only {', '.join(sorted(kinds)) or 'no streams'})"
        )
    best = container.streams.best("video")
    preferred = [s for s in films if s.disposition & Disposition.default] or films
    stream = best if best in preferred else preferred[0]
    if stream.codec_context is None:
        raise InputError(
            f"{path}: its video is encrypted or of a codec that is not known here; convert it first"
        )
    return stream


class Decoding:
    """An opened file and its decoder. Iterate `pictures` once, `close` in any case.

    `start`: table index of the keyframe to begin at, None for the beginning of the file.
    `errors` counts packets that did not decode. Where the table has `turns`, pictures get the
    times at which it is theirs.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        timeline: Timeline,
        *,
        start: int | None = None,
        threads: int = 0,
    ) -> None:
        self.errors = 0
        self._accelerated = stream.codec_context.is_hwaccel
        if self._accelerated:
            threads = 1  # a GPU decodes no faster by more, and its decoder wants pictures for each
        self.start = start
        self.stream = stream
        self._container, self._timeline, self._threads = container, timeline, threads
        self._turn = (start or 0) - 1
        self._stack = ExitStack()
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        stream.codec_context.thread_count = threads
        stream.thread_type = "AUTO"
        self._decoder = self._choose_decoder()
        # A picture that grows within the stream is refused before memory is taken for it.
        self._decoder.options = {**self._decoder.options, "max_pixels": str(min(max_pixels(), 2**31 - 1))}

    @classmethod
    def of_file(
        cls,
        path: Path,
        timeline: Timeline,
        start: int | None,
        threads: int,
        hwaccel: HWAccel | None = None,
    ) -> Decoding:
        """Open a file for one run. Raises InputError as `open_media` and `main_video` do."""
        with ExitStack() as stack:
            container = stack.enter_context(open_media(path, hwaccel=hwaccel))
            decoding = cls(container, main_video(container, path), timeline, start=start, threads=threads)
            decoding._stack = stack.pop_all()
        return decoding

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def pictures(self, on_failure: OnFailure) -> Iterator[VideoFrame]:
        """Decoded pictures in the order in which they are shown; none when the keyframe is not found.

        Raises:
            HardwareFailed: a GPU that was to decode cannot go on.
        """
        for packet in self._packets(on_failure):
            try:
                pictures = self._decoder.decode(packet)
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                if self._accelerated and not isinstance(error, av.error.InvalidDataError):
                    # Not the packet's fault, so that the next ones would fail, too.
                    raise HardwareFailed(f"its decoder failed ({describe_av_error(error)})") from error
                self.errors += 1
                on_failure(error, packet)
                continue
            if self._timeline.turns is not None:
                self._set_times(pictures, self._timeline.turns)
            yield from pictures

    def _set_times(self, pictures: list[VideoFrame], turns: Turns) -> None:
        """A picture has the time of a packet, which says nothing of its turn; when it came out does."""
        table = self._timeline.pts
        for picture in pictures:
            # Those that come when no packet is left follow one another.
            self._turn = self._turn + 1 if picture.dts is None else turns.of(picture.dts) - turns.delay
            picture.pts = int(table[self._turn]) if 0 <= self._turn < len(table) else None

    def _choose_decoder(self) -> VideoCodecContext:
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

    def _packets(self, on_failure: OnFailure) -> Iterator[Packet[VideoStream] | None]:
        """Packets from the start on, then None, by which a decoder is asked for the rest."""
        try:
            found = self._container.demux(self.stream) if self.start is None else self._from_keyframe()
            for packet in found:
                if packet.size:
                    yield packet
        except (av.error.FFmpegError, OSError) as error:  # as in `readable_packets`
            self.errors += 1
            on_failure(error, None)
        yield None

    def _from_keyframe(self) -> Iterator[Packet[VideoStream]]:
        """Packets from that of the keyframe at `start` on; none where seeking does not lead to it."""
        assert self.start is not None
        turns = self._timeline.turns
        wanted = int((self._timeline.pts if turns is None else turns.dts)[self.start])
        further = round(_FURTHER_SEEK / self._timeline.time_base)
        for target in (wanted, wanted - further):
            try:
                self._container.seek(target, stream=self.stream)
            except (av.error.FFmpegError, OSError):
                continue
            packets = self._container.demux(self.stream)
            for packet in packets:
                if packet.is_keyframe and (packet.pts if turns is None else packet.dts) == wanted:
                    yield packet
                    yield from packets
                    return
                if packet.dts is not None and packet.dts > wanted:
                    break


def with_delay(path: Path, timeline: Timeline, turns: Turns) -> Timeline:
    """A table with its `turns`, whose delay is told by the first picture that decodes.

    It is a keyframe, whose turn is when it is decoded.
    """
    decoding = Decoding.of_file(path, replace(timeline, turns=None), None, 1)
    try:
        head = next(decoding.pictures(lambda *_: None), None)
    finally:
        decoding.close()
    if head is None or head.pts is None or head.dts is None:
        return timeline
    own = int(np.argmax(turns.pts == head.pts))
    return replace(timeline, turns=replace(turns, delay=max(0, turns.of(head.dts) - own)))


def _places(timeline: Timeline, first: int, early: int) -> Iterator[int]:
    """Keyframes at least `early` frames before `first`: the next one, the one before that, one 10 s further back."""
    keys = timeline.keyframes
    if first - 1 in keys[np.searchsorted(keys, first - 1) :][:1]:
        # Decoders of intra-only codecs mend a picture from the one before; here it costs nothing.
        early = max(early, 1)
    at = int(np.searchsorted(keys, max(0, first - early), side="right")) - 1
    if at >= 0:
        back = timeline.pts[keys[at]] - round(Fraction(_FURTHER_BACK) / timeline.time_base)
        far = int(np.searchsorted(timeline.pts[keys], back, side="right")) - 1
        for place in dict.fromkeys((at, at - 1, min(far, at - 2))):
            if place >= 0:
                yield int(keys[place])


@dataclass(slots=True)
class Run:
    """A decoding that has begun: its first pictures, and all of them (the first ones included)."""

    decoding: Decoding
    head: VideoFrame | None
    pictures: Iterator[VideoFrame]


def begin(
    path: Path,
    timeline: Timeline,
    first: int,
    *,
    early: int,
    threads: int,
    on_failure: OnFailure,
    hwaccel: HWAccel | None = None,
) -> Run:
    """Begin to decode so that from table index `first` on all is as when decoding from the start.

    That is so from a keyframe that comes out itself, unharmed, with the table's next pictures
    behind it (the leading pictures of an open group are not among them). Where no keyframe near
    does, the furthest that comes out at all is taken (not of a table of decoding times, where others
    tell a picture's turn), and at last the beginning of the file (damage, recovery points without a
    keyframe, a wrong index). `early`: frames that must be decoded before `first`; `hwaccel`: as for `open_media`.

    Raises:
        InputError: the file cannot be opened.
    """
    likely: int | None = None
    for start in _places(timeline, first, early) if first else ():
        if start == 0:
            likely = None
            break
        decoding = Decoding.of_file(path, timeline, start, threads, hwaccel)
        try:
            pictures = decoding.pictures(on_failure)
            head = next(pictures, None)
            place = _clean_place(decoding, timeline, head)
            if head is not None and (place == start or start < place <= first - early):
                decoding.start, decoding.errors = place, 0
                following = list(islice(pictures, _PROVING_PICTURES))
                if _follow(timeline, place, [head, *following]):
                    return Run(decoding, head, chain([head, *following], pictures))
                if timeline.turns is None:
                    likely = start
        except BaseException:
            decoding.close()
            raise
        decoding.close()
    decoding = Decoding.of_file(path, timeline, likely, threads, hwaccel)
    return started(decoding, on_failure)


def started(decoding: Decoding, on_failure: OnFailure) -> Run:
    """Begin an opened decoding where it stands."""
    try:
        pictures = decoding.pictures(on_failure)
        head = next(pictures, None)
    except BaseException:
        decoding.close()
        raise
    return Run(decoding, head, pictures if head is None else chain([head], pictures))


def _clean_place(decoding: Decoding, timeline: Timeline, head: VideoFrame | None) -> int:
    """Table index of a first picture that is the keyframe, unharmed; else -1.

    Where times are those of decoding, leading pictures, which fail, have theirs between the keyframe's packet
    and its turn.
    """
    assert decoding.start is not None
    if head is None or head.pts is None or head.is_corrupt:
        return -1
    place = int(np.searchsorted(timeline.pts, head.pts))
    if timeline.turns is not None and head.key_frame and place > decoding.start:
        return place
    return place if head.pts == timeline.pts[decoding.start] and not decoding.errors else -1


def _follow(timeline: Timeline, start: int, head: list[VideoFrame]) -> bool:
    """Whether these are the table's pictures from `start` on; not to be told where fields are coded."""
    wanted = timeline.pts[start : start + len(head)].tolist()
    there = [picture.pts for picture in head[: len(wanted)]]
    return there == wanted or any(picture.interlaced_frame for picture in head)
