"""Results' buffers used again: fresh pages for each can cost two threads a quarter of their time."""

from __future__ import annotations

import math
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

__all__ = ["Results"]

#: Bytes of buffers that may wait for the next results, however many they are.
LEAST_SPARE = 64 << 20


class _Lent:
    """What an array on a buffer's memory keeps alive, as all its views do: it goes with the last of them.

    A view of an array that owns its memory would keep that alone.
    """

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, buffer: np.ndarray) -> None:
        self.__array_interface__: dict[str, Any] = buffer.__array_interface__


class Results:
    """Float32 arrays whose memory comes back when the last view of them is gone, whoever holds it.

    The memory of `most` results waits for the next ones, or that of more small ones; what is beyond is mapped for each
    result, which leaves nothing behind. Several threads may ask at once.
    """

    def __init__(self) -> None:
        # No lock, for a buffer may come back in the middle of anything: a deque's own steps are atomic.
        self._spare: deque[np.ndarray] = deque()
        #: The numbers in a buffer of the size that was last asked for; only such buffers wait.
        self._size = 0
        self.most = 1

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """What `numpy.empty` gives for float32, in memory of a former result of this size if there is any."""
        buffer = self._taken(math.prod(shape))
        lent = _Lent(buffer)
        weakref.finalize(lent, self._give_back, buffer).atexit = False
        return np.asarray(lent).reshape(shape)

    def release(self) -> None:
        """Hand back what waits for the next results."""
        self._spare.clear()

    def _taken(self, size: int) -> np.ndarray:
        if size != self._size:
            self._size = size
            self.release()
        with suppress(IndexError):
            buffer = self._spare.pop()
            if len(buffer) == size:  # another thread may ask for another size meanwhile
                return buffer
        return np.empty(size, np.float32)

    def _give_back(self, buffer: np.ndarray) -> None:
        waiting = len(self._spare) + 1
        fits = waiting <= self.most or waiting * buffer.nbytes <= LEAST_SPARE
        if len(buffer) == self._size and fits:
            self._spare.append(buffer)
