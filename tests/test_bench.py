"""`bench`: real measurements, small; figures are checked for sense, never for speed."""

from __future__ import annotations

import json

import pytest

from rlfn_pipe.bench import engine_speed
from rlfn_pipe.cli.app import main


def test_engine_speed_measures_every_road() -> None:
    speed = engine_speed(size=(48, 32), rounds=2, threads=1)
    assert (speed.width, speed.height, speed.scale, speed.rounds) == (48, 32, 4, 2)
    assert min(speed.engine_ms, speed.plain_fp32_ms, speed.plain_short_ms) > 0
    assert speed.ratio_fp32 == pytest.approx(speed.plain_fp32_ms / speed.engine_ms)


def test_bench_prints_one_json_object_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--size", "32x24", "--size", "24x32", "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["event"], row["width"], row["height"]) for row in rows] == [
        ("engine", 32, 24),
        ("engine", 24, 32),
    ]
    assert all(row["ratio_fp32"] > 0 for row in rows)


def test_bench_training_compares_with_the_naive_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--training", "--seconds", "1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["ours"] > 0 and row["ratio"] == pytest.approx(row["ours"] / row["naive"])


def test_wrong_size_and_model_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--size", "0x5"]) == 2
    assert main(["bench", "-m", "nosuch"]) == 2
    assert "Traceback" not in capsys.readouterr().err
