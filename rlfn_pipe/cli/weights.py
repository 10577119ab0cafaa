"""`rlfn-pipe weights`: list, show, verify, import and fetch weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlfn_pipe.cli.text import human_bytes, json_line, plain, printable
from rlfn_pipe.errors import RlfnPipeError, UsageError, WeightsError

if TYPE_CHECKING:
    from rlfn_pipe.types import ModelSpec

app = typer.Typer(
    help="List, show, verify, import and fetch weights.", rich_markup_mode=None, add_completion=False
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Scale = Annotated[
    float | None,
    typer.Option("--scale", "-s", metavar="N", help="Scale of a named model. [4]", show_default=False),
]


@app.command("list")
def list_weights(json: Json = False) -> None:
    """List the weights that can be used by name."""
    from rlfn_pipe.models.registry import models

    specs = models()
    if json:
        typer.echo(json_line([plain(spec) for spec in specs]))
        return
    rows = [("NAME", "SCALE", "PARAMETERS", "LICENCE", "PSNR-Y IN DB")]
    for spec in specs:
        psnr = ", ".join(f"{name} {value:.2f}" for name, value in spec.psnr.items())
        rows.append((spec.name, f"x{spec.scale}", f"{spec.parameters:,}", spec.licence, psnr))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        typer.echo(printable("  ".join([*cells, row[4]]).rstrip()))
    if not any(spec.name.startswith("official") for spec in specs):
        typer.echo("The authors' own weights: rlfn-pipe weights fetch NAME", err=True)


@app.command("show")
def show_weights(
    model: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A model's name or a weights file.", show_default=False)
    ],
    scale: Scale = None,
    json: Json = False,
) -> None:
    """Show all that is known of weights.

    Network, checksum, licence, how they were trained, what they were measured to give.
    """
    from rlfn_pipe.models import registry, weights

    spec, _ = weights.load(model, scale)
    if scale is not None and spec.scale != scale:
        scales = (spec.scale,) if registry.is_file(model) else registry.native_scales(spec.name)
        there = ", ".join(f"x{each}" for each in scales)
        raise UsageError(f"{model} has no weights for scale {scale:g}; there are {there}")
    known = registry.details(spec)
    facts: dict[str, Any] = {
        **plain(spec),
        **{key: value for key, value in known.items() if key not in ("file", "network")},
    }
    if json:
        typer.echo(json_line(facts))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if value not in ("", {}, None):
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            typer.echo(f"{key.replace('_', ' '):<{width}}  {printable(text)}")


@app.command("verify")
def verify_weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|FILE]...", help="Models or files; without any, all.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check that weights are whole.

    Compares the checksum with the index and the tensors with the network.

    Ends with exit code 1 when any is not.
    """
    from rlfn_pipe.models import registry, weights

    results: list[dict[str, Any]] = []
    for label, spec, path in _chosen(names):
        try:
            if spec is not None:
                registry.verify(spec)
            weights.load_file(path)
            problem = ""
        except RlfnPipeError as error:
            problem = str(error)
        results.append({"weights": label, "path": path, "ok": not problem, "problem": problem})
    if json:
        typer.echo(json_line([plain(each) for each in results]))
    else:
        for each in results:
            typer.echo(printable(f"{each['weights']}: {each['problem'] or 'whole'}"))
    failed = sum(not each["ok"] for each in results)
    if failed:
        fault = WeightsError(f"{failed} of {len(results)} weights files cannot be used; see the list")
        fault.in_json = json
        raise fault


def _chosen(names: list[str] | None) -> list[tuple[str, ModelSpec | None, Path]]:
    """Label, index entry (if any) and file of what is to be verified."""
    from rlfn_pipe.models import registry

    specs = registry.models()
    if not names:
        return [(f"{spec.name} x{spec.scale}", spec, spec.path) for spec in specs if spec.path]
    chosen: list[tuple[str, ModelSpec | None, Path]] = []
    for name in names:
        found = [spec for spec in specs if spec.name == name and spec.path]
        if found:
            chosen += [(f"{spec.name} x{spec.scale}", spec, spec.path) for spec in found if spec.path]
        elif Path(name).suffix or Path(name).exists():
            chosen.append((name, None, Path(name)))
        else:
            registry.find(name, 4)  # raises, naming the nearest
    return chosen


@app.command("import")
def import_weights(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A .pth or .safetensors file.", show_default=False)
    ],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TARGET]", help="The .safetensors file to write. [beside SOURCE]", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", "-y", help="Replace an existing target.")] = False,
    json: Json = False,
) -> None:
    """Convert RLFN weights to safetensors."""
    from rlfn_pipe.models.weights import import_file

    out = target or source.with_suffix(".safetensors")
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: the target's name must end in .safetensors")
    spec = import_file(source, out, overwrite)
    if json:
        typer.echo(json_line(plain(spec)))
    else:
        typer.echo(printable(f"{out}: {spec.name} x{spec.scale}, {spec.parameters:,} parameters"))
        typer.echo(printable(f"use it with --model {out}"))


@app.command("fetch")
def fetch_weights(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="rlfn, rlfn-s, rlfn-ntire or all.", show_default=False)
    ],
    url: Annotated[
        str | None,
        typer.Option(
            "--url", metavar="URL", help="Another address of the folder of files.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Download the authors' own weights.

    They are Apache-2.0, are checked by SHA-256, and go into the user's cache folder
    (RLFN_PIPE_CACHE chooses another).
    """
    from rlfn_pipe.models.fetch import BASE_URL, fetch
    from rlfn_pipe.models.official import choose

    base = (url.rstrip("/") + "/") if url else BASE_URL
    shows = sys.stderr.isatty() and not json
    done: list[dict[str, Any]] = []
    for file in choose(name):

        def follow(count: int, total: int | None, label: str = file.file) -> None:
            if shows:
                typer.echo(f"\r{label}: {human_bytes(count)} of {human_bytes(total)} ", err=True, nl=False)

        path = fetch(file, base, follow)
        if shows:
            typer.echo("", err=True)
        done.append({"model": file.name, "scale": file.scale, "path": path})
    if json:
        typer.echo(json_line([plain(each) for each in done]))
        return
    for each in done:
        typer.echo(printable(f"{each['path']}: use it with --model {each['model']} --scale {each['scale']}"))
