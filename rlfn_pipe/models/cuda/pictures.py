"""Samples to RGB and RGB to samples by kernels, one pass each; rlfn_pipe/pipeline/planes.py knows the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from rlfn_pipe.models.cuda.library import Maker

__all__ = ["planes", "rgb"]

#: (sample, weight), without gaps.
Taps = tuple[tuple[int, float], ...]
#: Columns and rows of luma that a block of `planes` makes.
_BLOCK = (64, 32)
_MOST_TAPS = 8


def rgb(
    maker: Maker,
    samples: Sequence[torch.Tensor],
    levels: tuple[float, float, float, float],
    mix: tuple[float, float, float, float],
    along: tuple[Taps, Taps] | None,
    down: tuple[Taps, Taps] | None,
) -> torch.Tensor:
    """RGB (3, h, w) float32 of Y, Cb and Cr, uint8 or the bits of uint16 as int16, on the device.

    Args:
        levels: black, gain of luma, chroma's zero and its gain.
        mix: what Cr adds to red, Cb and Cr to green, Cb to blue.
        along, down: chroma's filters for even and odd columns and rows, at most four taps; None: all samples are there.
    """
    luma = samples[0]
    height, width = luma.shape
    rows, columns = samples[1].shape
    out = torch.empty((3, height, width), dtype=torch.float32, device=luma.device)
    kernel = maker.kernel(
        "samples",
        {
            "SAMPLES": 1,
            "SAMPLE": _sample(luma.dtype),
            "HALF_X": int(along is not None),
            "HALF_Y": int(down is not None),
        },
    )
    numbers = _numbers_up(levels, mix, along, down, luma.device)
    kernel((-(-height * width // 256), 1), 256, 0, *samples, numbers, out, height, width, rows, columns)
    return out


def planes(
    maker: Maker,
    picture: torch.Tensor,
    luma: tuple[float, float, float],
    gains: tuple[float, float, float],
    offsets: tuple[float, float],
    bit_depth: int,
    along: Taps,
    down: Taps,
    excess: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Y, Cb and Cr of `picture` (3, H, W) float32, quantised as `rlfn_pipe.engine.colour.quantise` does.

    Args:
        luma: weights of red, green and blue.
        gains, offsets: from 0..255 to code values: gains of Y, Cb and Cr, offsets of luma and chroma.
        along, down: chroma's filter in each direction, at most eight taps; one tap: all samples stay.
        excess: (3, h, w), enlarged bilinearly and added; H and W are multiples of h and w, by the same factor.
    """
    if picture.stride(-1) != 1:
        picture = picture.contiguous()
    _, height, width = picture.shape
    step_x, step_y = (2 if len(taps) > 1 else 1 for taps in (along, down))
    columns, rows = -(-width // step_x), -(-height // step_y)
    dtype = torch.uint8 if bit_depth == 8 else torch.int16
    # They lie together, so that they can travel together.
    flat = picture.new_empty(height * width + 2 * rows * columns, dtype=dtype)
    parts = torch.split(flat, [height * width, rows * columns, rows * columns])
    made = [part.view(-1, side) for part, side in zip(parts, (width, columns, columns), strict=True)]
    scale, there = 1, None
    if excess is not None:
        excess = excess.contiguous()
        scale = height // excess.shape[-2]
        # Nobody waits to know whether there is any: it is next to never there.
        there = excess.any()
    kernel = maker.kernel(
        "planes",
        {
            "PLANES": 1, "SAMPLE": _sample(dtype), "SCALE": scale, "FIRST_X": along[0][0], "COUNT_X": len(along),
            "STEP_X": step_x, "FIRST_Y": down[0][0], "COUNT_Y": len(down), "STEP_Y": step_y,
        },
    )  # fmt: skip
    top = float((1 << bit_depth) - 1)
    numbers = _numbers_down((*luma, *gains, *offsets, top), along, down, picture.device)
    grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]))
    kernel(
        grid,
        256,
        0,
        picture,
        picture.stride(0),
        picture.stride(1),
        excess,
        there,
        numbers,
        *made,
        height,
        width,
    )
    return made


def _sample(dtype: torch.dtype) -> str:
    return "u8" if dtype == torch.uint8 else "u16"


@lru_cache(maxsize=16)
def _numbers_up(
    levels: tuple[float, ...],
    mix: tuple[float, ...],
    along: tuple[Taps, Taps] | None,
    down: tuple[Taps, Taps] | None,
    device: torch.device,
) -> torch.Tensor:
    """What the kernel `samples` calls numbers."""
    values = [*levels, *mix[:3]]
    for pair in (along, down):
        for taps in pair or ((), ()):
            assert len(taps) <= 4
            weights = [weight for _, weight in taps]
            values += [float(taps[0][0] if taps else 0), *weights, *[0.0] * (4 - len(weights))]
    return torch.tensor([*values, mix[3]], dtype=torch.float32, device=device)


@lru_cache(maxsize=16)
def _numbers_down(values: tuple[float, ...], along: Taps, down: Taps, device: torch.device) -> torch.Tensor:
    """What the kernel `planes` calls numbers."""
    made = list(values)
    for taps in (along, down):
        assert len(taps) <= _MOST_TAPS
        made += [weight for _, weight in taps] + [0.0] * (_MOST_TAPS - len(taps))
    return torch.tensor(made, dtype=torch.float32, device=device)
