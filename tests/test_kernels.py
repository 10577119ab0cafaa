"""Triton's kernels for CUDA against what they replace, run by Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

from test_planes import picture as noise

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.models import fused
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.fuse import InferenceNet, build_inference, for_device
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.pipeline import planes
from rlfn_pipe.types import ColourInfo


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Triton looks when a kernel is defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from rlfn_pipe.models import kernels

        assert "Interpreted" in type(kernels._conv).__name__
        yield


def values(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    made = torch.randn(*shape, generator=generator).to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made


@pytest.mark.parametrize(("inputs", "outputs"), [(48, 48), (52, 52), (46, 48), (48, 12), (8, 27)])
def test_convolutions(inputs: int, outputs: int) -> None:
    from rlfn_pipe.models import kernels

    dtype = torch.float16
    generator = torch.Generator().manual_seed(1)
    x, skip = values(generator, dtype, 2, inputs, 9, 13), values(generator, dtype, 2, outputs, 9, 13)
    weight = (values(generator, dtype, outputs, inputs, 3, 3) / inputs**0.5).to(dtype)
    bias = values(generator, dtype, outputs)
    made = kernels.Convolution(weight, bias)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    near = {"atol": 4 * torch.finfo(dtype).eps, "rtol": 2 * torch.finfo(dtype).eps}
    assert made(x).dtype == dtype and made(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made(x).double(), wanted, **near)
    active = F.leaky_relu(wanted, 0.05)
    torch.testing.assert_close(made(x, 0.05).double(), active, **near)
    torch.testing.assert_close(made(x, 0.05, skip).double(), active + skip.double(), **near)
    if outputs in (12, 27, 48):
        scale = round((outputs / 3) ** 0.5)
        other = torch.randn(outputs, generator=generator)
        got = made(x, scale=scale, bias=other)
        assert got.dtype == torch.float32
        wanted = wanted - bias.double()[:, None, None] + other.double()[:, None, None]
        torch.testing.assert_close(got.double(), F.pixel_shuffle(wanted, scale), atol=2e-4, rtol=1e-4)
    with pytest.raises(AssertionError):
        made(x.contiguous())


@pytest.mark.parametrize("channels", [48, 52])
def test_the_end_of_a_block(channels: int) -> None:
    from rlfn_pipe.models import kernels

    dtype = torch.float16
    generator = torch.Generator().manual_seed(2)
    x, mask = values(generator, dtype, 2, channels, 7, 21), values(generator, dtype, 2, 16, 7, 21)
    weight, wide = (
        values(generator, dtype, channels, channels, 1, 1),
        values(generator, dtype, channels, 16, 1, 1),
    )
    bias, other = values(generator, dtype, channels), values(generator, dtype, channels)
    got = kernels.Attention(weight, bias, wide, other)(x, mask)
    wanted = F.conv2d(x.double(), weight.double(), bias.double())
    wanted = wanted * torch.sigmoid(F.conv2d(mask.double(), wide.double(), other.double()))
    near = {"atol": 4 * torch.finfo(dtype).eps, "rtol": 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(got.double(), wanted, **near)


@pytest.mark.parametrize(("name", "scale"), [("rlfn", 4), ("rlfn-ntire", 2)])
def test_the_fused_network_is_the_folded_one(name: str, scale: int) -> None:
    spec = replace(architecture(name, scale), blocks=2)
    torch.manual_seed(2)
    module = RLFN(spec).eval().requires_grad_(False)
    x = noise(17, 15)[None].clamp(0, 255)
    exact = build_inference(spec, module.double(), torch.float64)(x.double())
    for edge in (False, True):
        plain = build_inference(spec, module, torch.float16, edge_fp32=edge)
        made = build_inference(
            spec, module, torch.float16, edge_fp32=edge, form=fused.FusedNet, block=fused.FusedBlock
        )
        assert all(type(block) is fused.FusedBlock for block in made.blocks)
        got = made(x)
        assert got.shape == exact.shape and got.dtype == torch.float32
        loss = (plain(x) - exact).square().mean()
        assert (got - exact).square().mean() < 1.1 * loss, "no worse than PyTorch's fp16"


@pytest.mark.parametrize(
    ("subsampling", "location"),
    [
        ("420", "left"),
        ("420", "centre"),
        ("420", "topleft"),
        ("422", "left"),
        ("440", "topleft"),
        ("444", "left"),
    ],
)
def test_planes_are_those_of_the_engine(subsampling: str, location: str) -> None:
    for height, width in ((1, 1), (2, 3), (21, 37)):
        for depth, full, matrix in ((8, 1, 1), (16, 2, 9)):
            layout = ColourInfo(
                matrix, range=full, bit_depth=depth, subsampling=subsampling, chroma_location=location
            )
            rgb = noise(height, width)
            got, wanted = planes.by_kernels(rgb, layout), conversions.from_rgb(rgb.clone(), layout)
            assert [p.dtype for p in got] == [p.dtype for p in wanted]
            for p, q in zip(got, wanted, strict=True):
                a, b = (each.numpy().view(f"u{each.element_size()}").astype(np.int64) for each in (p, q))
                assert a.shape == b.shape and abs(a - b).max() <= 1
                assert (a != b).sum() <= 4 + 0.001 * a.size


def test_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv(fused.WISH, raising=False)
    assert fused.kernels_wanted(cuda) and not fused.kernels_wanted(cpu)
    assert not fused.kernels_wanted(torch.device("mps"))
    spec = architecture("rlfn-s", 2)
    assert type(for_device(spec, RLFN(spec), torch.float16, False, "cpu")) is InferenceNet
    monkeypatch.setenv(fused.WISH, "off")
    assert not fused.kernels_wanted(cuda)
    monkeypatch.delenv(fused.WISH)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not fused.kernels_wanted(cuda)


def test_they_are_used_where_they_give_what_pytorch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but on the CPU: right kernels, wrong ones, and such that do not compile."""
    from rlfn_pipe.models import kernels

    monkeypatch.setattr(fused, "kernels_wanted", lambda device: True)
    monkeypatch.setattr(fused, "TRIED", ((1, 15, 16),))
    monkeypatch.setattr(planes, "kernels_wanted", lambda device: True)
    spec = replace(architecture("rlfn-ntire", 4), blocks=1)
    torch.manual_seed(5)
    module = RLFN(spec).eval().requires_grad_(False)

    def network() -> InferenceNet:
        return for_device(spec, module, torch.float16, False, "cpu")

    assert type(network()) is fused.FusedNet
    assert type(for_device(spec, module, torch.float32, False, "cpu")) is InferenceNet
    right = kernels.Attention.__call__
    monkeypatch.setattr(kernels.Attention, "__call__", lambda self, x, mask: right(self, x, mask) * 0.8)
    with pytest.warns(RuntimeWarning, match="not used, they are .* code values off"):
        assert type(network()) is InferenceNet

    def fails(*_: object, **__: object) -> torch.Tensor:
        raise ValueError("no such instruction\nmore of it")

    monkeypatch.setattr(kernels.Convolution, "__call__", fails)
    with pytest.warns(RuntimeWarning, match="not used, ValueError: no such instruction$"):
        assert type(network()) is InferenceNet

    layout, rgb = ColourInfo(1, range=1), noise(20, 30)
    planes._kernels_work.cache_clear()
    wanted = planes.by_kernels(rgb, layout)
    assert planes._kernels_work(torch.device("cpu"))
    assert all(torch.equal(p, q) for p, q in zip(planes.from_rgb(rgb, layout), wanted, strict=True))
    planes._kernels_work.cache_clear()
    monkeypatch.setattr(kernels, "planes", fails)
    with pytest.warns(RuntimeWarning, match="not used"):
        planes.from_rgb(rgb, layout)
    assert not planes._kernels_work(torch.device("cpu")), "tried once"
    planes._kernels_work.cache_clear()
