"""What `upscale` would do with an input: for `probe` and `--dry-run`."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlfn_pipe.errors import OutputError
from rlfn_pipe.jobs import summary
from rlfn_pipe.jobs.geometry import output_geometry, shape_notes
from rlfn_pipe.jobs.inputs import Item
from rlfn_pipe.jobs.pipe import PIPE, pipe_source, plan_raw
from rlfn_pipe.jobs.room import EngineRoom, shortfall
from rlfn_pipe.jobs.run import ledger_of, named_format, plan_items
from rlfn_pipe.jobs.temporary import check_free
from rlfn_pipe.jobs.video import header_of
from rlfn_pipe.jobs.video_plan import open_source, plan_video
from rlfn_pipe.jobs.work import foreseen
from rlfn_pipe.media.encoders import muxer_for
from rlfn_pipe.media.encoding import open_encoder
from rlfn_pipe.media.images import (
    check_output_size,
    conversion_notes,
    output_format,
    picture_info,
    read_image,
    target_colour,
)
from rlfn_pipe.media.probe import probe, source_warnings

if TYPE_CHECKING:
    from rlfn_pipe.options import UpscaleOptions

#: Compressed bits for a pixel of output at our default quality: the first second of tests/data/bunny.mp4
#: four times larger. One clip's figures, so the estimate tells the order of magnitude.
_BITS_PER_PIXEL = {"libx264": 0.25, "libx265": 0.16, "libsvtav1": 0.10, "libvpx-vp9": 0.15, "mpeg4": 0.33}


def describe(input: str, output: str | None, options: UpscaleOptions) -> summary.PlanSummary:
    """Settle everything that a run would settle, and write nothing.

    Without `output` the source's own container and format are assumed.

    Raises:
        RlfnPipeError: as the run would.
    """
    if output is not None and PIPE in (input, output):
        return _describe_pipe(input, output, options)
    target = output if output is not None else str(_same_kind_beside(Path(input)))
    options = named_format(input, target, options)
    checked = replace(options, overwrite=True, skip_existing=False) if output is None else options
    warnings: list[str] = []
    room = EngineRoom(options, warnings.append)
    spec = room.spec_for(options.factor or 1.0)
    ledger = None if output is None else ledger_of(input, target, options, mend=False)
    plan = plan_items(input, target, checked, ledger)
    warnings += plan.warnings
    if plan.skipped:
        warnings.append(f"{len(plan.skipped)} inputs would be passed over: their outputs exist")
    item = (plan.items or plan.skipped)[0]
    warnings += shortfall(options, spec)
    begins = len(plan.items) if output is not None else 0
    one = (
        _describe_video(item, options, room, begins)
        if item.kind == "video"
        else _describe_image(item, options, room)
    )
    return replace(
        one,
        input=input,
        output=output,
        items=len(plan.items),
        warnings=(*warnings, *one.warnings),
    )


def _same_kind_beside(path: Path) -> Path:
    """A name for an output like the input, for plans that name none."""
    from rlfn_pipe.media.encoders import MUXERS
    from rlfn_pipe.media.signatures import IMAGE_EXTENSIONS

    if not os.path.lexists(path):
        return path.with_name("upscaled")  # a glob, or a list
    if os.path.isdir(path) or not path.suffix:
        return path.with_name(f"{path.name}-upscaled")
    known = path.suffix.lower() in MUXERS or path.suffix.lower() in IMAGE_EXTENSIONS
    return path.with_name(f"{path.stem}-upscaled{path.suffix if known else '.mkv'}")


def _free_bytes(folder: Path) -> int | None:
    """Free space where `folder` is or will be; None where the system does not say."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _engine_facts(options: UpscaleOptions) -> tuple[str, str]:
    """Devices and precision as text, without loading a network."""
    from rlfn_pipe.engine.device import device_name, resolve_device, resolve_precision

    devices = [resolve_device(name)[0] for name in options.devices]
    precision, reason = resolve_precision(options.precision, devices[0])
    return ", ".join(f"{each} ({device_name(each)})" for each in devices), f"{precision} ({reason})"


def _describe_video(
    item: Item, options: UpscaleOptions, room: EngineRoom, begins: int
) -> summary.PlanSummary:
    """`begins`: on how many items the run would work, this one the first of them."""
    with open_source(item, options) as source:
        plan = plan_video(item, options, source)
        form, encoding, geometry = source.format, plan.encoding, plan.geometry
        if options.encoder_options or "nvenc" in encoding.codec:
            # What only the encoder itself can tell.
            open_encoder(
                encoding, plan.times.rate, name=str(item.output), sample_aspect_ratio=None, threads=1
            )
        frames = plan.frames
        warnings = source_warnings(source, planned=True)
        swapped = plan.matrix is not None and form.matrix is not None and form.matrix.swaps_axes
    segments = plan.segments(options.segment)
    earlier: tuple[str, ...] = ()
    if begins:
        header = header_of(item, options, plan, segments, {}, {})
        try:
            earlier = foreseen(
                item.output, options.work_dir, header, lasting=options.resume, anew=options.overwrite
            )
        except OutputError as error:
            if begins == 1:
                raise
            warnings = (*warnings, str(error))  # the run would go on with the others
    media = probe(item.source)
    spec = room.spec_for(geometry.factor)
    device, precision = _engine_facts(options)
    by_index = {stream.index: stream for stream in media.streams}
    streams = tuple(
        summary.StreamPlan(s.index, s.kind, s.codec, s.action, s.reason, by_index[s.index].language)
        for s in plan.streams
        if s.action != "main" and s.index in by_index
    )
    bits = _BITS_PER_PIXEL.get(encoding.codec)
    size = (encoding.width, encoding.height)
    shown = (round(size[0] * (plan.sample_aspect_ratio or 1)), size[1])
    estimate = round(bits * size[0] * size[1] * frames / 8) if bits else None
    free = _free_bytes(options.work_dir or item.output.parent)
    if estimate is not None and free is not None and free < 2 * estimate:
        warnings = (
            *warnings,
            f"the disk has {free >> 20} MiB free and the work may need {estimate >> 19} MiB",
        )
    return summary.PlanSummary(
        input=str(item.source),
        output=str(item.output),
        kind="video",
        items=1,
        model=spec.name,
        scale=geometry.factor,
        native_scale=spec.scale,
        source_size=(form.width, form.height),
        output_size=size,
        display_size=(shown[1], shown[0]) if swapped else shown,
        codec=encoding.codec,
        container=encoding.muxer,
        pix_fmt=encoding.pix_fmt,
        frames=frames,
        streams=streams,
        segments=len(segments),
        estimated_bytes=estimate,
        # Segments and the file that is put together from them lie side by side in the end.
        work_bytes=2 * estimate if estimate is not None else None,
        free_bytes=free,
        device=device,
        precision=precision,
        tile="auto" if options.tile is None else str(options.tile or "whole frames"),
        warnings=warnings,
        notes=(*plan.notes, *earlier),
        media=media,
    )


def _describe_pipe(input: str, output: str, options: UpscaleOptions) -> summary.PlanSummary:
    """No frame of a pipe is read: what comes in is known when it comes."""
    warnings: list[str] = []
    room = EngineRoom(options, warnings.append)
    device, precision = _engine_facts(options)
    spec = room.spec_for(options.factor or 1.0)
    warnings += shortfall(options, spec)
    there = output != PIPE and options.skip_existing and os.path.lexists(output)
    if there:
        warnings.append("1 inputs would be passed over: their outputs exist")
    elif output != PIPE:
        check_free(Path(output), options.overwrite)
    source = pipe_source(input, options)
    plan = summary.PlanSummary(
        input=input,
        output=output,
        kind="video",
        items=0 if there else 1,
        model=spec.name,
        scale=options.factor,
        native_scale=spec.scale,
        source_size=None,
        output_size=options.size,
        display_size=options.size,
        codec="rawvideo" if output == PIPE else "" if options.codec == "auto" else options.codec,
        container="yuv4mpegpipe" if output == PIPE else muxer_for(Path(output)),
        pix_fmt="" if options.pix_fmt == "auto" else options.pix_fmt,
        device=device,
        precision=precision,
        tile="auto" if options.tile is None else str(options.tile or "whole frames"),
        warnings=tuple(warnings),
    )
    if input == PIPE:
        return plan
    with source:
        form = source.format
        geometry = output_geometry(options, form.width, form.height, video=True, name=input)
        size = (geometry.width, geometry.height)
        raw = plan_raw(options, source, geometry.height)
        spec = room.spec_for(geometry.factor)
        return replace(
            plan,
            model=spec.name,
            scale=geometry.factor,
            native_scale=spec.scale,
            source_size=(form.width, form.height),
            output_size=size,
            display_size=size,
            pix_fmt=raw.pix_fmt,
            frames=source.frames,
            warnings=(*warnings, *source_warnings(source)),
            notes=(*source.notes, *raw.notes, *shape_notes(options, geometry, form.width, form.height)),
            media=probe(source.path),
        )


def _describe_image(item: Item, options: UpscaleOptions, room: EngineRoom) -> summary.PlanSummary:
    frame, meta = read_image(item.source)
    format = output_format(item.output, meta, options.format)
    geometry = output_geometry(options, frame.width, frame.height, name=str(item.source))
    check_output_size(item.output, geometry.width, geometry.height, format)
    spec = room.spec_for(geometry.factor)
    device, precision = _engine_facts(options)
    colour = target_colour(frame, format)
    size = (geometry.width, geometry.height)
    layout = (
        f"{'grey' if colour.subsampling == 'grey' else 'rgb'}{'a' if colour.alpha else ''}{colour.bit_depth}"
    )
    return summary.PlanSummary(
        input=str(item.source),
        output=str(item.output),
        kind="images",
        items=1,
        model=spec.name,
        scale=geometry.factor,
        native_scale=spec.scale,
        source_size=(frame.width, frame.height),
        output_size=size,
        display_size=size,
        codec=format,
        container=format,
        pix_fmt=layout,
        device=device,
        precision=precision,
        tile="auto" if options.tile is None else str(options.tile or "whole frames"),
        notes=(
            *meta.notes,
            *conversion_notes(frame, meta, format, options.quality),
            *shape_notes(options, geometry, frame.width, frame.height),
        ),
        picture=picture_info(item.source, frame, meta),
    )
