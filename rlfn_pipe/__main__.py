"""The program's first step: `rlfn-pipe` and `python -m rlfn_pipe` both begin here.

Loading the command takes some tenths of a second. A signal that arrives before it is there to answer gets
one sentence and the documented exit code as well. Nothing else may be imported at the top.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Never

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def _not_begun(signum: int, frame: FrameType | None) -> Never:
    os.write(2, b"rlfn-pipe: error: stopped before it began\n")
    starter = sys.modules.get("rlfn_pipe.cli.early")
    if starter is not None and hasattr(starter, "end_early"):  # loaded, to its end
        starter.end_early()
    os._exit(128 + signum)


def _open_closed_ones() -> None:
    """Give closed standard streams (`>&-`) a place that takes everything and holds nothing.

    Otherwise the next file that is opened would have their number, and Python has no object for them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        stream = open(number, "w" if number else "r", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)
        # As Python keeps those that it opens: without anybody who holds it the number would be free again.
        setattr(sys, f"__{name}__", stream)


class _Forgiving(io.FileIO):
    """A file that loses what cannot be written to it: its reader is gone, its terminal closed, its disk full."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _settle_streams() -> None:
    """What cannot be said on standard error is lost, and no job fails for it; what an encoding lacks is escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    there = getattr(sys.stderr, "buffer", None)
    if type(getattr(there, "raw", there)) is io.FileIO:  # no console of Windows, no embedder's object
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Forgiving(sys.stderr.fileno(), "w", closefd=False)),
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )


def main() -> int:
    """Run the command line of this process and return its exit code."""
    _open_closed_ones()
    _settle_streams()
    # One that the caller has set to be ignored (nohup, a shell's background job) stays so.
    stopping = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    heard = [s for s in stopping if s is not None and signal.getsignal(s) is not signal.SIG_IGN]
    for signum in heard:
        signal.signal(signum, _not_begun)
    # PyTorch looks once, at its first tensor; see `rlfn_pipe.allocator`.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from rlfn_pipe.cli.early import early_worker

    with early_worker(sys.argv[1:]):
        return _command(heard)


def _command(heard: list[signal.Signals]) -> int:
    """Load the command, which now answers the signals that are `heard`, and run it."""
    from rlfn_pipe.cli.app import main as command
    from rlfn_pipe.errors import Interrupted

    def unwind(signum: int, frame: FrameType | None) -> Never:
        # KeyboardInterrupt would become a silent exit on its way through Typer.
        raise Interrupted(signum, "stopped before the end")

    try:
        for signum in heard:
            signal.signal(signum, unwind)
        return command()
    except Interrupted as stopped:  # between the two, or as the command returned
        print(f"rlfn-pipe: error: {stopped}", file=sys.stderr)
        return stopped.exit_code
    finally:
        # Nobody is there any more to catch what it raises.
        for signum in heard:
            if signal.getsignal(signum) is unwind:
                signal.signal(signum, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
