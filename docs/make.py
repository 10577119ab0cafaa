"""Makes what is written by machine: `docs/cli.md` from the program's help, the README's file map.

`python docs/make.py` writes both; a test fails when either differs from what it would write.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import typer.core
import typer.main

from rlfn_pipe.cli import app
from rlfn_pipe.errors import RlfnPipeError, UsageError
from rlfn_pipe.types import Event

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# The command line

Made from the program's own help by `python docs/make.py`; a test fails when it differs. Preset files hold
the long options of `upscale` without the hyphens in front (`crf = 20`, `encoder-preset = "slow"`); what is
given on the command line wins over the preset, the preset over the default in brackets.
"""
WIDTH = "100"
LAYERS = ("", "media", "models", "engine", "pipeline", "jobs", "training", "evaluate", "bench", "cli")
MAP = re.compile(r"(<!-- file map: made by docs/make.py -->\n).*?(<!-- end of the file map -->)", re.S)
#: What is no module.
OTHER_FILES = {
    "rlfn_pipe/models/cuda/kernels.cu": "The kernels themselves: convolutions, ESA, a block's end, pictures.",
    "rlfn_pipe/models/native/*.cpp, *.hpp": "The compiled network: vectors, products, transforms, passes, changes, threads.",
    "presets/": "Presets of `upscale`; in `training/` the recipes.",
    "weights/": "The weights that ship, with `index.toml`: checksums, how trained, measured PSNR.",
    "docs/": "`cli.md` (every option), measurements, protocols; `make.py` writes the generated parts.",
    "tests/": "One file an area; `tests/data` holds the clip.",
    "benchmarks/": "Scripts behind the figures in `docs`.",
    "constraints.txt": "The versions that the tests passed with.",
    ".ci/run": "Lint, types and the README's tests in a fresh environment.",
}


def command_page() -> str:
    """`docs/cli.md`."""
    sections = [INTRODUCTION]
    for path in _paths():
        sections.append(f"## `{' '.join([app.PROGRAM, *path])}`\n\n```text\n{_help(path)}\n```\n")
    sections += [_json_lines(), _exit_codes()]
    return "\n".join(sections)


def file_map() -> str:
    """The README's table of files: the first sentence of each module's docstring."""
    rows = ["| file | what |", "|---|---|"]
    for layer in LAYERS:
        folder = ROOT / "rlfn_pipe" / layer
        for path in sorted(folder.rglob("*.py") if layer else folder.glob("*.py")):
            text = path.read_text(encoding="utf-8")
            if text.strip():
                first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
                rows.append(f"| `{path.relative_to(ROOT).as_posix()}` | {' '.join(first.split())} |")
    rows += [f"| `{name}` | {what} |" for name, what in OTHER_FILES.items()]
    return "\n".join(rows)


def readme(text: str) -> str:
    """The README with its file map made anew."""
    return MAP.sub(lambda match: f"{match[1]}{file_map()}\n{match[2]}", text)


def _paths() -> Iterator[list[str]]:
    """The program, its commands, and theirs, each as the words to type."""
    yield []
    root = typer.main.get_command(app.app)
    assert isinstance(root, app.LazyGroup)
    for name in app.COMMANDS:
        yield [name]
        command = root.get_command(None, name)
        if isinstance(command, typer.core.TyperGroup):
            yield from ([name, inner] for inner in command.commands)


def _help(path: list[str]) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            code = app.main([*path, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    if code:
        raise RlfnPipeError(f"{' '.join([app.PROGRAM, *path])} --help ends with exit code {code}")
    return shown.getvalue().rstrip()


def _json_lines() -> str:
    """What `upscale --json` prints, from the events themselves."""
    lines = [
        "## Lines of `upscale --json`",
        "",
        "One JSON object a line on standard output, each with its name in `event`; sizes in bytes, times in seconds.",
        "An error that ends a run, or keeps it from beginning, is also a sentence on standard error. The other commands",
        "with `--json` print one object (`weights list`, `weights verify` and `presets list` an array of them, `train`",
        "and `bench` one a line, as they come); where they fail it is the `error` below.",
        "",
        "| event | fields | |",
        "|---|---|---|",
    ]
    for event in get_args(Event):
        names = ", ".join(f"`{field.name}`" for field in dataclasses.fields(event))
        meaning = " ".join((event.__doc__ or "").split())
        lines.append(f"| `{event.__name__.lower()}` | {names} | {meaning} |")
    lines += [
        "| `summary` | `finished`, `failed`, `skipped`, `seconds`, `exit_code` | The last line of a run that came"
        " to its end: how many files are done, those that failed as in `failed`, and the sources that were passed over. |",
        "| `error` | `message`, `exit_code` | The last line of a run that did not. |",
        "| `plan` | | With `--dry-run` the only line: what `probe --json` has under `upscale` and `media`. |",
        "",
    ]
    return "\n".join(lines)


def _exit_codes() -> str:
    rows = [
        (0, "all done"),
        (RlfnPipeError.exit_code, "at least one item failed; the others are done, the summary names each"),
        (UsageError.exit_code, "wrong options, or an unknown preset, model or command"),
        (130, "interrupted (Ctrl-C); a second Ctrl-C stops at once"),
        (143, "terminated (SIGTERM)"),
        (129, "its terminal was closed (SIGHUP), unless that is ignored (nohup)"),
    ]
    lines = [f"| {code} | {meaning} |" for code, meaning in rows]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *lines, ""])


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(command_page(), encoding="utf-8")
    page = ROOT / "README.md"
    page.write_text(readme(page.read_text(encoding="utf-8")), encoding="utf-8")
