"""`rlfn-pipe bench`: how fast this machine is, as ratios against baselines of the same run."""

from __future__ import annotations

from pathlib import Path
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
    compile: Annotated[
        bool, typer.Option("--compile", help="The engine as upscale --compile on runs it.")
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="NAME",
            help="Measure only this: ceilings, engine (with its ceilings) or pipeline; may be given many "
            "times. [engine, pipeline]",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="NAME",
            help="The plain network as others run it: official (fp32, eager), compile (torch.compile, slow "
            "to start) or openvino; may be given many times. [official]",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            "--clip",
            metavar="FILE",
            help="Video for the pipeline, its first seconds. [made up, of the first size]",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            min=1,
            metavar="N",
            help="Measurements of each road (at most 3 of the pipeline). [7]",
            show_default=False,
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
    """Measure this machine: the engine, what it consists of, and whole runs.

    Baselines, ceilings and ours run in turns, so that ratios hold on a machine whose speed drifts; keep it
    quiet meanwhile.
    """
    if training:
        _training(model, scale, device, seconds, json)
        return
    from ..bench.report import as_data, as_text
    from ..bench.run import DEFAULT_BASELINES, DEFAULT_PARTS, Settings, measure
    from ..options import parse_option
    from .text import json_line, printable

    settings = Settings(
        model=model,
        scale=scale,
        sizes=tuple(parse_option("size", text) for text in size or ["320x180"]),
        device=device,
        precision=precision,
        compile=compile,
        parts=tuple(part or DEFAULT_PARTS),
        baselines=tuple(baseline or DEFAULT_BASELINES),
        rounds=rounds,
        clip=clip,
    )
    for result in measure(settings):
        data = as_data(result)
        if json:
            typer.echo(json_line(data))
        else:
            for line in as_text(result):
                typer.echo(printable(line))
        for warning in data.get("warnings", ()):
            typer.echo(f"rlfn-pipe: warning: {warning}", err=True)


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
