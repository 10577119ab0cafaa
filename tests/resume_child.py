"""A job with the torch-free engine that ends itself at a chosen point; run by test_resume.py.

    python resume_child.py IN OUT '{"options": ...}' POINT COUNT kill|error

POINT names a phase; at its COUNT-th moment the process kills itself or the phase fails.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import use_nearest_engine

from rlfn_pipe import files
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.errors import RlfnPipeError
from rlfn_pipe.jobs import join, journal, lines, work
from rlfn_pipe.jobs.run import run
from rlfn_pipe.media.segment import SegmentSink
from rlfn_pipe.media.sink import VideoSink
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.media.streams import Carrier
from rlfn_pipe.options import UpscaleOptions

#: Moments after the output took its name, in which its work folder is still known: linked but not yet
#: rid of its temporary name; in place; told; the folder half removed; nothing left but the journal.
AFTERWARDS = ("linked", "in place", "told", "half removed", "journal left")
#: Phases that a job goes through, in their order.
POINTS = (
    "decode",
    "compute",
    "encode",
    "flush",
    "rename",
    "renamed",
    "journal",
    "half line",
    "join",
    "copy",
    "trailer",
    "publish",
    "announced",
    *AFTERWARDS,
)


class Failpoint:
    """Counts moments and strikes at one of them."""

    def __init__(self, at: int, how: str) -> None:
        self._left, self._how = at, how

    def __call__(self) -> None:
        self._left -= 1
        if self._left:
            return
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def before(
    patch: pytest.MonkeyPatch, owner: Any, name: str, strike: Callable[[], None], *, after: bool = False
) -> None:
    """Strike whenever a function is called (or has been)."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **more: Any) -> Any:
        if not after:
            strike()
        result = real(*args, **more)
        if after:
            strike()
        return result

    patch.setattr(owner, name, wrapped)


def between(patch: pytest.MonkeyPatch, owner: Any, name: str, strike: Callable[[], None]) -> None:
    """Strike whenever an iterating function has given something."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **more: Any) -> Iterator[Any]:
        for thing in real(*args, **more):
            strike()
            yield thing

    patch.setattr(owner, name, wrapped)


def arm(patch: pytest.MonkeyPatch, point: str, strike: Callable[[], None]) -> None:
    """Put the failpoint where it belongs."""
    match point:
        case "decode":
            between(patch, VideoSource, "__iter__", strike)
        case "compute":
            between(patch, Engine, "run", strike)
        case "encode":
            before(patch, SegmentSink, "write", strike)
        case "flush":
            before(patch, SegmentSink, "close", strike)
        case "rename":
            before(patch, work.Work, "finish", strike)
        case "renamed":
            before(patch, journal.Journal, "append", strike)
        case "journal":
            before(patch, work.Work, "finish", strike, after=True)
        case "half line":
            real = os.write

            def write(descriptor: int, data: bytes) -> int:
                if b'"digest"' in data:
                    done = real(descriptor, data[: len(data) // 2])
                    strike()
                    return done + real(descriptor, data[done:])
                return real(descriptor, data)

            patch.setattr(lines.os, "write", write)
        case "join":
            before(patch, VideoSink, "write_segment", strike)
        case "copy":
            between(patch, Carrier, "packets_until", strike)
        case "trailer":
            before(patch, VideoSink, "close", strike)
        case "publish":
            before(patch, join, "verify_video", strike, after=True)
        case "announced":
            before(patch, work.Work, "publishing", strike, after=True)
        case "linked":
            before(patch, files, "_rename_to_free_name", strike, after=True)
        case "in place":
            before(patch, work.WorkFolder, "spent", strike)
        case "told":
            before(patch, work, "_remove", strike)
        case "half removed":
            clear = work._clear

            def half(path: Path, kept: set[str]) -> None:
                clear(path, kept | {"segment-00001.seg"})
                strike()

            patch.setattr(work, "_clear", half)
        case "journal left":
            before(patch, work, "_clear", strike, after=True)


def main() -> None:
    source, output, options, point, count, how = sys.argv[1:]
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        use_nearest_engine(patch)
        if point in POINTS:
            arm(patch, point, Failpoint(int(count), how))
        started: list[str] = []
        try:
            run(
                source,
                output,
                UpscaleOptions(scale=2, threads=1, **json.loads(options)),
                on_event=lambda event: started.append(type(event).__name__),
            )
        except (RlfnPipeError, OSError) as error:
            print(type(error).__name__, error)
            raise SystemExit(1) from None
    print("done", Path(output).stat().st_size)


if __name__ == "__main__":
    main()
