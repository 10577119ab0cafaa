"""Who computes with how many threads: PyTorch's operators through OpenMP, the compiled part with its own.

Where the compiled part does the work, the few operators around it run on the calling thread alone. OpenMP's helpers
would wait in a loop on cores that are needed, and some operators give other bits with other numbers of threads.
Nothing here loads PyTorch: where it is not there yet it has no threads to be told of.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from rlfn_pipe.allowance import cores

__all__ = ["compiled_threads", "let_openmp_rest", "only_compiled", "pytorch_threads", "work_alone"]

_LIBRARY = re.compile(r"/lib(gomp|iomp5|omp)[-.][^/]*$")


class _Here(threading.local):
    """What was said for the calling thread; None: as PyTorch has it."""

    count: int | None = None


_here = _Here()


def compiled_threads() -> int:
    """Threads that the compiled part may take for the calling thread."""
    if _here.count is not None:
        return _here.count
    torch = _torch()
    return torch.get_num_threads() if torch else cores()


@contextmanager
def only_compiled(count: int) -> Iterator[None]:
    """Within, and in the calling thread only, the compiled part takes `count` threads and PyTorch's operators one."""
    torch = _torch()
    before = _here.count, torch.get_num_threads() if torch else 0
    _here.count = count
    _set_openmp(1)
    try:
        yield
    finally:
        _here.count = before[0]
        if before[1]:
            _set_openmp(before[1])


@contextmanager
def pytorch_threads(count: int) -> Iterator[None]:
    """Within, PyTorch's operators take `count` threads, in the calling thread and in those that begin meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def work_alone() -> None:
    """From now on the calling thread has no helpers of any kind."""
    _here.count = 1
    _set_openmp(1)


def let_openmp_rest() -> None:
    """End the calling thread's OpenMP helpers, which PyTorch starts again when it next needs them.

    After a parallel operator they wait in a loop for milliseconds, on the cores that the compiled part's own threads
    want; twice the time at 96x96 (docs/performance.md).
    """
    soft = 1
    for library in _libraries(loaded=_torch() is not None):
        # Since OpenMP 5.0.
        if pause := getattr(library, "omp_pause_resource_all", None):
            pause(soft)


def _set_openmp(count: int) -> None:
    """OpenMP's threads for the calling thread; `torch.set_num_threads` would say it to later threads and to MKL, too."""
    if torch := _torch():
        # PyTorch sets a thread's number when it is first asked for.
        torch.get_num_threads()
    for library in _libraries(loaded=torch is not None):
        library.omp_set_num_threads(count)


def _torch() -> ModuleType | None:
    """PyTorch where it has been loaded, all of it."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "get_num_threads") else None


@cache
def _libraries(*, loaded: bool) -> tuple[ctypes.CDLL, ...]:
    """The OpenMP libraries in this process, with PyTorch's where that has been `loaded`."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    paths = {line.split(maxsplit=5)[-1] for line in lines if _LIBRARY.search(line)}
    return tuple(ctypes.CDLL(path) for path in sorted(paths))
