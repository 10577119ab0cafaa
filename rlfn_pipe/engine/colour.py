"""Code values of any supported layout to RGB floats and back, on the device.

RGB here is float32 of shape (3, h, w), 0 for black and 255 for full white, whatever the depth. It is
*not* clamped: code values whose colour lies outside the RGB cube (super-white, footroom, chroma that
no RGB triple gives) stay outside it, and `Picture` leads that part around the network, so that it comes
back. The only clamping is to the target's code values, after rounding to the nearest.

`rlfn_pipe.engine.layouts` has the numbers. Edges are clamped where chroma is interpolated and decimated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from rlfn_pipe.engine.layouts import (
    WHITE,
    Taps,
    check_planes,
    chroma_size,
    decimation,
    interpolation,
    levels,
    luma_weights,
)
from rlfn_pipe.engine.transfer import send_together
from rlfn_pipe.types import ColourInfo, Frame

# ---------------------------------------------------------------- host and device


def upload(plane: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of a uint8 or uint16 plane as float32 on the device, values unchanged.

    16-bit samples travel as int16 bits, since few devices convert unsigned 16-bit integers.
    """
    (values,) = sent([plane], device)
    if values.dtype == torch.uint8:
        return values.to(torch.float32)
    return values.to(torch.int32).bitwise_and_(0xFFFF).to(torch.float32)


def sent(planes: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copies of uint8 or uint16 planes on the device: uint8, or the bits of uint16 as int16.

    Planes that lie there as such are passed on.
    """
    if isinstance(planes[0], torch.Tensor):
        return list(planes)
    bits = [p if p.dtype == np.uint8 else p.astype(np.uint16, copy=False).view(np.int16) for p in planes]
    return send_together(bits, device)


def quantise(values: torch.Tensor, bit_depth: int) -> torch.Tensor:
    """Round to the nearest code value and clamp to 0 .. 2**bit_depth - 1; overwrites `values`.

    uint8 for 8 bit, else the bits of the uint16 value as int16.
    """
    values = values.round_().clamp_(0.0, float((1 << bit_depth) - 1))
    if bit_depth == 8:
        return values.to(torch.uint8)
    return values.to(torch.int32).to(torch.int16)


# ---------------------------------------------------------------- to RGB


def to_rgb(frame: Frame, device: torch.device) -> torch.Tensor:
    """The colour planes of a frame as RGB, (3, h, w) float32, 0..255, not clamped."""
    colour = frame.colour
    check_planes(frame)
    black, span, zero, chroma_span = levels(colour)
    if colour.subsampling == "rgb":
        rgb = torch.stack([upload(plane, device) for plane in frame.planes[:3]])
        return rgb.sub_(black).mul_(WHITE / span)
    luma = upload(frame.planes[0], device)
    if colour.subsampling == "grey":
        return luma.sub_(black).mul_(WHITE / span).expand(3, -1, -1)
    height, width = luma.shape
    chroma = torch.stack([upload(plane, device) for plane in frame.planes[1:3]])
    if chroma.shape[-2] != height or colour.subsampling in ("420", "440"):
        chroma = upsample(chroma, -2, height, colour.chroma_location == "topleft")
    if chroma.shape[-1] != width or colour.subsampling in ("420", "422"):
        chroma = upsample(chroma, -1, width, colour.chroma_location != "centre")
    kr, kg, kb = luma_weights(colour)
    luma.sub_(black).mul_(WHITE / span)
    u, v = chroma.sub_(zero).mul_(WHITE / chroma_span)
    rgb = torch.empty((3, height, width), dtype=torch.float32, device=device)
    torch.add(luma, v, alpha=2.0 * (1.0 - kr), out=rgb[0])
    torch.add(luma, u, alpha=-2.0 * (1.0 - kb) * kb / kg, out=rgb[1])
    rgb[1].add_(v, alpha=-2.0 * (1.0 - kr) * kr / kg)
    torch.add(luma, u, alpha=2.0 * (1.0 - kb), out=rgb[2])
    return rgb


# ---------------------------------------------------------------- from RGB


def add_excess(rgb: torch.Tensor, excess: torch.Tensor | None) -> torch.Tensor:
    """`rgb` (3, H, W) and, enlarged bilinearly, `excess` (3, h, w); `rgb` itself where that is None."""
    if excess is None:
        return rgb
    return functional.interpolate(excess[None], size=rgb.shape[-2:], mode="bilinear")[0].add_(rgb)


def from_rgb(
    rgb: torch.Tensor, colour: ColourInfo, *, neutral: bool = False, excess: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Quantised colour planes (see `quantise`) of an RGB image (3, H, W) float32, 0..255.

    `neutral` says that the source had no chroma, so that the target's is set to exactly none. `excess`
    (3, h, w), H and W divided by the scale, is what went around the network; see `add_excess`.
    """
    rgb = add_excess(rgb, excess)
    black, span, zero, chroma_span = levels(colour)
    depth = colour.bit_depth
    if colour.subsampling == "rgb":
        codes = quantise(rgb.mul(span / WHITE).add_(black), depth)
        return [codes[0], codes[1], codes[2]]
    kr, kg, kb = luma_weights(colour)
    luma = rgb[0].mul(kr).add_(rgb[1], alpha=kg).add_(rgb[2], alpha=kb)
    height, width = luma.shape
    planes: list[torch.Tensor] = []
    if colour.subsampling != "grey":
        for component, weight in ((rgb[2], kb), (rgb[0], kr)):
            if neutral:
                size = chroma_size(height, width, colour.subsampling)
                chroma = torch.full(size, zero, dtype=torch.float32, device=rgb.device)
            else:
                chroma = component.sub(luma)
                if colour.subsampling in ("420", "422"):
                    chroma = downsample(chroma, -1, colour.chroma_location != "centre")
                if colour.subsampling in ("420", "440"):
                    chroma = downsample(chroma, -2, colour.chroma_location == "topleft")
                chroma = chroma.mul_(chroma_span / (WHITE * 2.0 * (1.0 - weight))).add_(zero)
            planes.append(quantise(chroma, depth))
    return [quantise(luma.mul_(span / WHITE).add_(black), depth), *planes]


# ---------------------------------------------------------------- chroma


def _filter(x: torch.Tensor, dim: int, count: int, step: int, taps: Taps) -> torch.Tensor:
    """Weighted sums of ``x[step * i + k]`` along `dim` for i in 0 .. count, indices clamped."""
    size = x.shape[dim]
    before = max(0, -taps[0][0])
    after = max(0, (count - 1) * step + taps[-1][0] - (size - 1))
    index = torch.arange(-before, size + after, device=x.device).clamp_(0, size - 1)
    padded = x.index_select(dim, index)
    result: torch.Tensor | None = None
    for k, weight in taps:
        start = before + k
        part = padded.narrow(dim, start, (count - 1) * step + 1)
        part = part[..., ::step] if dim == -1 else part[..., ::step, :]
        result = part.mul(weight) if result is None else result.add_(part, alpha=weight)
    assert result is not None
    return result


def upsample(x: torch.Tensor, dim: int, size: int, cosited: bool) -> torch.Tensor:
    """Chroma along `dim` (-1 or -2) to `size` samples, from ``ceil(size / 2)``.

    `cosited`: sample i lies on output 2 i; otherwise between outputs 2 i and 2 i + 1.
    """
    shape = list(x.shape)
    shape[dim] = size
    result = torch.empty(shape, dtype=x.dtype, device=x.device)
    for first, taps in enumerate(interpolation(cosited)):
        count = (size + 1 - first) // 2
        if count:
            values = _filter(x, dim, count, 1, taps)
            if dim == -1:
                result[..., first::2] = values
            else:
                result[..., first::2, :] = values
    return result


def downsample(x: torch.Tensor, dim: int, cosited: bool) -> torch.Tensor:
    """Chroma along `dim` (-1 or -2) to half the samples, rounded up; siting as in `upsample`."""
    return _filter(x, dim, (x.shape[dim] + 1) // 2, 2, decimation(cosited))
