"""A frame's alpha as a picture of its own, and what lies under it."""

from __future__ import annotations

from rlfn_pipe.engine.arrays import Array, Arrays
from rlfn_pipe.engine.layouts import WHITE
from rlfn_pipe.types import Frame

__all__ = ["fill_under_alpha", "grey_of", "plane_of"]

#: How far, in low-resolution pixels, colour is carried under transparent ones: beyond what sharpens an edge.
_UNDER_ALPHA = 12
#: Pixels of a ring that are looked up at once.
_RING_PIXELS = 1 << 18


def grey_of(frame: Frame, arrays: Arrays) -> Array:
    """The alpha plane as (3, h, w) float32, 0..255 (alpha is always full range)."""
    plane = arrays.upload(frame.planes[-1])
    plane *= WHITE / ((1 << frame.colour.bit_depth) - 1)
    return arrays.repeated(plane[None], 3)


def plane_of(grey: Array, bit_depth: int, arrays: Arrays) -> Array:
    """The quantised alpha plane of a grey image (3, H, W): the mean of its channels."""
    mean = grey[0] + grey[1]
    mean += grey[2]
    mean /= 3.0
    mean *= ((1 << bit_depth) - 1) / WHITE
    return arrays.quantised(mean, bit_depth)


def fill_under_alpha(rgb: Array, alpha: Array, arrays: Arrays) -> Array:
    """Give wholly transparent pixels the colour of the visible ones next to them, ring by ring.

    `rgb` and `alpha` (3, h, w) float32. What lies under full transparency is never seen, but it is
    often black, and enlarging would draw it into the edges of what is seen as a dark seam.
    """
    _, h, w = rgb.shape
    filled, stride = arrays.zeros((3, h + 2, w + 2)), w + 2
    filled[:, 1:-1, 1:-1] = rgb
    known = arrays.zeros((h + 2, w + 2)) > 0
    known[1:-1, 1:-1] = alpha[0] > 0
    colours, there = filled.reshape(3, -1), known.reshape(-1)
    around = [y * stride + x for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    for _ in range(_UNDER_ALPHA):
        # A ring is a few pixels of many, so it is looked up instead of all of them being averaged.
        tall = known[:-2] | known[1:-1] | known[2:]
        ring = (tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]) & ~known[1:-1, 1:-1]
        rows, columns = arrays.places(ring)
        if not len(rows):
            break
        at = (rows + 1) * stride + columns + 1
        for first in range(0, len(at), _RING_PIXELS):
            some = at[first : first + _RING_PIXELS]
            # Pixels of the ring weigh nothing in one another's sums, whichever comes first.
            total = weight = 0.0
            for step in around:
                near = some + step
                weighs = there[near] * 1.0
                total, weight = total + colours[:, near] * weighs, weight + weighs
            colours[:, some] = total / weight
        there[at] = True
    return filled[:, 1:-1, 1:-1]
