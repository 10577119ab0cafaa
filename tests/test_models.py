"""The network: shapes, names and sizes of the published one, and a plain reference of its formulas."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from rlfn_pipe.errors import UsageError
from rlfn_pipe.models.architectures import ARCHITECTURES, SCALES, architecture
from rlfn_pipe.models.native import network as native_network
from rlfn_pipe.models.rlfn import RLFN, count_parameters
from rlfn_pipe.models.strips import _rows_matrix, _Stretch
from rlfn_pipe.resources import data_path


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("scale", SCALES)
def test_output_is_scale_times_larger(name: str, scale: int) -> None:
    module = RLFN(architecture(name, scale)).eval()
    with torch.inference_mode():
        out = module(torch.rand(2, 3, 15, 17))
    assert out.shape == (2, 3, 15 * scale, 17 * scale)
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize(
    ("name", "parameters"), [("rlfn", 543_740), ("rlfn-s", 470_208), ("rlfn-ntire", 317_218)]
)
def test_parameter_counts_are_the_papers(name: str, parameters: int) -> None:
    assert count_parameters(RLFN(architecture(name, 4))) == parameters


def test_state_dict_has_the_official_names() -> None:
    module = RLFN(architecture("rlfn-ntire", 4))
    block = ["c1_r", "c2_r", "c3_r", "c5", "esa.conv1", "esa.conv2", "esa.conv3", "esa.conv_f", "esa.conv4"]
    layers = [
        "conv_1",
        "conv_2",
        "upsampler.0",
        *(f"block_{n}.{layer}" for n in range(1, 5) for layer in block),
    ]
    assert set(module.state_dict()) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_network_equals_the_formulas_of_the_paper() -> None:
    """The same computation written out from the state dict alone, without the classes."""
    torch.manual_seed(0)
    module = RLFN(architecture("rlfn-ntire", 2)).double().eval()
    weights = module.state_dict()

    def conv(name: str, x: torch.Tensor, **more: int) -> torch.Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **more)

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        reduced = conv(f"{name}.conv1", x)
        pooled = functional.max_pool2d(conv(f"{name}.conv2", reduced, stride=2), 7, 3)
        wide = functional.interpolate(conv(f"{name}.conv3", pooled, padding=1), x.shape[2:], mode="bilinear")
        return x * torch.sigmoid(conv(f"{name}.conv4", wide + conv(f"{name}.conv_f", reduced)))

    x = torch.rand(1, 3, 23, 31, dtype=torch.float64)
    shallow = conv("conv_1", x, padding=1)
    deep = shallow
    for number in range(1, 5):
        inner = deep
        for layer in ("c1_r", "c2_r", "c3_r"):
            inner = functional.leaky_relu(conv(f"block_{number}.{layer}", inner, padding=1), 0.05)
        deep = attention(f"block_{number}.esa", conv(f"block_{number}.c5", inner + deep))
    out = conv("upsampler.0", conv("conv_2", deep, padding=1) + shallow, padding=1)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), functional.pixel_shuffle(out, 2), rtol=1e-12, atol=1e-12)


def test_unknown_network_and_scale_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean rlfn-s"):
        architecture("rlfn-x", 4)
    with pytest.raises(UsageError, match="2, 3 and 4, not 5"):
        architecture("rlfn", 5)


def test_data_of_the_package_is_found() -> None:
    assert (data_path("presets") / "training").is_dir()
    assert (data_path("weights") / "index.toml").is_file()


def test_installed_data_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "rlfn_pipe"
    package.mkdir(parents=True)
    monkeypatch.setattr("rlfn_pipe.resources.__file__", str(package / "resources.py"))
    assert data_path("weights") == package.parent / "weights"
    (package / "_data" / "weights").mkdir(parents=True)
    assert data_path("weights") == package / "_data" / "weights"


def test_long_pictures_take_no_more_than_their_pixels() -> None:
    """Where the small map is read is two numbers a row and a column, no matrix of a side by a sixth of it."""
    long = 40_000
    tracemalloc.start()
    try:
        native_network._whole.__wrapped__(16, long)
        _Stretch(long, 16, torch.float32, None)
        first, weights = _rows_matrix(long, 12_345, 12_393)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    # As PyTorch stretches it.
    cells = (long - 9) // 6
    small = torch.rand(cells, dtype=torch.float64)
    expected = functional.interpolate(small[None, None], size=long, mode="linear")[0, 0, 12_345:12_393]
    got = weights @ small[first : first + weights.shape[1]]
    assert torch.allclose(got, expected, atol=1e-6)
