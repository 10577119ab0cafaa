"""Decoded pictures matched with the table of times, so that nothing shifts when one does not decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
from av.video.frame import VideoFrame

from rlfn_pipe.media.timing import CLOCK_SET_BACK, Timeline

#: (pts, picture, concealed) of a frame to show.
Item = tuple[int, VideoFrame, bool]

#: A gap this many frames after a decoding error is still put down to it (frame threads, reordering).
_ERROR_REACH = 48
#: How many frames back a decoder may give the same picture once more.
_REPEAT_REACH = 512
#: Frames in a row that must all come early by number before one is taken for lost.
_PROVING_NUMBERS = 32
#: Codecs in which every packet of a progressive stream is a picture to show.
_ONE_EACH = frozenset({"h264", "hevc", "mpeg2video"})


class Matcher:
    """Gives every entry of a table its picture, from index `start` up to but without `stop`.

    A missing one is concealed by the last good picture, leading ones by the first good one.
    Where a few times are repeated, pictures are counted instead of being told by their times
    (`_by_number`). Where the table is of no use, they are taken as they come, with times made to
    rise, and what does not decode is left out and said.

    Args:
        errors: how many packets did not decode so far.
        codec: libav's name of the decoder.
        interlaced: the stream was found to be, which pictures that were deinterlaced do not say.
        notes: gets a sentence on what was mended.
    """

    def __init__(
        self,
        timeline: Timeline,
        start: int,
        stop: int,
        *,
        errors: Callable[[], int],
        codec: str,
        interlaced: bool = False,
        notes: list[str],
    ) -> None:
        self._table, self._trusted, self._numbered = timeline.pts, timeline.trusted, timeline.numbered
        self._expected, self._stop = start, stop
        self._errors, self._notes = errors, notes
        self._one_each = codec in _ONE_EACH and not interlaced
        self._errors_seen, self._error_at = 0, -_ERROR_REACH
        self._jumped = 0
        self._back = round(CLOCK_SET_BACK / timeline.time_base)
        self._step = max(1, round(1 / (timeline.rate * timeline.time_base)))
        self._last_pts: int | None = None
        self._last_good: VideoFrame | None = None
        self._recent: deque[int] = deque(maxlen=_REPEAT_REACH)
        self._begin = int(self._table[start]) if len(self._table) else None
        # Times from here on belong to others, or to nobody where the table ends.
        self._end = None
        if stop < len(self._table):
            self._end = int(self._table[stop])
        elif self._trusted:
            self._end = int(self._table[-1]) + 1

    def run(self, pictures: Iterator[VideoFrame]) -> Iterator[Item]:
        """What to show, times strictly increasing."""
        head = next(pictures, None)
        if head is None:
            return
        pictures = chain([head], pictures)
        if self._numbered and self._one_each and not head.interlaced_frame:
            yield from self._by_number(pictures)
            return
        yield from self._by_time(pictures)
        if not self._trusted and (lost := self._errors()):
            self._say(
                f"{lost} packets did not decode and were left out: the video keeps no times that tell their place"
            )

    def _by_time(self, pictures: Iterator[VideoFrame]) -> Iterator[Item]:
        for picture in pictures:
            self._watch_errors()
            pts = self._time_of(picture)
            if pts is None:
                continue
            beyond = self._end is not None and pts >= self._end
            if self._trusted:
                position = int(np.searchsorted(self._table, pts))
                missing = range(self._expected, min(position, self._stop))
                if missing and self._is_loss(picture):
                    yield from self._concealed(missing, self._last_good or picture)
            if beyond:
                return
            self._recent.append(pts)
            yield pts, picture, False
            self._last_pts, self._last_good = pts, picture
            if self._trusted:
                there = position < len(self._table) and int(self._table[position]) == pts
                self._expected = position + there
                if self._expected >= self._stop:
                    return
        self._watch_errors()
        if self._trusted and self._last_good is not None and self._is_loss(self._last_good):
            yield from self._concealed(range(self._expected, self._stop), self._last_good)

    def _by_number(self, pictures: Iterator[VideoFrame]) -> Iterator[Item]:
        """The n-th picture gets the n-th time, whatever its own one says.

        Lost ones show in two ways: the decoder reports them, and all times behind them are late
        by as many frames as were lost.
        """
        late: deque[int] = deque(maxlen=_PROVING_NUMBERS)
        filled = 0
        for picture in pictures:
            ahead = 0
            if picture.pts is not None:
                if self._begin is not None and self._last_pts is None and picture.pts < self._begin:
                    continue
                ahead = int(np.searchsorted(self._table, picture.pts)) - self._expected
            late.append(ahead)
            missing = max(0, min(ahead, self._errors() - filled))
            if not missing and len(late) == _PROVING_NUMBERS:
                missing = max(0, min(late))
            if missing:
                places = range(self._expected, min(self._expected + missing, self._stop))
                yield from self._concealed(places, self._last_good or picture)
                self._expected, filled = places.stop, filled + len(places)
                late.clear()
            if self._expected >= self._stop:
                return
            self._last_pts, self._last_good = int(self._table[self._expected]), picture
            yield self._last_pts, picture, False
            self._expected += 1
            if self._expected >= self._stop:
                return
        if self._last_good is not None:
            yield from self._concealed(range(self._expected, self._stop), self._last_good)

    def _time_of(self, picture: VideoFrame) -> int | None:
        """When to show a picture; None for one that is not to be shown, or was already."""
        pts, last = picture.pts, self._last_pts
        if pts is None:
            pts = last + self._step if last is not None else self._begin or 0
        elif not self._trusted:
            pts += self._jumped
            if last is not None and pts < last - self._back:
                # Recordings set end to end: what follows goes on where the last one ended.
                self._jumped += last + self._step - pts
                pts = last + self._step
                self._say("the clock of the video is set back in places; what follows was joined on")
        if self._begin is not None and pts < self._begin:
            return None
        if last is not None and pts <= last:
            if self._trusted and pts in self._recent:
                # After a loss decoders give pictures late or twice; their place is filled.
                return None
            self._say("some frames repeat or go back in time; they were moved on by the least step")
            pts = last + 1
        return pts

    def _concealed(self, missing: range, picture: VideoFrame) -> Iterator[Item]:
        for gap in missing:
            pts = int(self._table[gap])
            if self._last_pts is None or pts > self._last_pts:
                self._recent.append(pts)
                yield pts, picture, True
                self._last_pts = pts

    def _say(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)

    def _watch_errors(self) -> None:
        if self._errors() > self._errors_seen:
            self._errors_seen, self._error_at = self._errors(), self._expected

    def _since_error(self) -> int:
        return self._expected - self._error_at

    def _is_loss(self, picture: VideoFrame) -> bool:
        """Whether a gap in the table is lost pictures rather than ones never meant to be shown.

        Field-coded streams have two packets a frame, so their tables have gaps that mean nothing.
        """
        if self._last_good is None or self._since_error() < _ERROR_REACH:
            return True
        return not picture.interlaced_frame and self._one_each
