"""Results that may not be finite, asked about late: the device is not waited for after each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

__all__ = ["Doubts", "finite_tiles", "without_bad_tiles"]

P = TypeVar("P")


def finite_tiles(result: torch.Tensor) -> torch.Tensor:
    """(N,) booleans for (N, C, h, w); one sum a tile finds NaN and infinities, since both survive addition."""
    return torch.isfinite(result.sum(dim=(1, 2, 3)))


def without_bad_tiles(result: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """`result` with zeros instead of the tiles that are not `finite`; on the device, nothing is read back.

    A blended canvas stays clean that way: what belongs there can simply be added later.
    """
    return torch.where(finite[:, None, None, None], result, torch.zeros((), device=result.device))


class Doubts(Generic[P]):
    """What was computed and not yet checked: flags on the device, and what each of them is about."""

    def __init__(self) -> None:
        self._waiting: list[tuple[torch.Tensor, Sequence[P]]] = []
        self._bad: list[P] = []

    def add(self, finite: torch.Tensor, items: Sequence[P]) -> None:
        """Flags (N,) of at most N `items`; spare ones at the end are about nothing."""
        self._waiting.append((finite, items))

    def settle(self) -> list[P]:
        """The items that are not finite, after one read for everything added since the last call.

        They stay on the list, which is the caller's to empty.
        """
        if self._waiting:
            flags = torch.cat([finite[: len(items)] for finite, items in self._waiting]).tolist()
            known = [item for _, items in self._waiting for item in items]
            self._waiting = []
            self._bad += [item for item, finite in zip(known, flags, strict=True) if not finite]
        return self._bad

    def clear(self) -> None:
        """Nothing is in doubt any more."""
        self._waiting, self._bad = [], []
