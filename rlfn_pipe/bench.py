"""How fast is this machine: the engine against the plain network, in one interleaved run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.models.fuse import InferenceFactory
from rlfn_pipe.models.weights import load
from rlfn_pipe.types import MATRIX_BT709, RANGE_LIMITED, ColourInfo, Frame, Target


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Medians in milliseconds a frame, and what ran.

    `engine_ms`: YUV 4:2:0 planes in, larger planes out, conversion included; `plain_fp32_ms` and
    `plain_short_ms`: the network as trained, an RGB tensor in and out, in fp32 as most scripts
    run it, and in the engine's own number format and memory layout.
    """

    model: str
    scale: int
    width: int
    height: int
    device: str
    precision: str
    threads: int
    rounds: int
    engine_ms: float
    plain_fp32_ms: float
    plain_short_ms: float

    @property
    def ratio_fp32(self) -> float:
        """How many times faster than the plain network in fp32."""
        return self.plain_fp32_ms / self.engine_ms

    @property
    def ratio_short(self) -> float:
        """How many times faster than the plain network in the engine's number format."""
        return self.plain_short_ms / self.engine_ms


@torch.inference_mode()
def engine_speed(
    model: str = "rlfn-s",
    *,
    scale: float = 4,
    size: tuple[int, int] = (320, 180),
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    rounds: int = 7,
) -> EngineSpeed:
    """Measure one frame of `size` (width, height) by every road in turn, `rounds` times after a warm-up.

    Raises:
        UsageError, WeightsError: the model, device or precision cannot be had.
    """
    spec, module = load(model, scale)
    engine = Engine(
        InferenceFactory(spec, module),
        spec,
        device=device,
        precision=precision,
        threads=threads,
        tile=0,
        batch=1,
    )
    torch.set_num_threads(engine.threads)
    width, height = size
    colour = ColourInfo(MATRIX_BT709, range=RANGE_LIMITED)
    noise = np.random.default_rng(0)
    half = ((height + 1) // 2, (width + 1) // 2)
    planes = tuple(noise.integers(16, 235, shape, dtype=np.uint8) for shape in ((height, width), half, half))
    target = Target(width * spec.scale, height * spec.scale, colour)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[engine.precision]
    picture = torch.rand(1, 3, height, width, device=engine.device) * spec.input_range
    plain = module.to(engine.device)
    short = load(model, scale)[1].to(engine.device, dtype)
    short.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    short_picture = picture.to(dtype, memory_format=torch.channels_last)
    roads: dict[str, Callable[[], object]] = {
        "engine": lambda: list(engine.run([(Frame(planes, colour), target)])),
        "fp32": lambda: plain(picture),
        "short": lambda: short(short_picture),
    }
    times: dict[str, list[float]] = {name: [] for name in roads}
    for round_number in range(rounds + 1):
        for name, road in roads.items():
            begin = time.perf_counter()
            road()
            if engine.device.type == "cuda":
                torch.cuda.synchronize(engine.device)
            if round_number:
                times[name].append((time.perf_counter() - begin) * 1e3)
    median = {name: statistics.median(values) for name, values in times.items()}
    return EngineSpeed(
        model=spec.name,
        scale=spec.scale,
        width=width,
        height=height,
        device=str(engine.describe()["device_name"]),
        precision=engine.precision,
        threads=engine.threads,
        rounds=rounds,
        engine_ms=median["engine"],
        plain_fp32_ms=median["fp32"],
        plain_short_ms=median["short"],
    )
