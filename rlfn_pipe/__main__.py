"""The program's first step: `rlfn-pipe` and `python -m rlfn_pipe` both begin here.

Loading the command takes some tenths of a second. A signal that arrives before it is there to answer gets
one sentence and the documented exit code as well. Nothing else may be imported at the top.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Never


def _not_begun(signum: int, frame: FrameType | None) -> Never:
    os.write(2, b"rlfn-pipe: error: stopped before it began\n")
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
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def main() -> int:
    """Run the command line of this process and return its exit code."""
    _open_closed_ones()
    # One that the caller has set to be ignored (nohup, a shell's background job) stays so.
    heard = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
    for signum in heard:
        signal.signal(signum, _not_begun)
    # PyTorch looks once, at its first tensor; see `rlfn_pipe.engine.device.suit_allocator`.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from rlfn_pipe.cli.app import main as command
    from rlfn_pipe.errors import Interrupted

    def unwind(signum: int, frame: FrameType | None) -> Never:
        # KeyboardInterrupt would become a silent exit on its way through Typer.
        raise Interrupted(signum, "stopped before the end")

    for signum in heard:
        signal.signal(signum, unwind)
    return command()


if __name__ == "__main__":
    sys.exit(main())
