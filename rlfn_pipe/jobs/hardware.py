"""What `--hwaccel` comes to for a film: who decodes it, and which of its frames stay in the GPU's memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlfn_pipe.errors import HardwareFailed
from rlfn_pipe.media.colour import planar_format
from rlfn_pipe.media.hardware import EXACT, SEMI_PLANAR, Hardware, Surfaces, why_not

if TYPE_CHECKING:
    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.media.encoders import EncodePlan
    from rlfn_pipe.media.part import Part, SourceFormat
    from rlfn_pipe.options import UpscaleOptions
    from rlfn_pipe.types import Target

__all__ = ["Road", "hindrance", "road_for"]


@dataclass(frozen=True, slots=True)
class Road:
    """`hardware`: a part's decoder (None: software); `target`, `surfaces`: the engine's and the encoder's share of it."""

    target: Target
    hardware: Hardware | None = None
    surfaces: Surfaces | None = None


def hindrance(options: UpscaleOptions, form: SourceFormat, device: int | None = None) -> str | None:
    """What to say where a video will not be decoded by the GPU that `--hwaccel` asks for, or None.

    `device`: the GPU's number (None: what `--device` says of it).
    """
    if options.hwaccel == "none":
        return None
    if form.codec not in EXACT or form.pix_fmt not in SEMI_PLANAR:
        codecs, formats = ", ".join(EXACT), " or ".join(SEMI_PLANAR)
        reason: str | None = f"a GPU decodes {codecs} in {formats} here, not {form.codec} in {form.pix_fmt}"
    elif options.on_error == "fail":
        reason = "a GPU does not tell of harmed pictures, which --on-error fail is to find"
    else:
        reason = why_not(_first_gpu(options) if device is None else device)
    return None if reason is None else str(HardwareFailed(reason))


def _first_gpu(options: UpscaleOptions) -> int:
    named = re.match(r"cuda:(\d+)", options.device)
    return int(named[1]) if named else 0


def road_for(
    options: UpscaleOptions, engine: Engine, part: Part, encoding: EncodePlan, target: Target
) -> Road:
    """The road of a part's frames through an engine to the encoder.

    They stay in the memory of the GPU that computes them behind its decoder, unless they are compared (`--reuse`), which
    is the host's work, and before its encoder.
    """
    road = Road(target)
    if options.hwaccel == "none":
        return road
    if engine.device.type != "cuda":
        return replace(road, hardware=_decoder(options, part, Hardware()))
    import torch

    from rlfn_pipe.pipeline.surfaces import Context, planes_of

    device = torch.device(str(engine.device))
    number = device.index if device.index is not None else torch.cuda.current_device()
    inside = Context(device)
    planes = planes_of if options.reuse == "off" else None
    road = replace(road, hardware=_decoder(options, part, Hardware(number, planes, inside)))
    if not _takes_surfaces(encoding, target):
        return road
    return replace(road, target=replace(target, surface=True), surfaces=Surfaces(number, inside))


def _decoder(options: UpscaleOptions, part: Part, hardware: Hardware) -> Hardware | None:
    return hardware if hindrance(options, part.format, hardware.device) is None else None


def _takes_surfaces(encoding: EncodePlan, target: Target) -> bool:
    """Whether an encoder is one of the GPU's, and its picture the engine's as it is."""
    same = (encoding.width, encoding.height) == (target.width, target.height)
    even = target.width % 2 == 0 and target.height % 2 == 0
    return "nvenc" in encoding.codec and planar_format(encoding.pix_fmt) in SEMI_PLANAR and same and even
