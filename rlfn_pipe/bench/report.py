"""Results as lines for people and as plain data for JSON: ratios first, then absolute figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rlfn_pipe.bench.ceilings import Ceilings
from rlfn_pipe.bench.engine import EngineSpeed
from rlfn_pipe.bench.machine import Disturbance, Machine
from rlfn_pipe.bench.pipeline import PipelineSpeed

Result = Machine | Ceilings | EngineSpeed | PipelineSpeed | Disturbance


def as_data(result: Result) -> dict[str, Any]:
    """One flat object; units are in the names of the keys, ratios have none."""
    if isinstance(result, Machine):
        return {"event": "machine", **asdict(result)}
    if isinstance(result, Ceilings):
        return {"event": "ceilings", **asdict(result)}
    if isinstance(result, EngineSpeed):
        return _engine_data(result)
    if isinstance(result, PipelineSpeed):
        derived = {"efficiency": result.efficiency, "limit": result.limit, "bound_fps": result.bound_fps}
        return {"event": "pipeline", **derived, **asdict(result)}
    return {"event": "disturbance", **asdict(result), "warnings": result.warnings()}


def as_text(result: Result) -> list[str]:
    """Lines for a terminal."""
    if isinstance(result, Machine):
        return [f"{result.device}, {result.cpu_capability}, torch {result.torch}, Python {result.python}"]
    if isinstance(result, Ceilings):
        return ["ceilings", *_ceilings_text(result)]
    if isinstance(result, EngineSpeed):
        return _engine_text(result)
    if isinstance(result, PipelineSpeed):
        return _pipeline_text(result)
    return []


def _engine_data(speed: EngineSpeed) -> dict[str, Any]:
    data: dict[str, Any] = {"event": "engine"}
    data |= {f"ratio_{one.name}": one.ratio for one in speed.baselines if one.ratio is not None}
    data |= {
        "convolution_share": speed.convolution_share,
        "tflops": speed.tflops,
        "fps": speed.fps,
    }
    plain = asdict(speed)
    del plain["baselines"], plain["ceilings"]
    ceilings = {key: value for key, value in asdict(speed.ceilings).items() if key != "precision"}
    data |= plain | ceilings
    for one in speed.baselines:
        if one.ms is not None:
            data |= {f"{one.name}_ms": one.ms, f"{one.name}_precision": one.precision}
    data["refused"] = {one.name: one.refused for one in speed.baselines if one.refused is not None}
    return data


def _row(ratio: str, what: str, figures: str) -> str:
    return f"  {ratio:>6} {what:<38} {figures}"


def _ceilings_text(ceilings: Ceilings) -> list[str]:
    return [
        f"  bare 3x3 convolutions {ceilings.convolution_tflops:.3g} TFLOP/s ({ceilings.convolution_shape}), "
        f"matrix product {ceilings.matrix_tflops:.3g} TFLOP/s in {ceilings.precision}, "
        f"copy {ceilings.copy_gb_s:.3g} GB/s"
    ]


def _engine_text(speed: EngineSpeed) -> list[str]:
    scale = speed.scale
    lines = [
        f"engine {speed.model} x{scale}, {speed.width}x{speed.height} to "
        f"{speed.width * scale}x{speed.height * scale}, {speed.device} in {speed.precision}, "
        f"{speed.threads} threads{', compiled' if speed.compiled else ''}, medians of {speed.rounds}"
    ]
    for one in speed.baselines:
        if one.ratio is not None:
            what = f"as fast as {one.name} ({one.precision})"
            lines.append(_row(f"{one.ratio:.2f}x", what, f"{one.ms:.1f} ms without conversion"))
        else:
            lines.append(_row("-", f"{one.name} left out", str(one.refused)))
    ceiling = speed.ceilings.convolution_tflops
    lines += [
        _row(
            f"{speed.convolution_share:.2f}",
            "of the rate of bare convolutions",
            f"{speed.tflops:.3g} of {ceiling:.3g} TFLOP/s, {speed.gflop:.4g} GFLOP a frame",
        ),
        f"  a frame alone on all threads: network {speed.network_ms:.1f} ms, conversion up "
        f"{speed.colour_up_ms:.1f}, down {speed.colour_down_ms:.1f} ms",
        f"  {speed.engine_ms:.1f} ms a frame with conversion, {speed.fps:.1f} frames/s "
        f"(slowest round {speed.spread:.2f} times the fastest)",
    ]
    return lines + _ceilings_text(speed.ceilings)


def _pipeline_text(speed: PipelineSpeed) -> list[str]:
    stages = ", ".join(
        f"{stage} {getattr(speed, f'{stage}_ms'):.1f}/{getattr(speed, f'{stage}_cpu_ms'):.1f}"
        for stage in ("decode", "compute", "encode")
    )
    return [
        f"pipeline {speed.model} x{speed.scale}, {speed.width}x{speed.height}, clip {speed.clip}, "
        f"{speed.frames} frames, libx264, {speed.device} in {speed.precision}"
        f"{', compiled' if speed.compiled else ''}, medians of {speed.rounds}",
        _row(
            f"{speed.efficiency:.2f}",
            "of what the stages alone allow",
            f"{speed.fps:.1f} of {speed.bound_fps:.1f} frames/s; {speed.limit} takes most",
        ),
        f"  stages alone, wall and CPU ms a frame: {stages}",
        f"  a whole call takes {speed.seconds:.2f} s, start-up included",
    ]
