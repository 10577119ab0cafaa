"""Whole `upscale` runs of a clip against its stages alone: decode, compute, encode."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rlfn_pipe.allowance import cores
from rlfn_pipe.api import upscale
from rlfn_pipe.bench.clip import moving_frames
from rlfn_pipe.bench.clip_file import encode, write_clip
from rlfn_pipe.bench.engine import build_engine
from rlfn_pipe.bench.timing import Timing, in_turns, repeats
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.media.part import Part
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.types import Event, Finished, Frame, Started, Target

#: A whole run takes about this long, and has at least and at most so many frames.
_RUN_SECONDS = 3.0
_FEWEST_FRAMES, _MOST_FRAMES = 6, 240
#: The upscaled frames are held for the encoder alone; no more of them than this.
_MOST_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class PipelineSpeed:
    """Medians over whole runs of a clip of `frames` frames.

    `fps`: frames a second of wall time from the start of the file to its end (weights are read and the file is looked
    through before; what the network's own form takes to build, or to be compiled, is within);
    `seconds`: a whole call of `upscale`, start-up included. The stages alone, a frame:
    `*_ms` wall time, `*_cpu_ms` CPU time of all threads. `stages_seconds`: what `upscale` itself
    reports of its stages in the last run (`rlfn_pipe.types.StageTimes`).
    """

    model: str
    scale: int
    width: int
    height: int
    clip: str
    frames: int
    device: str
    precision: str
    threads: int
    compiled: bool
    cores: int
    rounds: int
    fps: float
    seconds: float
    decode_ms: float
    decode_cpu_ms: float
    compute_ms: float
    compute_cpu_ms: float
    encode_ms: float
    encode_cpu_ms: float
    stages_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bound_fps(self) -> float:
        """The rate that the stages alone allow.

        On the CPU they share the cores: cores over the summed CPU seconds of a frame. Elsewhere the
        compute runs beside them and the slowest stage counts.
        """
        slowest = max(self.decode_ms, self.compute_ms, self.encode_ms)
        if self.device == "cpu":
            summed = self.decode_cpu_ms + self.compute_cpu_ms + self.encode_cpu_ms
            return 1e3 / max(summed / self.cores, slowest)
        return 1e3 / slowest

    @property
    def efficiency(self) -> float:
        """`fps` over `bound_fps`: 1 when the stages overlap completely and nothing is lost."""
        return self.fps / self.bound_fps

    @property
    def limit(self) -> str:
        """The stage that takes most: of the CPU time on the CPU, else of the wall time."""
        kind = "cpu_ms" if self.device == "cpu" else "ms"
        return max(("decode", "compute", "encode"), key=lambda stage: float(getattr(self, f"{stage}_{kind}")))


class _Run:
    """One call of `upscale`, with its rate from the start of its file to its end."""

    def __init__(self, clip: Path, output: Path, frames: int, options: dict[str, Any]) -> None:
        self._clip, self._output, self._frames, self._options = clip, output, frames, options
        self.rates: list[float] = []
        self.finished: Finished | None = None

    def __call__(self) -> None:
        start = 0.0

        def on_event(event: Event) -> None:
            nonlocal start
            if isinstance(event, Started):
                start = time.perf_counter()

        report = upscale(
            self._clip,
            self._output,
            codec="libx264",
            overwrite=True,
            frames=self._frames,
            on_event=on_event,
            **self._options,
        )
        self.finished = report.finished[0]
        # All of it: an encoder keeps dozens of frames back, so that no rate in between is the whole's.
        self.rates.append(self.finished.frames / (time.perf_counter() - start))


def pipeline_speed(
    model: str = "rlfn-s",
    *,
    scale: float = 4,
    size: tuple[int, int] = (320, 180),
    clip: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    rounds: int = 3,
) -> PipelineSpeed:
    """Measure whole runs and the stages alone in turns, `rounds` times, on the first frames of `clip`.

    Without a clip one of `size` (width, height) is made up. The output is libx264 with the command's
    defaults (crf 18, preset medium) and goes to a temporary folder.

    Raises:
        UsageError, WeightsError: the model, device or precision cannot be had.
        InputError: `clip` cannot be read.
    """
    engine, _ = build_engine(model, scale, device, precision, compile=compile)
    with tempfile.TemporaryDirectory(prefix="rlfn-pipe-bench-") as name:
        folder = Path(name)
        if clip is None:
            clip, shown = folder / "moving.mp4", "made up"
            write_clip(clip, moving_frames(*size, _frames_for(engine, next(moving_frames(*size, 1)))))
        else:
            shown = str(clip)
        # Looking through the file is no part of decoding it; `upscale` does it before its first segment, too.
        with VideoSource(clip) as source:
            part = source.part(source.first, source.last)
        small = _decoded(clip, part, _frames_for(engine, _decoded(clip, part, 1)[0]))
        target = _target(engine, small[0])
        large = list(engine.run((frame, target) for frame in small))
        options = {
            "model": model,
            "scale": engine.scale,
            "device": device,
            "precision": precision,
            "compile": "on" if compile else "off",
        }
        whole = _Run(clip, folder / "whole.mp4", len(small), options)
        times = in_turns(
            {
                "decode": lambda: _decoded(clip, part, len(small), keep=False),
                "compute": lambda: _drain(engine, small, target),
                "encode": lambda: encode(folder / "encoded.packets", large),
                "whole": whole,
            },
            rounds,
            engine.device,
            warm=False,
        )
    return _speed(engine, compile, shown, small, times, whole, rounds)


def _speed(
    engine: Engine,
    compile: bool,
    shown: str,
    small: list[Frame],
    times: dict[str, Timing],
    whole: _Run,
    rounds: int,
) -> PipelineSpeed:
    assert whole.finished is not None
    count = len(small)
    return PipelineSpeed(
        model=engine.spec.name,
        scale=engine.scale,
        width=small[0].width,
        height=small[0].height,
        clip=shown,
        frames=count,
        device=str(engine.device),
        precision=engine.precision,
        threads=engine.threads,
        compiled=compile,
        cores=cores(),
        rounds=rounds,
        fps=statistics.median(whole.rates),
        seconds=times["whole"].ms / 1e3,
        decode_ms=times["decode"].ms / count,
        decode_cpu_ms=times["decode"].cpu_ms / count,
        compute_ms=times["compute"].ms / count,
        compute_cpu_ms=times["compute"].cpu_ms / count,
        encode_ms=times["encode"].ms / count,
        encode_cpu_ms=times["encode"].cpu_ms / count,
        stages_seconds=asdict(whole.finished.stages) if whole.finished.stages else {},
    )


def _target(engine: Engine, frame: Frame) -> Target:
    return Target(frame.width * engine.scale, frame.height * engine.scale, frame.colour)


def _drain(engine: Engine, frames: list[Frame], target: Target) -> None:
    for _ in engine.run((frame, target) for frame in frames):
        pass


def _frames_for(engine: Engine, frame: Frame) -> int:
    """Frames that make a run of about `_RUN_SECONDS` of the engine and fit in `_MOST_BYTES`."""
    target = _target(engine, frame)
    room = _MOST_BYTES // sum(plane.nbytes * engine.scale**2 for plane in frame.planes)
    most = max(_FEWEST_FRAMES, min(_MOST_FRAMES, room))
    return max(
        _FEWEST_FRAMES,
        repeats(lambda: _drain(engine, [frame], target), engine.device, seconds=_RUN_SECONDS, most=most),
    )


def _decoded(clip: Path, part: Part, count: int, *, keep: bool = True) -> list[Frame]:
    """The first `count` frames as the command reads them; decoded and dropped when not to `keep`."""
    found = []
    with VideoSource(clip, part=part) as source:
        for frame in islice(source, count):
            if keep:
                found.append(frame)
    return found
