"""Training runs: resumable bit for bit, stoppable, safe against NaN, full disks and wrong folders."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from training_helpers import RECIPE, picture, write_images

from rlfn_pipe.errors import TrainingError, UsageError, WeightsError
from rlfn_pipe.models import weights
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.resources import data_path
from rlfn_pipe.training import checkpoint, loop
from rlfn_pipe.training.__main__ import describe, main, parse_duration
from rlfn_pipe.training.bench import training_speed
from rlfn_pipe.training.cache import build_cache
from rlfn_pipe.training.device import Compute, choose_compute
from rlfn_pipe.training.events import Note, Outcome, Progress, TrainEvent, Validated
from rlfn_pipe.training.initial import read_weights
from rlfn_pipe.training.log import read_log
from rlfn_pipe.training.loop import train
from rlfn_pipe.training.recipe import Recipe, load_recipe, parse_recipe
from rlfn_pipe.training.report import write_report
from rlfn_pipe.training.start import RunOptions, locked


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def run(
    recipe: Recipe,
    images: Path,
    out: Path,
    stop_after: int | None = None,
    events: list[TrainEvent] | None = None,
    **options: Any,
) -> Outcome:
    """Train in `out`; `stop_after` asks to stop after so many looks at the stop flag."""
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return stop_after is not None and looks > stop_after

    told = events if events is not None else []
    given = RunOptions(images, out, cache=images.parent / "cache", device="cpu", **options)
    return train(recipe, given, told.append, should_stop)


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "weights.pth", weights_only=True)["params"]


def losses(out: Path) -> list[tuple[Any, ...]]:
    """The log without what the clock decides."""
    keys = ("kind", "stage", "step", "images", "loss", "rate", "psnr")
    return [tuple(record.get(key) for key in keys) for record in read_log(out / "log.jsonl")]


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_interrupted_run_equals_uninterrupted_run_bit_for_bit(
    optimiser: str, images: Path, tmp_path: Path
) -> None:
    text = RECIPE.replace("rate = 1e-3", f'rate = 1e-3\noptimiser = "{optimiser}"')
    recipe = parse_recipe(text)
    assert run(recipe, images, tmp_path / "whole").finished
    # Stops in the middle of a log interval, on a save, at a stage's border, and again later.
    for stop in (4, 2, 4, 3):
        assert not run(recipe, images, tmp_path / "parts", stop, resume=True).finished
    assert run(recipe, images, tmp_path / "parts", resume=True).finished
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    one, other = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert (one.images, one.step, one.stage) == (other.images, other.step, other.stage) == (30, 6, 1)


def test_run_killed_in_the_middle_continues(images: Path, tmp_path: Path) -> None:
    """SIGKILL at an arbitrary moment, then --resume: same weights as without."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.replace("steps = 9", "steps = 24"))
    command = [
        sys.executable,
        "-m",
        "rlfn_pipe.training",
        str(recipe),
        "--data",
        str(images),
        "--threads",
        "1",
    ]
    command += ["--cache", str(images.parent / "cache"), "--device", "cpu", "--out"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    for line in killed.stderr:
        if "step 12 " in line:
            killed.kill()
            break
    killed.wait()
    killed.stderr.close()
    assert run(load_recipe(recipe), images, tmp_path / "killed", resume=True).finished
    assert run(load_recipe(recipe), images, tmp_path / "whole").finished
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_smoke_recipe_lowers_the_loss(images: Path, tmp_path: Path) -> None:
    recipe = load_recipe(data_path("presets") / "training" / "smoke.toml")
    # Test images are a little smaller than the recipe's patch allows to vary.
    larger = write_images(tmp_path / "images", 3)
    for number in range(3):
        picture(number, 156, 144).save(larger / f"{number}.png")
    text = (
        recipe.text.replace("steps = 80", "steps = 20")
        .replace("steps = 40", "steps = 5")
        .replace("log_every = 10", "log_every = 5")
    )
    events: list[TrainEvent] = []
    outcome = run(parse_recipe(text), larger, tmp_path / "run", events=events)
    told = [event for event in events if isinstance(event, Progress) and event.stage == 0]
    assert outcome.finished
    assert told[-1].loss < 0.6 * told[0].loss
    assert outcome.psnr == [event for event in events if isinstance(event, Validated)][-1].psnr
    assert all("\n" not in describe(event) for event in events)
    report = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "| 2 warm start | 5 |" in report and "finished" in report


def test_weights_of_a_run_load_as_a_network(images: Path, tmp_path: Path) -> None:
    run(parse_recipe(RECIPE), images, tmp_path / "run")
    for name in ("weights.pth", "checkpoint.pt"):
        spec, module = weights.load(tmp_path / "run" / name)
        assert (spec.name, spec.scale, spec.input_range) == ("rlfn-ntire", 2, 1.0)
        assert torch.equal(module.conv_1.weight, tensors(tmp_path / "run")["conv_1.weight"])


def test_checkpoints_of_every_network_stay_below_16_mib(images: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("rlfn-ntire", "rlfn").replace("scale = 2", "scale = 4")
    text = text.replace("patch = 32", "patch = 60").replace("patch = 48", "patch = 64")
    run(parse_recipe(text.replace("steps = 9", "steps = 1")), images, tmp_path / "run", stop_after=1)
    assert (tmp_path / "run" / "checkpoint.pt").stat().st_size < 16 * 2**20


def test_budget_stops_cleanly_and_the_clock_can_be_the_length(images: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("steps = 9", "minutes = 0.02").replace("steps = 6", "steps = 1")
    outcome = run(parse_recipe(text), images, tmp_path / "clock")
    assert outcome.finished
    state = checkpoint.load(tmp_path / "clock" / "checkpoint.pt")
    assert state.seconds >= 1.2
    outcome = run(parse_recipe(RECIPE), images, tmp_path / "budget", until=0.0)
    assert (outcome.finished, outcome.step) == (False, 0)
    assert run(parse_recipe(RECIPE), images, tmp_path / "budget", resume=True).finished


def test_next_scale_starts_from_the_layers_that_fit(images: Path, tmp_path: Path) -> None:
    run(parse_recipe(RECIPE), images, tmp_path / "x2")
    source = tmp_path / "x2" / "checkpoint.pt"
    text = RECIPE.replace("scale = 2", "scale = 3").replace("patch = 32", "patch = 48")
    text = text.replace('init = "scratch"', f'init = "{source}"').replace("steps = 9", "steps = 1")
    text = text.replace("rate = 1e-3", "rate = 1e-12")
    events: list[TrainEvent] = []
    run(parse_recipe(text), images, tmp_path / "x3", stop_after=1, events=events)
    before, after = checkpoint.load(source).model, tensors(tmp_path / "x3")
    assert torch.allclose(before["block_3.c2_r.weight"], after["block_3.c2_r.weight"], atol=1e-6)
    assert after["upsampler.0.weight"].shape[0] == 27
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("new layers: upsampler.0.bias, upsampler.0.weight" in note for note in notes)


@pytest.mark.parametrize("fit", ["equal", "widen"])
def test_layers_that_a_later_stages_file_does_not_fill_are_random(
    fit: str, images: Path, tmp_path: Path
) -> None:
    """They kept what the stage before had trained."""
    source = tmp_path / "x4.safetensors"
    spec = architecture("rlfn-ntire", 4)
    torch.manual_seed(9)
    weights.save(source, RLFN(spec), spec)
    text = RECIPE.replace('name = "second"', f'name = "second"\ninit = "{source}"\ninit_fit = "{fit}"')
    # Nine looks are the first stage, the tenth its end, the next stops the second at once.
    run(parse_recipe(text), images, tmp_path / "run", stop_after=9)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert (state.stage, state.step) == (1, 0)
    torch.manual_seed(3)
    fresh = RLFN(architecture("rlfn-ntire", 2)).state_dict()
    assert torch.equal(state.model["upsampler.0.weight"], fresh["upsampler.0.weight"])


def test_warm_start_carries_weights_and_clr_the_optimiser(images: Path, tmp_path: Path) -> None:
    for carry in (False, True):
        text = RECIPE.replace("rate = 5e-4", f"rate = 5e-4\ncarry_optimiser = {str(carry).lower()}")
        text = text.replace("ema = 0.9\n", "")
        # Nine looks are the first stage, the tenth its end, the next stops the second at once.
        run(parse_recipe(text), images, tmp_path / str(carry), stop_after=9)
        state = checkpoint.load(tmp_path / str(carry) / "checkpoint.pt")
        assert (state.stage, state.step) == (1, 0)
        assert state.optimiser is not None
        moments = state.optimiser[0]["state"]
        assert bool(moments) is carry


def test_finished_run_goes_on_when_its_recipe_gets_another_stage(images: Path, tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    run(parse_recipe(RECIPE), images, tmp_path / "run")
    run(parse_recipe(RECIPE), images, tmp_path / "run", events=events, resume=True)
    assert [event.message for event in events if isinstance(event, Note)][-1].startswith(
        "the run is finished"
    )
    longer = parse_recipe(RECIPE + '[[stage]]\nname = "third"\nsteps = 4\nbatch = 2\npatch = 32\n')
    assert not run(longer, images, tmp_path / "run", stop_after=2, resume=True).finished
    outcome = run(longer, images, tmp_path / "run", resume=True)
    assert (outcome.finished, outcome.stage, outcome.step, outcome.images) == (True, 2, 4, 38)


# ------------------------------------------------------------------ accidents


def test_a_loss_that_is_not_finite_rolls_back_and_goes_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._Run._update
    calls = 0

    def sometimes_nan(self: Any, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = original(self, *given)
        if calls == 5:
            with torch.no_grad():
                self.model.conv_1.weight.fill_(float("nan"))
        return loss

    monkeypatch.setattr(loop._Run, "_update", sometimes_nan)
    events: list[TrainEvent] = []
    assert run(parse_recipe(RECIPE), images, tmp_path / "run", events=events).finished
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("not finite" in note and "back to step 3, rate times 0.5" in note for note in notes)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert (state.stage, state.rate_factor, state.rollbacks) == (1, 1.0, 0), "the next stage has its own rate"
    records = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "train"]
    assert [r["rate"] for r in records if r["stage"] == 1] == [5e-4, 2.5e-4]
    assert all(bool(value.isfinite().all()) for value in tensors(tmp_path / "run").values())
    assert [r["step"] for r in records] == [3, 6, 9, 3, 6]


def test_a_stop_while_the_loss_is_not_finite_leaves_nothing_of_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint kept the sum of losses, so that the next run went back once more."""
    original, calls = loop._Run._update, 0

    def nan_at_the_fifth(self: Any, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, *given) * (float("nan") if calls == 5 else 1.0)

    monkeypatch.setattr(loop._Run, "_update", nan_at_the_fifth)
    assert not run(parse_recipe(RECIPE), images, tmp_path / "run", stop_after=5).finished
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert (state.step, state.rollbacks, state.loss_sum, state.loss_count) == (3, 1, 0.0, 0)
    events: list[TrainEvent] = []
    assert run(parse_recipe(RECIPE), images, tmp_path / "run", events=events, resume=True).finished
    assert not any("back to" in event.message for event in events if isinstance(event, Note))


@pytest.mark.parametrize("value", [float("nan"), 1e30])
@pytest.mark.parametrize("bad", [1, 9, 15])
def test_an_update_that_spoils_the_network_is_never_saved(
    value: float, bad: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is from before its update, so that it is finite."""
    original, calls = loop._Run._update, 0

    def spoiling(self: Any, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = original(self, *given)
        if calls == bad:
            with torch.no_grad():
                self.model.conv_1.weight.fill_(value)
                self.model.conv_2.weight.fill_(value)
        return loss

    monkeypatch.setattr(loop._Run, "_update", spoiling)
    events: list[TrainEvent] = []
    text = RECIPE.replace("log_every = 3", "log_every = 1")
    outcome = run(parse_recipe(text), images, tmp_path / "run", events=events)
    assert outcome.finished and 0 < outcome.psnr < 100
    (note,) = [event.message for event in events if isinstance(event, Note) and "back to" in event.message]
    assert note.endswith("rate times 0.5")
    assert all(bool(each.isfinite().all()) for each in tensors(tmp_path / "run").values())
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] for r in records if r["kind"] == "validation"] == [6, 9, 6]
    assert not any(np.isnan(r.get("psnr", 0.0)) for r in records)


def test_a_stop_on_an_update_that_spoils_the_network_goes_back(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._Run._update

    def spoiling(self: Any, *given: Any) -> torch.Tensor:
        loss = original(self, *given)
        if self.state.step == 4:
            with torch.no_grad():
                self.model.conv_1.bias.fill_(float("nan"))
        return loss

    monkeypatch.setattr(loop._Run, "_update", spoiling)
    assert not run(parse_recipe(RECIPE), images, tmp_path / "run", stop_after=5).finished
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert (state.step, state.rollbacks) == (3, 1)
    assert all(bool(value.isfinite().all()) for value in state.model.values())


def test_a_hopeless_rate_is_given_up_with_the_last_good_state(images: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.replace("rate = 1e-3", "rate = 1e14"))
    with pytest.raises(TrainingError, match="last good state"):
        run(recipe, images, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert all(bool(value.isfinite().all()) for value in state.model.values())


def test_stopping_on_a_loss_that_is_not_finite_saves_the_last_good_state(
    images: Path, tmp_path: Path
) -> None:
    recipe = parse_recipe(RECIPE.replace("rate = 1e-3", "rate = 1e14"))
    run(recipe, images, tmp_path / "run", stop_after=2)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert all(bool(value.isfinite().all()) for value in state.model.values())


def test_full_disk_keeps_the_checkpoint_before(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(parse_recipe(RECIPE), images, tmp_path / "run", stop_after=4)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()

    def full(_data: object, out: Any) -> None:
        out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*--resume"):
        run(parse_recipe(RECIPE), images, tmp_path / "run", resume=True)
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not [path for path in (tmp_path / "run").iterdir() if "part" in path.name]
    assert run(parse_recipe(RECIPE), images, tmp_path / "run", resume=True).finished


def test_runs_are_not_overwritten_and_checkpoints_must_fit(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(parse_recipe(RECIPE), images, out, stop_after=1)
    with pytest.raises(TrainingError, match="already holds a run"):
        run(parse_recipe(RECIPE), images, out)
    other = RECIPE.replace("rlfn-ntire", "rlfn-s")
    with pytest.raises(TrainingError, match="checkpoint of rlfn-ntire x2, but the recipe trains rlfn-s x2"):
        run(parse_recipe(other), images, out, resume=True)
    (out / "checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="cannot be read as a checkpoint"):
        run(parse_recipe(RECIPE), images, out, resume=True)
    torch.save({"weights": 1}, out / "checkpoint.pt")
    with pytest.raises(TrainingError, match="is not a checkpoint"):
        run(parse_recipe(RECIPE), images, out, resume=True)


def test_devices_that_are_not_there_are_one_sentence(images: Path, tmp_path: Path) -> None:
    wrong = {
        "cpu": ("fp16", "trains on CUDA only"),
        "quantum": ("auto", "is unknown"),
        "meta": ("auto", "none to train on"),
    }
    if not torch.cuda.is_available():
        wrong["cuda"] = ("auto", "no CUDA device")
    if not torch.backends.mps.is_available():
        wrong["mps"] = ("auto", "device mps: no Apple GPU is usable here")
    for device, (precision, message) in wrong.items():
        recipe = parse_recipe(RECIPE.replace('precision = "fp32"', f'precision = "{precision}"'))
        with pytest.raises((TrainingError, UsageError), match=message):
            train(recipe, RunOptions(images, tmp_path / device, device=device))
    assert list(tmp_path.iterdir()) == []


def test_a_device_beyond_the_last_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="device cuda:9: the last CUDA device here is cuda:1"):
        choose_compute("cuda:9", "auto")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(TrainingError, match=r"device cuda:2: .* fewer processes"):
        choose_compute("cuda", "auto")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("sse avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)],
)
def test_a_processor_that_multiplies_bfloat16_trains_in_it(
    flags: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlfn_pipe.training.device.processor_flags", lambda: frozenset(flags.split()))
    assert choose_compute("cpu", "auto").dtype == dtype


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("bf16", True)])
def test_a_run_in_fp32_does_without_tf32(
    precision: str, allowed: bool, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn, seen, original = torch.backends.cudnn, [], loop._Run.go
    before = cudnn.allow_tf32

    def go(self: Any) -> Outcome:
        seen.append(cudnn.allow_tf32)
        return original(self)

    monkeypatch.setattr(loop._Run, "go", go)
    text = RECIPE.replace('precision = "fp32"', f'precision = "{precision}"')
    run(parse_recipe(text), images, tmp_path / "run", stop_after=1)
    assert (seen, cudnn.allow_tf32, before) == ([allowed], True, True)


def test_initial_weights_must_fit(images: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"conv_1.weight": torch.full((2, 3, 3, 3), float("nan"))}, tmp_path / "nan.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    wanted = {
        "other.pth": "another architecture",
        "text.pth": "is damaged or of another kind",
        "absent.pth": "there is no such file",
        "nan.pth": "not finite",
    }
    for name, message in {**wanted, "text.safetensors": "no whole safetensors"}.items():
        text = RECIPE.replace('init = "scratch"', f'init = "{tmp_path / name}"')
        with pytest.raises((TrainingError, WeightsError), match=message):
            run(parse_recipe(text), images, tmp_path / f"run {name}")


def test_initial_weights_are_read_as_the_networks_are(tmp_path: Path) -> None:
    """Wrappers, the moving average before the rest, and sentences for what cannot be."""
    plain, average = (RLFN(architecture("rlfn-ntire", 2)).state_dict() for _ in range(2))
    prefixed = {f"module.{key}": value for key, value in average.items()}
    for number, content in enumerate(({"params": plain, "params_ema": average}, {"state_dict": prefixed})):
        torch.save(content, tmp_path / f"{number}.pth")
        found = read_weights(tmp_path / f"{number}.pth", 255.0)
        assert found.keys() == average.keys()
        assert all(torch.equal(found[key], value) for key, value in average.items())
    for stated in ("0..1", "0", 0.0, "nan"):
        torch.save({"params": plain, "spec": {"input_range": stated}}, tmp_path / "range.pth")
        with pytest.raises(WeightsError, match="neither 1 nor 255"):
            read_weights(tmp_path / "range.pth", 1.0)
        save_file(plain, tmp_path / "range.safetensors", metadata={"input_range": str(stated)})
        with pytest.raises(WeightsError, match="neither 1 nor 255"):
            read_weights(tmp_path / "range.safetensors", 1.0)
    huge = {**plain, "conv_2.bias": torch.zeros(1).expand(1 << 20, 1 << 20)}
    torch.save(huge, tmp_path / "huge.pth")
    with pytest.raises(WeightsError, match=r"huge.pth: claims \d+ values"):
        read_weights(tmp_path / "huge.pth", 1.0)


def test_initial_weights_may_range_over_what_they_like(images: Path, tmp_path: Path) -> None:
    """The same function from a file in 0..255, as the authors' are: foreign files say nothing of their range."""
    made = run(parse_recipe(RECIPE.replace("ema = 0.9\n", "")), images, tmp_path / "made")
    ours = torch.load(tmp_path / "made" / "weights.pth", weights_only=True)
    ours["params"] = {key: value.contiguous() for key, value in ours["params"].items()}
    foreign = dict(ours["params"])
    foreign["conv_1.weight"] = foreign["conv_1.weight"] / 255
    for name in ("upsampler.0.weight", "upsampler.0.bias"):
        foreign[name] = foreign[name] * 255
    torch.save(foreign, tmp_path / "foreign.pth")
    save_file(foreign, tmp_path / "foreign.safetensors", metadata={"input_range": "255.0"})
    save_file(ours["params"], tmp_path / "ours.safetensors", metadata={"input_range": "1.0"})
    for name in (
        "foreign.pth",
        "foreign.safetensors",
        "ours.safetensors",
        "made/weights.pth",
        "made/checkpoint.pt",
    ):
        found = read_weights(tmp_path / name, 1.0)
        for key, value in ours["params"].items():
            torch.testing.assert_close(found[key], value, msg=f"{name} {key}")
    text = RECIPE.replace('init = "scratch"', f'init = "{tmp_path / "foreign.pth"}"').replace(
        "rate = 1e-3", "rate = 1e-9"
    )
    text = text[: text.rindex("[[stage]]")].replace("ema = 0.9\n", "")
    assert run(parse_recipe(text), images, tmp_path / "again").psnr == pytest.approx(made.psnr, abs=0.01)


def test_an_average_that_is_wished_for_later_begins_with_what_is_there(images: Path, tmp_path: Path) -> None:
    """It began with the random values of a new network, most of which were still in it at the end."""
    plain = RECIPE.replace("ema = 0.9\n", "").replace("rate = 1e-3", "rate = 1e-9")
    assert not run(parse_recipe(plain), images, tmp_path / "run", stop_after=7).finished
    before = checkpoint.load(tmp_path / "run" / "checkpoint.pt").model
    wished = RECIPE.replace("ema = 0.9", "ema = 0.999").replace("rate = 1e-3", "rate = 1e-9")
    assert not run(parse_recipe(wished), images, tmp_path / "run", stop_after=1, resume=True).finished
    average = checkpoint.load(tmp_path / "run" / "checkpoint.pt").ema
    assert average is not None
    for key, value in before.items():
        torch.testing.assert_close(average[key], value, atol=1e-6, rtol=1e-4)


def test_one_folder_is_for_one_run_at_a_time(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with locked(out), pytest.raises(TrainingError, match="another process trains in it"):
        run(parse_recipe(RECIPE), images, out)
    assert list(out.iterdir()) == []
    assert run(parse_recipe(RECIPE), images, out).finished and not (out / ".lock").exists()


def test_other_images_are_told_of(images: Path, tmp_path: Path) -> None:
    assert not run(parse_recipe(RECIPE), images, tmp_path / "run", stop_after=2).finished
    more = write_images(tmp_path / "more" / "images", 6)
    for folder, told in ((images, 0), (more, 1), (more, 0)):
        events: list[TrainEvent] = []
        run(parse_recipe(RECIPE), folder, tmp_path / "run", stop_after=1, events=events, resume=True)
        assert sum("images are others" in e.message for e in events if isinstance(e, Note)) == told


def test_the_recipe_beside_a_run_is_the_one_that_it_goes_on_with(images: Path, tmp_path: Path) -> None:
    assert not run(parse_recipe(RECIPE), images, tmp_path / "run", stop_after=2).finished
    changed = RECIPE.replace("rate = 1e-3", "rate = 2e-3")
    run(parse_recipe(changed), images, tmp_path / "run", stop_after=1, resume=True)
    assert (tmp_path / "run" / "recipe.toml").read_text() == changed


def test_files_of_later_stages_are_looked_for_first(images: Path, tmp_path: Path) -> None:
    text = RECIPE.replace('name = "second"', 'name = "second"\ninit = "absent.pth"')
    with pytest.raises(TrainingError, match=r"stage 2 \(second\): init names absent.pth"):
        run(parse_recipe(text), images, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_deep_grey_photographs_are_what_they_show(tmp_path: Path) -> None:
    """Pillow's own conversion makes white of them."""
    ramp = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(ramp, number)).save(folder / f"{number}.png")
    cache = build_cache(folder, tmp_path / "cache", (2,))
    for number, image in enumerate(cache.open(1)):
        wanted = np.rint(np.roll(ramp, number) / 257.0)
        assert abs(image[..., 1].astype(float) - wanted[: image.shape[0], : image.shape[1]]).max() <= 0.5
    Image.fromarray(ramp.astype(np.int32)).save(folder / "3.tif")
    with pytest.raises(TrainingError, match="samples of 32 bit"):
        build_cache(folder, tmp_path / "cache", (2,))


# ------------------------------------------------------------------- commands


def test_module_command_trains_and_tells_exit_codes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    given = [str(recipe), "--data", str(images), "--cache", str(images.parent / "cache"), "--device", "cpu"]
    assert main([*given, "--out", str(tmp_path / "run"), "--until", "10m"]) == 0
    assert "finished: 30 patches" in capsys.readouterr().err
    assert main([*given, "--out", str(tmp_path / "run")]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert main([*given, "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert main([*given, "--out", str(tmp_path / "other"), "--until", "soon"]) == 2
    assert "no duration" in capsys.readouterr().err


def test_training_runs_where_only_torch_numpy_and_pillow_are(images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.replace("steps = 9", "steps = 2").replace("steps = 6", "steps = 1"))
    blocked = ("av", "cv2", "rich", "typer", "joblib", "safetensors", "natsort", "matplotlib", "torchvision")
    given = [str(recipe), "--data", str(images), "--out", str(tmp_path / "run"), "--device", "cpu"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"from rlfn_pipe.training.__main__ import main; sys.exit(main({given!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "weights.pth").is_file()


@pytest.mark.parametrize(
    ("text", "seconds"), [("25m", 1500), ("90", 90), ("90s", 90), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_two_processes_train_as_one_does(images: Path, tmp_path: Path) -> None:
    """torch's DistributedDataParallel over gloo: the same batches, shared, give the same weights."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.replace("contrastive = 0.1", "charbonnier = 0.1"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "rlfn_pipe.training",
        str(recipe),
        "--data",
        str(images),
        "--threads",
        "1",
    ]
    command += ["--cache", str(images.parent / "cache"), "--device", "cpu", "--out", str(tmp_path / "two")]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(command, env={**common, "RANK": str(n)}, stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    run(load_recipe(recipe), images, tmp_path / "one")
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    # Sums of halves round differently, and Adam's first steps follow the sign of tiny gradients.
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=2e-3)
    logs = [
        [r["loss"] for r in read_log(tmp_path / n / "log.jsonl") if r["kind"] == "train"]
        for n in ("one", "two")
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-2)


@pytest.mark.parametrize("world", [3, 4])
def test_a_batch_that_processes_cannot_share_evenly_is_one_sentence(
    world: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop, "choose_compute", lambda *_: Compute(torch.device("cpu"), torch.float32, 0, world)
    )
    text = RECIPE.replace("batch = 2\npatch = 32", f"batch = {world}\npatch = 32")
    with pytest.raises(TrainingError, match=rf"stage 2 \(second\): {world} processes .* multiple of {world}"):
        run(parse_recipe(text), images, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_speed_of_training_is_a_figure() -> None:
    found = training_speed("rlfn-ntire", 2, batch=1, patch=32, seconds=0.05, device="cpu")
    assert found["naive"] > 0 and found["ours"] > 0
    assert found["ratio"] == pytest.approx(found["ours"] / found["naive"])
    json.dumps(found)


def test_events_are_plain() -> None:
    event: Callable[..., TrainEvent] = Note
    assert describe(event("hello")) == "hello"
