"""The weights that ship, measured again: a file may not fall below its own figures, nor below bicubic.

`weights/figures.toml` was written when each file was published. The two crops in `tests/data/bunny` come
with the checkout; Set5 and Set14 are measured where they are at hand.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from rlfn_pipe.evaluate.datasets import find_sets, read_pair
from rlfn_pipe.evaluate.metrics import psnr_y
from rlfn_pipe.evaluate.resize import upscale
from rlfn_pipe.evaluate.run import super_resolve
from rlfn_pipe.models import registry, weights
from rlfn_pipe.resources import data_path
from rlfn_pipe.training.device import cpu_has_bf16
from rlfn_pipe.types import ModelSpec

BUNNY = Path(__file__).parent / "data" / "bunny"
#: dB that a file may lose to its recorded figure: the rounding of other processors, no more.
TOLERANCE = 0.02
INDEX = tomllib.loads((data_path("weights") / "index.toml").read_text(encoding="utf-8"))["weights"]
FIGURES = tomllib.loads((data_path("weights") / "figures.toml").read_text(encoding="utf-8"))
FILES = sorted(row["file"] for row in INDEX)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def opened(file: str) -> tuple[ModelSpec, torch.nn.Module]:
    spec, module = weights.load_file(data_path("weights") / file)
    return spec, module.eval()


def pictures(folder: Path, scale: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (LR, HR) of the one set in `folder`."""
    (found,) = find_sets(folder, scale)
    return {pair.name: read_pair(pair, scale) for pair in found.pairs}


def shortfalls(file: str, set_name: str, folder: Path) -> dict[str, float]:
    """Picture -> dB below the recorded figure, of those below by more than the tolerance."""
    spec, module = opened(file)
    measured = {
        name: psnr_y(super_resolve(module, low, spec), high, spec.scale)
        for name, (low, high) in pictures(folder, spec.scale).items()
    }
    recorded = FIGURES[file][set_name]
    assert measured.keys() == recorded.keys()
    return {
        name: recorded[name] - psnr for name, psnr in measured.items() if recorded[name] - psnr > TOLERANCE
    }


def test_every_file_is_indexed_and_has_figures() -> None:
    shipped = {path.name for path in data_path("weights").glob("*.safetensors")}
    assert shipped == set(FILES) == set(FIGURES)
    for spec in registry.models(data_path("weights")):
        registry.verify(spec)


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_its_figures(file: str) -> None:
    assert shortfalls(file, "bunny", BUNNY) == {}


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_its_figures_on_set5(file: str, shared_data: Path) -> None:
    assert shortfalls(file, "Set5", shared_data / "test" / "Set5") == {}


def test_a_changed_file_is_noticed() -> None:
    """The guard itself: five parts in a hundred in one layer show."""
    spec, module = opened("rlfn-s-x2.safetensors")
    with torch.no_grad():
        module.get_parameter("conv_2.weight").mul_(1.05)
    recorded = FIGURES["rlfn-s-x2.safetensors"]["bunny"]
    lost = [
        recorded[name] - psnr_y(super_resolve(module, low, spec), high, spec.scale)
        for name, (low, high) in pictures(BUNNY, spec.scale).items()
    ]
    assert max(lost) > TOLERANCE


@pytest.mark.parametrize("file", FILES)
def test_no_file_loses_to_bicubic_on_set14(file: str, shared_data: Path) -> None:
    """By its recorded figures, of which the one nearest to bicubic interpolation is measured again."""
    spec, module = opened(file)
    pairs = pictures(shared_data / "test" / "Set14", spec.scale)
    recorded = FIGURES[file]["Set14"]
    assert recorded.keys() == pairs.keys()
    gain = {
        name: recorded[name] - psnr_y(upscale(low, spec.scale), high, spec.scale)
        for name, (low, high) in pairs.items()
    }
    nearest = min(gain, key=gain.__getitem__)
    assert gain[nearest] > 0, nearest
    low, high = pairs[nearest]
    if cpu_has_bf16():
        module = module.to(torch.bfloat16)  # the margin is wider than its rounding
    assert abs(psnr_y(super_resolve(module, low, spec), high, spec.scale) - recorded[nearest]) < gain[nearest]


@pytest.mark.parametrize("row", INDEX, ids=lambda row: row["file"])
def test_index_says_where_a_file_comes_from(row: dict[str, object]) -> None:
    """What a reader is owed: recipe, history, and figures beside the paper's where it has them."""
    history = row["history"]
    assert isinstance(history, list) and history
    for sitting in history:
        assert (data_path("presets") / "training" / f"{sitting['recipe']}.toml").is_file()
    assert row["recipe"] == f"presets/training/{history[-1]['recipe']}.toml"
    assert row["patches_seen"] == sum(sitting["patches"] for sitting in history)
    psnr, ssim = row["psnr"], row["ssim"]
    assert isinstance(psnr, dict) and isinstance(ssim, dict)
    assert psnr.keys() == ssim.keys() == {"Set5", "Set14", "BSD100"}
    if row["scale"] != 3:
        assert isinstance(row["paper_psnr"], dict)
        assert row["paper_psnr"].keys() == psnr.keys()
