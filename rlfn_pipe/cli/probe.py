"""`rlfn-pipe probe`: what is in a file, and what upscale would do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlfn_pipe.cli.text import json_line, plain
from rlfn_pipe.errors import RlfnPipeError
from rlfn_pipe.options import UpscaleOptions


def probe(
    input: Annotated[
        str, typer.Argument(metavar="INPUT", help="A video, an image or a folder.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Say what is in a file, and what upscale would do with it.

    Streams, times, colour, tags and warnings, or a picture's colour and metadata; then size, codec and
    streams of the output that upscale would write with its defaults.
    """
    from rlfn_pipe.cli import show
    from rlfn_pipe.jobs.plan import describe
    from rlfn_pipe.media.probe import probe as probe_media

    plan, media, refusal = None, None, None
    try:
        plan = describe(input, None, UpscaleOptions())
        media = plan.media
    except RlfnPipeError as error:
        # What upscale refuses (audio alone, say) may still be worth a look.
        try:
            media = probe_media(Path(input))
        except RlfnPipeError:
            raise error from None
        refusal = error

    if json:
        answer = {
            "media": plain(media),
            "picture": plain(plan.picture) if plan is not None else None,
            "upscale": None,
            "refused": str(refusal) if refusal else None,
        }
        if plan is not None:
            apart = ("media", "picture")
            answer["upscale"] = {key: value for key, value in plain(plan).items() if key not in apart}
        typer.echo(json_line(answer))
        return
    lines = show.media_lines(media) if media is not None else []
    if plan is not None and plan.picture is not None:
        lines = show.picture_lines(plan.picture)
    if plan is not None:
        lines += ["", *show.plan_lines(plan)] if lines else show.plan_lines(plan)
    if refusal is not None:
        lines += ["", show.refused_line(str(refusal))]
    typer.echo("\n".join(lines))
