"""Results' buffers used again: fresh pages for each cost two threads on small frames a quarter of their time."""

from __future__ import annotations

import math
import weakref
from collections import deque
from contextlib import suppress

import torch

__all__ = ["Results"]

#: Bytes of buffers that may wait for the next results in any case.
LEAST_SPARE = 64 << 20


class Results:
    """Float32 tensors whose memory comes back when the last view of them is gone, whoever holds it.

    Up to `most` bytes of it wait for the next ones; what is beyond is mapped for each result, which leaves nothing
    behind. Several threads may ask at once.
    """

    def __init__(self) -> None:
        # No lock, for a buffer may come back in the middle of anything: a deque's own steps are atomic.
        self._spare: deque[torch.Tensor] = deque()
        #: The numbers in a buffer of the size that was last asked for; only such buffers wait.
        self._size = 0
        self.most = LEAST_SPARE

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """What `torch.empty` gives for float32 on the CPU, in memory of a former result of this size if there is any."""
        buffer = self._taken(math.prod(shape))
        # The tensor's storage owns this array, so the array ends with the last view of the storage.
        array = buffer.numpy()
        weakref.finalize(array, self._give_back, buffer).atexit = False
        return torch.from_numpy(array).view(shape)

    def release(self) -> None:
        """Hand back what waits for the next results."""
        self._spare.clear()

    def _taken(self, size: int) -> torch.Tensor:
        if size != self._size:
            self._size = size
            self.release()
        with suppress(IndexError):
            buffer = self._spare.pop()
            if len(buffer) == size:  # another thread may ask for another size meanwhile
                return buffer
        return torch.empty(size)

    def _give_back(self, buffer: torch.Tensor) -> None:
        if len(buffer) == self._size and (len(self._spare) + 1) * buffer.nbytes <= self.most:
            self._spare.append(buffer)
