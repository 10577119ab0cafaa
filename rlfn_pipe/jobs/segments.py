"""Where a film is cut: pure planning over the table of times, so that every run cuts alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rlfn_pipe.media.timing import Timeline

#: Source seconds in a segment unless told otherwise ...
DEFAULT_SECONDS = Fraction(10)
#: ... for outputs up to this many pixels; larger ones get shorter segments, so that one costs about as much.
_REFERENCE_PIXELS = 1920 * 1080
_SHORTEST_SECONDS = Fraction(2)


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames [first, last) of the table; `number` counts segments from 0."""

    number: int
    first: int
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first

    @property
    def file_name(self) -> str:
        """The file that holds it inside the work folder."""
        return f"segment-{self.number:05d}.seg"


def segment_seconds(width: int, height: int, asked: Fraction | None = None) -> Fraction:
    """Length of a segment for outputs of `width` x `height` pixels, in source seconds."""
    if asked is not None:
        return asked
    larger = Fraction(width * height, _REFERENCE_PIXELS)
    return max(_SHORTEST_SECONDS, DEFAULT_SECONDS / max(Fraction(1), larger))


def plan_segments(timeline: Timeline, first: int, last: int, seconds: Fraction) -> tuple[Segment, ...]:
    """Cut frames [first, last) into segments of about `seconds`.

    A cut falls on a keyframe of the source where one lies within half a segment of the wished
    place, since decoding begins there without a run-up. A table that is not trusted gives one
    segment: its frames cannot be found again by their times.
    """
    if not timeline.trusted or last <= first:
        return (Segment(0, first, last),)
    step = max(1, int(seconds / timeline.time_base))
    cuts = [first]
    table = timeline.pts
    while True:
        wished = int(np.searchsorted(table, int(table[cuts[-1]]) + step))
        if wished <= cuts[-1]:
            wished = cuts[-1] + 1
        # A rest shorter than half a segment stays with the last one.
        if wished >= last or int(table[last - 1]) - int(table[wished]) < step // 2:
            break
        cuts.append(_at_keyframe(timeline, cuts[-1], wished, last, step))
    ends = [*cuts[1:], last]
    return tuple(Segment(i, a, b) for i, (a, b) in enumerate(zip(cuts, ends, strict=True)))


def _at_keyframe(timeline: Timeline, begin: int, wished: int, last: int, step: int) -> int:
    """The keyframe nearest to `wished` within half a step of it, else `wished`."""
    table, keyframes = timeline.pts, timeline.keyframes
    at = int(np.searchsorted(keyframes, wished))
    near: Sequence[int] = [
        int(k)
        for k in keyframes[max(0, at - 1) : at + 1]
        if begin < k < last and int(table[last - 1]) - int(table[k]) >= step // 2
    ]
    best = min(near, key=lambda k: abs(int(table[k]) - int(table[wished])), default=wished)
    return best if abs(int(table[best]) - int(table[wished])) <= step // 2 else wished
