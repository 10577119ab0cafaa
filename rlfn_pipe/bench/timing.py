"""Roads measured in turns: A B C A B C ..., so that a drifting machine falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch

from rlfn_pipe.types import AnyDevice

#: Something to be timed. What it returns is dropped.
Road = Callable[[], object]


@runtime_checkable
class Distant(Protocol):
    """A road in another process, which is asked for many passes at once: asking takes some 0.03 ms."""

    def __call__(self) -> object: ...

    def passes(self, count: int) -> None:
        """Pass it so many times."""
        ...


#: Seconds between two roads: threads that spin for a while after their last work fall asleep meanwhile.
_PAUSE = 0.01
#: Seconds of a road in a round where its passes fill a slice, and how many passes may.
SLICE = 0.3
_MOST_PASSES = 20_000


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall and CPU seconds (all threads of this process) of one pass of a road, a value a round."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def ms(self) -> float:
        """Median wall time in milliseconds."""
        return statistics.median(self.wall) * 1e3

    @property
    def cpu_ms(self) -> float:
        """Median CPU time in milliseconds."""
        return statistics.median(self.cpu) * 1e3

    @property
    def spread(self) -> float:
        """Slowest over fastest round: 1 on a machine that nothing disturbs."""
        return max(self.wall) / min(self.wall)


def wait(device: AnyDevice) -> None:
    """Until the device has done what it was given; CPU calls return when done anyway."""
    if device.type == "cuda":
        torch.cuda.synchronize(str(device))
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(road: Road, device: AnyDevice) -> tuple[float, float]:
    """Wall and CPU seconds of one pass, the device's work included."""
    wait(device)
    cpu, begin = time.process_time(), time.perf_counter()
    road()
    wait(device)
    return time.perf_counter() - begin, time.process_time() - cpu


def in_turns(
    roads: Mapping[str, Road],
    rounds: int,
    device: AnyDevice,
    *,
    warm: bool = True,
    seconds: float = 0.0,
) -> dict[str, Timing]:
    """Every road in each of `rounds` rounds, after one unmeasured round unless they are `warm` = False.

    Once, or as often as fills about `seconds`: one short pass after a pause is not what a road takes, for cores that
    fell asleep cost it up to half as much again.
    """
    passes = dict.fromkeys(roads, 1)
    if seconds:
        passes = {
            name: repeats(road, device, seconds=seconds, most=_MOST_PASSES) for name, road in roads.items()
        }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in roads}
    # Counting how often has warmed them.
    for number in range(-1 if warm and not seconds else 0, rounds):
        for name, road in roads.items():
            time.sleep(_PAUSE)
            wall, cpu = timed(partial(_passed, road, passes[name]), device)
            if number >= 0:
                taken[name].append((wall / passes[name], cpu / passes[name]))
    return {
        name: Timing(tuple(wall for wall, _ in values), tuple(cpu for _, cpu in values))
        for name, values in taken.items()
    }


def _passed(road: Road, count: int) -> None:
    if isinstance(road, Distant):
        road.passes(count)
        return
    for _ in range(count):
        road()


def repeats(road: Road, device: AnyDevice, *, seconds: float, most: int) -> int:
    """How many passes fill about `seconds`, from one pass after one to warm up; 1 to `most`."""
    road()
    wall, _ = timed(road, device)
    return max(1, min(most, round(seconds / max(wall, 1e-6))))
