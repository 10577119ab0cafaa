"""The parts of a bench, one after the other, and what disturbed them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlfn_pipe.bench.baselines import BASELINES
from rlfn_pipe.bench.ceilings import Ceilings
from rlfn_pipe.bench.engine import build_engine, engine_speed
from rlfn_pipe.bench.machine import Watch, machine
from rlfn_pipe.bench.pipeline import pipeline_speed
from rlfn_pipe.bench.plain import Wanted, plain_roads
from rlfn_pipe.bench.report import Result
from rlfn_pipe.bench.timing import SLICE, in_turns
from rlfn_pipe.errors import UsageError
from rlfn_pipe.media.source import VideoSource

PARTS = ("ceilings", "engine", "pipeline")
#: What is measured unless asked otherwise; the engine brings its ceilings along.
DEFAULT_PARTS = ("engine", "pipeline")
DEFAULT_BASELINES = ("official",)
#: Whole runs of the pipeline take seconds; so many rounds are enough.
_PIPELINE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure. `sizes`: (width, height) of small frames; the made-up clip has the first one.

    Raises:
        UsageError: a part or baseline that is not known, or no round.
    """

    model: str = "rlfn-s"
    scale: float = 4
    sizes: tuple[tuple[int, int], ...] = ((320, 180),)
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    parts: tuple[str, ...] = DEFAULT_PARTS
    baselines: tuple[str, ...] = DEFAULT_BASELINES
    rounds: int = 7
    clip: Path | None = None

    def __post_init__(self) -> None:
        _known("--part", self.parts, PARTS)
        _known("--baseline", self.baselines, BASELINES)
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds} is too small; use 1 or more")
        if self.scale not in (2, 3, 4):
            raise UsageError(f"--scale {self.scale:g} is not a network's own scale; use 2, 3 or 4")


def measure(settings: Settings) -> Iterator[Result]:
    """Results as they come: the machine, each part (for every size), the disturbance last.

    Raises:
        UsageError, WeightsError: the model, device or precision cannot be had.
        InputError: the clip cannot be read.
    """
    if settings.clip is not None:
        with VideoSource(settings.clip):
            pass  # what cannot be read is told before anything is measured
    engine, _ = build_engine(settings.model, settings.scale, settings.device, settings.precision)
    yield machine(engine.device)
    watch = Watch()
    for size in settings.sizes:
        if "ceilings" in settings.parts:
            yield ceilings(settings, size)
        if "engine" in settings.parts:
            yield engine_speed(
                settings.model,
                scale=settings.scale,
                size=size,
                baselines=settings.baselines,
                rounds=settings.rounds,
                device=settings.device,
                precision=settings.precision,
                compile=settings.compile,
            )
    if "pipeline" in settings.parts:
        yield pipeline_speed(
            settings.model,
            scale=settings.scale,
            size=settings.sizes[0],
            clip=settings.clip,
            rounds=min(settings.rounds, _PIPELINE_ROUNDS),
            device=settings.device,
            precision=settings.precision,
            compile=settings.compile,
        )
    yield watch.disturbance()


def ceilings(settings: Settings, size: tuple[int, int]) -> Ceilings:
    """The machine's best rates for the network's channels, in the engine's number format."""
    engine, _ = build_engine(settings.model, settings.scale, settings.device, settings.precision)
    wanted = Wanted(
        settings.model, settings.scale, size, str(engine.device), engine.precision, engine.threads
    )
    with plain_roads(wanted) as plain:
        times = in_turns(plain.roads, settings.rounds, engine.device, seconds=SLICE)
    return plain.ceilings.ceilings({name: timing.ms for name, timing in times.items()})


def _known(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise UsageError(f"{option} {name} is not known; use {', '.join(known)}")
