"""A frame's two ends: from samples to pictures for the network, and from its results to samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from rlfn_pipe.engine import colour
from rlfn_pipe.engine.picture import Picture
from rlfn_pipe.engine.resize import resize
from rlfn_pipe.engine.transfer import Arrival
from rlfn_pipe.engine.work import Job, depth_of
from rlfn_pipe.types import Frame, Target

__all__ = ["opened", "output_of", "planes_of"]


def opened(
    frame: Frame,
    target: Target,
    scale: int,
    minimum: int,
    device: torch.device,
    to_rgb: Callable[[Frame, torch.device], torch.Tensor] | None,
) -> Job:
    """A frame's job: its colours and, where wanted and not the same everywhere, its alpha as pictures on `device`.

    `to_rgb` as in `Engine`.
    """
    depth = depth_of(frame, target)
    rgb = (to_rgb or colour.to_rgb)(frame, device)
    alpha: Picture | float | None = None
    if target.colour.alpha:
        alpha = 1.0
        if frame.colour.alpha:
            plane: np.ndarray = frame.planes[-1]
            lowest, highest = int(plane.min()), int(plane.max())
            if lowest == highest:
                alpha = lowest / ((1 << frame.colour.bit_depth) - 1)
            else:
                grey = colour.alpha_to_grey(frame, device)
                rgb = colour.fill_under_alpha(rgb, grey)
                alpha = Picture(grey, scale, minimum, depth)
    return Job(frame, target, Picture(rgb, scale, minimum, depth), alpha)


def planes_of(job: Job, to_planes: Callable[..., list[torch.Tensor]] | None) -> list[torch.Tensor]:
    """The quantised planes of a job whose pictures are done, on their device; `to_planes` as in `Engine`."""
    target = job.target
    assert job.picture is not None
    rgb, excess = job.picture.result()
    if rgb.shape[-2:] != (target.height, target.width):
        rgb, excess = resize(colour.add_excess(rgb, excess), target.height, target.width), None
    neutral = job.frame.colour.subsampling == "grey"
    planes = (to_planes or colour.from_rgb)(rgb, target.colour, neutral=neutral, excess=excess)
    del rgb
    if isinstance(job.alpha, Picture):
        grey = resize(job.alpha.result()[0], target.height, target.width)
        planes.append(colour.alpha_from_grey(grey, target.colour.bit_depth))
    return planes


def output_of(job: Job, arrival: Arrival) -> Frame:
    """The job's frame with its new samples, once these have arrived."""
    planes = colour.samples(arrival.tensors())
    if isinstance(job.alpha, float):
        value = round(job.alpha * ((1 << job.target.colour.bit_depth) - 1))
        planes.append(np.full_like(planes[0], value))
    return replace(job.frame, planes=tuple(planes), colour=job.target.colour)
