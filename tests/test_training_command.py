"""`rlfn-pipe train`: events drawn, report written, exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_helpers import RECIPE, write_images

from rlfn_pipe.cli import train as command
from rlfn_pipe.cli.app import main
from rlfn_pipe.cli.views import BarView
from rlfn_pipe.training.events import Progress


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def arguments(images: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "r.toml").write_text(RECIPE)
    given = [str(tmp_path / "r.toml"), "--data", str(images), "--cache", str(images.parent / "cache")]
    return ["train", *given, "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "run")]


def test_a_run_by_the_command_ends_with_a_report(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"progress", "validated", "outcome"} <= {line["event"] for line in lines}
    assert lines[-1]["finished"] is True
    assert "| 1 first | 9 |" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    curves = tmp_path / "run" / "curves.png"
    assert curves.is_file() or any("matplotlib" in note for note in lines[-1]["notes"])
    assert main(arguments) == 1
    assert "already holds a run" in capsys.readouterr().err


def test_only_the_leading_process_writes_the_report(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main([*arguments, "--json", "--tensorboard"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_plain_lines_go_to_standard_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--until", "0.001s"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "paused" in said.err
    assert main([*arguments, "--resume", "-q"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "no-such-recipe", "--data", "."]) == 2
    assert "paper-rlfn-x4" in capsys.readouterr().err
    assert main([*arguments, "--json", "-q"]) == 2
    assert main(["train", "smoke", "--data", "/no/such/folder", "--out", arguments[-1]]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_tensorboard_is_written_or_its_absence_said(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*arguments, "--tensorboard"])
    if code == 0:
        assert list((tmp_path / "run" / "tensorboard").iterdir())
    else:
        assert code == 1 and "rlfn-pipe[tensorboard]" in capsys.readouterr().err


def test_bar_shows_loss_speed_and_time_left() -> None:
    from rich.console import Console

    out = io.StringIO()
    view = BarView(Console(file=out, force_terminal=True, width=140))
    bar = command._Bar(view, "recipe")
    bar.update(Progress(0, "first", 5, 10, 0.5, 80, 4.0, 0.0312, 1e-3, 20.0, 4.0), 28.5)
    view._bars.refresh()
    view.close()
    for part in ("recipe, stage 1 first", "loss 0.03120", "28.50 dB", "20 patches/s", "4.0 s left"):
        assert part in out.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_saves_and_leaves_with_130(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("steps = 9", "steps = 5000"))
    process = subprocess.Popen(
        [sys.executable, "-m", "rlfn_pipe", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step 6 " in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    process.stderr.close()
    assert "--resume" in rest and "Traceback" not in rest
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def test_a_folder_does_not_stand_before_a_recipe_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()
    assert main(["train", "smoke", "--data", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
