"""A worker that begins before the command line is read, where that is plainly one that wants it.

Reading it takes a sixth of a short job's time. Nothing is imported here but what starts a process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from rlfn_pipe.jobs.process import WorkerProcess, begin, begin_with_pictures
from rlfn_pipe.media.signatures import IMAGE_EXTENSIONS

#: Arguments with which `upscale` wants no worker, or none in this process' priority. A preset may set another one,
#: too, which hardly any does: whoever takes the worker ends it then.
_WITHOUT = frozenset({"-", "-h", "--help", "--dry-run"})
_NICE = "--nice"


class _Early:
    """A worker that waits for whoever wants one."""

    worker: WorkerProcess | None = None


@contextmanager
def early_worker(arguments: Sequence[str]) -> Iterator[None]:
    """Within, `taken_early` has a worker, where a command line with these arguments is likely to want one.

    It loads its program while the command line is read. One that nobody took is ended.
    """
    begin_so = _beginning(arguments)
    if begin_so is not None:
        with suppress(OSError):  # whoever wants one tries again, and says why there is none
            _Early.worker = WorkerProcess(begin_so)
    try:
        yield
    finally:
        end_early()


def taken_early() -> WorkerProcess | None:
    """The worker that was started early, which is the caller's from now on, if there is one."""
    worker, _Early.worker = _Early.worker, None
    return worker


def end_early() -> None:
    """End the worker that was started early, unless somebody has taken it."""
    worker = taken_early()
    if worker is not None:
        worker.kill()


def _beginning(arguments: Sequence[str]) -> Callable[[Connection], None] | None:
    """How a worker for these arguments begins; None where it is not plain that `upscale` will want one."""
    if arguments[:1] != ["upscale"] or any(each in _WITHOUT or each.startswith(_NICE) for each in arguments):
        return None
    try:
        os.getcwd()
    except OSError:
        return None  # the command says so
    there = [each for each in arguments[1:] if os.path.exists(each)]
    if not there:
        return None
    pictures = any(
        os.path.splitext(each)[1].lower() in IMAGE_EXTENSIONS or os.path.isdir(each) for each in there
    )
    return begin_with_pictures if pictures else begin
