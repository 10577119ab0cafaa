"""Standard input and output of a job: whoever waits for the other end of a pipe looks up in between."""

from __future__ import annotations

import io
import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_POLL_SECONDS = 0.1


class PatientInput(io.RawIOBase):
    """What `descriptor` gives. While it gives nothing, `check` is called; what that raises ends the waiting."""

    def __init__(self, descriptor: int, check: Callable[[], None]) -> None:
        self._descriptor, self._check = descriptor, check

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        # Windows can only wait for sockets so.
        while os.name != "nt" and not select.select([self._descriptor], [], [], _POLL_SECONDS)[0]:
            self._check()
        self._check()
        view = memoryview(buffer)
        data = os.read(self._descriptor, view.nbytes)
        view[: len(data)] = data
        return len(data)


class PatientOutput:
    """What `descriptor` takes. While it takes nothing, `check` is called; what that raises ends the waiting."""

    def __init__(self, descriptor: int, check: Callable[[], None]) -> None:
        self._descriptor, self._check = descriptor, check

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it. Raises OSError as the descriptor does."""
        view = memoryview(data).cast("B")
        failed: list[OSError] = []

        def send() -> None:
            try:
                sent = 0
                while sent < view.nbytes:
                    sent += os.write(self._descriptor, view[sent:])
            except OSError as error:
                failed.append(error)

        # A pipe that has room for a part takes that and then blocks: a thread may be left to its fate, nothing else.
        thread = threading.Thread(target=send, name="rlfn-pipe standard output", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            if thread.is_alive():
                self._check()
        if failed:
            raise failed[0]
        return view.nbytes

    def flush(self) -> None:
        """Nothing is held back."""
