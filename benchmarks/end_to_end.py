"""Whole files: `rlfn-pipe upscale` against the naive script, on real clips; and peak memory.

    python benchmarks/end_to_end.py CLIP... [--model rlfn-s] [--scale 4] [--frames N] [--rounds 2]
        [--naive-frames N] [--option reuse=off]
    python benchmarks/end_to_end.py --slides [--size 640x360] [--seconds 12]
    python benchmarks/end_to_end.py --memory [--size 1920x1080] [--scale 2] [--frames 12]

Both take the same clip, network and encoder settings (libx264, crf 18, preset medium) and run in turns.
Each run has a process of its own and counts from its start to its end. With `--naive-frames` the naive script
stops after so many frames and its time is continued in proportion (its frames cost the same); the text says
so. `--slides` makes its own screen recording. `--memory` upscales a made-up clip and gives the peak resident
memory by the system's own accounting (wait4) and, sampled, of the process with its children together. One
JSON object a line, ratios first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import slides

from rlfn_pipe.bench.clip import moving_frames
from rlfn_pipe.bench.clip_file import write_clip
from rlfn_pipe.bench.machine import Watch
from rlfn_pipe.media.source import VideoSource

HERE = Path(__file__).absolute().parent
ROOT = HERE.parent
#: Seconds between two looks at the memory of a process and its children.
_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Spent:
    """What one process took, by wait4: wall and CPU seconds, peak resident MiB of its largest process;
    `tree_mib` is the sampled peak of all its processes' proportional shares (None: not looked at)."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    tree_mib: float | None
    output: str


def run_command(command: list[str], *, look: bool = False) -> Spent:
    """Run a process to its end; ends the program with its messages when it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stderr is not None
    messages: list[str] = []
    reader = threading.Thread(target=lambda: messages.append(process.stderr.read()))
    reader.start()
    peak: list[float] = []
    ended = threading.Event()
    looker = threading.Thread(target=lambda: peak.append(_watch_memory(process.pid, ended)))
    if look:
        looker.start()
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    reader.join()
    if look:
        looker.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{messages[0]}")
    return Spent(
        seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, peak[0] if peak else None, output
    )


def _watch_memory(pid: int, ended: threading.Event) -> float:
    """Largest sum in MiB of proportional set sizes of a process and its descendants."""
    largest = 0.0
    while not ended.wait(_LOOK):
        largest = max(largest, sum(map(_share_mib, _family(pid))))
    return largest


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _share_mib(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:  # it has just ended
        return 0.0
    return 0.0


# ------------------------------------------------------------------ the two


def ours_command(source: Path, target: Path, options: argparse.Namespace) -> list[str]:
    extra = [part for key, value in options.option for part in (f"--{key}", value)]
    frames = ["--frames", str(options.frames)] if options.frames else []
    model = ["--model", options.model, "--scale", f"{options.scale:g}"]
    return [
        *(sys.executable, "-m", "rlfn_pipe", "upscale", str(source), str(target), "--json", "--overwrite"),
        *("--codec", "libx264", "--crf", "18", "--encoder-preset", "medium", "--audio", "none"),
        *model,
        *frames,
        *extra,
    ]


def naive_command(source: Path, target: Path, options: argparse.Namespace) -> list[str]:
    frames = options.naive_frames or options.frames
    limit = ["--frames", str(frames)] if frames else []
    model = ["--model", options.model, "--scale", f"{options.scale:g}"]
    return [sys.executable, str(HERE / "naive.py"), str(source), str(target), *model, *limit]


def in_turns(clip: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start to end of both commands, medians of `rounds`."""
    taken: dict[str, list[Spent]] = {"naive": [], "ours": []}
    for _ in range(options.rounds):
        taken["naive"].append(run_command(naive_command(clip, folder / "naive.mp4", options)))
        taken["ours"].append(run_command(ours_command(clip, folder / "ours.mp4", options)))
    finished = [json.loads(line) for line in taken["ours"][-1].output.splitlines()][-1]
    loops = [json.loads(spent.output) for spent in taken["naive"]]
    frames = _frames(folder / "ours.mp4")
    done = int(loops[0]["frames"])
    # Start-up once, the loop in proportion.
    whole = [
        spent.seconds - loop["seconds"] + loop["seconds"] * frames / done
        for spent, loop in zip(taken["naive"], loops, strict=True)
    ]
    naive_seconds = statistics.median(whole)
    ours_seconds = statistics.median(spent.seconds for spent in taken["ours"])
    return {
        "ratio": naive_seconds / ours_seconds,
        "naive_seconds": naive_seconds,
        "ours_seconds": ours_seconds,
        "frames": frames,
        "naive_frames": done,
        "naive_cpu_seconds": statistics.median(spent.cpu_seconds for spent in taken["naive"]),
        "ours_cpu_seconds": statistics.median(spent.cpu_seconds for spent in taken["ours"]),
        "naive_peak_mib": max(spent.peak_mib for spent in taken["naive"]),
        "ours_peak_mib": max(spent.peak_mib for spent in taken["ours"]),
        "ours_last_event": finished,
    }


# ------------------------------------------------------------------- results


def _frames(path: Path) -> int:
    with VideoSource(path) as source:
        return source.frames


def psnr(one: Path, other: Path) -> dict[str, Any]:
    """Luma PSNR of the frames that both files have: of all squared errors together, and of the worst frame."""
    errors = []
    with VideoSource(one) as first, VideoSource(other) as second:
        # The shorter file may be the naive one, cut short.
        for a, b in zip(first, second, strict=False):
            errors.append(float(np.square(a.planes[0].astype(np.int32) - b.planes[0]).mean()))

    def decibel(error: float) -> float:
        return float(10 * np.log10(255.0**2 / error)) if error else float("inf")

    together = decibel(statistics.mean(errors))
    return {
        "psnr_y_db": round(together, 2),
        "worst_psnr_y_db": round(decibel(max(errors)), 2),
        "compared": len(errors),
    }


def compare(clip: Path, label: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    watch = Watch()
    result = in_turns(clip, folder, options)
    with VideoSource(clip) as source:
        size = f"{source.format.width}x{source.format.height}"
    disturbance = watch.disturbance()
    names = ("ours.mp4", "naive.mp4")
    for warning in disturbance.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    return {
        "clip": label,
        "size": size,
        "model": options.model,
        "options": dict(options.option),
        **result,
        **psnr(folder / names[0], folder / names[1]),
        "ours_bytes": (folder / names[0]).stat().st_size,
        "naive_bytes": (folder / names[1]).stat().st_size,
        "others_cores": disturbance.others_cores,
        "steal_percent": disturbance.steal_percent,
    }


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of the command on a made-up clip."""
    width, height = map(int, (options.size or "1920x1080").split("x"))
    frames = options.frames or 46  # until the encoder has all the pictures that it keeps back
    clip = folder / "clip.mp4"
    write_clip(clip, islice(moving_frames(width, height, frames), frames))
    spent = run_command(ours_command(clip, folder / "large.mp4", options), look=True)
    return {
        "peak_mib": round(spent.peak_mib),
        "peak_tree_mib": round(spent.tree_mib or 0),
        "size": f"{width}x{height}",
        "scale": options.scale,
        "model": options.model,
        "frames": frames,
        "seconds": round(spent.seconds, 2),
        "options": dict(options.option),
    }


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return key, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--slides", action="store_true", help="a made-up screen recording")
    parser.add_argument("--memory", action="store_true", help="peak memory instead, on a made-up clip")
    parser.add_argument("--model", default="rlfn-s")
    parser.add_argument("--scale", type=float)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--naive-frames", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", help="of the made-up clip, WxH")
    parser.add_argument("--seconds", type=float, default=12, help="of the made-up screen recording")
    parser.add_argument("--option", type=_pair, action="append", default=[], help="of upscale, NAME=VALUE")
    options = parser.parse_args()
    if options.scale is None:
        options.scale = 2.0 if options.memory else 4.0
    return options


def main() -> int:
    options = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.memory:
            print(json.dumps(memory(folder, options)))
            return 0
        clips = [(clip, clip.name) for clip in options.clips]
        if options.slides:
            width, height = map(int, (options.size or "640x360").split("x"))
            made = folder / "slides.mp4"
            slides.write(made, width, height, options.seconds, 25)
            clips.append((made, f"screen recording, {options.seconds:g} s"))
        for clip, label in clips:
            print(json.dumps(compare(clip, label, folder, options)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
