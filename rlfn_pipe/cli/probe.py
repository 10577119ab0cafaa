"""`rlfn-pipe probe`: what is in a file, and what upscale would do with it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import RlfnPipeError
from ..options import UpscaleOptions
from .text import json_line, plain


def probe(
    input: Annotated[
        str, typer.Argument(metavar="INPUT", help="A video, an image or a folder.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Say what is in a file, and what upscale would do with it.

    Streams, times, colour, tags and warnings; then size, codec and streams of the output that
    upscale would write with its defaults.
    """
    from ..jobs import plan as plans
    from ..media import probe as media_probe
    from . import show

    plan, media, refusal = None, None, None
    try:
        plan = plans.describe(input, None, UpscaleOptions())
        media = plan.media
    except RlfnPipeError as error:
        # What upscale refuses (audio alone, say) may still be worth a look; what cannot be read
        # at all raises here again, with the reader's own words.
        media = media_probe.probe(input)
        refusal = error

    if json:
        answer = {"media": plain(media), "upscale": None, "refused": str(refusal) if refusal else None}
        if plan is not None:
            answer["upscale"] = {key: value for key, value in plain(plan).items() if key != "media"}
        typer.echo(json_line(answer))
        return
    lines = show.media_lines(media) if media is not None else []
    if plan is not None:
        lines += ["", *show.plan_lines(plan)] if lines else show.plan_lines(plan)
    if refusal is not None:
        lines += ["", show.refused_line(str(refusal))]
    typer.echo("\n".join(lines))
