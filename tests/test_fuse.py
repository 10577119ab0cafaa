"""The inference form of RLFN against the plain module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlfn_pipe.models.fuse import InferenceFactory, build_inference
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.types import ModelSpec


def network(scale: int = 2, channels: int = 10, mid: int = 12, white: float = 1.0) -> tuple[ModelSpec, RLFN]:
    spec = ModelSpec("random", scale, channels, mid, 2, input_range=white)
    torch.manual_seed(1)
    return spec, RLFN(spec).eval().requires_grad_(False)


@pytest.mark.parametrize("white", [1.0, 255.0])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_folding_is_exact_in_float64(scale: int, white: float) -> None:
    spec, module = network(scale, white=white)
    module = module.double()
    x = torch.rand(2, 3, 23, 31, dtype=torch.float64) * 255.0
    expected = module(x * (white / 255.0)) * (255.0 / white)
    torch.testing.assert_close(build_inference(spec, module, torch.float64)(x), expected, atol=1e-9, rtol=0)


def test_the_module_is_left_as_it_was() -> None:
    spec, module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    net = build_inference(spec, module, torch.bfloat16)
    for parameter in net.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("edge", [False, True])
def test_short_formats_give_float32_near_the_reference(dtype: torch.dtype, edge: bool) -> None:
    spec, module = network()
    x = torch.randint(0, 256, (1, 3, 24, 24)).float()
    reference = build_inference(spec, module, torch.float32)(x)
    got = build_inference(spec, module, dtype, edge_fp32=edge)(x)
    assert got.dtype == torch.float32
    assert (got - reference).abs().max() < 2.5


def test_edges_in_float32_keep_more_than_eight_bits() -> None:
    """A tenth of a code value at the bright end survives only with float32 first and last layers."""
    spec, module = network(scale=1)
    for parameter in module.parameters():
        parameter.zero_()
    for channel in range(3):
        module.conv_1.weight[channel, channel, 1, 1] = 1.0 / 16
        module.conv_1.weight[3 + channel, channel, 1, 1] = 1.0
        module.upsampler[0].weight[channel, channel, 1, 1] = 16.0
    x = torch.full((1, 3, 16, 16), 250.0)
    x[..., 8:] += 0.4
    sharp = build_inference(spec, module, torch.bfloat16, edge_fp32=True)
    assert sharp.head.weight.dtype == sharp.tail.weight.dtype == torch.float32
    assert sharp(x).dtype == torch.float32
    short = build_inference(spec, module, torch.bfloat16)
    assert short.tail.weight.dtype == torch.bfloat16


def test_value_range_is_known_from_the_description() -> None:
    spec, module = network(white=1.0)
    x = torch.rand(1, 3, 20, 20)
    got = InferenceFactory(spec, module)(torch.float32, False)(x * 255.0)
    torch.testing.assert_close(got / 255.0, module(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["rlfn_x4", "rlfn_s_x4", "rlfn_ntire_x4", "rlfn_x2"])
def test_real_weights_in_bf16_reach_50_db(shared_data: Path, name: str) -> None:
    from rlfn_pipe.models.weights import load_file

    spec, module = load_file(shared_data / "weights" / f"{name}.pth")
    picture = np.asarray(Image.open(shared_data / "lr" / "0943.png").convert("RGB"))[60:156, 90:190]
    x = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))[None]
    with torch.inference_mode():
        plain = module(x * (spec.input_range / 255.0)) * (255.0 / spec.input_range)
        reference = build_inference(spec, module, torch.float32)(x)
        assert (plain - reference).abs().max() < 0.01
        got = build_inference(spec, module, torch.bfloat16)(x).clamp(0, 255).round()
    error = (got - reference.clamp(0, 255)).double()
    assert 10 * torch.log10(255.0**2 / error.square().mean()) >= 50.0
