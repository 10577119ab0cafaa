"""`rlfn-pipe bench`: how fast this machine is, as ratios against baselines of the same run."""

from __future__ import annotations

from typing import Annotated

import typer


def bench(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="NAME|FILE", help="Network to measure. [rlfn-s]", show_default=False
        ),
    ] = "rlfn-s",
    scale: Annotated[
        float,
        typer.Option("--scale", "-s", metavar="N", help="Its scale: 2, 3 or 4. [4]", show_default=False),
    ] = 4,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="WxH",
            help="Size of the frame; may be given many times. [320x180]",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps. [auto]", show_default=False
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", metavar="FORMAT", help="auto, fp32, bf16 or fp16. [auto]", show_default=False
        ),
    ] = "auto",
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", min=1, metavar="N", help="Measurements of each road. [7]", show_default=False
        ),
    ] = 7,
    training: Annotated[
        bool, typer.Option("--training", help="Measure training instead: the naive loop against ours.")
    ] = False,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=1, metavar="N", help="Seconds of each training loop. [10]", show_default=False
        ),
    ] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Measure this machine.

    Baselines and ours run in turns, so that ratios hold on a machine whose speed drifts; keep it
    quiet meanwhile.
    """
    if training:
        _training(model, scale, device, seconds, json)
    else:
        _engine(model, scale, size or ["320x180"], device, precision, rounds, json)


def _training(model: str, scale: float, device: str, seconds: float, json: bool) -> None:
    from ..training.bench import training_speed
    from .text import json_line

    result = training_speed(model, round(scale), seconds=seconds, device=device)
    if json:
        typer.echo(json_line({"event": "training", **result}))
        return
    typer.echo(
        f"training {result['network']} x{result['scale']}, "
        f"batch {result['batch']} of {result['patch']} HR pixels, {result['device']}, {result['threads']} threads"
    )
    typer.echo(f"  ours against the naive loop (fp32, eager)  {result['ratio']:.2f}x")
    typer.echo(f"  ours {result['ours']:.1f} patches/s, naive {result['naive']:.1f} patches/s")


def _engine(
    model: str, scale: float, sizes: list[str], device: str, precision: str, rounds: int, json: bool
) -> None:
    from dataclasses import asdict

    from ..bench import engine_speed
    from ..options import parse_option
    from .text import json_line

    parsed = [parse_option("size", size) for size in sizes]
    for size in parsed:
        speed = engine_speed(model, scale=scale, size=size, device=device, precision=precision, rounds=rounds)
        if json:
            ratios = {"ratio_fp32": speed.ratio_fp32, "ratio_short": speed.ratio_short}
            typer.echo(json_line({"event": "engine", **ratios, **asdict(speed)}))
            continue
        typer.echo(
            f"engine {speed.model} x{speed.scale}, {speed.width}x{speed.height}, "
            f"{speed.device} in {speed.precision}, {speed.threads} threads, median of {speed.rounds}"
        )
        typer.echo(f"  against the plain network in fp32              {speed.ratio_fp32:.2f}x")
        typer.echo(f"  against it in {speed.precision} and channels_last            {speed.ratio_short:.2f}x")
        typer.echo(
            f"  {speed.engine_ms:.1f} ms a frame ({1e3 / speed.engine_ms:.1f} frames/s) "
            f"with colour conversion; plain {speed.plain_fp32_ms:.1f} and {speed.plain_short_ms:.1f} ms without"
        )
