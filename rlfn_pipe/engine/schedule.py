"""One run of the engine: which frames are in hand, which tiles run next, what to do when memory ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from rlfn_pipe.engine import colour
from rlfn_pipe.engine.batching import Buckets
from rlfn_pipe.engine.device import is_out_of_memory, release_cached
from rlfn_pipe.engine.picture import Picture
from rlfn_pipe.engine.resize import resize
from rlfn_pipe.engine.tiling import Tile
from rlfn_pipe.errors import EngineError
from rlfn_pipe.types import Frame, Target

if TYPE_CHECKING:
    from rlfn_pipe.engine.runner import Engine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Key:
    """What tiles must have in common to share a batch."""

    height: int
    width: int
    whole: bool
    edge_fp32: bool


@dataclass(slots=True)
class _Job:
    """A frame in hand. `alpha` is a picture, a constant in 0..1, or None where none is wanted."""

    frame: Frame
    target: Target
    picture: Picture
    alpha: Picture | float | None

    @property
    def pictures(self) -> list[Picture]:
        return [self.picture, self.alpha] if isinstance(self.alpha, Picture) else [self.picture]

    @property
    def done(self) -> bool:
        return all(picture.done for picture in self.pictures)

    @property
    def pixels(self) -> int:
        return sum(picture.pixels for picture in self.pictures)


class Run:
    """The state of one `Engine.run`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: deque[_Job] = deque()
        self._buckets: Buckets[_Key, tuple[Picture, Tile]] = Buckets()

    def frames(self, work: Iterable[tuple[Frame, Target]]) -> Iterator[Frame]:
        """Upscaled frames in the order of `work`."""
        for frame, target in work:
            job = self._attempt(lambda f=frame, t=target: self._open(f, t))  # type: ignore[misc]
            if job is None:
                while self._jobs:
                    yield self._next()
                job = self._with_room(lambda f=frame, t=target: self._open(f, t), frame)  # type: ignore[misc]
            self._jobs.append(job)
            self._cut(job)
            self._compute(until=None)
            while self._jobs and (self._jobs[0].done or self._crowded()):
                yield self._next()
        while self._jobs:
            yield self._next()

    def _next(self) -> Frame:
        """Finish the oldest frame, computing what is missing of it."""
        job = self._jobs[0]
        self._compute(until=job)
        result = self._with_room(lambda: self._close(job), job.frame)
        self._jobs.popleft()
        return result

    def _crowded(self) -> bool:
        """More is waiting than two batches (and two frames) need."""
        if len(self._jobs) <= 2:
            return False
        largest = max((k.height * k.width * self._full(k) for k in self._buckets.oldest_first()), default=0)
        return sum(job.pixels for job in self._jobs) > 2 * largest

    def _full(self, key: _Key) -> int:
        """How many tiles make a full batch."""
        return self._engine.batch_for(key.height, key.width)

    # ------------------------------------------------------------ a frame's two ends

    @torch.inference_mode()
    def _open(self, frame: Frame, target: Target) -> _Job:
        engine = self._engine
        depth = max(frame.colour.bit_depth, target.colour.bit_depth)
        minimum = engine.spec.minimum_side

        def picture(rgb: torch.Tensor) -> Picture:
            return Picture(rgb, engine.scale, minimum, depth)

        rgb = colour.to_rgb(frame, engine.device)
        alpha: Picture | float | None = None
        if target.colour.alpha:
            alpha = 1.0
            if frame.colour.alpha:
                plane: np.ndarray = frame.planes[-1]
                lowest, highest = int(plane.min()), int(plane.max())
                if lowest == highest:
                    alpha = lowest / ((1 << frame.colour.bit_depth) - 1)
                else:
                    grey = colour.alpha_to_grey(frame, engine.device)
                    rgb = colour.fill_under_alpha(rgb, grey)
                    alpha = picture(grey)
        return _Job(frame, target, picture(rgb), alpha)

    @torch.inference_mode()
    def _close(self, job: _Job) -> Frame:
        target = job.target
        rgb = resize(job.picture.result(), target.height, target.width)
        planes = colour.from_rgb(rgb, target.colour, neutral=job.frame.colour.subsampling == "grey")
        del rgb
        if isinstance(job.alpha, Picture):
            grey = resize(job.alpha.result(), target.height, target.width)
            planes.append(colour.alpha_from_grey(grey, target.colour.bit_depth))
        arrays = [colour.download(plane) for plane in planes]
        if isinstance(job.alpha, float):
            value = round(job.alpha * ((1 << target.colour.bit_depth) - 1))
            arrays.append(np.full((target.height, target.width), value, dtype=arrays[0].dtype))
        return replace(job.frame, planes=tuple(arrays), colour=target.colour)

    # ------------------------------------------------------------ tiles

    def _cut(self, job: _Job) -> None:
        for picture in job.pictures:
            height, width = picture.rgb.shape[-2:]
            for tile in picture.cut(self._engine.tile_for(height, width), self._engine.overlap):
                key = _Key(tile.y.size, tile.x.size, tile.whole, picture.edge_fp32)
                self._buckets.add(key, (picture, tile))

    def _cut_again(self) -> None:
        """Tiles became smaller: plan every frame in hand anew, finished ones excepted."""
        self._buckets.clear()
        for job in self._jobs:
            if not job.done:
                self._cut(job)

    def _compute(self, until: _Job | None) -> None:
        """Run every full batch, or, given a frame, whatever it takes to finish that frame."""
        while until is None or not until.done:
            key = next((k for k in self._buckets.oldest_first() if self._ready(k, until)), None)
            if key is None:
                return
            self._run_batch(key, self._buckets.take(key, self._full(key)))

    def _ready(self, key: _Key, until: _Job | None) -> bool:
        return until is not None or self._buckets.waiting(key) >= self._full(key)

    def _run_batch(self, key: _Key, batch: list[tuple[Picture, Tile]]) -> None:
        """Compute and place a batch; on exhausted memory put it back and make the next one smaller."""
        try:
            self._run_and_place(key, batch)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_cached(self._engine.device)
        if self._engine.shrink(len(batch), max(key.height, key.width)):
            self._buckets.put_back(key, [(p, t) for p, t in batch if p.waits_for(t)])
        else:
            self._cut_again()

    @torch.inference_mode()
    def _run_and_place(self, key: _Key, batch: list[tuple[Picture, Tile]]) -> None:
        views = [picture.pixels_of(tile) for picture, tile in batch]
        pixels = views[0][None] if len(views) == 1 else torch.stack(views)
        results = self._engine.infer(pixels, [tile for _, tile in batch], key.edge_fp32)
        for (picture, tile), result in zip(batch, results, strict=True):
            picture.place(tile, result)

    def _with_room(self, step: Callable[[], T], frame: Frame) -> T:
        """Do a step of one frame; when memory ends, hand cached memory back and try once more."""
        for _ in range(2):
            result = self._attempt(step)
            if result is not None:
                return result
        raise EngineError(
            f"{self._engine.device} has not enough memory for frame {frame.index} of "
            f"{frame.width}x{frame.height}; choose a smaller --scale or another --device"
        )

    def _attempt(self, step: Callable[[], T]) -> T | None:
        """The step's result, or None when memory ended (what was cached has been handed back then)."""
        try:
            return step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_cached(self._engine.device)
        return None
