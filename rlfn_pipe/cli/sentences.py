"""What the events of a job and its report are called in sentences for the person."""

from __future__ import annotations

from collections.abc import Mapping

from rlfn_pipe.cli.text import count_of, human_bytes, human_seconds
from rlfn_pipe.jobs.summary import Report
from rlfn_pipe.types import Finished, Progress, StageTimes


def named(name: str, message: str) -> str:
    """`message` with the item's name before it, unless it names the item itself."""
    return message if not name or name in message else f"{name}: {message}"


def _rate(fps: float) -> str:
    return f"{fps:.0f} fps" if fps >= 100 else f"{fps:.1f} fps" if fps >= 1 else f"{fps:.2f} fps"


def progress_detail(event: Progress) -> str:
    """Frames, rate, time left, size written and the stage that limits."""
    total = f"/{event.frames_total}" if event.frames_total else ""
    parts = [f"{event.frames_done}{total} frames"]
    if event.fps > 0:
        parts.append(_rate(event.fps))
    if event.eta_seconds is not None:
        parts.append(f"{human_seconds(event.eta_seconds)} left")
    if event.bytes_written >= 1000:  # less is a container header, no news
        parts.append(human_bytes(event.bytes_written))
    if event.limit:
        parts.append(f"{event.limit} limits")
    return ", ".join(parts)


def progress_line(event: Progress) -> str:
    """One plain line of progress."""
    files = f" ({event.items_done}/{event.items_total} files done)" if event.items_total > 1 else ""
    return f"{event.input}: {progress_detail(event)}{files}"


def finished_line(event: Finished) -> str:
    """What became of one item."""
    rate = f" ({_rate(event.frames / event.seconds)})" if event.seconds > 0 and event.frames > 1 else ""
    frames = f"{count_of(event.frames, 'frame')}, " if event.frames != 1 else ""
    return (
        f"{event.output}: {frames}{event.width}x{event.height}, {human_bytes(event.bytes_written)} "
        f"in {human_seconds(event.seconds)}{rate}"
    )


def stage_lines(stages: StageTimes, frames: int, seconds: float) -> list[str]:
    """A table of what each stage took, the one that limits marked; `seconds` is the whole time."""
    whole, count = max(seconds, 1e-9), max(frames, 1)
    lines = ["stage     busy         of the time  a frame"]
    for stage, busy in stages.busy.items():
        mark = "  limits" if stage == stages.limit else ""
        lines.append(
            f"{stage:<9} {human_seconds(busy):<12} {100 * busy / whole:>9.0f} %  {1e3 * busy / count:.1f} ms{mark}"
        )
    lines.append(
        f"compute waited {human_seconds(stages.waited_in)} for frames, {human_seconds(stages.waited_out)} for the encoder"
    )
    return lines


def reuse_line(reuse: Mapping[str, int | float]) -> str:
    """What the engine computed and what it did not have to, in the words of its counts."""
    counts = (f"{name.replace('_', ' ')} {round(value, 1):g}" for name, value in reuse.items())
    return f"reuse: {', '.join(counts)}"


def summary_lines(report: Report) -> list[str]:
    """The end of a run in words."""
    items = len(report.finished) + len(report.failed) + len(report.skipped)
    lines = []
    if items == 1:
        lines += [finished_line(done) for done in report.finished]
        lines += [f"{name}: skipped, its output is there already" for name in report.skipped]
    else:
        parts = [f"{count_of(len(report.finished), 'file')} done"]
        if report.failed:
            parts.append(f"{len(report.failed)} failed")
        if report.skipped:
            parts.append(f"{len(report.skipped)} skipped (there already)")
        lines.append(f"{', '.join(parts)} in {human_seconds(report.seconds)}")
        lines += [f"failed: {named(failure.input, failure.message)}" for failure in report.failed]
    return lines
