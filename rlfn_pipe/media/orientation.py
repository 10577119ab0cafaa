"""The display matrix: how a player turns the stored picture.

libav's layout, nine 32-bit integers (a b u / c d v / x y w), 16.16 fixed point but for u, v, w
(2.30): a stored point (p, q) is shown at (a p + c q + x, b p + d q + y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_ONE = 1 << 16
#: Sines and cosines this many times smaller than the others are rounding (half a degree).
_ROUNDING = 100


@dataclass(frozen=True, slots=True)
class DisplayMatrix:
    """A display matrix, as a rule of a turn by a multiple of 90 degrees, perhaps mirrored."""

    values: tuple[int, ...]

    @property
    def swaps_axes(self) -> bool:
        """Whether width and height change places on display."""
        a, b, _, c, d = self.values[:5]
        return abs(b) + abs(c) > abs(a) + abs(d)

    @property
    def upright(self) -> bool:
        """Whether it turns by a multiple of 90 degrees, so that `apply` can do the same to the pixels."""
        a, b, _, c, d = map(abs, self.values[:5])
        return min(a + d, b + c) * _ROUNDING <= max(a + d, b + c)

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which a player turns the stored picture, -180 to 180."""
        a, b = self.values[:2]
        return round(-math.degrees(math.atan2(b, a)))

    def scaled(self, factor_x: float, factor_y: float) -> tuple[int, ...]:
        """The matrix for a stored picture `factor_x` by `factor_y` times as large."""
        values = list(self.values)
        fx, fy = (factor_y, factor_x) if self.swaps_axes else (factor_x, factor_y)
        values[6], values[7] = round(values[6] * fx), round(values[7] * fy)
        return tuple(values)

    def apply(self, plane: np.ndarray) -> np.ndarray:
        """A plane (H, W) as a player shows it, where the matrix is `upright`; a view where numpy can give one."""
        a, b, _, c, d = self.values[:5]
        if self.swaps_axes:
            plane = plane.T
            flip_x, flip_y = c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        return np.ascontiguousarray(plane[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def display_matrix(data: bytes | None, rotation: int) -> DisplayMatrix | None:
    """The matrix of a frame's side data, or built from its rotation; None when upright.

    `rotation` in degrees counter-clockwise, as PyAV gives it. Angles that are no multiple of
    90 degrees are kept as they are for the container and are never baked.
    """
    if data is not None and len(data) >= 36:
        values = tuple(int(v) for v in np.frombuffer(data[:36], np.int32))
    elif rotation:
        cos, sin = (round(f(math.radians(rotation)) * _ONE) for f in (math.cos, math.sin))
        values = (cos, -sin, 0, sin, cos, 0, 0, 0, 1 << 30)
    else:
        return None
    a, b, _, c, d = values[:5]
    if (a, b, c, d) == (_ONE, 0, 0, _ONE):
        return None
    return DisplayMatrix(values)
