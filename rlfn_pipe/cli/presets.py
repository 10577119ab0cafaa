"""`rlfn-pipe presets`: list and show presets."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rlfn_pipe.cli.text import json_line, printable
from rlfn_pipe.options import option_info
from rlfn_pipe.presets import load_preset, preset_names

app = typer.Typer(help="List and show presets.", rich_markup_mode=None, add_completion=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{key}={text}" for key, text in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "auto" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@app.command("list")
def list_presets(json: Json = False) -> None:
    """List the presets that ship with the package."""
    presets = [load_preset(name) for name in preset_names()]
    if json:
        typer.echo(json_line([{"name": p.name, "description": p.description} for p in presets]))
        return
    width = max((len(preset.name) for preset in presets), default=0)
    for preset in presets:
        typer.echo(f"{preset.name:<{width}}  {printable(preset.description)}")


@app.command("show")
def show_preset(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A preset's name or file.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Show the options that a preset sets."""
    preset = load_preset(name)
    if json:
        values = {option_info(key).key: value for key, value in preset.values.items()}
        typer.echo(
            json_line(
                {
                    "name": preset.name,
                    "description": preset.description,
                    "path": preset.path,
                    "options": values,
                }
            )
        )
        return
    typer.echo(f"{printable(preset.name)}: {printable(preset.description)}")
    for key, value in preset.values.items():
        typer.echo(f"  {option_info(key).long} {printable(_text(value))}")
