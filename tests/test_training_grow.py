"""Weights of one network as the start of a larger or smaller one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_helpers import RECIPE, write_images

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.training.events import Note, TrainEvent
from rlfn_pipe.training.grow import narrowed, widened
from rlfn_pipe.training.initial import take
from rlfn_pipe.training.loop import train
from rlfn_pipe.training.recipe import parse_recipe
from rlfn_pipe.training.start import RunOptions
from rlfn_pipe.types import ModelSpec


def network(spec: ModelSpec, seed: int) -> RLFN:
    """Random values with biases and attentions that a trained network could have."""
    torch.manual_seed(seed)
    module = RLFN(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return module.double()


def spec_of(name: str, scale: int = 2, **changes: int) -> ModelSpec:
    return replace(architecture(name, scale), **changes)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (spec_of("rlfn-s"), spec_of("rlfn")),
        (spec_of("rlfn-s", blocks=3), spec_of("rlfn-s", blocks=5)),
        (spec_of("rlfn-ntire"), spec_of("rlfn")),
    ],
    ids=["wider", "deeper", "both"],
)
def test_widened_network_computes_the_same(small: ModelSpec, large: ModelSpec) -> None:
    source, target = network(small, 1), network(large, 2)
    assert take(target, source.state_dict(), "widen", "x") == []
    x = torch.rand(2, 3, 37, 26, dtype=torch.float64)
    with torch.no_grad():
        expected = source(x)
        torch.testing.assert_close(target(x), expected, rtol=0, atol=1e-12)
        assert float(expected.std()) > 0.01


def test_every_weight_of_a_widened_network_can_learn() -> None:
    """Old weights and what reads the new channels have gradients at once, all others after one step."""
    source, target = network(spec_of("rlfn-s", blocks=2), 1), network(spec_of("rlfn", blocks=3), 2)
    take(target, source.state_dict(), "widen", "x")
    x, y = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.rand(2, 3, 64, 64, dtype=torch.float64)
    optimiser = torch.optim.SGD(target.parameters(), 1e-3)
    still: set[str] = set()
    for _ in range(3):
        optimiser.zero_grad()
        torch.autograd.backward((target(x) - y).abs().mean())
        still = set()
        for name, parameter in target.named_parameters():
            assert parameter.grad is not None
            dead = (parameter.grad == 0).flatten(1).all(1) if parameter.ndim > 1 else parameter.grad == 0
            if bool(dead.any()):
                still.add(name)
        optimiser.step()
    assert still == set()


def test_widened_from_another_scale_leaves_the_last_layer() -> None:
    source, target = network(spec_of("rlfn-s", 4), 1), network(spec_of("rlfn", 2), 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    assert take(target, source.state_dict(), "widen", "x") == ["upsampler.0.weight", "upsampler.0.bias"]
    after = target.state_dict()
    assert torch.equal(after["upsampler.0.weight"], before["upsampler.0.weight"])
    x = torch.rand(1, 3, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        shallow, expected = target.conv_1(x), source.conv_1(x)
        for block, other in zip(target.blocks(), source.blocks(), strict=True):
            shallow, expected = block(shallow), other(expected)
    torch.testing.assert_close(shallow[:, :48], expected, rtol=0, atol=1e-12)
    assert float(shallow[:, 48:].std()) > 1e-3


def test_narrowed_network_drops_what_does_nothing() -> None:
    """Of a widened network whose additions are silent, narrowing finds the original again."""
    small = spec_of("rlfn-s", channels=6, mid_channels=7)
    large = spec_of("rlfn-s", channels=9, mid_channels=12)
    source = network(small, 1)
    wide, _ = widened(source.state_dict(), network(large, 2).state_dict())
    again, left = narrowed(wide, network(small, 3).state_dict())
    assert left == []
    for key, value in source.state_dict().items():
        assert torch.equal(again[key], value), key


def test_narrowed_network_keeps_the_first_blocks_and_the_last() -> None:
    source, target = network(spec_of("rlfn-s"), 1), network(spec_of("rlfn-ntire"), 2)
    take(target, source.state_dict(), "narrow", "x")
    for new, old in ((1, 1), (2, 2), (3, 3), (4, 6)):
        found, kept = source.blocks()[old - 1].esa.conv2.weight, target.blocks()[new - 1].esa.conv2.weight
        assert torch.equal(found, kept)
    with torch.no_grad():
        assert bool(target(torch.rand(1, 3, 20, 20, dtype=torch.float64)).isfinite().all())


@pytest.mark.parametrize(
    ("fit", "source", "target", "message"),
    [
        ("widen", "rlfn", "rlfn-s", "larger than the recipe's"),
        ("widen", "rlfn-s", "rlfn-ntire", "larger than the recipe's"),
        ("narrow", "rlfn-ntire", "rlfn-s", "4 blocks, fewer than the recipe's 6"),
        ("narrow", "rlfn-s", "rlfn", "smaller than the recipe's"),
    ],
)
def test_unfitting_networks_are_one_sentence(fit: str, source: str, target: str, message: str) -> None:
    weights = network(spec_of(source), 1).state_dict()
    with pytest.raises(TrainingError, match=message) as caught:
        take(network(spec_of(target), 2), weights, fit, "w.pth")
    assert str(caught.value).startswith("w.pth: cannot become")


def test_foreign_and_deeper_weights_are_refused() -> None:
    target = network(spec_of("rlfn"), 2)
    with pytest.raises(TrainingError, match=r"conv_1\.weight is missing"):
        take(target, {"a": torch.zeros(3)}, "widen", "w.pth")
    with pytest.raises(TrainingError, match="7 blocks, more than"):
        take(target, network(spec_of("rlfn-s", blocks=7), 1).state_dict(), "widen", "w.pth")


def test_a_run_begins_with_widened_weights(tmp_path: Path) -> None:
    """Through a recipe, from the checkpoint of another run; the rate is too small to change the figure."""
    images = write_images(tmp_path / "images")
    first = parse_recipe(RECIPE.split("[[stage]]")[0] + stage("scratch", 1e-3))
    options = RunOptions(images, tmp_path / "small", tmp_path / "cache", device="cpu", threads=1)
    psnr = train(first, options).psnr
    origin = tmp_path / "small" / "checkpoint.pt"
    text = RECIPE.split("[[stage]]")[0].replace("rlfn-ntire", "rlfn")
    second = parse_recipe(text + stage(origin.as_posix(), 1e-12, 'init_fit = "widen"'))
    events: list[TrainEvent] = []
    wide = RunOptions(images, tmp_path / "wide", tmp_path / "cache", device="cpu", threads=1)
    assert train(second, wide, events.append).psnr == pytest.approx(psnr, abs=1e-3)
    assert any(isinstance(event, Note) and "new layers: none" in event.message for event in events)


def stage(init: str, rate: float, more: str = "") -> str:
    return (
        f'[[stage]]\nname = "only"\ninit = "{init}"\n{more}\nsteps = 3\nbatch = 1\npatch = 32\n'
        f'rate = {rate}\nschedule = "constant"\n'
    )
