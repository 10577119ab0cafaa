"""From a run to a file that ships: the index, the figures, the choice on held-back photographs."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import RECIPE, picture, write_images

from rlfn_pipe.models import registry, weights
from rlfn_pipe.resources import data_path
from rlfn_pipe.training import checkpoint, compare, publish, report
from rlfn_pipe.training.loop import train
from rlfn_pipe.training.recipe import parse_recipe
from rlfn_pipe.training.start import RunOptions

SHIPPED = data_path("weights") / "rlfn-s-x2.safetensors"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` to train on, sets `small` and `guard`, runs `first` (what ships) and `raw` (random)."""
    folder = tmp_path_factory.mktemp("publish")
    write_images(folder / "images")
    for name, seeds in (("small", (11, 12)), ("guard", (13,))):
        (folder / name).mkdir()
        for seed in seeds:
            picture(seed, 60, 48).save(folder / name / f"p{seed}.png")
    for name, init in (("first", SHIPPED.as_posix()), ("raw", "scratch")):
        text = RECIPE.split("[[stage]]")[0].replace("rlfn-ntire", "rlfn-s")
        text += f'[[stage]]\nname = "only"\ninit = "{init}"\nsteps = 3\nbatch = 2\npatch = 32\n'
        recipe = parse_recipe(
            text.replace('"test"', f'"ours-{name}"') + 'rate = 1e-12\nschedule = "constant"\n'
        )
        train(recipe, RunOptions(folder / "images", folder / name, folder / "cache", device="cpu", threads=1))
    return folder


def call(folder: Path, run: str, to: Path, *more: str) -> int:
    sets = ["--test", str(folder / "small"), "--guard", str(folder / "guard")]
    return publish.main([str(folder / run), *sets, "--to", str(to), "--data", "made up", *more])


def test_a_run_becomes_a_file_that_can_be_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, end = "<!-- table: made by rlfn_pipe.training.publish -->", "<!-- end of the table -->"
    (tmp_path / "README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert call(folder, "first", tmp_path, "--before", str(folder / "raw")) == 0, capsys.readouterr().err
    (spec,) = registry.models(tmp_path)
    registry.verify(spec)
    loaded, module = weights.load_file(tmp_path / "rlfn-s-x2.safetensors")
    shipped = weights.load_file(SHIPPED)[1].state_dict()
    assert all(torch.allclose(v, shipped[k], rtol=0, atol=1e-7) for k, v in module.state_dict().items())
    assert (spec.name, spec.scale, loaded.input_range, list(spec.psnr)) == ("rlfn-s", 2, 1.0, ["small"])

    (row,) = tomllib.loads((tmp_path / "index.toml").read_text())["weights"]
    assert [each["recipe"] for each in row["history"]] == ["ours-raw", "ours-first"]
    assert (row["steps"], row["patches_seen"], row["data"]) == (6, 12, "made up")
    assert row["paper_psnr"] == {"Set5": 38.05, "Set14": 33.63, "BSD100": 32.21}
    figures = tomllib.loads((tmp_path / "figures.toml").read_text())["rlfn-s-x2.safetensors"]
    assert {name: list(values) for name, values in figures.items()} == {
        "small": ["p11", "p12"],
        "guard": ["p13"],
    }
    assert np.mean(list(figures["small"].values())) == pytest.approx(row["psnr"]["small"], abs=2e-3)
    readme = (tmp_path / "README.md").read_text()
    assert "old" not in readme and readme.startswith("before") and readme.endswith("after\n")
    assert f"| `rlfn-s` x2 | 454,620 | {row['psnr']['small']:.2f} / " in readme


def test_publishing_twice_replaces_one_row_and_keeps_the_others(folder: Path, tmp_path: Path) -> None:
    assert call(folder, "first", tmp_path) == 0
    index = tmp_path / "index.toml"
    other = index.read_text().replace("scale = 2", "scale = 3").replace("-x2.", "-x3.")
    index.write_text(index.read_text() + other.partition("\n")[2])
    assert call(folder, "first", tmp_path, "--note", 'a "second" sitting') == 0
    rows = tomllib.loads(index.read_text())["weights"]
    assert [(row["scale"], row["note"]) for row in rows] == [(2, 'a "second" sitting'), (3, "")]
    assert [len(row["history"]) for row in rows] == [1, 1]


def test_steps_are_those_of_the_checkpoint_whatever_the_log_lacks(folder: Path, tmp_path: Path) -> None:
    """A run that was killed may leave half a line, and lines of steps that are not in its weights."""
    shutil.copytree(folder / "first", tmp_path / "first")
    state = checkpoint.load(tmp_path / "first" / "checkpoint.pt")
    state.stage, state.step = 1, 2
    checkpoint.save(tmp_path / "first" / "checkpoint.pt", state)
    with (tmp_path / "first" / "log.jsonl").open("a") as out:
        out.write('{"kind": "train", "stage": 1, "step": 4}\n{"kind": "train", "sta')
    assert publish._sitting(tmp_path / "first")["steps"] == 3 + 2


def test_history_goes_on_from_weights_of_the_index(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, "first", tmp_path) == 0
    assert call(folder, "first", tmp_path, "--before", "rlfn-s-x2") == 0
    (row,) = tomllib.loads((tmp_path / "index.toml").read_text())["weights"]
    assert ([each["recipe"] for each in row["history"]], row["steps"]) == (["ours-first"] * 2, 6)
    assert call(folder, "first", tmp_path, "--before", "rlfn-s-x5") == 1
    assert "rlfn-s-x5 is neither the folder of a run nor among the weights" in capsys.readouterr().err


def test_weights_that_lose_to_bicubic_are_not_published(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, "raw", tmp_path) == 1
    assert re.search(r"give -?[\d.]+ dB on small/p11 and bicubic interpolation", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.main([str(tmp_path), "--to", str(tmp_path)]) == 1
    assert "holds no checkpoint.pt" in capsys.readouterr().err


def test_comparison_on_held_back_photographs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint and the file that it began with are equal; a random network is far below."""
    files = [SHIPPED, folder / "first" / "checkpoint.pt", folder / "raw" / "weights.pth"]
    same, again, raw = compare.compare(files, folder / "images", folder / "cache", crop=96, held_back=0.4)
    assert len(same) == 2
    np.testing.assert_allclose(again, same, atol=1e-3)
    assert (raw < same - 3).all()
    command = [*map(str, files[::2]), "--data", str(folder / "images"), "--cache", str(folder / "cache")]
    assert compare.main([*command, "--crop", "96", "--held-back", "0.4"]) == 0
    assert "better on 0 of 2" in capsys.readouterr().out.splitlines()[1]
    other = data_path("weights") / "rlfn-s-x3.safetensors"
    assert compare.main([str(SHIPPED), str(other), *command[2:]]) == 1
    assert "compare weights of our own training of one scale" in capsys.readouterr().err


def test_curves_of_sittings_in_a_row(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    joined = report._joined([folder / "raw", folder / "first"])
    assert [r["images"] for r in joined if r["kind"] == "train"] == [6, 12]
    target = tmp_path / "curves.png"
    assert report.main([str(folder / "raw"), str(folder / "first"), "--to", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert report.main([str(tmp_path)]) == 1
    assert "has no log to draw" in capsys.readouterr().err
