"""Photographs kept in the device's memory, patches gathered there: the batches of `Sampler`, bit for bit.

Cutting on the host keeps a fast GPU waiting: a batch of 64 patches of 256x256 takes a core 40 to 60 ms,
most of it under Python's lock, and as much again has to be copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from rlfn_pipe.training.data import Pairs, Place, Sampler, prefetch
from rlfn_pipe.training.device import Compute, to_tensor, to_unit

#: Share of the device's free memory that the photographs may take.
_SHARE = 0.5


def where_it_fits(pairs: Pairs, device: torch.device) -> Resident | None:
    """The images of `pairs` on `device` if that is a GPU with room for them beside what training needs."""
    if device.type != "cuda":
        return None
    images = [*pairs.hr, *itertools.chain.from_iterable(pairs.lr)]
    room = _SHARE * torch.cuda.mem_get_info(device)[0]
    return Resident(pairs, device) if sum(image.nbytes for image in images) <= room else None


def patches(
    sampler: Sampler, resident: Resident | None, first: int, compute: Compute
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """LR and HR patches from step `first` on, float32 (N, 3, h, w) in 0..1 on the device.

    Without `resident` they are cut on the host, some steps ahead. Close the generator to stop it;
    TrainingError when the cache cannot be read.
    """
    if resident is not None:
        for step in itertools.count(first):
            lr, hr = resident.batch(sampler, step)
            yield to_unit(lr), to_unit(hr)
    with closing(prefetch(sampler, first, compute.reading_threads)) as cut:
        for small, large in cut:
            yield to_tensor(small, compute.device), to_tensor(large, compute.device)


class Resident:
    """The images of `pairs` on `device`, from which batches are gathered there."""

    def __init__(self, pairs: Pairs, device: torch.device) -> None:
        self._scale, self._device = pairs.scale, device
        self._hr = _Store([(image,) for image in pairs.hr], device)
        self._lr = _Store(pairs.lr, device)

    def batch(self, sampler: Sampler, step: int) -> tuple[Tensor, Tensor]:
        """What `sampler.batch(step)` gives, as tensors on the device."""
        places, scale = sampler.places(step), self._scale
        small = sampler.patch // scale
        walks = torch.tensor(
            [
                [self._lr.walk(place, place.version, 1, small) for place in places],
                [self._hr.walk(place, 0, scale, sampler.patch) for place in places],
            ]
        )
        if self._device.type == "cuda":
            # From memory that is not pinned the copy would wait for all that the device has in hand.
            walks = walks.pin_memory().to(self._device, non_blocking=True)
        return self._lr.gather(walks[0], small), self._hr.gather(walks[1], sampler.patch)


class _Store:
    """Versions of images, one pixel behind the other."""

    def __init__(self, images: Sequence[Sequence[np.ndarray]], device: torch.device) -> None:
        flat = [version for versions in images for version in versions]
        sizes = [version.shape[0] * version.shape[1] for version in flat]
        begins = iter(np.cumsum([0, *sizes]).tolist())
        self._begin = [[next(begins) for _ in versions] for versions in images]
        self._width = [versions[0].shape[1] for versions in images]
        self._pixels = torch.empty(sum(sizes), 3, dtype=torch.uint8, device=device)
        for part, version in zip(torch.split(self._pixels, sizes), flat, strict=True):
            part.copy_(torch.from_numpy(np.array(version)).view(-1, 3))

    def gather(self, walks: Tensor, side: int) -> Tensor:
        """The patches of `side` pixels along `walks` (N, 3), uint8 (N, side, side, 3)."""
        walks = walks[:, :, None, None]
        steps = torch.arange(side, device=self._pixels.device)
        return self._pixels[walks[:, 0] + walks[:, 1] * steps[:, None] + walks[:, 2] * steps]

    def walk(self, place: Place, version: int, scale: int, side: int) -> tuple[int, int, int]:
        """A patch's first pixel, and how far the next one below and the next one to the right are from it."""
        width = self._width[place.image]
        first = self._begin[place.image][version] + place.top * scale * width + place.left * scale
        down, right, last = width, 1, side - 1
        if place.orientation >= 4:
            first, right = first + last * right, -right
        for _ in range(place.orientation % 4):
            # Anticlockwise: the right column becomes the upper row.
            first, down, right = first + last * right, -right, down
        return first, down, right
