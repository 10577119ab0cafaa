"""A worker's process, which begins before the program that gives it work is loaded itself.

Loading takes most of a short job's time, so nothing is imported here but what starts a process.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

#: What asks the command to stop; its workers, which a terminal asks as well, leave it to the command.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: What the tracker of Python's semaphores, which takes its options from here, says when a second Ctrl-C leaves it some.
_LEFT_BEHIND = "ignore:resource_tracker"


def begin(connection: Connection) -> None:
    """What a new process does: load our own program, and PyTorch beside it where it will be wanted, then serve."""
    # All that is made while modules load stays: to look through it again and again for rubbish took
    # a seventh of the time.
    gc.disable()
    beside = not _only_compiled()
    if beside:
        load_torch_beside()
    from rlfn_pipe.jobs.serve import serve

    if not beside:
        _all_is_made()
    serve(connection)


def _only_compiled() -> bool:
    """Whether networks run in the compiled part here, as a rule, for which PyTorch is not wanted."""
    from rlfn_pipe.engine.device import may_have_a_gpu
    from rlfn_pipe.models.native.library import any_library

    return any_library() is not None and not may_have_a_gpu()


def load_torch_beside() -> None:
    """Begin to load PyTorch while the calling thread goes on."""
    if "torch" not in sys.modules:
        threading.Thread(target=_load_torch, name="rlfn-pipe torch", daemon=True).start()


def _load_torch() -> None:
    # Whoever needs it imports it again, and is told what is wrong.
    with suppress(Exception):
        importlib.import_module("torch")
    _all_is_made()


def _all_is_made() -> None:
    gc.freeze()
    gc.enable()


def lower_priority(by: int) -> None:
    """Lower this process' priority, and that of all that it starts from now on, by `by` (0 to 19)."""
    if by and hasattr(os, "nice"):
        os.nice(by)


@contextmanager
def _signals_held() -> Iterator[None]:
    """A process that is started inside never gets the terminal's Ctrl-C, not even while Python starts up in it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It lets signals through again when it starts its own process, which must not be now.
    if _LEFT_BEHIND not in sys.warnoptions:
        sys.warnoptions.append(_LEFT_BEHIND)
    resource_tracker.ensure_running()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


class WorkerProcess:
    """A process that is started at once and waits at the other end of `connection`.

    Args:
        target: what it runs, importable there, given its end of the pipe.
    """

    def __init__(self, target: Callable[[Connection], None] = begin) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=target, args=(other,), name="rlfn-pipe worker", daemon=True)
        with _signals_held():
            self._process.start()
        other.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """End the process at once, unless that has been done. It cannot be used afterwards."""
        if self.connection.closed:
            return
        self.connection.close()
        self._process.kill()
        self._process.join()
        self._process.close()

    def fate(self) -> str:
        """What became of a process that is there no more, to be read after "the worker"."""
        self._process.join(5)
        code = self._process.exitcode
        if code is not None and code < 0:
            with suppress(ValueError):
                name = signal.Signals(-code).name
                return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return "closed its pipe" if code is None else f"ended with code {code}"
