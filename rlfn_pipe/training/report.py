"""What a run came to: curves as a picture, and a Markdown report.

`python -m rlfn_pipe.training.report RUN [RUN ...] --to CURVES.png` draws the sittings of one network in a row.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from rlfn_pipe.errors import RlfnPipeError, TrainingError
from rlfn_pipe.training import checkpoint
from rlfn_pipe.training.log import read_log
from rlfn_pipe.training.recipe import parse_recipe
from rlfn_pipe.training.start import CHECKPOINT, LOG


def write_curves(run: Path, target: Path | None = None, earlier: tuple[Path, ...] = ()) -> Path:
    """Draw loss, validation PSNR and rate over the patches seen; returns the PNG (`curves.png`).

    The runs `earlier`, oldest first, are drawn before it, as sittings of the same network. Raises
    TrainingError without matplotlib (the extra `report`) or without a log.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise TrainingError(
            'curves need matplotlib; pip install "rlfn-pipe[report]", or do without'
        ) from error
    records = _joined([*earlier, run])
    steps = [record for record in records if record["kind"] == "train"]
    checks = [record for record in records if record["kind"] == "validation"]
    if not steps:
        raise TrainingError(f"{run}: has no log to draw; give the folder of a run that has trained")
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 9), sharex=True, layout="constrained")
    axes[0].plot([r["images"] for r in steps], [r["loss"] for r in steps], linewidth=0.8)
    axes[0].set(ylabel="loss", yscale="log")
    axes[1].plot([r["images"] for r in checks], [r["psnr"] for r in checks], marker=".")
    axes[1].set(ylabel="validation PSNR-Y in dB")
    axes[2].plot([r["images"] for r in steps], [r["rate"] for r in steps])
    axes[2].set(ylabel="learning rate", xlabel="patches seen")
    for before, after in itertools.pairwise(steps):
        if before["stage"] != after["stage"]:
            for axis in axes:
                axis.axvline(after["images"], color="grey", linewidth=0.6, linestyle="--")
    for axis in axes:
        axis.grid(alpha=0.3)
    target = target or run / "curves.png"
    try:
        figure.savefig(target, dpi=110)
    except OSError as error:
        raise TrainingError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        pyplot.close(figure)
    return target


def _joined(runs: list[Path]) -> list[dict[str, Any]]:
    """The logs of sittings in a row: patches counted on, stages by (sitting, stage)."""
    joined: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        seen = joined[-1]["images"] if joined else 0
        for record in read_log(run / LOG):
            joined.append({**record, "images": record["images"] + seen, "stage": (number, record["stage"])})
    return joined


def write_report(run: Path) -> Path:
    """Write `report.md` into the run's folder and return its path.

    Recipe, where the run stands, a row per stage, every validation. Raises TrainingError
    without a checkpoint.
    """
    state = checkpoint.load(run / CHECKPOINT)
    recipe = parse_recipe(state.recipe, state.recipe_name)
    records = read_log(run / LOG)
    standing = "finished" if state.finished else f"in stage {state.stage + 1}, step {state.step}"
    lines = [
        f"# {recipe.name}",
        "",
        f"{recipe.model.name} x{recipe.model.scale}, {standing}: {state.images:,} patches in"
        f" {state.seconds / 3600:.2f} hours on {state.device or 'an unknown device'};"
        f" best validation {state.best_psnr:.3f} dB PSNR-Y.",
        "",
        "| stage | steps | patches | hours | batch | HR patch | first loss | last loss | validation in dB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    seen, spent = 0, 0.0
    for number, stage in enumerate(recipe.stages):
        rows = [r for r in records if r["stage"] == number]
        trained = [r for r in rows if r["kind"] == "train"]
        if not trained:
            continue
        last = trained[-1]
        lines.append(
            f"| {number + 1} {stage.name} | {last['step']:,} | {last['images'] - seen:,}"
            f" | {(last['seconds'] - spent) / 3600:.2f} | {stage.batch} | {stage.patch}"
            f" | {trained[0]['loss']:.5f} | {last['loss']:.5f} | {_last_psnr(rows)} |"
        )
        seen, spent = last["images"], last["seconds"]
    if state.rollbacks:
        lines += [
            "",
            f"Rolled back {state.rollbacks} times in this stage for a loss or a network that was not finite.",
        ]
    if (run / "curves.png").is_file():
        lines += ["", "![loss, validation PSNR and rate over the patches seen](curves.png)"]
    lines += ["", "## Recipe", "", "```toml", state.recipe.strip(), "```", ""]
    target = run / "report.md"
    try:
        target.write_text("\n".join(lines), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


def _last_psnr(rows: list[dict[str, Any]]) -> str:
    found = [r["psnr"] for r in rows if r["kind"] == "validation"]
    return f"{found[-1]:.3f}" if found else ""


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m rlfn_pipe.training.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, oldest first")
    parser.add_argument("--to", type=Path, help="the picture (default: curves.png in the last run's folder)")
    given = parser.parse_args(arguments)
    try:
        target = write_curves(given.runs[-1], given.to, tuple(given.runs[:-1]))
    except RlfnPipeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
