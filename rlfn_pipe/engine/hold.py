"""`near`: samples that have hardly changed stay as they were, so that `exact` finds them unchanged.

Re-encoding leaves noise of a code value or two on a held drawing. Here a cell of a video's frame whose every sample
lies within a tolerance of what was last let through keeps that, and all behind sees no difference; cells beside one
that changed more are renewed with it. What is let through are samples of the film itself, so that nothing drifts: no
sample is further off than the tolerance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlfn_pipe.engine.reuse import CELL, MOST_NEAR, NEAR, alike, cells_near, changed_cells, steps
from rlfn_pipe.types import Frame

__all__ = ["Hold"]


class Hold:
    """Called with a video's frames one after the other, gives what is to be computed for each.

    `tolerance` in code values of 8 bit. Where much of a frame moves it goes through as it is: most of it has to be
    computed, and holding the rest would only make it older.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._held: Frame | None = None

    def __call__(self, frame: Frame) -> Frame:
        """`frame`, or one of its time with samples of earlier ones; a picture without a time stays as it is."""
        held = self._held
        if frame.pts is None:
            return frame
        planes = frame.planes
        if held is not None and alike(held, frame):
            # In the frame's own depth, rounded down.
            limit = int(self._tolerance * (1 << (frame.colour.bit_depth - 8)))
            # The network computes so far around a change in any case, and would make a seam just beside it
            # into an edge.
            renewed = cells_near(changed_cells(held, frame, limit), NEAR)
            if not renewed.any():
                planes = held.planes
            elif renewed.mean() <= MOST_NEAR:
                planes = tuple(
                    np.where(_spread(renewed, frame, new), new, old)
                    for new, old in zip(frame.planes, held.planes, strict=True)
                )
        self._held = replace(frame, planes=planes)
        return self._held


def _spread(cells: np.ndarray, frame: Frame, plane: np.ndarray) -> np.ndarray:
    """For each sample of a plane of `frame` whether its cell is marked."""
    high, wide = (CELL // step for step in steps(frame, plane))
    rows, columns = plane.shape
    return cells.repeat(high, 0)[:rows].repeat(wide, 1)[:, :columns]
