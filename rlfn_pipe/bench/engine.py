"""The engine on one frame size: against the baselines, against the ceilings, and what it consists of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch

from rlfn_pipe.bench.baselines import Baseline
from rlfn_pipe.bench.ceilings import Ceilings
from rlfn_pipe.bench.clip import COLOUR, moving_frames
from rlfn_pipe.bench.plain import Wanted, plain_roads
from rlfn_pipe.bench.timing import SLICE, Road, in_turns, repeats
from rlfn_pipe.engine.forms import Forms
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.evaluate.complexity import count
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.weights import load_weights
from rlfn_pipe.pipeline.engines import fast_engine
from rlfn_pipe.pipeline.planes import from_rgb, to_rgb
from rlfn_pipe.types import Target

#: The most frames of a run of the engine, which has two at least and fills about a slice.
_MOST_FRAMES = {"cpu": 8, "cuda": 64, "mps": 16}


@dataclass(frozen=True, slots=True)
class BaselineTime:
    """One baseline: `ratio` is how many times faster the engine is. None where it was refused."""

    name: str
    precision: str
    ratio: float | None
    ms: float | None
    refused: str | None


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Medians a frame. The engine takes YUV 4:2:0 planes and gives larger ones, conversion included.

    `tflops` counts the useful operations of the plain network (two a multiply-add) and `engine_ms`;
    `convolution_share` is that of the convolution ceiling. `network_ms` is the inference form on an
    RGB tensor that lies on the device; `colour_up_ms` and `colour_down_ms` are the conversions
    alone, to RGB at the small size and from RGB at the large one. `run_frames`: frames a run.
    """

    model: str
    scale: int
    width: int
    height: int
    device: str
    precision: str
    threads: int
    compiled: bool
    rounds: int
    run_frames: int
    gflop: float
    engine_ms: float
    network_ms: float
    colour_up_ms: float
    colour_down_ms: float
    spread: float
    ceilings: Ceilings
    baselines: tuple[BaselineTime, ...]

    @property
    def tflops(self) -> float:
        """Useful rate of the engine, conversion included, in TFLOP/s."""
        return self.gflop / self.engine_ms

    @property
    def convolution_share(self) -> float:
        """The engine's rate over that of bare convolutions: 1 would be no time for anything else."""
        return self.tflops / self.ceilings.convolution_tflops

    @property
    def fps(self) -> float:
        """Frames a second."""
        return 1e3 / self.engine_ms


def build_engine(
    model: str,
    scale: float,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    compile: bool = False,
) -> tuple[Engine, InferenceFactory]:
    """The engine as `upscale` makes it (`compile`: with `--compile on`), and the factory of its network.

    Raises:
        UsageError, WeightsError: the model, device or precision cannot be had.
    """
    spec, weights = load_weights(model, scale)
    factory = InferenceFactory(spec, weights, compile=compile)
    engine = fast_engine(factory, spec, device=device, precision=precision, threads=threads)
    return engine, factory


@torch.inference_mode()
def engine_speed(
    model: str = "rlfn-s",
    *,
    scale: float = 4,
    size: tuple[int, int] = (320, 180),
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    compile: bool = False,
    baselines: Iterable[str] = ("official",),
    rounds: int = 7,
) -> EngineSpeed:
    """Measure the engine, its parts, the ceilings and the baselines in turns, `rounds` times.

    `size`: (width, height) of the small frame; `baselines`: names in `BASELINES`.

    Raises:
        UsageError, WeightsError: the model, device or precision cannot be had.
    """
    engine, factory = build_engine(model, scale, device, precision, threads, compile)
    torch.set_num_threads(engine.threads)
    spec, width, height = engine.spec, *size
    parts, frames = _parts(engine, factory, size)
    names = tuple(dict.fromkeys(baselines))
    wanted = Wanted(model, scale, size, str(engine.device), engine.precision, engine.threads, names)
    with plain_roads(wanted) as plain:
        times = in_turns({**parts, **plain.roads}, rounds, engine.device, seconds=SLICE)
    ms = {name: timing.ms for name, timing in times.items()}
    engine_ms = ms["engine"] / frames
    return EngineSpeed(
        model=spec.name,
        scale=spec.scale,
        width=width,
        height=height,
        device=str(engine.device),
        precision=engine.precision,
        threads=engine.threads,
        compiled=compile,
        rounds=rounds,
        run_frames=frames,
        gflop=2e-9 * count(factory.module, height, width).macs,
        engine_ms=engine_ms,
        network_ms=ms["network"],
        colour_up_ms=ms["up"],
        colour_down_ms=ms["down"],
        spread=times["engine"].spread,
        ceilings=plain.ceilings.ceilings(ms),
        baselines=tuple(_baseline_time(one, ms, engine_ms) for one in plain.baselines),
    )


def _baseline_time(one: Baseline, ms: dict[str, float], engine_ms: float) -> BaselineTime:
    taken = ms.get(f"baseline {one.name}")
    return BaselineTime(one.name, one.precision, taken and taken / engine_ms, taken, one.refused)


def _parts(engine: Engine, factory: InferenceFactory, size: tuple[int, int]) -> tuple[dict[str, Road], int]:
    """The engine, its network alone, both conversions; and how many frames a run of the engine has."""
    scale, (width, height) = engine.scale, size
    target = Target(width * scale, height * scale, COLOUR)
    # Frames that have a thread each, as in a film, are begun when there is one for each.
    least = 2 * engine.threads if engine.device.type == "cpu" else 2
    stock = list(moving_frames(width, height, max(least, _MOST_FRAMES[engine.device.type])))

    def run(count: int) -> None:
        for _ in engine.run((frame, target) for frame in islice(stock, count)):
            pass

    runs = repeats(lambda: run(least), engine.device, seconds=SLICE, most=len(stock) // least)
    frames = runs * least
    arrays = engine.arrays
    network = Forms(factory, str(engine.device), engine.precision).network(False, engine.precision)
    picture = to_rgb(stock[0], arrays)[None].clip(0.0, 255.0)
    large = arrays.copied(network(picture)[0])
    roads: dict[str, Road] = {
        "engine": lambda: run(frames),
        "network": lambda: network(picture),
        "up": lambda: to_rgb(stock[0], arrays),
        "down": lambda: arrays.fetch(from_rgb(large, stock[0].colour)).tensors(),
    }
    return roads, frames
