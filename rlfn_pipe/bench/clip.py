"""A made-up clip that moves everywhere, for machines without one at hand."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from rlfn_pipe.types import MATRIX_BT709, RANGE_LIMITED, ColourInfo, Frame

RATE = Fraction(25)
COLOUR = ColourInfo(MATRIX_BT709, transfer=1, primaries=1, range=RANGE_LIMITED)
#: Pixels that the view pans a frame: (right, down).
_PAN = (3, 1)
#: Standard deviation of the grain in code values, as cameras leave it.
_GRAIN = 1.5
#: How fast detail falls off with frequency: amplitude = frequency ** -_FALL.
_FALL = 1.3


def moving_frames(width: int, height: int, count: int, seed: int = 0) -> Iterator[Frame]:
    """Pan over a large texture, a disc with another one moving against it, fresh grain in every frame.

    8-bit 4:2:0, BT.709, limited range; detail falls off with frequency as in photographs, and all
    colours lie inside the RGB cube. No tile of a frame equals that of the frame before.
    """
    random = np.random.default_rng(seed)
    margin_x, margin_y = _PAN[0] * count + 2, _PAN[1] * count + 2
    back = _texture(random, height + margin_y, width + margin_x)
    front = _texture(random, height + margin_y, width + margin_x)
    hues = [_texture(random, height + margin_y, width + margin_x) for _ in range(2)]
    rows, columns = np.mgrid[0:height, 0:width]
    radius = max(2.0, min(width, height) / 4)
    for index in range(count):
        x, y = _PAN[0] * index, _PAN[1] * index
        luma = 126.0 + 28.0 * back[y : y + height, x : x + width]
        centre = (width * (0.25 + 0.5 * index / count), height / 2)
        disc = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < radius**2
        mirrored = front[y : y + height, ::-1][:, x : x + width]
        luma = np.where(disc, 126.0 + 28.0 * mirrored, luma)
        luma += random.normal(0.0, _GRAIN, luma.shape)
        chroma = [128.0 + 7.0 * hue[y : y + height : 2, x : x + width : 2] for hue in hues]
        planes = (
            np.clip(luma, 60, 190).round().astype(np.uint8),
            *(np.clip(part, 112, 144).round().astype(np.uint8) for part in chroma),
        )
        yield Frame(planes, COLOUR, index, index, 1 / RATE)


def _texture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float64 of mean 0 and deviation 1, with the spectrum of photographs."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = np.maximum(np.hypot(fy, fx), 1.0 / max(height, width)) ** -_FALL
    amplitude[0, 0] = 0.0
    spectrum = np.fft.rfft2(random.standard_normal((height, width))) * amplitude
    picture = np.fft.irfft2(spectrum, s=(height, width))
    return picture / max(float(picture.std()), 1e-9)
