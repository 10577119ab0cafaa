"""The command `rlfn-pipe`: its subcommands, loaded when called, and the one place of exit codes.

Exit codes: 0 all done; 1 an item failed; 2 wrong usage; 130 SIGINT; 143 SIGTERM; 129 SIGHUP.
`RLFN_PIPE_DEBUG=1` shows tracebacks; otherwise an error is one sentence on standard error.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from rlfn_pipe import __version__
from rlfn_pipe.cli.text import json_line, printable
from rlfn_pipe.errors import InputError, Interrupted, RlfnPipeError, UsageError, reason_of

PROGRAM = "rlfn-pipe"
#: Each command: module, attribute (a function or a Typer app), one line of help.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "upscale": ("upscale", "upscale", "Make a video, an image or a folder of images larger."),
    "probe": ("probe", "probe", "Say what is in a file, and what upscale would do with it."),
    "evaluate": ("evaluate", "evaluate", "Measure PSNR and SSIM on benchmark sets."),
    "bench": ("bench", "bench", "Measure this machine, as ratios."),
    "train": ("train", "train", "Train a network by a recipe; resumable."),
    "weights": ("weights", "app", "List, show, verify, import and fetch weights."),
    "presets": ("presets", "app", "List and show presets."),
    "doctor": ("doctor", "doctor", "Check this machine: device, codecs, weights, disk."),
}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class SectionedCommand(typer.core.TyperCommand):
    """A command whose help groups the options by their `rich_help_panel`, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                # Without Typer's "<str>" behind the name: the usage line speaks of names alone.
                sections.setdefault("Arguments", []).append((record[0].partition(" <")[0], record[1]))
            else:
                panel = getattr(param, "rich_help_panel", None) or "Options"
                sections.setdefault(panel, []).append(record)
        # Options outside any panel (--help) come last.
        sections["Options"] = sections.pop("Options", [])
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class LazyGroup(typer.core.TyperGroup):
    """A group that knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS:
            raise UsageError(_unknown_command(name))
        return name, self.get_command(ctx, name), args[1:]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, _, help) in COMMANDS.items()])


def _load(name: str) -> Any:
    module_name, attribute, _ = COMMANDS[name]
    found = getattr(importlib.import_module(f"rlfn_pipe.cli.{module_name}"), attribute)
    if isinstance(found, typer.Typer):
        # The whole program speaks plain text; a sub-app need not say so itself.
        found.rich_markup_mode = None
        found._add_completion = False
        for info in found.registered_commands:
            info.cls = SectionedCommand
        command: Any = typer.main.get_command(found)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name, cls=SectionedCommand, context_settings=CONTEXT)(found)
        command = typer.main.get_command(single)
    command.name = name
    return command


def _unknown_command(name: str) -> str:
    nearest = difflib.get_close_matches(name, COMMANDS, n=1)
    if nearest:
        return f"there is no command {name!r}, did you mean {nearest[0]!r}?"
    if os.path.sep in name or "." in name:
        return f"there is no command {name!r}; to make a file larger: {PROGRAM} upscale INPUT OUTPUT"
    return f"there is no command {name!r}; {PROGRAM} --help lists them"


app = typer.Typer(
    name=PROGRAM,
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    help="Upscale video and images with the Residual Local Feature Network.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)
    try:
        os.getcwd()
    except OSError:
        # Nothing starts there, no process and no library.
        raise InputError(
            "the folder that this was called in is gone; change to another one and run again"
        ) from None


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one sentence on standard error."""
    debug = os.environ.get("RLFN_PIPE_DEBUG", "") not in ("", "0")
    try:
        command = typer.main.get_command(app)
        code = command.main(args=args, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as leaving:  # Typer's way to end on a closed pipe and after shell completion
        _silence_closed_pipes()
        return leaving.code if isinstance(leaving.code, int) else 1
    except BrokenPipeError:
        _silence_closed_pipes()
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return Interrupted().exit_code
    except RlfnPipeError as error:
        if debug:
            traceback.print_exc()
        if not error.in_json:
            _say_in_json(str(error), error.exit_code, args)
        _say(str(error))
        return error.exit_code
    except typer.TyperException as error:
        sentence = _usage_sentence(error)
        _say_in_json(sentence, error.exit_code, args)
        _say(sentence)
        return error.exit_code
    except OSError as error:
        if debug:
            traceback.print_exc()
        _silence_closed_pipes()
        where = error.filename or "standard output"
        _say(f"{printable(str(where))} cannot be used: {reason_of(error)}; check it and run again")
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        _say(f"internal error: {type(error).__name__}: {error}; set RLFN_PIPE_DEBUG=1 to see where")
        return 1


def _usage_sentence(error: typer.TyperException) -> str:
    """Typer's own message as one sentence that ends in where to look."""
    message = error.format_message().strip()
    context = getattr(error, "ctx", None)
    if "\n" in message:  # a command group that was called without a command: its help
        message = "a command is missing"
    message = message.rstrip(".").replace("Value error, ", "")
    path = context.command_path if context is not None else PROGRAM
    if path.endswith(" upscale") and "unexpected extra argument" in message.lower():
        message += "; a pattern goes in quotes, so that the shell does not spell it out"
    return f"{message[:1].lower()}{message[1:]}; see {path} --help"


def _say_in_json(message: str, exit_code: int, args: Sequence[str] | None) -> None:
    """The same for a reader of `--json`, where that was asked for."""
    if "--json" in (sys.argv[1:] if args is None else args):
        # Standard output may be what failed.
        with suppress(OSError):
            print(json_line({"event": "error", "message": message, "exit_code": exit_code}), flush=True)


def _say(message: str) -> None:
    print(f"{PROGRAM}: error: {printable(message)}", file=sys.stderr, flush=True)


def _silence_closed_pipes() -> None:
    """Point standard output at nothing, so that the interpreter's last flush cannot fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no real descriptor behind it (a test's or an embedder's)
        sys.stdout = io.StringIO()
