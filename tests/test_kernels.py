"""Triton's kernels for CUDA against what they replace, run by Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from test_planes import picture as noise

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.errors import UsageError
from rlfn_pipe.models import fused
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.fuse import InferenceBlock, build_inference, for_device
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.pipeline import planes
from rlfn_pipe.types import ColourInfo
from rlfn_pipe.unmeasured import WISH


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Triton looks when a kernel is defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from rlfn_pipe.models import kernels

        assert "Interpreted" in type(kernels._leaky).__name__
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_lies_between_the_convolutions(dtype: torch.dtype) -> None:
    from rlfn_pipe.models import kernels

    generator = torch.Generator().manual_seed(1)

    def values(*shape: int) -> torch.Tensor:
        made = torch.randn(*shape, generator=generator).to(dtype)
        return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

    y, skip, bias, other = values(2, 52, 9, 13), values(2, 52, 9, 13), values(52), values(52)
    wide = [each.float() for each in (y, skip, bias[:, None, None], other[:, None, None])]
    near = {"atol": 1e-6, "rtol": 2 * torch.finfo(dtype).eps}
    wanted = torch.nn.functional.leaky_relu(wide[0] + wide[2], 0.05)
    torch.testing.assert_close(kernels.leaky(y.clone(), bias, 0.05).float(), wanted, **near)
    torch.testing.assert_close(kernels.leaky(y.clone(), bias, 0.05, skip).float(), wanted + wide[1], **near)
    wanted = (wide[0] + wide[2]) * torch.sigmoid(wide[1] + wide[3])
    torch.testing.assert_close(kernels.attend(y.clone(), bias, skip, other).float(), wanted, **near)
    with pytest.raises(AssertionError):
        kernels.leaky(y.contiguous(), bias, 0.05)


@pytest.mark.parametrize(("name", "scale"), [("rlfn-s", 4), ("rlfn", 3)])
def test_the_fused_network_is_the_folded_one(name: str, scale: int) -> None:
    spec = architecture(name, scale)
    torch.manual_seed(2)
    module = RLFN(spec).eval().requires_grad_(False)
    x = noise(17, 16)[None].clamp(0, 255)
    folded = build_inference(spec, module)
    made = build_inference(spec, module, block=fused.FusedBlock)
    assert all(type(block) is fused.FusedBlock for block in made.blocks)
    torch.testing.assert_close(made(x), folded(x), atol=2e-3, rtol=0)
    short = build_inference(spec, module, torch.bfloat16, block=fused.FusedBlock)
    plain = build_inference(spec, module, torch.bfloat16)
    loss = (plain(x) - folded(x)).square().mean()
    assert (short(x) - folded(x)).square().mean() < 1.1 * loss, "no worse than PyTorch's bf16"


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


def test_they_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv(WISH, raising=False)
    assert not fused.kernels_wanted(cuda)
    monkeypatch.setenv(WISH, "graphs, kernels")
    assert fused.kernels_wanted(cuda) and not fused.kernels_wanted(cpu)
    spec = architecture("rlfn-s", 2)
    made = for_device(spec, RLFN(spec), torch.float32, False, "cpu")
    assert type(made.blocks[0]) is InferenceBlock
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install triton"):
        fused.kernels_wanted(cuda)
