"""The inference form of RLFN against the plain module."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlfn_pipe.engine.tiling import border_mask, plan, stretch_matrix
from rlfn_pipe.errors import EngineError
from rlfn_pipe.evaluate.metrics import psnr_y
from rlfn_pipe.models import convolution
from rlfn_pipe.models.convolution import FusedConvolution, PlainConvolution, fused_available
from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.fuse import InferenceNet, build_inference
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.strips import StripNetwork
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
    form = InferenceFactory(spec, weights_of(module)).host("fp32", False)
    got = torch.from_numpy(form((x * 255.0).numpy()))
    torch.testing.assert_close(got / 255.0, module(x), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- strips

SIZES = [(15, 15), (16, 21), (23, 31), (36, 17), (47, 50), (61, 20), (97, 40), (120, 33)]


@pytest.mark.parametrize("white", [1.0, 255.0])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_strips_are_exact_in_float64(scale: int, white: float) -> None:
    """Every number of strips, odd and even seams, against the plain module on the whole frame."""
    spec, module = network(scale, white=white)
    module = module.double()
    net = StripNetwork(spec, module, torch.float64, strip_bytes=1)
    for size in SIZES:
        x = torch.rand(2, 3, *size, dtype=torch.float64) * 255.0
        expected = module(x * (white / 255.0)) * (255.0 / white)
        torch.testing.assert_close(net(x), expected, atol=1e-9, rtol=0)


def test_strips_of_tiles_keep_to_the_frames_grid() -> None:
    spec, module = network()
    reference = build_inference(spec, module.double(), torch.float64)
    net = StripNetwork(spec, module, torch.float64, strip_bytes=1)
    tiles = plan(130, 124, 70, 24)
    assert len({tile.shape for tile in tiles}) == 1 and len(tiles) > 3
    x = torch.rand(len(tiles), 3, *tiles[0].shape, dtype=torch.float64) * 255.0
    grid = (
        torch.stack([torch.from_numpy(stretch_matrix(tile.y)) for tile in tiles]).double(),
        torch.stack([torch.from_numpy(stretch_matrix(tile.x)) for tile in tiles]).double(),
        torch.stack(
            [torch.from_numpy(np.outer(border_mask(tile.y), border_mask(tile.x))[None]) for tile in tiles]
        ).double(),
    )
    torch.testing.assert_close(net(x, grid), reference(x, grid), atol=1e-9, rtol=0)


@pytest.mark.parametrize("fused", [False, None])
@pytest.mark.parametrize(
    ("dtype", "edge", "tolerance"),
    [
        (torch.float32, False, 2e-4),
        (torch.bfloat16, False, 2.5),
        (torch.bfloat16, True, 1.5),
        (torch.float16, False, 0.4),
        (torch.float16, True, 0.4),
    ],
)
def test_both_roads_stay_near_the_reference(
    fused: bool | None, dtype: torch.dtype, edge: bool, tolerance: float
) -> None:
    spec, module = network(4)
    x = torch.randint(0, 256, (1, 3, 61, 24)).float()
    expected = module.double()(x.double() / 255.0) * 255.0
    got = StripNetwork(spec, module, dtype, edge, fused=fused, strip_bytes=1)(x)
    assert got.dtype == torch.float32 and got.is_contiguous()
    assert (got - expected).abs().max() < tolerance


def test_a_picture_does_not_depend_on_its_company() -> None:
    spec, module = network()
    net = StripNetwork(spec, module, torch.bfloat16)
    x = torch.rand(3, 3, 30, 40) * 255.0
    together = net(x)
    assert all(torch.equal(net(x[i : i + 1])[0], together[i]) for i in range(3))


def test_strips_give_the_usual_form_to_other_devices() -> None:
    spec, module = network()
    factory = InferenceFactory(spec, weights_of(module))
    assert isinstance(factory(torch.float16, True), StripNetwork)
    moved = factory(torch.float16, True, "meta")
    assert isinstance(moved, InferenceNet)
    assert moved.body.weight.dtype == torch.float16 and moved.tail.weight.dtype == torch.float32


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_form_is_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFN_PIPE_CACHE", str(tmp_path / "weights"))
    spec = ModelSpec("random", 2, 4, 4, 1)
    module = RLFN(spec).eval().requires_grad_(False)
    net = InferenceFactory(spec, weights_of(module), compile=True)(torch.float32, False, "cpu")
    x = torch.rand(1, 3, 20, 24) * 255.0
    torch.testing.assert_close(net(x), build_inference(spec, module)(x), atol=1e-3, rtol=0)


def test_a_compiler_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: object, inputs: object) -> object:
        raise RuntimeError("no compiler\nwas found")

    spec, module = network()
    net = InferenceFactory(spec, weights_of(module), compile=True)(torch.float32, False)
    monkeypatch.setattr(net, "_run", torch.compile(lambda x, grid: x + 1, backend=fails))
    with pytest.raises(EngineError, match="--compile off"):
        net(torch.rand(1, 3, 20, 24))


@pytest.mark.parametrize("activation", ["none", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("stride", [1, 2])
def test_fused_convolutions_equal_plain_ones(activation: convolution.Activation, stride: int) -> None:
    if not fused_available(torch.float32):
        pytest.skip("this PyTorch has no fused convolutions")
    torch.manual_seed(3)
    weight, bias = torch.randn(20, 12, 3, 3) / 10, torch.randn(20, dtype=torch.float64)
    x = torch.randn(2, 12, 30, 26).to(memory_format=torch.channels_last)
    for padding in ((0, 1), (1, 1), (0, 0)):
        plain = PlainConvolution(weight, bias, stride, activation)(x, *padding)
        fused = FusedConvolution(weight, bias, stride, activation)(x, *padding)
        torch.testing.assert_close(fused, plain, atol=1e-4, rtol=0)


def test_operators_that_are_missing_or_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(PlainConvolution):
        def __call__(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
            return super().__call__(x, rows, columns) + 1

    class Missing(PlainConvolution):
        def __init__(self, *args: object) -> None:
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")

    for bad in (Wrong, Missing):
        fused_available.cache_clear()
        monkeypatch.setattr(convolution, "FusedConvolution", bad)
        assert not fused_available(torch.float32)
    monkeypatch.undo()
    fused_available.cache_clear()
    assert not fused_available(torch.float64)


@pytest.mark.parametrize("name", ["rlfn-s", "rlfn_x4.pth", "rlfn_s_x4.pth"])
def test_set5_is_as_good_in_bf16_as_in_fp32(shared_data: Path, name: str) -> None:
    """50 dB from fp32 on each picture, and the mean PSNR on Y within 0.01 dB."""
    from rlfn_pipe.models.weights import load

    spec, module = load(shared_data / "weights" / name if name.endswith(".pth") else name, 4)
    fast = InferenceFactory(spec, weights_of(module)).host("bf16", False)
    gain = spec.input_range / 255.0
    folder = shared_data / "test" / "Set5"
    scores: list[list[float]] = []
    for path in sorted((folder / "LRx4").glob("*.png")):
        x = torch.from_numpy(pixels(path).transpose(2, 0, 1).astype(np.float32))[None]
        with torch.inference_mode():
            expected = (module(x * gain)[0] / gain).clamp(0, 255)
            got = torch.from_numpy(fast(x.numpy()))[0].clamp(0, 255).round()
        error = (got - expected).double()
        assert 10 * torch.log10(255.0**2 / error.square().mean()) >= 50.0, path.name
        large = pixels(folder / "HR" / path.name)[: got.shape[1], : got.shape[2]]
        both = [image.round().permute(1, 2, 0).numpy() for image in (expected, got)]
        scores.append([psnr_y(large, image, border=4) for image in both])
    reference, reached = np.mean(scores, axis=0)
    assert len(scores) == 5 and abs(reference - reached) < 0.01


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


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
