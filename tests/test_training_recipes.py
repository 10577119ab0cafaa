"""Recipes, schedules, losses, optimisers: against the paper's numbers and plain references."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import RECIPE, picture

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.evaluate.metrics import psnr_y
from rlfn_pipe.resources import data_path
from rlfn_pipe.training.data import Pairs
from rlfn_pipe.training.feature_maps import difference_maps, main
from rlfn_pipe.training.losses import (
    VGG_WEIGHTS,
    RandomExtractor,
    StageLoss,
    VggExtractor,
    contrastive,
    feature_difference_map,
)
from rlfn_pipe.training.optimisers import Muon, Optimisers, orthogonalise
from rlfn_pipe.training.recipe import Stage, load_recipe, parse_recipe
from rlfn_pipe.training.schedules import learning_rate
from rlfn_pipe.training.validate import Validation

SHIPPED = sorted((data_path("presets") / "training").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert path.stem.startswith(("paper-", "ours-", "smoke"))


@pytest.mark.parametrize(
    "path", [p for p in SHIPPED if p.stem.startswith("paper-rlfn")], ids=lambda p: p.stem
)
def test_paper_recipes_have_the_papers_numbers(path: Path) -> None:
    recipe = load_recipe(path)
    assert len(recipe.stages) == 3
    assert [stage.init for stage in recipe.stages[1:]] == ["previous", "previous"]
    assert recipe.stages[0].init == "scratch"
    for number, stage in enumerate(recipe.stages):
        assert (stage.batch, stage.patch, stage.rate, stage.halve_every) == (64, 256, 5e-4, 200_000)
        assert (stage.schedule, stage.optimiser, stage.carry_optimiser) == ("halving", "adam", False)
        assert (stage.betas, stage.epsilon, stage.ema) == ((0.9, 0.999), 1e-8, 0.0)
        assert stage.losses["l1"] == 1.0 and ("contrastive" in stage.losses) is (number == 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rate = 1e-3", "ratte = 1e-3"), "unknown key 'ratte' in stage 1; did you mean 'rate'"),
        (("[model]", "[modell]"), "unknown key 'modell' in the top level"),
        (("scale = 2", "scale = 5"), "scale must be 2, 3 or 4"),
        (('"rlfn-ntire"', '"rlfn-nitre"'), "did you mean 'rlfn-ntire'"),
        (("steps = 9", "steps = 9\nepochs = 3"), "exactly one of steps, epochs or minutes"),
        (("steps = 9", "steps = -9"), "not negative"),
        (("steps = 9", "steps = 9\nminutes = -1.0"), "not negative"),
        (("steps = 9", "epochs = 1\nepoch_steps = -5"), "1 step or more"),
        (("steps = 9", "epochs = 1\nepoch_steps = 0"), "1 step or more"),
        (("steps = 9", "steps = 9\nbetas = [1.0, 0.999]"), "betas"),
        (("steps = 9", "steps = 9\nbetas = [0.9, -0.1]"), "betas"),
        (("steps = 9", "steps = 9\nepsilon = 0.0"), "epsilon"),
        (("steps = 9", "steps = 9\nhalve_every = 0"), "halve_every"),
        (("steps = 9", "steps = 9\nwarmup = -5"), "warmup"),
        (("steps = 9", "steps = 9\nfloor = 5.0"), "floor"),
        (("ema = 0.9", "ema = 1.0"), "ema is a decay"),
        (("ema = 0.9", "losses = { l1 = -1.0 }"), "losses have weights"),
        (("ema = 0.9", "losses = { l1 = 0.0 }"), "losses have weights"),
        (("batch = 2", "batch = 100000000"), "batch is at most"),
        (("seed = 3", "seed = -1"), "seed"),
        (("held_back = 0.2", "held_back = 0.2\nvariants = 0"), "variants is 1 or more"),
        (("patch = 32", "patch = 33"), "multiple of the scale"),
        (("patch = 32", "patch = 28"), "at least 30"),
        (("batch = 2", 'batch = "two"'), "'batch' in stage 1 must be of type int"),
        (("batch = 2", "batch = 1.5"), "must be of type int"),
        (("batch = 2", "batch = true"), "must be of type int"),
        (('init = "scratch"', 'init = "previous"'), "nothing comes before it"),
        (('"cosine"', '"cosinus"'), "did you mean 'cosine'"),
        (('"cosine"', '"cyclic"'), "needs the cycle's length"),
        (("contrastive = 0.1", "contrastiv = 0.1"), "did you mean 'contrastive'"),
        (("contrastive = 0.1", "contrastive_vgg = 0.1"), "needs the weights of VGG-19"),
        (("[[stage]]", "[stage]"), "is not valid TOML"),
        (("held_back = 0.2", "held_back = 2"), "share between 0 and 1"),
        (('name = "first"\n', ""), "lacks the key name"),
        (("log_every = 3", "log_every = 0"), "numbers of steps"),
        (('init = "scratch"', 'init = "scratch"\ninit_fit = "widen"'), "name the file in init"),
        (('init = "scratch"', 'init = "x.pth"\ninit_fit = "wide"'), "did you mean 'widen'"),
    ],
)
def test_wrong_recipes_are_one_sentence(change: tuple[str, str], message: str) -> None:
    assert change[0] in RECIPE
    with pytest.raises(TrainingError) as caught:
        parse_recipe(RECIPE.replace(*change), "r.toml")
    assert message in str(caught.value) and str(caught.value).startswith("r.toml")


def test_recipes_without_stages_or_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no"):
        parse_recipe('name = "x"')
    with pytest.raises(TrainingError, match="cannot be read"):
        load_recipe(tmp_path / "absent.toml")


# ------------------------------------------------------------------ schedules


def test_rate_halves_as_in_the_paper() -> None:
    stage = Stage("s", steps=1_000_000)
    rates = [learning_rate(stage, step, 0.5) for step in (0, 199_999, 200_000, 400_000, 999_999)]
    assert rates == [5e-4, 5e-4, 2.5e-4, 1.25e-4, 5e-4 / 16]


def test_cyclic_rate_starts_again() -> None:
    stage = Stage("s", steps=10, schedule="cyclic", cycle=4, halve_every=2, rate=8.0)
    assert [learning_rate(stage, step, 0) for step in range(6)] == [8, 8, 4, 4, 8, 8]


def test_cosine_falls_to_its_floor_and_warms_up() -> None:
    stage = Stage("s", steps=100, schedule="cosine", rate=2.0, floor=0.1, warmup=10)
    assert learning_rate(stage, 0, 0.0) == pytest.approx(0.2)
    assert learning_rate(stage, 50, 0.5) == pytest.approx(1.1)
    assert learning_rate(stage, 100, 1.0) == pytest.approx(0.2)
    falling = [learning_rate(stage, step, step / 100) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


# --------------------------------------------------------------------- losses


def test_contrastive_loss_is_the_papers_ratio() -> None:
    """Against the formula in numpy, the extractor's convolutions written out."""
    torch.manual_seed(0)
    extractor = RandomExtractor(seed=4, channels=3)
    sr, hr = torch.rand(2, 3, 12, 12), torch.rand(2, 3, 12, 12)
    lr = torch.rand(2, 3, 6, 6)
    up = torch.nn.functional.interpolate(lr, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)

    def convolve(x: np.ndarray, conv: torch.nn.Conv2d) -> np.ndarray:
        kernel = conv.weight.numpy()
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
        return np.einsum("nchwij,kcij->nkhw", windows, kernel)

    def phi(x: torch.Tensor) -> np.ndarray:
        return convolve(np.tanh(convolve(x.numpy(), extractor.first)), extractor.second)

    expected = np.abs(phi(sr) - phi(hr)).mean() / np.abs(phi(sr) - phi(up)).mean()
    assert float(contrastive(extractor, (1.0,), sr, hr, lr)) == pytest.approx(expected, rel=1e-4)


def test_contrastive_loss_falls_towards_the_hr_image_and_reaches_the_network() -> None:
    extractor = RandomExtractor()
    hr = torch.rand(1, 3, 24, 24)
    lr = torch.nn.functional.avg_pool2d(hr, 2)
    up = torch.nn.functional.interpolate(lr, scale_factor=2, mode="bicubic", align_corners=False)
    values = []
    for share in (0.2, 0.5, 0.9):
        sr = (share * hr + (1 - share) * up).requires_grad_()
        loss = contrastive(extractor, (1.0,), sr, hr, lr)
        values.append(float(loss.detach()))
        (gradient,) = torch.autograd.grad(loss, sr)
        assert float(gradient.abs().sum()) > 0
    assert values == sorted(values, reverse=True)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_random_extractor_follows_from_its_seed_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    first = RandomExtractor(seed=9)
    torch.manual_seed(2)
    assert torch.equal(first.second.weight, RandomExtractor(seed=9).second.weight)
    assert not torch.equal(first.second.weight, RandomExtractor(seed=8).second.weight)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under torchvision's names for VGG-19 (the classifier's left in as a decoy)."""
    generator = torch.Generator().manual_seed(0)
    widths = [64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512]
    state, index, before = {"classifier.0.bias": torch.zeros(1)}, 0, 3
    for width in widths:
        if width:
            scale = (2 / (9 * before)) ** 0.5
            state[f"features.{index}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * scale
            state[f"features.{index}.bias"] = torch.zeros(width)
            index, before = index + 2, width
        else:
            index += 1
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path


def test_vgg_features_are_those_of_the_named_layers(vgg_file: Path) -> None:
    extractor = VggExtractor(vgg_file)
    x = torch.rand(1, 3, 32, 32)
    maps = extractor(x)
    assert [tuple(each.shape[1:]) for each in maps] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]
    state = torch.load(vgg_file, weights_only=True)
    normal = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    first = torch.relu(
        torch.nn.functional.conv2d(normal, state["features.0.weight"], state["features.0.bias"], padding=1)
    )
    torch.testing.assert_close(maps[0], first)
    loss = StageLoss(Stage("s", losses={"contrastive_vgg": 2.0}, vgg=str(vgg_file)), 0)
    sr, hr, lr = torch.rand(1, 3, 32, 32), x, torch.rand(1, 3, 16, 16)
    assert float(loss(sr, hr, lr)) == pytest.approx(
        2 * float(contrastive(extractor, VGG_WEIGHTS, sr, hr, lr))
    )


def test_wrong_vgg_file_is_one_sentence(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    for path in (tmp_path / "x.pth", tmp_path / "absent.pth"):
        with pytest.raises(TrainingError, match="does not hold the weights of VGG-19"):
            VggExtractor(path)


def test_stage_loss_is_the_weighted_sum() -> None:
    sr, hr, lr = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), torch.rand(1, 3, 8, 8)
    both = StageLoss(Stage("s", losses={"l1": 2.0, "contrastive": 0.5}), 3)(sr, hr, lr)
    expected = 2 * (sr - hr).abs().mean() + 0.5 * contrastive(RandomExtractor(3), (1.0,), sr, hr, lr)
    torch.testing.assert_close(both, expected)
    smooth = StageLoss(Stage("s", losses={"charbonnier": 1.0}), 3)(sr, hr, lr)
    torch.testing.assert_close(smooth, ((sr - hr) ** 2 + 1e-6).sqrt().mean())
    square = StageLoss(Stage("s", losses={"l2": 3.0}), 3)(sr, hr, lr)
    torch.testing.assert_close(square, 3 * ((sr - hr) ** 2).mean())


# --------------------------------------------------------------- feature maps


def test_feature_maps_show_where_a_blur_changed_the_image(vgg_file: Path, tmp_path: Path) -> None:
    image = np.full((48, 64, 3), 90, np.uint8)
    image[:, 32:] = 190  # one edge; a blur changes only what lies about it
    random, first, _deep = difference_maps(image, blur=1.5, vgg=vgg_file)
    for shown in (random, first):
        centre = shown.shape[1] // 2
        assert shown.max() == 255
        assert shown[:, centre - 2 : centre + 2].mean() > 10 * max(shown[:, 4:16].mean(), 0.5)
    extractor = RandomExtractor()
    a, b = torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20)
    expected = (extractor(a)[0] - extractor(b)[0]).abs().mean(1)[0]
    torch.testing.assert_close(feature_difference_map(extractor, a, b)[0], expected)
    picture(0).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), str(tmp_path / "maps.png"), "--vgg", str(vgg_file)]) == 0
    assert (tmp_path / "maps.png").is_file()
    assert main([str(tmp_path / "absent.png"), str(tmp_path / "maps.png")]) == 1


# ----------------------------------------------------------------- optimisers


def test_muon_moves_along_the_nearest_orthogonal_matrix() -> None:
    """Against the singular value decomposition: same directions, singular values near one."""
    torch.manual_seed(0)
    for shape in ((12, 40), (40, 12), (16, 16)):
        matrix = torch.randn(shape)
        wide = matrix if shape[0] <= shape[1] else matrix.mT
        u, _, vh = torch.linalg.svd(wide, full_matrices=False)
        found = u.mT @ orthogonalise(wide[None])[0] @ vh.mT
        assert float((found - torch.diag(found.diag())).abs().max()) < 1e-4
        assert float(found.diag().min()) > 0.3 and float(found.diag().max()) < 1.3


def test_muon_step_is_as_large_as_adams() -> None:
    torch.manual_seed(0)
    kernel = torch.zeros(24, 24, 3, 3, requires_grad=True)
    kernel.grad = torch.randn_like(kernel)
    Muon([kernel], lr=1e-2).step()
    assert float(kernel.detach().square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.25)


def test_muon_takes_the_inner_kernels_and_adam_the_rest() -> None:
    from rlfn_pipe.models.architectures import architecture
    from rlfn_pipe.models.rlfn import RLFN

    module = RLFN(architecture("rlfn-ntire", 4))
    optimisers = Optimisers(Stage("s", steps=1, optimiser="muon"), module)
    adam, muon = ([p for group in part.param_groups for p in group["params"]] for part in optimisers.parts)
    assert len(adam) + len(muon) == len(list(module.parameters()))
    inner = {
        id(p) for name, p in module.named_parameters() if p.ndim == 4 and name.startswith(("block", "conv_2"))
    }
    assert {id(p) for p in muon} == inner
    with pytest.raises(ValueError, match="another kind"):
        Optimisers(Stage("s", steps=1), module).load_state_dict(optimisers.state_dict())


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_a_stages_own_settings_stand_over_those_of_a_state(optimiser: str) -> None:
    from rlfn_pipe.models.architectures import architecture
    from rlfn_pipe.models.rlfn import RLFN

    module = RLFN(architecture("rlfn-ntire", 4))
    before = Optimisers(Stage("one", steps=1, optimiser=optimiser), module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before.step()
    stage = Stage("two", steps=1, optimiser=optimiser, rate=1e-5, betas=(0.5, 0.7), epsilon=1e-4)
    after = Optimisers(stage, module)
    after.load_state_dict(before.state_dict())
    group = after.parts[0].param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (1e-5, (0.5, 0.7), 1e-4)
    moments = after.parts[0].state[group["params"][0]]["exp_avg"]
    torch.testing.assert_close(moments, torch.full_like(moments, 0.1))


# ----------------------------------------------------------------- validation


def test_validation_psnr_is_that_of_the_protocol() -> None:
    """Of the central crop of what a network gives, clamped and rounded; what is no number gives none."""
    hr, sr = (np.asarray(picture(seed, 40, 32)) for seed in (0, 1))
    low = np.zeros((16, 20, 3), np.uint8)
    validation = Validation(Pairs(("a",), (hr,), ((low,),), 2), 1, 400, torch.device("cpu"))
    given = torch.from_numpy(sr.copy()).permute(2, 0, 1)[None].float()
    expected = psnr_y(sr, hr, 2)
    assert validation.psnr(Giving((given + 0.4) / 255)) == pytest.approx(expected, abs=1e-9)
    white = np.full_like(hr, 255)
    assert validation.psnr(Giving(torch.full_like(given, 7.0))) == pytest.approx(
        psnr_y(white, hr, 2), abs=1e-9
    )
    assert math.isinf(validation.psnr(Giving(torch.from_numpy(hr.copy()).permute(2, 0, 1)[None] / 255)))
    given[0, 0, 9, 9] = float("nan")
    assert math.isnan(validation.psnr(Giving(given))) and not validation.is_finite(Giving(given))


class Giving(torch.nn.Module):
    """Gives `values` whatever it gets."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.values
