"""Geometry of tiles: coverage, weights, the frame's grid, and what tiles cost in accuracy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlfn_pipe.engine.host import Host
from rlfn_pipe.engine.picture import Picture, answer_of
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.engine.sizes import DEFAULT_OVERLAP
from rlfn_pipe.engine.tensors import Tensors
from rlfn_pipe.engine.tiling import (
    FADE,
    GRID,
    Span,
    border_mask,
    cells,
    fade_weights,
    plan,
    reflected,
    spans,
    stretch_matrix,
    tile_side,
)
from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.types import ColourInfo, Frame, ModelSpec, Target

RGB = ColourInfo(matrix=0, range=2, subsampling="rgb")

axes = st.tuples(st.integers(15, 700), st.integers(24, 300), st.integers(0, 80)).filter(
    lambda a: a[1] >= a[2] + 12
)


@given(axes)
@settings(max_examples=300)
def test_spans_lie_on_the_grid_and_cover_the_axis(axis: tuple[int, int, int]) -> None:
    frame, tile, overlap = axis
    found = spans(frame, tile, overlap)
    assert {span.size for span in found} == {tile_side(frame, tile, overlap)}
    assert all(span.origin % GRID == 0 and 0 <= span.origin <= frame - span.size for span in found)
    assert all((span.size - frame) % GRID == 0 for span in found)
    assert found[0].origin == 0 and found[-1].origin + found[-1].size == frame
    assert all(span.origin <= span.start < span.stop <= span.origin + span.size for span in found)
    for left, right in pairwise(found):
        assert left.origin + left.size - right.origin >= overlap
        assert right.start == left.stop - left.fade_out and left.fade_out == right.fade_in <= FADE
    if frame > tile:
        assert found[0].size <= max(tile, overlap + 2 * GRID, 15 + GRID)


@given(axes, st.sampled_from([1, 2, 3, 4]))
@settings(max_examples=200)
def test_weights_sum_to_one_everywhere(axis: tuple[int, int, int], scale: int) -> None:
    frame, tile, overlap = axis
    total = np.zeros(frame * scale)
    for span in spans(frame, tile, overlap):
        weights = fade_weights(span, scale)
        assert weights.min() > 0.0
        total[span.start * scale : span.stop * scale] += weights
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


@given(axes)
@settings(max_examples=100)
def test_a_smaller_side_would_need_more_tiles(axis: tuple[int, int, int]) -> None:
    frame, tile, overlap = axis
    side = tile_side(frame, tile, overlap)
    if side < frame and side - GRID >= max(15, overlap + GRID):
        assert len(spans(frame, side - GRID, overlap)) > len(spans(frame, tile, overlap))


@given(axes)
@settings(max_examples=100)
def test_mirrored_spans_stay_on_the_grid(axis: tuple[int, int, int]) -> None:
    for span in spans(*axis):
        mirror = span.mirrored()
        assert mirror.origin % GRID == 0 and mirror.mirrored() == span
        np.testing.assert_array_equal(fade_weights(mirror, 2), fade_weights(span, 2)[::-1])


@pytest.mark.parametrize("side", [15, 16, 20, 21, 57, 180, 341])
def test_cells_and_stretch_are_those_of_the_network(side: int) -> None:
    line = torch.arange(side, dtype=torch.float32).reshape(1, 1, 1, side).expand(1, 1, side, side)
    small = F.max_pool2d(F.conv2d(line, torch.ones(1, 1, 3, 3) / 9, stride=2), 7, 3)
    assert small.shape[-1] == cells(side)
    values = torch.rand(1, 1, cells(side), 1)
    expected = F.interpolate(values, size=(side, 1), mode="bilinear", align_corners=False)[0, 0]
    whole = Span(0, side, side, 0, side)
    got = torch.from_numpy(stretch_matrix(whole)) @ values[0, 0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_a_tile_stretches_its_cells_as_the_frame_does() -> None:
    frame, values = 341, np.random.default_rng(1).random(cells(341))
    whole = stretch_matrix(Span(0, frame, frame, 0, frame)) @ values
    for span in spans(frame, 120, 36):
        first = span.origin // GRID
        own = stretch_matrix(span) @ values[first : first + cells(span.size)]
        inner = slice(span.start - span.origin, span.stop - span.origin)
        np.testing.assert_allclose(own[inner], whole[span.start : span.stop], atol=1e-5)


def test_border_mask_is_zero_only_at_the_frame_edge() -> None:
    masks = [border_mask(span) for span in spans(300, 120, 36)]
    assert [mask[0] for mask in masks] == [0.0] + [1.0] * (len(masks) - 1)
    assert [mask[-1] for mask in masks] == [1.0] * (len(masks) - 1) + [0.0]
    assert all(mask[1:-1].all() for mask in masks)


@pytest.mark.parametrize("side", range(1, 15))
def test_small_axes_are_reflected(side: int) -> None:
    index = reflected(side)
    assert index is not None and len(index) == 15
    assert index.min() == 0 and index.max() == side - 1 and list(index[:side]) == list(range(side))
    assert np.abs(np.diff(index)).max() <= 1


def test_long_axes_are_left_alone() -> None:
    assert reflected(15) is None


def test_plan_of_a_small_frame_is_one_whole_tile() -> None:
    (tile,) = plan(40, 50, 192, 36)
    assert tile.whole and tile.shape == (40, 50)


# ---------------------------------------------------------------- against the whole frame


def random_network(seed: int = 0) -> tuple[ModelSpec, RLFN]:
    """A small RLFN with ESA masks that vary strongly, so that a wrong grid shows."""
    spec = ModelSpec("random", 2, 12, 12, 3, input_range=1.0)
    torch.manual_seed(seed)
    module = RLFN(spec)
    for block in module.blocks():
        block.esa.conv3.weight.data.mul_(6.0)
        block.esa.conv4.weight.data.mul_(6.0)
    return spec, module.eval().requires_grad_(False)


def smooth_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random picture with structure at several sizes, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for size in (4, 9, 27, 81):
        noise = Image.fromarray(
            rng.integers(0, 256, (height // size + 2, width // size + 2, 3), dtype=np.uint8)
        )
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)).astype(float) / 4
    return total.clip(0, 255).astype(np.uint8)


def frame_of(picture: np.ndarray) -> Frame:
    return Frame(tuple(np.ascontiguousarray(picture[..., c]) for c in range(3)), RGB)


def upscaled(spec: ModelSpec, module: RLFN, picture: np.ndarray, **settings: object) -> np.ndarray:
    deep = ColourInfo(matrix=0, range=2, subsampling="rgb", bit_depth=16)
    engine = Engine(
        InferenceFactory(spec, weights_of(module)),
        spec,
        device="cpu",
        precision="fp32",
        threads=1,
        **settings,
    )  # type: ignore[arg-type]
    height, width = picture.shape[:2]
    target = Target(width * spec.scale, height * spec.scale, deep)
    (result,) = engine.run([(frame_of(picture), target)])
    return np.stack(result.planes, axis=-1) / 257.0


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(PSNR in dB, largest difference in code values)."""
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-12))), float(np.abs(a - b).max())


def test_tiles_converge_to_the_whole_frame_with_random_weights() -> None:
    spec, module = random_network()
    picture = smooth_picture(141, 160)
    whole = upscaled(spec, module, picture, tile=0)
    errors = {
        overlap: difference(upscaled(spec, module, picture, tile=96, overlap=overlap), whole)
        for overlap in (0, 36)
    }
    assert errors[36][0] >= 65.0 and errors[36][1] <= 6.0
    assert errors[36][0] > errors[0][0] + 6.0


def test_naive_tiles_do_not_converge() -> None:
    """The grid is what makes the difference: a tile run as its own picture stays wrong inside."""
    spec, module = random_network()
    net = InferenceFactory(spec, weights_of(module))(torch.float32, False)
    x = torch.from_numpy(smooth_picture(141, 160).transpose(2, 0, 1).astype(np.float32))[None]
    tile = plan(141, 160, 96, 36)[-1]
    y, z = tile.y, tile.x
    with torch.inference_mode():
        whole = net(x)[..., y.start * 2 :, z.start * 2 :]
        naive = net(x[..., y.origin :, z.origin :])[
            ..., (y.start - y.origin) * 2 :, (z.start - z.origin) * 2 :
        ]
        grid = (
            torch.from_numpy(stretch_matrix(y))[None],
            torch.from_numpy(stretch_matrix(z))[None],
            torch.from_numpy(np.outer(border_mask(y), border_mask(z)))[None, None],
        )
        ours = net(x[..., y.origin :, z.origin :], grid)[
            ..., (y.start - y.origin) * 2 :, (z.start - z.origin) * 2 :
        ]
    inner = (..., slice(30, None), slice(30, None))
    assert (ours - whole)[inner].abs().max() < 0.1 * (naive - whole)[inner].abs().max()


@pytest.mark.parametrize("name", ["rlfn_x4", "rlfn_s_x4"])
def test_default_overlap_on_a_photograph(shared_data: Path, name: str) -> None:
    from rlfn_pipe.models.weights import load_file

    spec, module = load_file(shared_data / "weights" / f"{name}.pth")
    picture = np.asarray(Image.open(shared_data / "lr" / "0981.png").convert("RGB"))[40:270, 100:353]
    whole = upscaled(spec, module, picture, tile=0)
    psnr, largest = difference(upscaled(spec, module, picture, tile=144, overlap=DEFAULT_OVERLAP), whole)
    assert psnr >= 65.0 and largest <= 6.0


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((61, 98), 36, 12), ((61, 98), 36, 0), ((30, 200), 48, 36), ((40, 40), 24, 2), ((61, 98), 0, 0)],
)
def test_what_fades_is_blended_and_the_rest_is_copied(
    size: tuple[int, int], tile: int, overlap: int, backwards: bool, host: bool
) -> None:
    """The same bits as all of each tile times its weights, added to zeros."""
    scale, generator = 2, torch.Generator().manual_seed(tile)
    arrays: Any = Host() if host else Tensors(torch.device("cpu"))
    picture = Picture(arrays.zeros((3, *size)), scale, 15, 8, arrays)
    tiles = picture.cut(tile, overlap)
    results = [torch.rand(3, *(scale * s for s in t.shape), generator=generator) * 300 - 20 for t in tiles]
    wanted = torch.zeros(3, size[0] * scale, size[1] * scale)
    order = list(zip(tiles, results, strict=True))[:: -1 if backwards else 1]
    for each, result in order:
        given: Any = result.numpy() if host else result
        picture.place(each, given)
        (y, down), (x, along) = (
            (span, torch.from_numpy(fade_weights(span, scale))) for span in (each.y, each.x)
        )
        top, left = (scale * (span.start - span.origin) for span in (y, x))
        answer = result[:, top : top + len(down), left : left + len(along)] * down[:, None] * along
        assert torch.equal(torch.as_tensor(answer_of(each, given, scale, arrays)), answer)
        wanted[:, scale * y.start : scale * y.stop, scale * x.start : scale * x.stop] += answer
    assert torch.equal(torch.as_tensor(picture.result()[0]), wanted)
