"""Turn a run's weights into a file that ships: safetensors, a row of the index, the table.

`python -m rlfn_pipe.training.publish RUN --test DIR [--test DIR ...] [--to weights]`
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
from rlfn_pipe.evaluate.run import evaluate
from rlfn_pipe.files import write_atomically
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.registry import INDEX
from rlfn_pipe.models.rlfn import RLFN, count_parameters
from rlfn_pipe.models.weights import save
from rlfn_pipe.resources import data_path
from rlfn_pipe.training import checkpoint
from rlfn_pipe.training.recipe import parse_recipe
from rlfn_pipe.training.start import CHECKPOINT

LICENCE = "Apache-2.0"
_TABLE_BEGIN, _TABLE_END = "<!-- table: made by rlfn_pipe.training.publish -->", "<!-- end of the table -->"


def publish(run: Path, tests: list[Path], folder: Path, data: str, note: str = "") -> dict[str, Any]:
    """Write the weights of `run` into `folder`, measure them on `tests`, and enter both in the index.

    `data` says in a sentence what it was trained on. Returns the index row. Raises TrainingError
    for a run without a checkpoint, OutputError when `folder` cannot be written.
    """
    state = checkpoint.load(run / CHECKPOINT)
    recipe = parse_recipe(state.recipe, state.recipe_name)
    spec = replace(architecture(recipe.model.name, recipe.model.scale), licence=LICENCE)
    module = RLFN(spec)
    module.load_state_dict(state.ema or state.model)
    module.eval()
    spec = replace(spec, parameters=count_parameters(module))
    psnr: dict[str, float] = {}
    ssim: dict[str, float] = {}
    for test in tests:
        for result in evaluate((spec, module), test, scale=spec.scale).sets:
            psnr[result.name], ssim[result.name] = round(result.psnr_y, 3), round(result.ssim_y, 4)
    file = f"{spec.name}-x{spec.scale}.safetensors"
    notes = {"recipe": recipe.name, "images_seen": str(state.images)}
    digest = save(folder / file, module, spec, notes)
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
        "steps": _steps(run),
        "patches_seen": state.images,
        "device": state.device,
        "device_hours": round(state.seconds / 3600, 2),
        "validation_psnr": round(state.psnr, 3),
        "note": note,
        "psnr": psnr,
        "ssim": ssim,
    }
    _enter(folder, row)
    return row


def _steps(run: Path) -> int:
    """Updates over all stages, from the log."""
    last: dict[int, int] = {}
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        last[record["stage"]] = record["step"]
    return sum(last.values())


def _enter(folder: Path, row: dict[str, Any]) -> None:
    """Put `row` in place of the one with its name and scale, and renew the table of the README."""
    index = folder / INDEX
    rows = tomllib.loads(index.read_text(encoding="utf-8")).get("weights", []) if index.is_file() else []
    key = (row["name"], row["scale"])
    rows = sorted(
        [r for r in rows if (r["name"], r["scale"]) != key] + [row], key=lambda r: (r["name"], r["scale"])
    )
    text = "# The weights that ship. Written by rlfn_pipe.training.publish; the README beside it explains.\n"
    for each in rows:
        text += "\n[[weights]]\n"
        plain = {k: v for k, v in each.items() if not isinstance(v, dict)}
        text += "".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in plain.items()
        )
        for name, table in each.items():
            if isinstance(table, dict):
                text += f"[weights.{name}]\n" + "".join(f"{k} = {v}\n" for k, v in table.items())
    write_atomically(index, text.encode("utf-8"))
    readme = folder / "README.md"
    if readme.is_file():
        before, found, rest = readme.read_text(encoding="utf-8").partition(_TABLE_BEGIN)
        if found:
            text = before + found + "\n" + _table(rows) + _TABLE_END + rest.partition(_TABLE_END)[2]
            write_atomically(readme, text.encode("utf-8"))


def _table(rows: list[dict[str, Any]]) -> str:
    sets = list(dict.fromkeys(name for row in rows for name in row["psnr"]))
    lines = [
        "| weights | parameters | " + " | ".join(sets) + " | steps | patches | device | hours |",
        "|---|---|" + "---|" * (len(sets) + 4),
    ]
    for row in rows:
        figures = [
            f"{row['psnr'][name]:.2f} / {row['ssim'][name]:.4f}" if name in row["psnr"] else ""
            for name in sets
        ]
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
    parser.add_argument("--to", type=Path, default=data_path("weights"), help="folder of the weights")
    parser.add_argument("--data", default="", help="one sentence on the training images")
    parser.add_argument("--note", default="", help="anything else worth knowing")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        if not (given.run / CHECKPOINT).is_file():
            raise TrainingError(f"{given.run}: holds no {CHECKPOINT}; give the folder of a run")
        row = publish(given.run, given.test, given.to, given.data, given.note)
    except RlfnPipeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(row, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
