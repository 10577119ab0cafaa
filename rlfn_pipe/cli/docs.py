"""The help of every command as Markdown: `python -m rlfn_pipe.cli.docs > docs/cli.md`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import typer.core
import typer.main

from rlfn_pipe.cli import app
from rlfn_pipe.errors import RlfnPipeError, UsageError

INTRODUCTION = """\
# The command line

Made from the program's own help by `python -m rlfn_pipe.cli.docs > docs/cli.md`; a test fails when it
differs. Preset files hold the long options of `upscale` without the hyphens in front (`crf = 20`,
`encoder-preset = "slow"`); what is given on the command line wins over the preset, the preset over the
default in brackets.
"""
WIDTH = "100"


def markdown() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    for path in _paths():
        sections.append(f"## `{' '.join([app.PROGRAM, *path])}`\n\n```text\n{_help(path)}\n```\n")
    sections.append(_exit_codes())
    return "\n".join(sections)


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


def _exit_codes() -> str:
    rows = [
        (0, "all done"),
        (RlfnPipeError.exit_code, "at least one item failed; the others are done, the summary names each"),
        (UsageError.exit_code, "wrong options, or an unknown preset, model or command"),
        (130, "interrupted (Ctrl-C); a second Ctrl-C stops at once"),
        (143, "terminated (SIGTERM)"),
    ]
    lines = [f"| {code} | {meaning} |" for code, meaning in rows]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *lines, ""])


if __name__ == "__main__":
    sys.stdout.write(markdown())
