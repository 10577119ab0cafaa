"""A worker's process, which begins before the program that gives it work is loaded itself.

Loading takes most of a short job's time, so nothing is imported here but what starts a process. `multiprocessing`
would start one more beside the first worker, to keep account of semaphores, and load the caller's main module anew.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe

#: What asks the command to stop; its workers, which a terminal asks as well, leave it to the command.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: What a worker's interpreter runs: modules are looked for where its parent does.
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from rlfn_pipe.jobs.process import arrive; arrive({target!r}, {end})"
)


def arrive(target: str, end: int) -> None:
    """The first step of a new process: run `target` (module:function) with its end of the pipe, a descriptor."""
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(Connection(end))


def begin(connection: Connection, *besides: str) -> None:
    """What a new process does: load our own program, and PyTorch beside it where it will be wanted, then serve.

    `besides`: modules that its first task will ask for.
    """
    # All that is made while modules load stays: to look through it again and again for rubbish took
    # a seventh of the time.
    gc.disable()
    beside = not _only_compiled()
    if beside:
        load_torch_beside()
    from rlfn_pipe.jobs.serve import serve

    for module in besides:
        with suppress(Exception):  # whoever needs it imports it again, and is told what is wrong
            importlib.import_module(module)
    if not beside:
        _all_is_made()
    serve(connection)


def begin_with_pictures(connection: Connection) -> None:
    """`begin`, with what a film need not wait for: OpenCV, Pillow, joblib."""
    begin(connection, "rlfn_pipe.jobs.images", "joblib")


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
    with suppress(Exception):  # as above
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
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


class WorkerProcess:
    """A process that is started at once and waits at the other end of `connection`.

    It ends when that is closed, also by the death of this process, provided that `target` heeds it.

    Args:
        target: what it runs, a function that can be imported there, given its end of the pipe, a descriptor that it
            inherits.

    Raises:
        OSError: the system starts no process.
    """

    def __init__(self, target: Callable[[Connection], None] = begin) -> None:
        self.connection, other = Pipe()
        end, name = other.fileno(), f"{target.__module__}:{target.__qualname__}"
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
        # Python passes over entries of other types.
        path = [entry for entry in sys.path if isinstance(entry, str)]
        program = _PROGRAM.format(path=path, target=name, end=end)
        with other, _signals_held():
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[end]
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End the process at once, unless that has been done. It cannot be used afterwards."""
        if self.connection.closed:
            return
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def fate(self) -> str:
        """What became of a process that is there no more, to be read after "the worker"."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        if code is not None and code < 0:
            with suppress(ValueError):
                name = signal.Signals(-code).name
                return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return "closed its pipe" if code is None else f"ended with code {code}"
