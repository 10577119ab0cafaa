"""What exhausted memory takes away, and when it is tried again."""

from __future__ import annotations

__all__ = ["PATIENCE", "Limits"]

#: Good batches at a lowered limit before a larger one is tried; doubled each time that fails.
PATIENCE = 128


class Limits:
    """Caps that exhausted memory lowers and many good batches raise. No cap at first.

    What was short may have been another program's, so a cap is doubled after `PATIENCE` batches that used
    it to the full, and lifted where it no longer binds. Each time that this fails the patience is doubled: a limit
    that is real is tried less and less often.
    """

    def __init__(self) -> None:
        self.tile: int | None = None
        self.batch: int | None = None
        #: Whether networks may keep layers of a frame for the next one.
        self.layers = True
        #: How many times tile or batch were lowered.
        self.shortages = 0
        self._patience = PATIENCE
        #: Good batches since the last change, and whether that was a limit that was raised.
        self._good, self._raised = 0, False
        self._first_tile = self._first_batch = 0

    @property
    def shrunk(self) -> bool:
        """Whether tile or batch is lower than it was meant to be."""
        return self.tile is not None or self.batch is not None

    def tile_of(self, side: int) -> int:
        """The tile side to use where `side` (0: whole) is wanted."""
        return side if self.tile is None else min(side or self.tile, self.tile)

    def batch_of(self, count: int) -> int:
        """The batch to use where `count` is wanted."""
        return count if self.batch is None else min(count, self.batch)

    def halve_batch(self, count: int) -> int:
        """A batch of `count` tiles did not fit; returns the new cap."""
        self._failed()
        self.shortages += 1
        self._first_batch = max(self._first_batch, count)
        self.batch = max(1, count // 2)
        return self.batch

    def halve_tile(self, side: int, least: int) -> int:
        """A single tile of `side` did not fit; returns the new cap, at least `least`."""
        self._failed()
        self.shortages += 1
        self._first_tile = max(self._first_tile, side)
        self.tile = max(least, side // 2)
        return self.tile

    def keep_no_layers(self) -> None:
        """Kept layers were handed back, since there was no memory."""
        self._failed()
        self.layers = False

    def went_well(self, count: int) -> None:
        """A batch of `count` tiles went through."""
        if self.layers and not self.shrunk:
            return
        if self.batch is not None and count < self.batch:
            return
        self._good += 1
        if self._good < self._patience:
            return
        self._good, self._raised = 0, True
        if self.batch is not None:
            self.batch = self.batch * 2 if self.batch * 2 < self._first_batch else None
        elif self.tile is not None:
            self.tile = self.tile * 2 if self.tile * 2 < self._first_tile else None
        else:
            self.layers = True

    def _failed(self) -> None:
        """What is lowered step by step, until it fits, is one failure."""
        if self._raised:
            self._patience = min(self._patience * 2, 1 << 20)
        self._good, self._raised = 0, False
