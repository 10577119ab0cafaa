"""Batches: random crops, mirrorings and rotations out of the image cache.

A batch is a pure function of (seed, stage, step): nothing has to be stored to continue a run
exactly where it stopped, and every process of a distributed run can make its own share.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rlfn_pipe.errors import TrainingError

#: LR and HR patches, uint8 (N, h, w, 3) and (N, scale*h, scale*w, 3).
Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Pairs:
    """HR images and, for each, its LR versions (one, or several degraded ones)."""

    names: tuple[str, ...]
    hr: tuple[np.ndarray, ...]
    lr: tuple[tuple[np.ndarray, ...], ...]
    scale: int

    def subset(self, indices: list[int]) -> Pairs:
        """The pairs at `indices`."""
        return Pairs(
            tuple(self.names[i] for i in indices),
            tuple(self.hr[i] for i in indices),
            tuple(self.lr[i] for i in indices),
            self.scale,
        )


def split(pairs: Pairs, held_back: float) -> tuple[Pairs, Pairs]:
    """Training and validation pairs; the choice depends on the file names alone.

    At least one image goes to each side; TrainingError with fewer than two images.
    """
    if len(pairs.names) < 2:
        raise TrainingError(
            f"{len(pairs.names)} training image is too few: two are the least (one validates)"
        )
    order = sorted(
        range(len(pairs.names)), key=lambda i: hashlib.sha256(pairs.names[i].encode("utf-8")).digest()
    )
    count = min(max(1, round(held_back * len(order))), len(order) - 1)
    return pairs.subset(sorted(order[count:])), pairs.subset(order[:count])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pair of patches lies: image, LR version, upper left corner in LR pixels, and one of
    eight orientations (4 and more: mirrored left to right; then quarter turns anticlockwise)."""

    image: int
    version: int
    top: int
    left: int
    orientation: int


class Sampler:
    """Draws batches of random patches from `pairs`; big images are drawn more often.

    `patch` is the HR side in pixels. Of each batch of `batch` patches only those at
    `rank, rank + world, ...` are cut, so that the processes of a distributed run share it.
    """

    def __init__(
        self, pairs: Pairs, patch: int, batch: int, seed: tuple[int, ...], rank: int = 0, world: int = 1
    ) -> None:
        usable = [i for i, image in enumerate(pairs.hr) if min(image.shape[:2]) >= patch]
        if not usable:
            raise TrainingError(f"no training image is as large as a patch of {patch} pixels; lower patch")
        self._pairs, self._usable = pairs, usable
        area = np.array([pairs.hr[i].shape[0] * pairs.hr[i].shape[1] for i in usable], np.float64)
        self._cumulative = np.cumsum(area) / area.sum()
        self.patch, self._batch, self._seed = patch, batch, seed
        self._rank, self._world = rank, world

    def places(self, step: int) -> list[Place]:
        """Where the patches of update number `step` lie."""
        draws = np.random.default_rng([*self._seed, step]).random((self._batch, 5))
        return [self._place(row) for row in draws[self._rank :: self._world]]

    def batch(self, step: int) -> Batch:
        """The patches of update number `step`."""
        cut = [self._cut(place) for place in self.places(step)]
        return np.stack([lr for lr, _ in cut]), np.stack([hr for _, hr in cut])

    def _place(self, draw: np.ndarray) -> Place:
        """A place from five uniform numbers: image, row, column, version, orientation."""
        chosen = int(np.searchsorted(self._cumulative, draw[0], side="right"))
        image = self._usable[min(chosen, len(self._usable) - 1)]
        versions = self._pairs.lr[image]
        height, width = versions[0].shape[:2]
        side = self.patch // self._pairs.scale
        return Place(
            image,
            int(draw[3] * len(versions)),
            int(draw[1] * (height - side + 1)),
            int(draw[2] * (width - side + 1)),
            int(draw[4] * 8),
        )

    def _cut(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        pairs, scale = self._pairs, self._pairs.scale
        side, top, left = self.patch // scale, place.top, place.left
        small = pairs.lr[place.image][place.version][top : top + side, left : left + side]
        large = pairs.hr[place.image][
            top * scale : (top + side) * scale, left * scale : (left + side) * scale
        ]
        if place.orientation >= 4:
            small, large = small[:, ::-1], large[:, ::-1]
        return np.rot90(small, place.orientation % 4), np.rot90(large, place.orientation % 4)


def prefetch(sampler: Sampler, first: int, workers: int = 1, ahead: int = 4) -> Generator[Batch, None, None]:
    """Batches from step `first` on, cut by `workers` threads, in order. Close the generator to stop it.

    A failure to read (the cache was deleted, the disk is gone) is a TrainingError.
    """
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(workers, "patches") as pool:
        try:
            for step in itertools.count(first):
                waiting.append(pool.submit(sampler.batch, step))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
        except (OSError, ValueError, IndexError) as error:
            raise TrainingError(
                f"the image cache cannot be read ({error}); delete it and start again"
            ) from error
        finally:
            for future in waiting:
                future.cancel()
