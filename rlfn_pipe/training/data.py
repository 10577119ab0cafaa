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
        self._pairs = pairs.subset(usable)
        area = np.array([image.shape[0] * image.shape[1] for image in self._pairs.hr], np.float64)
        self._cumulative = np.cumsum(area) / area.sum()
        self._patch, self._batch, self._seed = patch, batch, seed
        self._rank, self._world = rank, world

    def batch(self, step: int) -> Batch:
        """The patches of update number `step`."""
        draws = np.random.default_rng([*self._seed, step]).random((self._batch, 5))
        cut = [self._cut(row) for row in draws[self._rank :: self._world]]
        return np.stack([lr for lr, _ in cut]), np.stack([hr for _, hr in cut])

    def _cut(self, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One pair of patches from five uniform numbers: image, row, column, variant, orientation."""
        pairs, scale = self._pairs, self._pairs.scale
        index = min(int(np.searchsorted(self._cumulative, draw[0], side="right")), len(pairs.hr) - 1)
        versions = pairs.lr[index]
        lr, hr = versions[int(draw[3] * len(versions))], pairs.hr[index]
        side = self._patch // scale
        top = int(draw[1] * (lr.shape[0] - side + 1))
        left = int(draw[2] * (lr.shape[1] - side + 1))
        small = lr[top : top + side, left : left + side]
        large = hr[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        orientation = int(draw[4] * 8)
        if orientation >= 4:
            small, large = small[:, ::-1], large[:, ::-1]
        return np.rot90(small, orientation % 4), np.rot90(large, orientation % 4)


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
