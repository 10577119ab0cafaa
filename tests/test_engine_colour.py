"""Colour on the device: flat fields, round trips, siting, odd sizes, depth, range, alpha."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nearest import nearest_factory, nearest_spec

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.engine.alpha import fill_under_alpha
from rlfn_pipe.engine.ends import samples as samples_of
from rlfn_pipe.engine.host import Host
from rlfn_pipe.engine.layouts import chroma_size
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.engine.tensors import Tensors
from rlfn_pipe.errors import EngineError
from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.weights import load
from rlfn_pipe.types import SUPPORTED_MATRICES, ColourInfo, Frame, Target

CPU = torch.device("cpu")
MATRICES = sorted(SUPPORTED_MATRICES)


def engine(scale: int = 2) -> Engine:
    return Engine(nearest_factory(scale), nearest_spec(scale), device="cpu", precision="fp32", threads=1)


def frame(values: tuple[int, ...], colour: ColourInfo, height: int = 9, width: int = 11) -> Frame:
    """A flat frame; one value a plane."""
    dtype = np.uint8 if colour.bit_depth == 8 else np.uint16
    chroma = chroma_size(height, width, colour.subsampling)
    sizes = [(height, width)] + [chroma] * 2 if colour.subsampling != "grey" else [(height, width)]
    if colour.alpha:
        sizes.append((height, width))
    return Frame(tuple(np.full(s, v, dtype) for s, v in zip(sizes, values, strict=True)), colour)


def run_one(given: Frame, colour: ColourInfo, scale: int = 2) -> Frame:
    (result,) = engine(scale).run([(given, Target(given.width * scale, given.height * scale, colour))])
    return result


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("subsampling", ["420", "422", "440", "444"])
def test_flat_fields_come_back_within_one_code_value(matrix: int, subsampling: str) -> None:
    rng = np.random.default_rng(matrix)
    for value_range in (1, 2):
        for depth in (8, 9, 10, 12, 14, 16):
            layout = ColourInfo(matrix, range=value_range, bit_depth=depth, subsampling=subsampling)  # type: ignore[arg-type]
            top = (1 << depth) - 1
            extremes = [(0, 0, 0), (top, top, top), (top, 0, top), (top // 2,) * 3]
            for values in [*extremes, *(tuple(map(int, rng.integers(0, top + 1, 3))) for _ in range(3))]:
                result = run_one(frame(values, layout), layout)
                assert result.colour == layout
                for plane, value in zip(result.planes, values, strict=True):
                    assert np.abs(plane.astype(int) - value).max() <= 1, (layout, values)
                assert result.planes[1].shape == chroma_size(18, 22, subsampling)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("value_range", [1, 2])
@pytest.mark.parametrize("depth", [8, 10, 16])
def test_444_round_trip_is_exact_to_one(matrix: int, value_range: int, depth: int) -> None:
    layout = ColourInfo(matrix, range=value_range, bit_depth=depth, subsampling="444")
    rng = np.random.default_rng(depth)
    dtype = np.uint8 if depth == 8 else np.uint16
    planes = tuple(rng.integers(0, 1 << depth, (24, 31)).astype(dtype) for _ in range(3))
    given = Frame(planes, layout)
    back = conversions.from_rgb(conversions.to_rgb(given, CPU), layout)
    for plane, original in zip(back, planes, strict=True):
        assert np.abs(samples_of([plane])[0].astype(int) - original).max() <= 1


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_rgb_goes_through_unchanged(depth: int) -> None:
    layout = ColourInfo(0, range=2, bit_depth=depth, subsampling="rgb")
    rng = np.random.default_rng(0)
    planes = tuple(
        rng.integers(0, 1 << depth, (16, 15)).astype(np.uint8 if depth == 8 else np.uint16) for _ in range(3)
    )
    result = run_one(Frame(planes, layout), layout, scale=3)
    for plane, original in zip(result.planes, planes, strict=True):
        np.testing.assert_array_equal(plane, original.repeat(3, 0).repeat(3, 1))


def test_known_colours_of_bt709_and_bt601() -> None:
    """Pure red in limited range: the values of the standards' tables."""
    for matrix, expected in ((1, (63, 102, 240)), (6, (81, 90, 240))):
        layout = ColourInfo(matrix, range=1, subsampling="444")
        red = frame((255, 0, 0), ColourInfo(0, range=2, subsampling="rgb"))
        assert tuple(int(plane[0, 0]) for plane in run_one(red, layout).planes) == expected


def test_depth_range_and_subsampling_may_change() -> None:
    source = ColourInfo(1, range=1, bit_depth=8, subsampling="420")
    target = ColourInfo(1, range=2, bit_depth=10, subsampling="444")
    result = run_one(frame((235, 128, 128), source), target)
    assert result.planes[0].dtype == np.uint16
    assert tuple(int(plane[0, 0]) for plane in result.planes) == (1023, 512, 512)
    assert {plane.shape for plane in result.planes} == {(18, 22)}


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (14, 5), (15, 15), (17, 16)])
@pytest.mark.parametrize("subsampling", ["420", "422", "440"])
def test_odd_and_tiny_sizes(size: tuple[int, int], subsampling: str) -> None:
    layout = ColourInfo(1, range=1, subsampling=subsampling)  # type: ignore[arg-type]
    for scale in (1, 3):
        result = run_one(frame((90, 100, 170), layout, *size), layout, scale)
        assert result.planes[0].shape == (size[0] * scale, size[1] * scale)
        assert result.planes[2].shape == chroma_size(size[0] * scale, size[1] * scale, subsampling)
        assert [int(plane.flat[0]) for plane in result.planes] == [90, 100, 170]


@pytest.mark.parametrize("cosited", [True, False])
@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("dim", [-1, -2])
def test_a_ramp_of_chroma_lies_where_its_siting_says(cosited: bool, size: int, dim: int) -> None:
    """A linear ramp is kept by both filters, so its values tell positions (away from the edges)."""
    position = torch.arange(size, dtype=torch.float32)
    half = 2.0 * torch.arange((size + 1) // 2) + (0.0 if cosited else 0.5)
    shape = (1, -1) if dim == -1 else (-1, 1)
    low, full = (
        half.reshape(shape).expand(3, -1) if dim == -1 else half.reshape(shape).expand(-1, 3),
        position,
    )
    full = full.reshape(shape).expand(3, -1) if dim == -1 else full.reshape(shape).expand(-1, 3)
    up = conversions.upsample(low, dim, size, cosited)
    torch.testing.assert_close(up.narrow(dim, 4, 8), full.narrow(dim, 4, 8), atol=1e-4, rtol=0)
    down = conversions.downsample(full, dim, cosited)
    assert down.shape == low.shape
    torch.testing.assert_close(down.narrow(dim, 2, 4), low.narrow(dim, 2, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("location", ["left", "centre", "topleft"])
def test_chroma_survives_420_at_each_siting(location: str) -> None:
    layout = ColourInfo(1, range=1, subsampling="420", chroma_location=location)  # type: ignore[arg-type]
    across, down = np.meshgrid(np.arange(16), np.arange(16))
    planes = (
        np.full((32, 32), 120, np.uint8),
        (100 + 3 * across).astype(np.uint8),
        (170 - 3 * down).astype(np.uint8),
    )
    back = conversions.from_rgb(conversions.to_rgb(Frame(planes, layout), CPU), layout)
    for plane, original in zip(back, planes, strict=True):
        inner = samples_of([plane])[0].astype(int)[2:-2, 2:-2]
        assert np.abs(inner - original[2:-2, 2:-2]).max() <= 1


def test_grey_stays_grey_and_gets_neutral_chroma() -> None:
    grey = ColourInfo(6, range=2, subsampling="grey", bit_depth=16)
    result = run_one(frame((40000,), grey), grey)
    assert len(result.planes) == 1 and abs(int(result.planes[0][0, 0]) - 40000) <= 1
    yuv = run_one(frame((40000,), grey), replace(grey, subsampling="420"))
    assert [int(plane[0, 0]) for plane in yuv.planes[1:]] == [32768, 32768]


def test_alpha_is_scaled_made_or_dropped() -> None:
    rgba = ColourInfo(0, range=2, subsampling="rgb", alpha=True)
    given = frame((10, 20, 30, 77), rgba)
    assert [int(plane[0, 0]) for plane in run_one(given, rgba).planes] == [10, 20, 30, 77]
    varied = np.arange(99, dtype=np.uint8).reshape(9, 11)
    result = run_one(replace(given, planes=(*given.planes[:3], varied)), rgba)
    np.testing.assert_array_equal(result.planes[3], varied.repeat(2, 0).repeat(2, 1))
    assert len(run_one(given, replace(rgba, alpha=False)).planes) == 3
    made = run_one(frame((10, 20, 30), replace(rgba, alpha=False)), replace(rgba, bit_depth=10))
    assert int(made.planes[3].min()) == 1023


def test_planes_may_be_strided_views_and_read_only() -> None:
    layout = ColourInfo(1, range=1, subsampling="444")
    rng = np.random.default_rng(0)
    wide = rng.integers(60, 190, (3, 16, 40), dtype=np.uint8)
    wide.flags.writeable = False
    views = tuple(plane[::-1, :20] for plane in wide)
    a = run_one(Frame(views, layout), layout)
    b = run_one(Frame(tuple(view.copy() for view in views), layout), layout)
    assert all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))


def test_unknown_matrix_and_wrong_planes_are_one_sentence() -> None:
    with pytest.raises(EngineError, match="matrix 14"):
        run_one(frame((1, 2, 3), ColourInfo(14, range=1, subsampling="444")), ColourInfo(1, range=1))
    layout = ColourInfo(1, range=1, subsampling="420")
    wrong = Frame((np.zeros((8, 8), np.uint8),) * 3, layout)
    with pytest.raises(EngineError, match="planes of sizes"):
        run_one(wrong, layout)


@pytest.mark.parametrize("name", ["rlfn_s_x4", "rlfn_x2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_flat_fields_with_real_weights_come_back_within_two(
    shared_data: Path, name: str, precision: str
) -> None:
    """Away from the border, where the network itself sees its zero padding; super-white and footroom too."""
    from rlfn_pipe.models.forms import InferenceFactory
    from rlfn_pipe.models.weights import load_file

    spec, module = load_file(shared_data / "weights" / f"{name}.pth")
    upscaler = Engine(
        InferenceFactory(spec, weights_of(module)), spec, device="cpu", precision=precision, threads=1
    )
    layout = ColourInfo(1, range=1, subsampling="420")
    target = Target(40 * spec.scale, 40 * spec.scale, layout)
    inner = slice(8 * spec.scale, 12 * spec.scale)
    levels = [(5, 128, 128), (16, 128, 128), (126, 128, 128), (254, 128, 128), (81, 90, 240), (145, 54, 34)]
    results = upscaler.run((frame(values, layout, 40, 40), target) for values in levels)
    for result, values in zip(results, levels, strict=True):
        for plane, value in zip(result.planes, values, strict=True):
            assert np.abs(plane[inner, inner].astype(int) - value).max() <= 2, values


def test_what_lies_under_transparency_does_not_seep_into_the_edge() -> None:
    """A white disc on transparent black stays white to its edge, with the real network."""
    rows, columns = np.mgrid[:40, :40]
    disc = (rows - 20) ** 2 + (columns - 20) ** 2 < 150
    plane = np.where(disc, 255, 0).astype(np.uint8)
    given = Frame((plane, plane, plane, plane), ColourInfo(0, range=2, subsampling="rgb", alpha=True))
    spec, module = load("rlfn-s", 4)
    engine = Engine(
        InferenceFactory(spec, weights_of(module)), spec, device="cpu", precision="fp32", threads=1
    )
    [result] = engine.run([(given, Target(160, 160, given.colour))])
    visible = result.planes[3] > 16
    inner = np.s_[16:-16, 16:-16]
    assert all(int(p[inner][visible[inner]].min()) > 245 for p in result.planes[:3])


def test_colour_is_carried_under_transparency_and_visible_pixels_stay() -> None:
    rgb = torch.rand(3, 9, 40) * 255
    alpha = torch.zeros(3, 9, 40)
    alpha[:, :, 10:14] = 3.0
    filled = fill_under_alpha(rgb, alpha, Tensors(CPU))
    assert torch.equal(filled[:, :, 10:14], rgb[:, :, 10:14])
    assert torch.allclose(filled[:, 1:-1, 9], torch.nn.functional.avg_pool1d(rgb[:, :, 10], 3, 1), atol=1e-3)
    assert torch.equal(filled[:, :, 30:], rgb[:, :, 30:])


@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (30, 1), (50, 61)])
def test_colour_is_carried_as_by_averages_of_whole_pictures(
    size: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlfn_pipe.engine.alpha._RING_PIXELS", 100)
    generator = torch.Generator().manual_seed(4)
    rgb = 255 * torch.rand(3, *size, generator=generator)
    alpha = (torch.rand(size, generator=generator) < share).float().mul(255).expand(3, -1, -1)
    known, wanted = (alpha[:1] > 0).double(), rgb.double()
    for _ in range(12):
        weight, total = (torch.nn.functional.avg_pool2d(x[None], 3, 1, 1)[0] for x in (known, wanted * known))
        ring = (known == 0) & (weight > 0)
        wanted = torch.where(ring, total / weight.clamp(min=1e-9), wanted)
        known = torch.where(ring, 1.0, known)
    torch.testing.assert_close(
        fill_under_alpha(rgb, alpha, Tensors(CPU)).double(), wanted, atol=1e-3, rtol=0.0
    )
    got = fill_under_alpha(rgb.numpy(), alpha.numpy(), Host())
    assert np.abs(got - wanted.numpy()).max() < 1e-3
