"""The machine that is measured, and what else it does meanwhile."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from rlfn_pipe.allowance import cores
from rlfn_pipe.engine.device import device_name
from rlfn_pipe.types import AnyDevice

#: Shares of all cores above which a measurement is called disturbed.
OTHERS_LIMIT, STEAL_LIMIT = 0.05, 0.02

_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures hold for."""

    device: str
    cores: int
    system: str
    python: str
    torch: str
    cpu_capability: str


def machine(device: AnyDevice) -> Machine:
    """Describe the machine and `device`."""
    return Machine(
        device=device_name(device),
        cores=cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What went on beside the measurement; None where the system does not say.

    `load_average`: processes that ran or waited over the last minute before the measurement;
    `others_cores`: cores that other programs used meanwhile; `steal_percent`: CPU time that the
    hypervisor gave to other machines, of all.
    """

    load_average: float | None
    others_cores: float | None
    steal_percent: float | None
    cores: int

    def warnings(self) -> list[str]:
        """One sentence for each thing that makes the figures doubtful."""
        found = []
        if self.others_cores is not None and self.others_cores > OTHERS_LIMIT * self.cores:
            found.append(
                f"other programs used {self.others_cores:.2f} of {self.cores} cores meanwhile; "
                "ratios suffer less than absolute figures, but stop them and measure again"
            )
        elif self.others_cores is None and (self.load_average or 0) > OTHERS_LIMIT * self.cores:
            found.append(
                f"the load average was {self.load_average:.2f} before the measurement; "
                "stop other programs and measure again"
            )
        if self.steal_percent is not None and self.steal_percent > 100 * STEAL_LIMIT:
            found.append(
                f"the hypervisor took {self.steal_percent:.1f} % of the CPU time meanwhile; "
                "absolute figures are too low by about that much"
            )
        return found


class Watch:
    """Looks on from its making until `disturbance` is asked for."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._before, self._own, self._begin = _ticks(), _own_seconds(), time.monotonic()

    def disturbance(self) -> Disturbance:
        """What was seen so far."""
        after, own = _ticks(), _own_seconds() - self._own
        # What is counted is the whole machine, of which a container may have a few cores.
        if self._before is None or after is None or cores() < (os.cpu_count() or 1):
            return Disturbance(self._load, None, None, cores())
        seconds = max(time.monotonic() - self._begin, 1e-3)
        busy, steal, total = (now - then for now, then in zip(after, self._before, strict=True))
        per_second = os.sysconf("SC_CLK_TCK")
        return Disturbance(
            load_average=self._load,
            others_cores=max(0.0, (busy / per_second - own) / seconds),
            steal_percent=100.0 * steal / max(total, 1),
            cores=cores(),
        )


def _own_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _ticks() -> tuple[int, int, int] | None:
    """(busy, stolen, all) ticks of all cores since the start, after proc(5); None without /proc."""
    try:
        fields = _STAT.read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, idle, io, irq, soft, steal = (int(field) for field in fields[1:9])
    busy = user + nice + system + irq + soft
    return busy, steal, busy + steal + idle + io
