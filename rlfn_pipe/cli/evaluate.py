"""`rlfn-pipe evaluate`: the field's figures for one or more networks, as table, Markdown or JSON."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..evaluate.report import ImageResult


class LowChoice(StrEnum):
    auto = "auto"
    make = "make"
    read = "read"


class PrecisionChoice(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="A folder of HR pictures, a set (HR/ with LRx2/, LRx3/, LRx4/), or a folder of such sets.",
            show_default=False,
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|FILE",
            help="Network by name or weights file, or bicubic; give it again to compare. [rlfn-s]",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(
            "--scale",
            "-s",
            metavar="N",
            help="How many times larger; a weights file knows its own, bicubic needs it. [4]",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        LowChoice,
        typer.Option("--lr", help="Small pictures: read where there are files for the scale, or make them."),
    ] = LowChoice.auto,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over 8 flips and turns: a little better, 8 times slower.")
    ] = False,
    lpips: Annotated[
        bool, typer.Option("--lpips", help='Perceptual distance too; needs pip install "rlfn-pipe[lpips]".')
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto",
    precision: Annotated[
        PrecisionChoice, typer.Option("--precision", help="Arithmetic; tables are made in fp32.")
    ] = PrecisionChoice.fp32,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="Keep the enlarged pictures as DIR/<model>_x<scale>/<set>/<name>.png.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "-y", help="Write over pictures that --save finds there.")
    ] = False,
    per_image: Annotated[
        bool, typer.Option("--per-image", help="A line a picture before each set's mean.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
) -> None:
    """Measure PSNR and SSIM on benchmark sets.

    The field's protocol: MATLAB bicubic small pictures, BT.601 luma, a border of `scale` pixels left out,
    SSIM with an 11x11 window. Beside the quality: PSNR over RGB, time a picture (decoding left out),
    parameters, and multiply-adds and activations for an output of 1280x720.
    """
    if json and markdown:
        raise UsageError("--json and --markdown exclude one another; give one of them")
    from ..evaluate.report import as_data, as_markdown, as_table
    from ..evaluate.run import Measurement
    from .text import json_line, printable

    def say(name: str, set_name: str, done: int, total: int, result: ImageResult) -> None:
        if not quiet:
            figures = f"{result.psnr_y:.2f} dB, {result.seconds:.2f} s"
            typer.echo(printable(f"{name} {set_name} {done}/{total} {result.name}: {figures}"), err=True)

    wishes: dict[str, Any] = {
        "scale": scale,
        "low_source": lr.value,
        "device": device,
        "precision": precision.value,
        "tta": tta,
        "save": save,
        "overwrite": overwrite,
    }
    models = model or ["rlfn-s"]
    names = _names(models)
    # What cannot be had is told before hours of what can.
    ready = [Measurement(each, data, name=name, **wishes) for each, name in zip(models, names, strict=True)]
    reports = []
    try:
        for each, name, measurement in zip(models, names, ready, strict=True):
            label = name or Path(each).stem
            said = partial(say, label)
            reports.append(measurement.run(lpips=lpips, on_image=said))
    finally:
        if reports and json:
            typer.echo(json_line(as_data(reports, per_image)))
        elif reports:
            typer.echo(as_markdown(reports, per_image) if markdown else as_table(reports, per_image))


def _names(models: list[str]) -> list[str | None]:
    """What each model is called: None for its own name, with its folder where files share a name."""
    stems = [
        Path(each).stem if Path(each).suffix in (".pth", ".pt", ".safetensors") else each for each in models
    ]
    return [
        f"{Path(each).resolve().parent.name}-{stem}" if stems.count(stem) > 1 and stem != each else None
        for each, stem in zip(models, stems, strict=True)
    ]
