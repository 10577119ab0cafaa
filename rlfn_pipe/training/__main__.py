"""`python -m rlfn_pipe.training RECIPE.toml --data DIR --out RUN`

Trains where only torch, numpy and Pillow exist.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path

from rlfn_pipe.errors import RlfnPipeError, UsageError
from rlfn_pipe.training.device import is_leading
from rlfn_pipe.training.events import Note, Progress, TrainEvent, Validated
from rlfn_pipe.training.loop import train
from rlfn_pipe.training.recipe import load_recipe
from rlfn_pipe.training.report import write_report
from rlfn_pipe.training.start import RunOptions


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "25m", "1.5h" or "1h30m"; UsageError for anything else."""
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip().lower())
    if not parts or not any(parts.groups()):
        raise UsageError(f"{text!r} is no duration; write for example 25m, 90s or 1h30m")
    try:
        hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    except ValueError as error:
        raise UsageError(f"{text!r} is no duration; write for example 25m, 90s or 1h30m") from error
    return 3600 * hours + 60 * minutes + seconds


def describe(event: TrainEvent) -> str:
    """One line for a log or a terminal."""
    if isinstance(event, Note):
        return event.message
    if isinstance(event, Validated):
        return f"stage {event.stage + 1} step {event.step}: validation {event.psnr:.3f} dB PSNR-Y"
    assert isinstance(event, Progress)
    left = f", {event.eta_seconds / 60:.1f} min left" if event.eta_seconds is not None else ""
    return (
        f"stage {event.stage + 1} step {event.step} ({100 * event.progress:.1f} %): loss {event.loss:.5f},"
        f" rate {event.rate:.2e}, {event.images_per_second:.1f} patches/s{left}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, train, return the exit code (130 or 143 after a signal)."""
    parser = argparse.ArgumentParser(prog="python -m rlfn_pipe.training", description=__doc__)
    parser.add_argument("recipe", type=Path, help="recipe file (TOML)")
    parser.add_argument("--data", type=Path, required=True, help="folder of training images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--cache", type=Path, help="folder for decoded images (default: cache beside the run)"
    )
    parser.add_argument("--until", help="stop cleanly after this long, e.g. 25m")
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    given = parser.parse_args(arguments)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads {given.threads} is too few; give 1 or more")
    caught: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        until = parse_duration(given.until) if given.until else None
        options = RunOptions(
            given.data, given.out, given.cache, until, given.resume, given.device, given.threads
        )
        outcome = train(
            load_recipe(given.recipe),
            options,
            lambda event: print(describe(event), file=sys.stderr, flush=True),
            lambda: bool(caught),
        )
    except RlfnPipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if is_leading():
        write_report(given.out)
    state = "finished" if outcome.finished else "paused; the same command with --resume goes on"
    print(f"{state}: {outcome.images} patches, {outcome.seconds / 60:.1f} minutes", file=sys.stderr)
    return 128 + caught[0] if caught else 0


if __name__ == "__main__":
    sys.exit(main())
