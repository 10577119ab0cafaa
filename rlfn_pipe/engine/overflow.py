"""Results that may not be finite, asked about late: the device is not waited for after each batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

from rlfn_pipe.engine.transfer import Arrival, fetch

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
    """What was computed and not yet checked: flags on their way from the device, and what each of them is about."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Arrival, Sequence[P]]] = deque()
        self._bad: list[P] = []
        self._settled = 0

    @property
    def added(self) -> int:
        """How many times something was added."""
        return self._settled + len(self._waiting)

    def add(self, finite: torch.Tensor, items: Sequence[P]) -> None:
        """Flags (N,) of at most N `items`; spare ones at the end are about nothing."""
        self._waiting.append((fetch([finite]), items))

    def settle(self, until: int | None = None) -> list[P]:
        """The items that are not finite, of what was added before there were `until` additions (None: of all).

        They stay on the list, which is the caller's to empty.
        """
        while self._waiting and (until is None or self._settled < until):
            arrival, items = self._waiting[0]
            flags = arrival.tensors()[0].tolist()
            self._waiting.popleft()
            self._settled += 1
            self._bad += [item for item, finite in zip(items, flags, strict=False) if not finite]
        return self._bad
