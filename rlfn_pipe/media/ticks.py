"""Frames' times in the ticks of an output: the source's table, moved to zero and rounded without drift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from rlfn_pipe.media.timing import Clock


@dataclass(frozen=True, slots=True)
class SinkTimes:
    """How source times become output times.

    `time_base`: of the frames' pts; `rate`: nominal frames a second; `last_duration`: source
    ticks that the last frame is shown; `base`: source seconds that become zero; `clock`: the
    output's ticks.
    """

    time_base: Fraction
    rate: Fraction
    last_duration: int
    base: Fraction
    clock: Clock


class FrameTicks:
    """When each frame of an output is shown and ends, in ticks of `tick` seconds.

    `pts` are source times, strictly increasing. Each frame gets the nearest tick, halves the even
    one; frames closer than ticks are moved apart by the least step, and `moved` says so.
    `array`: all ticks, int64, strictly increasing.
    """

    def __init__(self, pts: Sequence[int] | np.ndarray, times: SinkTimes, tick: Fraction) -> None:
        self._times, self._tick = times, tick
        factor, shift = times.time_base / tick, times.base / tick
        common = math.lcm(factor.denominator, shift.denominator)
        a, b = int(factor * common), int(shift * common)
        source = np.asarray(pts, dtype=np.int64)
        nearest = np.array([_rounded(a * time - b, common) for time in source.tolist()], dtype=np.int64)
        places = np.arange(len(nearest))
        self.array: np.ndarray = np.maximum.accumulate(nearest - places) + places
        self.moved = bool((self.array != nearest).any())
        self._edges = (int(source[0]), int(source[-1])) if len(source) else (0, 0)

    def __len__(self) -> int:
        return len(self.array)

    def at(self, index: int) -> int:
        """When frame `index` is shown; before the first and after the last by the rate and the last duration."""
        if index < 0:
            lead = round((self._seconds(self._edges[0]) + index / self._times.rate) / self._tick)
            return min(lead, int(self.array[0]) + index)
        if index < len(self.array):
            return int(self.array[index])
        end = self._seconds(self._edges[1] + self._times.last_duration)
        return max(round(end / self._tick), int(self.array[-1]) + 1)

    def _seconds(self, pts: int) -> Fraction:
        return pts * self._times.time_base - self._times.base


def _rounded(top: int, bottom: int) -> int:
    """top / bottom to the nearest whole number, halves to the even one, as `round` does it."""
    whole, rest = divmod(top, bottom)
    return whole + (2 * rest > bottom or (2 * rest == bottom and whole & 1))
