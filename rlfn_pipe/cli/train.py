"""`rlfn-pipe train`: a thin layer over `rlfn_pipe.training` that draws its events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlfn_pipe.cli.text import human_seconds, json_line, plain
from rlfn_pipe.errors import Interrupted, TrainingError, UsageError

if TYPE_CHECKING:
    from rlfn_pipe.cli.views import BarView
    from rlfn_pipe.training.events import Outcome, Progress, TrainEvent


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe's file, or the name of one that ships.", show_default=False
        ),
    ],
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder of training images.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder of the run. [runs/<recipe>]", show_default=False
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Folder for decoded images. [beside the run]", show_default=False
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help="Stop cleanly after this long, e.g. 25m.", show_default=False
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, help="Threads of torch. [all cores]", show_default=False
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help='Write TensorBoard logs; needs "rlfn-pipe[tensorboard]".')
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
) -> None:
    """Train a network by a recipe.

    The run's folder gets a checkpoint from which --resume goes on at any time, the weights as a
    state dict, a log, and at the end report.md and curves.png. The same training runs without this
    command's libraries as python -m rlfn_pipe.training.
    """
    if json and quiet:
        raise UsageError("--json and --quiet exclude one another; give one of them")
    from rlfn_pipe.cli.signals import stop_on_signals
    from rlfn_pipe.training.__main__ import parse_duration
    from rlfn_pipe.training.device import is_leading
    from rlfn_pipe.training.loop import train as run
    from rlfn_pipe.training.recipe import load_recipe
    from rlfn_pipe.training.start import RunOptions

    path = _recipe_path(recipe)
    plan = load_recipe(path)
    folder = out or Path("runs") / plan.name
    options = RunOptions(
        data, folder, cache, parse_duration(until) if until else None, resume, device, threads
    )
    with stop_on_signals() as stop, _shown(plan.name, json, quiet) as show:
        follow = _with_tensorboard(show, folder) if tensorboard and is_leading() else show
        outcome = run(plan, options, follow, stop.is_set)
    if is_leading():
        _finish(folder, outcome, json, quiet)
    if stop.signum:
        interrupted = Interrupted(stop.signum)
        interrupted.args = ("training was stopped and saved; the same command with --resume goes on",)
        raise interrupted


def _recipe_path(recipe: str) -> Path:
    """A recipe's file, or that of the shipped recipe of this name."""
    from rlfn_pipe.resources import data_path

    path = Path(recipe)
    if path.suffix == ".toml" or path.is_file():
        return path
    folder = data_path("presets") / "training"
    shipped = sorted(each.stem for each in folder.glob("*.toml"))
    if recipe not in shipped:
        raise UsageError(f"there is no recipe {recipe!r}; give a .toml file or one of {', '.join(shipped)}")
    return folder / f"{recipe}.toml"


@contextmanager
def _shown(name: str, json: bool, quiet: bool) -> Iterator[Callable[[TrainEvent], None]]:
    """What draws the events: JSON lines, a bar on a terminal, or plain lines."""
    from rlfn_pipe.cli.views import BarView, view_for
    from rlfn_pipe.training.__main__ import describe
    from rlfn_pipe.training.events import Progress, Validated

    if json:
        yield lambda event: typer.echo(json_line({"event": type(event).__name__.lower(), **plain(event)}))
        return
    if quiet:
        yield lambda _event: None
        return
    view = view_for()
    bar = _Bar(view, name) if isinstance(view, BarView) else None
    psnr: float | None = None

    def show(event: TrainEvent) -> None:
        nonlocal psnr
        if isinstance(event, Validated):
            psnr = event.psnr
        if bar is not None and isinstance(event, Progress):
            bar.update(event, psnr)
        else:
            view.message(describe(event))

    try:
        yield show
    finally:
        view.close()


class _Bar:
    """A stage's progress as a bar: loss, last validation, patches a second, time left."""

    def __init__(self, view: BarView, name: str) -> None:
        self._view, self._name = view, name

    def update(self, event: Progress, psnr: float | None) -> None:
        parts = [f"loss {event.loss:.5f}"]
        if psnr is not None:
            parts.append(f"{psnr:.2f} dB")
        parts += [f"{event.images_per_second:.0f} patches/s", f"{human_seconds(event.eta_seconds)} left"]
        description = f"{self._name}, stage {event.stage + 1} {event.stage_name}"
        self._view.share(description, event.progress, ", ".join(parts))


def _with_tensorboard(show: Callable[[TrainEvent], None], folder: Path) -> Callable[[TrainEvent], None]:
    """`show`, with every figure written for TensorBoard too."""
    from rlfn_pipe.training.events import Progress, Validated

    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            '--tensorboard needs its package; pip install "rlfn-pipe[tensorboard]"'
        ) from error
    writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def both(event: TrainEvent) -> None:
        show(event)
        if isinstance(event, Progress):
            for key in ("loss", "rate", "images_per_second"):
                writer.add_scalar(key, getattr(event, key), event.images)
        elif isinstance(event, Validated):
            writer.add_scalar("validation_psnr_y", event.psnr, event.images)
            writer.flush()

    return both


def _finish(folder: Path, outcome: Outcome, json: bool, quiet: bool) -> None:
    """Report and curves of the run, and the last words."""
    from rlfn_pipe.training.report import write_curves, write_report

    notes = []
    if outcome.finished:
        try:
            write_curves(folder)
        except TrainingError as error:
            notes.append(str(error))
    report = write_report(folder)
    if json:
        typer.echo(json_line({"event": "outcome", **plain(outcome), "report": str(report), "notes": notes}))
    elif not quiet:
        state = "finished" if outcome.finished else "paused; the same command with --resume goes on"
        spent = f"{outcome.images} patches in {human_seconds(outcome.seconds)}"
        for line in (*notes, f"{state}: {spent}; see {report}"):
            typer.echo(line, err=True)
