"""`rlfn-pipe upscale`: options in, events drawn, exit code out."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlfn_pipe.errors import Interrupted, RlfnPipeError, UsageError
from rlfn_pipe.options import OptionInfo, UpscaleOptions, option_infos
from rlfn_pipe.presets import load_preset, resolve

if TYPE_CHECKING:
    from rlfn_pipe.cli.signals import StopToken
    from rlfn_pipe.jobs.process import WorkerProcess

INPUT_HELP = "A video, an image, a folder, a quoted glob, @list.txt with a name a line, or - for YUV4MPEG2."
OUTPUT_HELP = "The file to write, the folder when INPUT is more than one file, or - for YUV4MPEG2."


def _parameter(info: OptionInfo) -> inspect.Parameter:
    """The Typer parameter of an option: None when it is not given, text or a flag when it is."""
    names = [f"--{info.key}/--{info.negative}" if info.negative else info.long]
    if info.short:
        names.append(f"-{info.short}")
    default = info.default_text
    if not default and info.default not in (None, (), False):
        default = "yes" if info.default is True else str(info.default)
    help = f"{info.help} [{default}]" if default else info.help
    kind: Any = bool | None if info.flag else list[str] | None if info.repeat else str | None
    option = typer.Option(
        *names,
        help=help,
        metavar=None if info.flag else info.metavar,
        show_default=False,
        rich_help_panel=info.panel,
    )
    return inspect.Parameter(
        info.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _shorthand(name: str, value: str, info: OptionInfo) -> inspect.Parameter:
    """The Typer flag that stands for one value of an option."""
    option = typer.Option(
        f"--{name}", help=f"The same as {info.long} {value}.", show_default=False, rich_help_panel=info.panel
    )
    return inspect.Parameter(
        name.replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, option],
    )


def _parameters(info: OptionInfo) -> list[inspect.Parameter]:
    return [_parameter(info), *(_shorthand(name, value, info) for name, value in info.shorthands.items())]


def _written_out(given: dict[str, Any]) -> dict[str, Any]:
    """What was given, with shorthands replaced by the options that they stand for.

    Raises:
        UsageError: a shorthand and another value of its option are both given.
    """
    for info in option_infos():
        for name, value in info.shorthands.items():
            if not given.pop(name.replace("-", "_")):
                continue
            if given[info.name] not in (None, value):
                raise UsageError(
                    f"--{name} and {info.long} {given[info.name]} exclude one another; give one of them"
                )
            given[info.name] = value
    return given


def _argument(name: str, help: str) -> inspect.Parameter:
    annotation = Annotated[str, typer.Argument(metavar=name.upper(), help=help, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)


def upscale(input: str, output: str, **given: Any) -> None:
    """Make a video, an image or a folder of images larger.

    What INPUT is decides what happens: a video keeps its audio, subtitles, chapters, times and
    colours; a folder gives a mirrored folder. Outputs appear whole or not at all.
    """
    explicit = {
        name: value for name, value in _written_out(given).items() if value is not None and value != []
    }
    options = resolve(explicit, explicit.get("preset"))
    if options.dry_run:
        _dry_run(input, output, options)
    else:
        code = _run(input, output, options)
        if code:
            raise typer.Exit(code)


def _dry_run(input: str, output: str, options: UpscaleOptions) -> None:
    from rlfn_pipe.cli.show import plan_lines
    from rlfn_pipe.cli.text import json_line, plain
    from rlfn_pipe.jobs.plan import describe

    plan = describe(input, output, options)
    if options.json:
        typer.echo(json_line({"event": "plan", **plain(plan)}))
    else:
        typer.echo("\n".join(plan_lines(plan)))


def _run(input: str, output: str, options: UpscaleOptions) -> int:
    from rlfn_pipe.cli.signals import stop_on_signals
    from rlfn_pipe.jobs.process import lower_priority

    log = options.log_file
    if log is not None:
        # Of @list.txt it is list.txt that is read.
        taken = [input, input.removeprefix("@"), output]
        if options.preset:
            taken.append(str(load_preset(options.preset).path))
        if os.path.realpath(log) in map(os.path.realpath, taken):
            raise UsageError(f"--log-file {log} is the input, the output or the preset; choose another file")
    lower_priority(options.nice)
    with stop_on_signals() as stop, _first_worker(input, output, options.nice) as worker:
        return _report(input, output, options, stop, worker)


@contextmanager
def _first_worker(input: str, output: str, nice: int) -> Iterator[WorkerProcess | None]:
    """A worker that loads its program while this process loads the rest, where it is likely that one is needed."""
    from rlfn_pipe.cli.early import taken_early
    from rlfn_pipe.jobs.process import WorkerProcess

    worker = taken_early()  # where no pipe is meant
    if worker is not None and nice:  # it has another priority
        worker.kill()
        worker = None
    if worker is None and "-" not in (input, output) and os.path.exists(input):
        worker = WorkerProcess()
    try:
        yield worker
    finally:
        if worker is not None:
            worker.kill()


def _report(
    input: str, output: str, options: UpscaleOptions, stop: StopToken, worker: WorkerProcess | None
) -> int:
    """Run the job, draw its events and return the exit code."""
    from rlfn_pipe.cli.ui import Reporter
    from rlfn_pipe.jobs.run import run

    with Reporter(options, stop) as reporter:
        try:
            report = run(
                input, output, options, on_event=reporter.on_event, stop=stop, isolate=True, worker=worker
            )
        except (Interrupted, KeyboardInterrupt) as stopping:
            signum = stop.signum or signal.SIGINT
            reason = str(stopping) or _at_once(options.resume and "-" not in (input, output))
            if output == "-" and reason == str(Interrupted()):
                reason = "stopped before the end"  # what was sent cannot be taken back
            error = Interrupted(signum, _stopped(reason, reporter.progress_of_many(), options))
            reporter.stopped(error)
            if reporter.output_error is not None:
                raise reporter.output_error from None
            if reporter.output_closed:
                return 1
            raise error from None
        except RlfnPipeError as error:
            reporter.stopped(error)
            raise
        reporter.summary(report)
        if reporter.output_error is not None:
            raise reporter.output_error
        return report.exit_code


def _stopped(reason: str, done: str, options: UpscaleOptions) -> str:
    """Why a run ended, with how many of its files are done."""
    if not done:
        return reason
    if reason == str(Interrupted()):
        reason = "stopped before the end"
    return f"{reason}; {done}" + (", the same command goes on behind them" if options.resume else "")


def _at_once(resumes: bool) -> str:
    """What a second Ctrl-C leaves; nobody waited to count it."""
    return "stopped at once" + (
        "; the same command goes on from what was finished, if anything was" if resumes else ""
    )


_signature = inspect.Signature(
    [
        _argument("input", INPUT_HELP),
        _argument("output", OUTPUT_HELP),
        *chain.from_iterable(map(_parameters, option_infos())),
    ]
)
# Typer reads a command's parameters from these; both are made from the options' one definition.
upscale.__signature__ = _signature  # type: ignore[attr-defined]
upscale.__annotations__ = {name: parameter.annotation for name, parameter in _signature.parameters.items()}
