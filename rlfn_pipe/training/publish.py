"""Turn a run's weights into a file that ships: safetensors, a row of the index, the table.

`python -m rlfn_pipe.training.publish RUN --test DIR [--test DIR ...] [--guard DIR] [--before RUN ...]`

Besides the index, `figures.toml` gets the PSNR of single pictures, which a test compares with.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlfn_pipe.errors import RlfnPipeError, TrainingError
from rlfn_pipe.evaluate.datasets import find_sets, read_pair
from rlfn_pipe.evaluate.metrics import psnr_y
from rlfn_pipe.evaluate.report import SetResult
from rlfn_pipe.evaluate.resize import upscale
from rlfn_pipe.evaluate.run import evaluate
from rlfn_pipe.files import write_atomically
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.registry import INDEX
from rlfn_pipe.models.rlfn import RLFN, count_parameters
from rlfn_pipe.models.weights import save
from rlfn_pipe.resources import data_path
from rlfn_pipe.training import checkpoint
from rlfn_pipe.training.checkpoint import State
from rlfn_pipe.training.log import read_log
from rlfn_pipe.training.recipe import parse_recipe
from rlfn_pipe.training.start import CHECKPOINT, LOG

LICENCE = "Apache-2.0"
FIGURES = "figures.toml"
#: Sets of more pictures than this are entered as a mean only.
_MOST_SINGLE = 20
#: PSNR-Y in dB and SSIM of the authors' files by this project's protocol, which agree with the paper's table
#: to 0.01 dB. The paper has no x3.
PAPER: dict[tuple[str, int], dict[str, tuple[float, float]]] = {
    ("rlfn", 2): {"Set5": (38.07, 0.9607), "Set14": (33.73, 0.9193), "BSD100": (32.24, 0.9004)},
    ("rlfn", 4): {"Set5": (32.24, 0.8953), "Set14": (28.62, 0.7815), "BSD100": (27.61, 0.7364)},
    ("rlfn-s", 2): {"Set5": (38.05, 0.9607), "Set14": (33.63, 0.9174), "BSD100": (32.21, 0.8999)},
    ("rlfn-s", 4): {"Set5": (32.24, 0.8954), "Set14": (28.63, 0.7817), "BSD100": (27.58, 0.7360)},
    ("rlfn-ntire", 4): {"Set5": (32.10, 0.8939), "Set14": (28.60, 0.7815), "BSD100": (27.58, 0.7359)},
}
_TABLE_BEGIN, _TABLE_END = "<!-- table: made by rlfn_pipe.training.publish -->", "<!-- end of the table -->"


def publish(
    run: Path,
    tests: list[Path],
    folder: Path,
    data: str,
    note: str = "",
    before: tuple[Path | str, ...] = (),
    guard: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """Write the weights of `run` into `folder`, measure them on `tests`, and enter both in the index.

    `data` says in a sentence what it was trained on. `before`: the runs whose weights `run` began with, and
    theirs, oldest first, each a folder or the name of weights in the index (`rlfn-s-x4`: with all that came
    before them); steps, patches and hours are summed over all. `guard`: further folders of pictures
    whose PSNR is entered one by one, as that of small sets in `tests` is. Returns the index row. Raises
    TrainingError for a run without a checkpoint and for weights that lose to bicubic interpolation on any
    picture (nothing is written then), OutputError when `folder` cannot be written.
    """
    state = checkpoint.load(run / CHECKPOINT)
    recipe = parse_recipe(state.recipe, state.recipe_name)
    spec = replace(architecture(recipe.model.name, recipe.model.scale), licence=LICENCE)
    module = RLFN(spec)
    module.load_state_dict(state.ema or state.model)
    module.eval()
    spec = replace(spec, parameters=count_parameters(module))
    file = f"{spec.name}-x{spec.scale}.safetensors"
    measured, guarded = (
        [r for test in group for r in evaluate((spec, module), test, scale=spec.scale).sets]
        for group in (tests, guard)
    )
    results = [*measured, *guarded]
    _refuse_losers(run, results, (*tests, *guard), spec.scale)
    history = [sitting for each in before for sitting in _history(each, folder)] + [_sitting(run)]
    notes = {"recipe": recipe.name, "images_seen": str(state.images)}
    digest = save(folder / file, module, spec, notes)
    paper = PAPER.get((recipe.model.name, spec.scale), {})
    row: dict[str, Any] = {
        "name": spec.name,
        "network": recipe.model.name,
        "scale": spec.scale,
        "file": file,
        "sha256": digest,
        "licence": LICENCE,
        "input_range": 1.0,
        "parameters": spec.parameters,
        "recipe": f"presets/training/{recipe.name}.toml",
        "data": data,
        "stage": f"{state.stage + 1} of {len(recipe.stages)}" + ("" if state.finished else ", interrupted"),
        "steps": sum(each["steps"] for each in history),
        "patches_seen": sum(each["patches"] for each in history),
        "device": state.device,
        "device_hours": round(sum(each["device_hours"] for each in history), 2),
        "validation_psnr": round(state.psnr, 3),
        "note": note,
        "psnr": {r.name: round(r.psnr_y, 3) for r in measured},
        "ssim": {r.name: round(r.ssim_y, 4) for r in measured},
        "paper_psnr": {name: psnr for name, (psnr, _) in paper.items()},
        "paper_ssim": {name: ssim for name, (_, ssim) in paper.items()},
        "history": history,
    }
    _enter(folder, row)
    _enter_figures(folder, file, [r for r in results if len(r.images) <= _MOST_SINGLE])
    return row


def _refuse_losers(run: Path, results: list[SetResult], folders: tuple[Path, ...], scale: int) -> None:
    """TrainingError when bicubic interpolation is better on any picture of `results`, measured in `folders`."""
    sets = [each for folder in folders for each in find_sets(folder, scale)]
    for result, pictures in zip(results, sets, strict=True):
        for ours, pair in zip(result.images, pictures.pairs, strict=True):
            low, high = read_pair(pair, scale)
            bicubic = psnr_y(upscale(low, scale), high, scale)
            if ours.psnr_y < bicubic:
                raise TrainingError(
                    f"{run}: its weights give {ours.psnr_y:.2f} dB on {result.name}/{ours.name} and bicubic"
                    f" interpolation {bicubic:.2f}; train on before you publish"
                )


def _history(before: Path | str, folder: Path) -> list[dict[str, Any]]:
    """The sittings of a run's folder, or of weights that the index of `folder` has. TrainingError for neither."""
    if Path(before).is_dir():
        return [_sitting(Path(before))]
    for row in _rows(folder):
        if f"{row['name']}-x{row['scale']}" == str(before):
            history: list[dict[str, Any]] = row["history"]
            return history
    raise TrainingError(f"{before} is neither the folder of a run nor among the weights of {folder / INDEX}")


def _sitting(run: Path) -> dict[str, Any]:
    """What one run adds to a network's history."""
    state = checkpoint.load(run / CHECKPOINT)
    return {
        "recipe": state.recipe_name,
        "steps": _steps(run, state),
        "patches": state.images,
        "device": state.device,
        "device_hours": round(state.seconds / 3600, 2),
    }


def _steps(run: Path, state: State) -> int:
    """Updates over all stages: of the last one from the checkpoint, of those before from the log."""
    last = {record["stage"]: record["step"] for record in read_log(run / LOG)}
    return sum(step for stage, step in last.items() if stage < state.stage) + state.step


def _enter(folder: Path, row: dict[str, Any]) -> None:
    """Put `row` in place of the one with its name and scale, and renew the table of the README."""
    index = folder / INDEX
    key = (row["name"], row["scale"])
    rows = sorted(
        [r for r in _rows(folder) if (r["name"], r["scale"]) != key] + [row],
        key=lambda r: (r["name"], r["scale"]),
    )
    text = "# The weights that ship. Written by rlfn_pipe.training.publish; the README beside it explains.\n"
    for each in rows:
        text += "\n[[weights]]\n" + _lines({k: v for k, v in each.items() if not isinstance(v, dict | list)})
        for name, table in each.items():
            if isinstance(table, dict) and table:
                text += f"[weights.{name}]\n" + _lines(table)
        for sitting in each.get("history", []):
            text += "[[weights.history]]\n" + _lines(sitting)
    write_atomically(index, text.encode("utf-8"))
    readme = folder / "README.md"
    if readme.is_file():
        before, found, rest = readme.read_text(encoding="utf-8").partition(_TABLE_BEGIN)
        if found:
            text = before + found + "\n" + _table(rows) + _TABLE_END + rest.partition(_TABLE_END)[2]
            write_atomically(readme, text.encode("utf-8"))


def _rows(folder: Path) -> list[dict[str, Any]]:
    index = folder / INDEX
    rows: list[dict[str, Any]] = []
    if index.is_file():
        rows = tomllib.loads(index.read_text(encoding="utf-8")).get("weights", [])
    return rows


def _lines(table: dict[str, Any]) -> str:
    """Keys and plain values as TOML."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in table.items())


def _enter_figures(folder: Path, file: str, results: list[SetResult]) -> None:
    """Renew the PSNR of single pictures of one weights file."""
    path = folder / FIGURES
    known = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known[file] = {r.name: {image.name: round(image.psnr_y, 3) for image in r.images} for r in results}
    text = "# PSNR-Y in dB of single pictures. Written by rlfn_pipe.training.publish; a test compares with them.\n"
    for name in sorted(known):
        for test, figures in known[name].items():
            text += f"\n[{json.dumps(name)}.{json.dumps(test)}]\n"
            text += "".join(f"{json.dumps(picture)} = {value}\n" for picture, value in figures.items())
    write_atomically(path, text.encode("utf-8"))


def _table(rows: list[dict[str, Any]]) -> str:
    sets = list(dict.fromkeys(name for row in rows for name in row["psnr"]))
    lines = [
        "| weights | parameters | " + " | ".join(sets) + " | steps | patches | device | hours |",
        "|---|---|" + "---|" * (len(sets) + 4),
    ]
    for row in rows:
        figures = []
        for name in sets:
            cell = f"{row['psnr'][name]:.2f} / {row['ssim'][name]:.4f}" if name in row["psnr"] else ""
            if name in row.get("paper_psnr", {}):
                cell += f" ({row['paper_psnr'][name]:.2f} / {row['paper_ssim'][name]:.4f})"
            figures.append(cell)
        lines.append(
            f"| `{row['name']}` x{row['scale']} | {row['parameters']:,} | {' | '.join(figures)}"
            f" | {row['steps']:,} | {row['patches_seen']:,} | {row['device']} | {row['device_hours']} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m rlfn_pipe.training.publish", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--test", type=Path, action="append", default=[], help="benchmark set; may repeat")
    parser.add_argument("--guard", type=Path, action="append", default=[], help="more pictures to guard")
    parser.add_argument(
        "--before",
        action="append",
        default=[],
        help="run that this one began from, or weights of the index such as rlfn-s-x4; oldest first",
    )
    parser.add_argument("--to", type=Path, default=data_path("weights"), help="folder of the weights")
    parser.add_argument("--data", default="", help="one sentence on the training images")
    parser.add_argument("--note", default="", help="anything else worth knowing")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        if not (given.run / CHECKPOINT).is_file():
            raise TrainingError(f"{given.run}: holds no {CHECKPOINT}; give the folder of a run")
        row = publish(
            given.run, given.test, given.to, given.data, given.note, tuple(given.before), tuple(given.guard)
        )
    except RlfnPipeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(row, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
