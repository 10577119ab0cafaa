"""`bench`: real measurements, small; figures are checked for sense and against one another, never for speed."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import children_of

from rlfn_pipe.bench import baselines as baselines_module
from rlfn_pipe.bench import machine as machine_module
from rlfn_pipe.bench import pipeline as pipeline_module
from rlfn_pipe.bench import timing as timing_module
from rlfn_pipe.bench.baselines import BASELINES, Subject
from rlfn_pipe.bench.ceilings import Shape, ceiling_roads, shapes
from rlfn_pipe.bench.clip import moving_frames
from rlfn_pipe.bench.clip_file import write_clip
from rlfn_pipe.bench.engine import engine_speed
from rlfn_pipe.bench.machine import Disturbance, Watch
from rlfn_pipe.bench.plain import Wanted, plain_roads
from rlfn_pipe.bench.report import as_data, as_text
from rlfn_pipe.bench.run import PARTS, Settings, measure
from rlfn_pipe.bench.timing import in_turns, repeats
from rlfn_pipe.cli.app import main
from rlfn_pipe.engine.colour import to_rgb
from rlfn_pipe.errors import EngineError, UsageError
from rlfn_pipe.evaluate.complexity import count
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.weights import load
from rlfn_pipe.training import bench as training_bench
from rlfn_pipe.training.bench import training_speed
from rlfn_pipe.types import ModelSpec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of frames on one core is enough to see that every road is taken."""
    monkeypatch.setattr(pipeline_module, "_RUN_SECONDS", 0.05)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)


def subject(precision: str = "fp32") -> Subject:
    """A small RLFN with random weights, at its smallest useful size."""
    torch.manual_seed(0)
    module = RLFN(ModelSpec("small", 2, 8, 8, 1, esa_channels=4, input_range=255.0)).eval()
    return Subject(module, 24, 32, CPU, precision, 1)


# ------------------------------------------------------------------ timing


def test_roads_take_turns_and_the_first_round_is_not_counted() -> None:
    taken: list[str] = []
    times = in_turns({"a": lambda: taken.append("a"), "b": lambda: taken.append("b")}, 2, CPU)
    assert "".join(taken) == "ababab"
    assert [len(times[name].wall) for name in "ab"] == [2, 2]
    assert times["a"].ms > 0 and times["a"].spread >= 1


def test_repeats_are_bounded() -> None:
    assert repeats(lambda: None, CPU, seconds=10, most=5) == 5
    assert repeats(lambda: None, CPU, seconds=0, most=5) == 1


def test_a_slice_is_filled_and_one_pass_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(timing_module, "repeats", lambda *road, **how: 7)
    monkeypatch.setattr(timing_module, "timed", lambda road, device: (road(), (0.7, 1.4))[1])
    times = in_turns({"a": lambda: taken.append(1)}, 2, CPU, seconds=1.0)
    assert len(taken) == 2 * 7
    assert (times["a"].ms, times["a"].cpu_ms) == pytest.approx((100.0, 200.0))


def test_parts_of_the_engine_are_times_of_one_pass() -> None:
    speed = engine_speed("rlfn-s", size=(32, 24), baselines=("official",), rounds=1)
    # Many passes fill a road at this size; as long as all of them a part would be a multiple of the whole.
    assert speed.run_frames > 2 and 0 < speed.colour_up_ms < speed.engine_ms
    assert 0 < speed.network_ms < 5 * speed.engine_ms


# ---------------------------------------------------------------- ceilings


def test_ceilings_count_useful_operations_only() -> None:
    assert Shape(64, 52, 10, 20, 3).operations == 2 * 9 * 52 * 52 * 10 * 20 * 3
    assert str(Shape(64, 52, 10, 20, 1)) == "52 channels padded to 64, 20x10"


def test_ceilings_try_padded_channels_and_the_frame_size() -> None:
    spec = load("rlfn-s", 4)[0]
    found = shapes(spec, (32, 24), CPU)
    assert {shape.useful for shape in found} == {max(spec.channels, spec.mid_channels)}
    assert {(shape.height, shape.width) for shape in found} == {(24, 32), (96, 96)}


def test_ceilings_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlfn_pipe.bench.ceilings._MATRIX", {"cpu": 32})
    monkeypatch.setattr("rlfn_pipe.bench.ceilings._COPY_BYTES", {"cpu": 1 << 16})
    roads = ceiling_roads(load("rlfn-s", 4)[0], (32, 24), CPU, "fp32", torch.float32)
    assert set(roads.roads) == {"convolution", "matrix", "copy"}
    assert roads.work["convolution"] % roads.shape.operations == 0
    assert roads.work["matrix"] % (2 * 32**3) == 0 and roads.work["copy"] % (2 << 16) == 0
    found = roads.ceilings({"convolution": 1.0, "matrix": 2.0, "copy": 4.0})
    assert found.convolution_tflops == pytest.approx(roads.work["convolution"] / 1e-3 / 1e12)
    assert found.matrix_tflops == pytest.approx(roads.work["matrix"] / 2e-3 / 1e12)
    assert found.copy_gb_s == pytest.approx(roads.work["copy"] / 4e-3 / 1e9)


# --------------------------------------------------------------- baselines


def test_a_road_elsewhere_is_asked_for_its_passes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for each takes as long as a tenth of a small convolution."""
    asked: list[int] = []

    class There:
        def __call__(self) -> None:
            self.passes(1)

        def passes(self, count: int) -> None:
            asked.append(count)

    monkeypatch.setattr(timing_module, "repeats", lambda *road, **how: 7)
    in_turns({"there": There()}, 2, CPU, seconds=1.0)
    assert asked == [7, 7]


def test_roads_on_the_cpu_are_passed_in_a_process_that_keeps_its_memory() -> None:
    """The ceilings of the engine's process, which maps large buffers anew, would be half of what the machine can do."""
    wanted, before = Wanted("rlfn-s", 4, (32, 24), "cpu", "fp32", 1, ("official",)), children_of(os.getpid())
    with plain_roads(wanted) as plain:
        assert set(plain.roads) == {"baseline official", "convolution", "matrix", "copy"}
        assert [(one.name, one.road, one.refused) for one in plain.baselines] == [("official", None, None)]
        for road in plain.roads.values():
            road()
        (worker,) = children_of(os.getpid()) - before
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(EngineError, match="was ended by SIGKILL"):
            plain.roads["copy"]()
    assert not children_of(os.getpid()) - before
    with (
        pytest.raises(UsageError, match="no weights are called"),
        plain_roads(replace(wanted, model="unheard-of")),
    ):
        pass


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_computes_the_network_or_is_refused_in_a_sentence(name: str) -> None:
    small = subject("bf16")
    baseline = BASELINES[name](small)
    if baseline.refused is not None:
        assert baseline.road is None and " " in baseline.refused and "\n" not in baseline.refused
        return
    assert baseline.road is not None
    with torch.inference_mode():
        expected = small.module(small.picture())
    found = baseline.road().float()
    error = (found - expected).abs().max() / expected.abs().max()
    assert found.shape == expected.shape
    # bf16 keeps 8 significant bits.
    assert error < (1e-5 if baseline.precision == "fp32" else 0.03)
    assert baseline.precision == ("fp32" if name == "official" else "bf16")


def test_a_picture_is_always_the_same_and_in_the_networks_range() -> None:
    small = subject()
    assert torch.equal(small.picture(), small.picture())
    assert 200 < float(small.picture().max()) <= 255


def test_compile_is_refused_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "C++ compiler" in (BASELINES["compile"](subject()).refused or "")


def test_compile_is_refused_with_a_broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    assert "C++ compiler" in (BASELINES["compile"](subject()).refused or "")


def test_openvino_is_refused_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines_module.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in (BASELINES["openvino"](subject()).refused or "")


# ------------------------------------------------------------------ engine


def test_engine_figures_belong_together() -> None:
    speed = engine_speed(size=(48, 32), rounds=2, threads=1)
    assert (speed.width, speed.height, speed.scale, speed.rounds) == (48, 32, 4, 2)
    times = (speed.engine_ms, speed.network_ms, speed.colour_up_ms, speed.colour_down_ms)
    assert min(times) > 0
    assert speed.gflop == pytest.approx(2e-9 * count(load("rlfn-s", 4)[1], 32, 48).macs)
    data = as_data(speed)
    assert data["tflops"] == pytest.approx(data["gflop"] * 1e9 / (data["engine_ms"] * 1e-3) / 1e12)
    assert data["convolution_share"] == pytest.approx(data["tflops"] / data["convolution_tflops"])
    assert data["ratio_official"] == pytest.approx(data["official_ms"] / data["engine_ms"])
    assert data["fps"] == pytest.approx(1e3 / data["engine_ms"])
    assert data["refused"] == {}


def test_engine_time_is_a_frame_whatever_a_run_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of many frames is divided by their number: counted by the engine itself."""
    from rlfn_pipe.engine.runner import Engine

    runs: list[int] = []
    original = Engine.run

    def counting(self: Engine, work: object) -> object:
        frames = list(original(self, work))  # type: ignore[arg-type]
        runs.append(len(frames))
        return iter(frames)

    monkeypatch.setattr(Engine, "run", counting)
    speed = engine_speed(size=(32, 24), rounds=2, threads=1, baselines=())
    # Two runs of two frames settle the length, then a warm-up and the rounds.
    assert runs[-3:] == [speed.run_frames] * 3 and speed.run_frames >= 2
    assert speed.baselines == ()


# -------------------------------------------------------------------- clip


def test_the_made_up_clip_moves_everywhere_and_stays_in_the_colour_cube() -> None:
    frames = list(moving_frames(64, 48, 3))
    assert [frame.index for frame in frames] == [0, 1, 2]
    for before, after in pairwise(frames):
        changed = before.planes[0] != after.planes[0]
        blocks = changed.reshape(6, 8, 8, 8).any(axis=(1, 3))
        assert blocks.all()
    rgb = torch.stack([to_rgb(frame, CPU) for frame in frames])
    assert float(rgb.min()) >= 0 and float(rgb.max()) <= 255
    assert np.array_equal(frames[1].planes[0], list(moving_frames(64, 48, 3))[1].planes[0])


def test_a_written_clip_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    assert write_clip(path, moving_frames(64, 48, 5)) == 5
    with VideoSource(path) as source:
        frames = list(source)
        assert source.timeline.rate == 25
    assert len(frames) == 5
    first = next(moving_frames(64, 48, 5))
    assert float(np.abs(frames[0].planes[0].astype(int) - first.planes[0].astype(int)).mean()) < 4


# ----------------------------------------------------------------- machine


@pytest.mark.parametrize(
    ("disturbance", "words"),
    [
        (Disturbance(0.1, 0.01, 0.0, 2), []),
        (Disturbance(0.1, 0.5, 0.0, 2), ["other programs"]),
        (Disturbance(0.1, 0.5, 9.0, 2), ["other programs", "hypervisor"]),
        (Disturbance(1.5, None, None, 2), ["load average"]),
        (Disturbance(None, None, None, 2), []),
    ],
)
def test_what_disturbs_is_said(disturbance: Disturbance, words: list[str]) -> None:
    found = disturbance.warnings()
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")
def test_the_watch_tells_others_from_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 1000 0 0 0 0 0 0\n")
    monkeypatch.setattr(machine_module, "_STAT", stat)
    own, now = iter([5.0, 7.0, 9.0]), iter([0.0, 10.0, 20.0])
    mine = [os.cpu_count()]
    monkeypatch.setattr(machine_module, "cores", lambda: mine[0])
    monkeypatch.setattr(machine_module, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(machine_module.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(machine_module.os, "sysconf", lambda name: 100)
    watch = Watch()
    stat.write_text("cpu  400 0 300 1400 0 0 0 100 0 0\n")  # 5 s busy, 2 s of them ours; 1 of 10 s stolen
    found = watch.disturbance()
    assert found.others_cores == pytest.approx(0.3)
    assert found.steal_percent == pytest.approx(10.0)
    # Of a container's few cores the machine's figures say nothing.
    mine[0] = 0
    assert watch.disturbance().others_cores is None


# --------------------------------------------------------------- the whole


def test_all_parts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [argument for part in PARTS for argument in ("--part", part)]
    assert main(["bench", "--size", "32x24", "--size", "24x32", "--rounds", "1", "--json", *parts]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["event"] for row in rows] == [
        "machine",
        "ceilings",
        "engine",
        "ceilings",
        "engine",
        "pipeline",
        "disturbance",
    ]
    assert [(row["width"], row["height"]) for row in rows if row["event"] == "engine"] == [(32, 24), (24, 32)]
    pipeline = rows[5]
    assert (pipeline["width"], pipeline["height"]) == (32, 24)
    stages = ("decode", "compute", "encode")
    assert all(pipeline[f"{stage}_ms"] > 0 for stage in stages)
    summed = sum(pipeline[f"{stage}_cpu_ms"] for stage in stages)
    slowest = max(pipeline[f"{stage}_ms"] for stage in stages)
    assert pipeline["bound_fps"] == pytest.approx(1e3 / max(summed / pipeline["cores"], slowest))
    assert pipeline["efficiency"] == pytest.approx(pipeline["fps"] / pipeline["bound_fps"])
    assert pipeline["limit"] in stages


def test_a_clip_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "own.mp4"
    write_clip(path, moving_frames(48, 32, 9))
    assert main(["bench", "--part", "pipeline", "--clip", str(path), "--rounds", "1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert (row["clip"], row["width"], row["height"]) == (str(path), 48, 32)
    assert 6 <= row["frames"] <= 9


def test_text_puts_the_ratios_first() -> None:
    speed = engine_speed(size=(32, 24), rounds=1, threads=1)
    lines = as_text(speed)
    assert f"{speed.baselines[0].ratio:.2f}x as fast as official" in " ".join(lines[1].split())
    assert f"{speed.convolution_share:.2f}" in lines[2]
    assert any("ms a frame" in line for line in lines[3:])


def test_a_refused_baseline_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")  # the baselines' own process has it, too
    settings = Settings(sizes=((32, 24),), parts=("engine",), baselines=("compile", "official"), rounds=1)
    speed = list(measure(settings))[1]
    data = as_data(speed)
    assert data["ratio_official"] > 0 and "ratio_compile" not in data
    assert "compile" in data["refused"] and "left out" in " ".join(as_text(speed))


def test_bench_training_compares_with_the_naive_loop(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_bench, "training_speed", partial(training_speed, batch=2, patch=64))
    assert main(["bench", "--training", "--seconds", "1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["ours"] > 0 and row["ratio"] == pytest.approx(row["ours"] / row["naive"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "0x5"],
        ["-m", "nosuch"],
        ["--part", "nosuch"],
        ["--baseline", "nosuch"],
        ["--scale", "2.5"],
        ["--rounds", "0"],
    ],
)
def test_wrong_options_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err and output.out == ""


def test_a_missing_clip_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing.mp4"
    assert main(["bench", "--part", "pipeline", "--clip", str(missing), "--json"]) == 1
    assert "missing.mp4" in capsys.readouterr().err


def test_settings_name_what_is_known() -> None:
    with pytest.raises(UsageError, match="ceilings, engine, pipeline"):
        Settings(parts=("all",))


def test_a_clip_that_cannot_be_read_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlfn_pipe.bench import run

    monkeypatch.setattr(run, "build_engine", lambda *_: pytest.fail("measured"))
    (tmp_path / "text.mp4").write_text("no film")
    for name in ("missing.mp4", "text.mp4"):
        assert main(["bench", "--clip", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err
