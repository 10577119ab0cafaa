"""Frames that differ from the one before only in places: what did not change inside the network is not computed.

Everything in an RLFN is local: a block's convolutions reach 3 pixels, ESA's small map some 30. So the outputs of its
layers for the last frame are kept, and of the next one each layer is computed again in tiles around what changed
in its input; what comes out is compared with what was there, for mostly the same bits come out some pixels beyond a change,
since numbers are rounded, to 8 bits in bf16 and to 14 in float32. It costs about 1 KB for each low-resolution pixel in
bf16, 2 KB in float32. The result has the bits of the whole frame's computation, since those depend on no pixel's company
(network.hpp).
"""

from __future__ import annotations

import threading

import numpy as np

from rlfn_pipe.models.native.network import Grid, NativeNetwork

__all__ = ["RememberingNetwork"]

#: A frame is computed as a whole when more of its picture than this changed.
_MOST_CHANGED = 0.5


class RememberingNetwork:
    """A `NativeNetwork` that remembers the last picture; called like it, with the same bits.

    `limit` is the bytes that kept layers may take; larger pictures are computed afresh each time, and so are batches
    and tiles with a `grid`. `computed` is the share (0..1) of the last call's work that had to be done. A call beside
    another one is computed afresh, too.
    """

    def __init__(self, network: NativeNetwork, limit: int) -> None:
        self._network, self._limit = network, limit
        #: Held by the call that reads and writes the layers.
        self._layers = threading.Lock()
        self._memory: np.ndarray | None = None
        self._size = (0, 0)
        #: Whether layers of a picture are kept.
        self._valid = False
        self.scale = network.scale
        self.computed = 1.0

    def keeps(self, h: int, w: int) -> bool:
        """Whether there is room for the layers of a picture of h x w pixels."""
        return self._network.memory_bytes(h, w) <= self._limit

    def forget(self) -> bool:
        """Let go of the kept layers: memory is short. False when there were none."""
        with self._layers:
            kept = self._memory is not None
            self._memory, self._valid = None, False
        return kept

    def __call__(self, x: np.ndarray, grid: Grid | None = None) -> np.ndarray:
        """(1, 3, h, w) RGB, 0..255, to (1, 3, s h, s w) float32, not clamped."""
        self.computed = 1.0
        if len(x) == 1 and grid is None and self._layers.acquire(blocking=False):
            try:
                if self._room_for(x.shape[-2], x.shape[-1]):
                    return self._updated(x)
            finally:
                self._layers.release()
        return self._network(x, grid)

    def _updated(self, x: np.ndarray) -> np.ndarray:
        """The result by what is kept, and its layers kept in turn."""
        network, library = self._network, self._network.library
        x = np.ascontiguousarray(x, np.float32)
        h, w = x.shape[-2:]
        result = network.results.empty((1, 3, h * self.scale, w * self.scale))
        # Whatever interrupts this call must not leave layers of two pictures behind.
        valid, self._valid = self._valid, False
        with network.job(x[0], result[0], memory=self._memory) as job:
            changed = library.compare(network.net, job)
            if valid and changed <= _MOST_CHANGED:
                self.computed = library.update(network.net, job)
            else:
                library.run(network.net, job)
        self._valid = True
        return result

    def _room_for(self, h: int, w: int) -> bool:
        """Whether layers of such a picture can be kept; makes room for them where its size is new."""
        if self._size != (h, w) or self._memory is None:
            self._memory, self._size, self._valid = None, (h, w), False
            if not self.keeps(h, w):
                return False
            self._memory = np.empty(self._network.memory_bytes(h, w), np.uint8)
        return True
