"""A frame's two ends: from samples to pictures for the network, and from its results to samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rlfn_pipe.engine.alpha import fill_under_alpha, grey_of, plane_of
from rlfn_pipe.engine.arrays import Array, Arrays, Arrival
from rlfn_pipe.engine.picture import Picture
from rlfn_pipe.engine.work import Job, depth_of
from rlfn_pipe.types import Frame, Target

__all__ = ["opened", "output_of", "planes_of", "samples"]


def opened(
    frame: Frame,
    target: Target,
    scale: int,
    minimum: int,
    arrays: Arrays,
    to_rgb: Callable[[Frame, Arrays], Array] | None,
) -> Job:
    """A frame's job: its colours and, where wanted and not the same everywhere, its alpha as pictures of `arrays`.

    `to_rgb` as in `Engine`.
    """
    depth = depth_of(frame, target)
    rgb = arrays.rgb(frame) if to_rgb is None else to_rgb(frame, arrays)
    alpha: Picture | float | None = None
    if target.colour.alpha:
        alpha = 1.0
        if frame.colour.alpha:
            plane: np.ndarray = frame.planes[-1]
            lowest, highest = int(plane.min()), int(plane.max())
            if lowest == highest:
                alpha = lowest / ((1 << frame.colour.bit_depth) - 1)
            else:
                grey = grey_of(frame, arrays)
                rgb = fill_under_alpha(rgb, grey, arrays)
                alpha = Picture(grey, scale, minimum, depth, arrays)
    return Job(frame, target, Picture(rgb, scale, minimum, depth, arrays), alpha)


def planes_of(job: Job, arrays: Arrays, to_planes: Callable[..., list[Array]] | None) -> list[Array]:
    """The quantised planes of a job whose pictures are done, as `arrays` have them; `to_planes` as in `Engine`."""
    target = job.target
    assert job.picture is not None
    rgb, excess = job.picture.result()
    if rgb.shape[-2:] != (target.height, target.width):
        rgb, excess = arrays.resized(rgb, excess, target.height, target.width), None
    neutral = job.frame.colour.subsampling == "grey"
    planes = (to_planes or arrays.planes)(rgb, target.colour, neutral=neutral, excess=excess)
    del rgb
    if isinstance(job.alpha, Picture):
        grey = arrays.resized(job.alpha.result()[0], None, target.height, target.width)
        planes.append(plane_of(grey, target.colour.bit_depth, arrays))
    return planes


def samples(planes: Sequence[Array]) -> list[np.ndarray]:
    """Quantised planes that are on the host as uint8 or uint16, without a copy.

    The bits of 16-bit samples travel as int16: few devices know unsigned ones.
    """
    arrays = [np.asarray(plane) for plane in planes]
    return [array.view(np.uint16) if array.dtype == np.int16 else array for array in arrays]


def output_of(job: Job, arrival: Arrival) -> Frame:
    """The job's frame with its new samples, once these have arrived."""
    arrived = arrival.tensors()
    planes = list(arrived) if job.target.surface else samples(arrived)
    if isinstance(job.alpha, float):
        value = round(job.alpha * ((1 << job.target.colour.bit_depth) - 1))
        planes.append(np.full_like(planes[0], value))
    return replace(job.frame, planes=tuple(planes), colour=job.target.colour)
