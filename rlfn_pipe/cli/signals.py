"""Stopping on request: SIGINT, SIGTERM and SIGHUP set a stop token, a second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlfn_pipe.jobs.process import STOPPING

#: The terminal was closed; None where the system has no such signal.
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)


class StopToken(threading.Event):
    """An event that remembers which signal set it (`signum`, 0: none)."""

    def __init__(self) -> None:
        super().__init__()
        self.signum = 0


@contextmanager
def stop_on_signals() -> Iterator[StopToken]:
    """Install handlers for SIGINT, SIGTERM and SIGHUP for the time of the block and restore the old ones.

    The first signal sets the token: the job ends at its next step and keeps what is finished.
    The second raises KeyboardInterrupt in the main thread, the third ends the process on the spot. A SIGHUP
    that is not the first is not counted, since a terminal and its shell send one each; one that the caller
    ignores (nohup) stays ignored.
    After a block that was asked to stop all of them are ignored: the program is on its way out, and a
    late second one must not end it with a traceback. Outside the main thread, where Python allows no
    handlers, the token is never set by signals.
    """
    stop = StopToken()
    arrived = 0

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal arrived
        if arrived and signum == HANGUP:
            return
        arrived += 1
        if not stop.signum:
            stop.signum = signum
        stop.set()
        if arrived == 2:
            raise KeyboardInterrupt
        if arrived > 2:
            os._exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = [s for s in STOPPING if s != HANGUP or signal.getsignal(s) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, handler) for signum in heard}
    try:
        yield stop
    finally:
        for signum, old in before.items():
            signal.signal(signum, signal.SIG_IGN if arrived else old)
