"""How large tiles and batches may be after memory ran out, and when they may grow again."""

from __future__ import annotations

__all__ = ["PATIENCE", "Limits"]

#: Good batches at a lowered limit before a larger one is tried; doubled each time that fails again.
PATIENCE = 128


class Limits:
    """Caps that exhausted memory lowers and many good batches raise. No cap at first.

    What was short may have been another program's, so a cap is doubled after `PATIENCE` batches that used
    it to the full, and lifted where it no longer binds. Each failure doubles the patience: a limit that
    is real is tried less and less often.
    """

    def __init__(self) -> None:
        self.tile: int | None = None
        self.batch: int | None = None
        self.shrunk = False
        self._patience = PATIENCE // 2
        self._good = 0
        self._first_tile = self._first_batch = 0

    def tile_of(self, side: int) -> int:
        """The tile side to use where `side` (0: whole) is wanted."""
        return side if self.tile is None else min(side or self.tile, self.tile)

    def batch_of(self, count: int) -> int:
        """The batch to use where `count` is wanted."""
        return count if self.batch is None else min(count, self.batch)

    def halve_batch(self, count: int) -> int:
        """A batch of `count` tiles did not fit; returns the new cap."""
        self._failed()
        self._first_batch = max(self._first_batch, count)
        self.batch = max(1, count // 2)
        return self.batch

    def halve_tile(self, side: int, least: int) -> int:
        """A single tile of `side` did not fit; returns the new cap, at least `least`."""
        self._failed()
        self._first_tile = max(self._first_tile, side)
        self.tile = max(least, side // 2)
        return self.tile

    def went_well(self, count: int) -> None:
        """A batch of `count` tiles went through."""
        if self.tile is None and self.batch is None:
            return
        if self.batch is not None and count < self.batch:
            return
        self._good += 1
        if self._good < self._patience:
            return
        self._good = 0
        if self.batch is not None:
            self.batch = self.batch * 2 if self.batch * 2 < self._first_batch else None
        elif self.tile is not None:
            self.tile = self.tile * 2 if self.tile * 2 < self._first_tile else None

    def _failed(self) -> None:
        self.shrunk = True
        self._good = 0
        self._patience = min(self._patience * 2, 1 << 20)
