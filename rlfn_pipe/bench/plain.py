"""The roads of PyTorch's own operators, which the engine is held against: baselines and ceilings.

On the CPU they have a process of their own. The engine's maps large buffers anew (`suit_allocator`), so that its memory
stays what it is; it needs few of them, but operators, which take one for each result, lose up to half their rate by it.
There the allocator keeps all memory, which is the best that could be found for them (docs/performance.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch

from rlfn_pipe.allocator import suit_allocator
from rlfn_pipe.bench.baselines import BASELINES, Baseline, Subject
from rlfn_pipe.bench.ceilings import CeilingRoads, ceiling_roads
from rlfn_pipe.bench.timing import Road
from rlfn_pipe.engine.tensors import DTYPES
from rlfn_pipe.errors import EngineError
from rlfn_pipe.jobs.process import WorkerProcess
from rlfn_pipe.models.weights import load

__all__ = ["Plain", "Wanted", "plain_roads"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to make roads for: a network, the (width, height) of its frames, how the engine runs it, which baselines."""

    model: str
    scale: float
    size: tuple[int, int]
    device: str
    precision: str
    threads: int
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plain:
    """What was made, with the roads by name: "baseline NAME", and the ceilings'."""

    baselines: tuple[Baseline, ...]
    ceilings: CeilingRoads
    roads: dict[str, Road]


@contextmanager
def plain_roads(wanted: Wanted) -> Iterator[Plain]:
    """The roads, to be passed inside the context.

    Raises:
        UsageError, WeightsError: the model cannot be had.
        EngineError: their process ended.
    """
    if torch.device(wanted.device).type != "cpu":
        yield _made(wanted)
        return
    process = WorkerProcess(_serve)
    try:
        process.connection.send(wanted)
        baselines, ceilings, names = _answer(process)
        yield Plain(baselines, ceilings, {name: _There(process, name) for name in names})
    finally:
        process.kill()


def _made(wanted: Wanted) -> Plain:
    spec, module = load(wanted.model, wanted.scale)
    (width, height), device = wanted.size, torch.device(wanted.device)
    subject = Subject(module.eval(), height, width, device, wanted.precision, wanted.threads)
    baselines = tuple(BASELINES[name](subject) for name in wanted.baselines)
    ceilings = ceiling_roads(spec, wanted.size, device, wanted.precision, DTYPES[wanted.precision])
    roads = {f"baseline {one.name}": one.road for one in baselines if one.road is not None}
    return Plain(baselines, ceilings, {**roads, **ceilings.roads})


class _There:
    """A road of the other process (`rlfn_pipe.bench.timing.Distant`)."""

    def __init__(self, process: WorkerProcess, name: str) -> None:
        self._process, self._name = process, name

    def __call__(self) -> None:
        self.passes(1)

    def passes(self, count: int) -> None:
        self._process.connection.send((self._name, count))
        _answer(self._process)


def _answer(process: WorkerProcess) -> tuple[tuple[Baseline, ...], CeilingRoads, list[str]]:
    try:
        answer = process.connection.recv()
    except (EOFError, OSError) as error:
        raise EngineError(f"the process of baselines and ceilings {process.fate()}") from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(connection: Connection) -> None:
    """The other process: makes what is wanted, then passes a road so often whenever it is named."""
    wanted = connection.recv()
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
    suit_allocator(tensors=True)
    torch.set_num_threads(wanted.threads)
    try:
        made = _made(wanted)
        # Functions stay here.
        baselines = tuple(replace(one, road=None) for one in made.baselines)
        connection.send((baselines, replace(made.ceilings, roads={}), list(made.roads)))
        while True:
            name, count = connection.recv()
            for _ in range(count):
                made.roads[name]()
            connection.send(None)
    except (EOFError, OSError):
        return
    except Exception as error:
        connection.send(error)
