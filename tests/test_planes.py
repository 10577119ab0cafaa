"""Planes to RGB and back by the compiled part against the engine's own conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.engine.ends import samples as samples_of
from rlfn_pipe.engine.host import Host
from rlfn_pipe.engine.layouts import chroma_size
from rlfn_pipe.models.native import library as native
from rlfn_pipe.pipeline import planes, tensor_planes
from rlfn_pipe.pipeline.tensor_planes import from_rgb, to_rgb
from rlfn_pipe.types import ColourInfo, Frame

needed = pytest.mark.skipif(
    native.any_library() is None, reason=f"no compiled part: {native.why_not('fp32')}"
)


def picture(height: int, width: int) -> torch.Tensor:
    """Noise, partly beyond black and white, (3, h, w)."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.rand(3, height, width, generator=generator) * 300.0 - 20.0


@needed
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (37, 51), (64, 64), (130, 17), (201, 402)])
@pytest.mark.parametrize("location", ["left", "centre", "topleft"])
@pytest.mark.parametrize("subsampling", ["420", "422", "440", "444"])
def test_planes_are_those_of_the_engine(subsampling: str, location: str, size: tuple[int, int]) -> None:
    """But for the last bit of a few values that lie between two."""
    for depth, full, matrix in ((8, 1, 1), (8, 2, 6), (10, 1, 9), (16, 2, 1)):
        layout = ColourInfo(
            matrix, range=full, bit_depth=depth, subsampling=subsampling, chroma_location=location
        )
        rgb = picture(*size)
        got, wanted = from_rgb(rgb, layout), conversions.from_rgb(rgb.clone(), layout)
        assert [p.dtype for p in got] == [p.dtype for p in wanted]
        for p, q in zip(got, wanted, strict=True):
            a, b = (each.numpy().view(f"u{each.element_size()}").astype(np.int64) for each in (p, q))
            assert a.shape == b.shape and abs(a - b).max() <= 1
            assert (a != b).sum() <= 8 + 0.001 * a.size
        assert torch.equal(rgb, picture(*size)), "the picture is left as it was"


def samples(height: int, width: int, layout: ColourInfo, gap: int = 0) -> Frame:
    """A frame of noise over all code values; rows lie `gap` samples apart, as decoders leave them."""
    rng = np.random.default_rng(height * 1000 + width)
    small = chroma_size(height, width, layout.subsampling)
    sizes = [
        (height, width),
        *[small] * (2 * (layout.subsampling != "grey")),
        *[(height, width)] * layout.alpha,
    ]
    dtype = np.uint8 if layout.bit_depth == 8 else np.uint16
    made = (rng.integers(0, 1 << layout.bit_depth, (rows, columns + gap)) for rows, columns in sizes)
    return Frame(tuple(plane.astype(dtype)[:, : plane.shape[1] - gap] for plane in made), layout)


@needed
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (37, 51), (64, 64), (130, 17), (201, 402)])
@pytest.mark.parametrize("location", ["left", "centre", "topleft"])
@pytest.mark.parametrize("subsampling", ["420", "422", "440", "444"])
def test_rgb_is_that_of_the_engine(subsampling: str, location: str, size: tuple[int, int]) -> None:
    cpu = torch.device("cpu")
    for depth, full, matrix, gap in ((8, 1, 1, 0), (8, 2, 6, 13), (10, 1, 9, 7), (16, 2, 1, 0)):
        layout = ColourInfo(
            matrix,
            range=full,
            bit_depth=depth,
            subsampling=subsampling,
            chroma_location=location,
            alpha=depth == 10,
        )
        frame = samples(*size, layout, gap)
        got, wanted = to_rgb(frame, cpu), conversions.to_rgb(frame, cpu)
        assert got.shape == wanted.shape and got.is_contiguous()
        torch.testing.assert_close(got, wanted, rtol=0, atol=3e-4)


@needed
def test_rows_in_any_order_are_read() -> None:
    """Turned upside down or sideways, planes are views with other steps."""
    layout = ColourInfo(1, range=1, subsampling="444")
    frame, cpu = samples(30, 41, layout), torch.device("cpu")
    for turn in (lambda p: p[::-1], lambda p: p[:, ::-1], lambda p: p.T, lambda p: p[:, ::2]):
        turned = Frame(tuple(turn(plane) for plane in frame.planes), layout)
        torch.testing.assert_close(to_rgb(turned, cpu), conversions.to_rgb(turned, cpu), rtol=0, atol=3e-4)
    mixed = Frame((frame.planes[0], frame.planes[1], np.asfortranarray(frame.planes[2])), layout)
    torch.testing.assert_close(to_rgb(mixed, cpu), conversions.to_rgb(mixed, cpu), rtol=0, atol=3e-4)


@needed
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("subsampling", ["420", "444"])
def test_what_went_around_the_network_is_added(scale: int, subsampling: str) -> None:
    """In some rows there is much of it, in some a little, in others none."""
    for height, width in ((1, 1), (2, 3), (33, 20), (50, 67)):
        rgb, excess = picture(height * scale, width * scale), picture(height, width) - 130.0
        excess[:, 1::3] = 0.0
        excess[:, height // 2 + 1 :, 1:] = 0.0
        excess[:, height // 2 + 5 :] = 0.0
        for depth in (8, 16):
            layout = ColourInfo(1, range=2, bit_depth=depth, subsampling=subsampling)
            got = from_rgb(rgb, layout, excess=excess)
            wanted = conversions.from_rgb(rgb, layout, excess=excess)
            without = conversions.from_rgb(rgb, layout)
            assert height == 1 or not torch.equal(wanted[0], without[0])
            for p, q in zip(got, wanted, strict=True):
                a, b = (each.numpy().view(f"u{each.element_size()}").astype(np.int64) for each in (p, q))
                assert abs(a - b).max() <= 1
                assert (a != b).sum() <= 8 + (0.02 if depth == 16 else 0.001) * a.size
    assert torch.equal(rgb, picture(50 * scale, 67 * scale)), "the picture is left as it was"


@needed
def test_bits_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, rgb, excess = ColourInfo(1, range=1, subsampling="420"), picture(150, 90), picture(75, 45)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = from_rgb(rgb, layout, excess=excess)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for p, q in zip(one, from_rgb(rgb, layout, excess=excess), strict=True):
        assert torch.equal(p, q)
    frame, cpu = samples(150, 90, layout), torch.device("cpu")
    three = to_rgb(frame, cpu)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(three, to_rgb(frame, cpu))


@pytest.mark.parametrize("kernel", native.PATHS)
def test_libraries_give_equal_bits(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what they are built for only the vectors differ."""
    if native._obstacle(kernel):
        pytest.skip(f"{kernel}: {native._obstacle(kernel)}")
    layout, rgb, excess = ColourInfo(1, range=1, subsampling="420"), picture(51, 90), picture(17, 30)
    frame, cpu = samples(51, 89, layout), torch.device("cpu")
    made, back = from_rgb(rgb, layout, excess=excess), to_rgb(frame, cpu)
    monkeypatch.setattr(tensor_planes, "any_library", lambda: native._loaded(kernel))
    assert torch.equal(back, to_rgb(frame, cpu))
    for p, q in zip(made, from_rgb(rgb, layout, excess=excess), strict=True):
        assert torch.equal(p, q)


def test_what_it_does_not_do_is_left_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = picture(20, 30)
    for layout, neutral in (
        (ColourInfo(0, range=2, subsampling="rgb"), False),
        (ColourInfo(1, range=1, subsampling="grey"), False),
        (ColourInfo(1, range=1, subsampling="420"), True),
    ):
        wanted = conversions.from_rgb(rgb.clone(), layout, neutral=neutral)
        for p, q in zip(from_rgb(rgb.clone(), layout, neutral=neutral), wanted, strict=True):
            assert torch.equal(p, q)
    cpu = torch.device("cpu")
    for layout in (ColourInfo(0, range=2, subsampling="rgb"), ColourInfo(1, range=1, subsampling="grey")):
        frame = samples(20, 30, layout)
        assert torch.equal(to_rgb(frame, cpu), conversions.to_rgb(frame, cpu))
    monkeypatch.setenv(native.WISH, "off")
    layout = ColourInfo(1, range=1, subsampling="420")
    for p, q in zip(from_rgb(rgb, layout), conversions.from_rgb(rgb.clone(), layout), strict=True):
        assert torch.equal(p, q)
    frame = samples(20, 30, layout)
    assert torch.equal(to_rgb(frame, cpu), conversions.to_rgb(frame, cpu))


LAYOUTS = [
    ColourInfo(0, range=2, subsampling="rgb"),
    ColourInfo(0, range=1, subsampling="rgb", bit_depth=10),
    ColourInfo(1, range=2, subsampling="grey", bit_depth=16),
    ColourInfo(1, range=1, subsampling="grey"),
    ColourInfo(1, range=1, subsampling="420"),
    ColourInfo(9, range=1, subsampling="444", bit_depth=12),
]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda c: f"{c.subsampling}-{c.bit_depth}")
def test_arrays_get_what_tensors_get(
    layout: ColourInfo, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both directions, with and without what went around the network; grey sums may round the other way."""
    if not compiled:
        monkeypatch.setenv(native.WISH, "off")
    frame, cpu = samples(37, 51, layout), torch.device("cpu")
    rgb = planes.to_rgb(frame, Host())
    assert isinstance(rgb, np.ndarray) and rgb.dtype == np.float32
    np.testing.assert_array_equal(rgb, to_rgb(frame, cpu).numpy())
    large, excess = picture(74, 102), picture(37, 51) - 130.0
    for neutral in {False, layout.subsampling == "420"}:
        for around in (None, excess):
            got = planes.from_rgb(
                large.numpy(), layout, neutral=neutral, excess=None if around is None else around.numpy()
            )
            wanted = from_rgb(large.clone(), layout, neutral=neutral, excess=around)
            for p, q in zip(samples_of(got), samples_of(wanted), strict=True):
                assert p.dtype == q.dtype and p.dtype == (np.uint8 if layout.bit_depth == 8 else np.uint16)
                apart = np.abs(p.astype(np.int64) - q)
                assert apart.max() <= (layout.subsampling == "grey" or neutral)
                assert apart.sum() <= 2 + 0.002 * apart.size
    assert torch.equal(large, picture(74, 102)), "the picture is left as it was"


def test_values_that_are_none_make_no_noise(recwarn: pytest.WarningsRecorder) -> None:
    """Weights that give NaN are told of by the engine; a thousand warnings of numpy's would hide it."""
    rgb = np.full((3, 5, 7), np.nan, np.float32)
    assert len(planes.from_rgb(rgb, LAYOUTS[0])) == 3 and not recwarn.list
