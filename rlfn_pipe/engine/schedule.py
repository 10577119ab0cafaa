"""One run of the engine: which frames are in hand, which tiles run next, what to do when memory ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rlfn_pipe.engine.arrays import Array
from rlfn_pipe.engine.batching import Buckets
from rlfn_pipe.engine.ends import opened, output_of, planes_of
from rlfn_pipe.engine.hold import Hold
from rlfn_pipe.engine.lanes import Lanes, Lone
from rlfn_pipe.engine.overflow import Doubts
from rlfn_pipe.engine.reuse import Answer, Gallery, Likeness, Memory, Mosaic, Statistics
from rlfn_pipe.engine.tiling import Tile, plan
from rlfn_pipe.engine.work import Job, Key, Piece, depth_of, key_of, like
from rlfn_pipe.errors import EngineError
from rlfn_pipe.memory import is_out_of_memory
from rlfn_pipe.types import Frame, Target

if TYPE_CHECKING:
    from rlfn_pipe.engine.runner import Engine

T = TypeVar("T")


@contextmanager
def _about(frame: int) -> Iterator[None]:
    """An EngineError of this block is about the frame with this index, unless it says which it is about."""
    try:
        yield
    except EngineError as error:
        if error.frame is None:
            error.frame = frame
        raise


class Run:
    """The state of one `Engine.run`."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._arrays = engine, engine.arrays
        self._jobs: deque[Job] = deque()
        #: Frames on their way to the host, oldest first; on the CPU none stays here.
        self._leaving: deque[Job] = deque()
        self._buckets: Buckets[Key, Piece] = Buckets()
        self._hold = Hold(engine.reuse_tolerance) if engine.reuse == "near" else None
        self._memory = Memory(engine.scale)
        self._mosaics = (Mosaic(engine.arrays), Mosaic(engine.arrays))
        self._recent: Gallery[Job] = Gallery()
        self._likeness = Likeness()
        self._lanes: Lanes[Job] = Lanes(engine.threads)
        self._side_by_side = True
        self._doubts: Doubts[Piece] = Doubts()
        #: Whether a batch that found no memory has been put back since one was placed, as networks had kept some.
        self._forgot = False
        #: How many tiles were mended so far: planes that were made before may lack one.
        self._mends = 0
        #: Whether a tile's bits are the same wherever it lies in a full batch, where that was tried.
        self._steady: dict[Key, bool] = {}
        self._worth_trying: set[Key] = set()

    def take(self, given: Frame, target: Target) -> Iterator[Frame]:
        """Take the next frame in hand; gives frames that are done, in the order in which they came."""
        frame = given if self._hold is None else self._hold(given)
        job, remember = self._repeated(frame, target), False
        if job is None:
            remember = self._remembers(frame, target)
            job = None if remember else self._beside(frame, target)
        if job is None:
            with _about(frame.index):
                job = self._attempt(lambda: self._open(frame, target))
        if job is None:
            while self._jobs:
                yield from self._next()
            job = self._with_room(lambda: self._open(frame, target), frame)
        self._jobs.append(job)
        if job.repeats is None:
            if self._engine.reuse != "off":
                self._recent.add(frame, target, job)
            job.remember = remember
            if job.lone is None:
                self._cut(job)
        self._count(frames=1, frames_repeated=int(job.repeats is not None))
        self._compute(until=None)
        while self._jobs and (self._jobs[0].done or self._crowded()):
            yield from self._next()

    def rest(self) -> Iterator[Frame]:
        """All frames that are in hand, when no more will come."""
        while self._jobs:
            yield from self._next()
        yield from self.finished()

    def finished(self) -> Iterator[Frame]:
        """Frames that have been computed and are on their way to the host."""
        while self._leaving:
            yield self._arrived()

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._lanes.close()

    def _count(self, **counts: Any) -> None:
        self._engine.count(Statistics(**counts))

    def _next(self) -> Iterator[Frame]:
        """Send the oldest frame to the host, computing what is missing of it; those that need be there by now."""
        job = self._jobs[0]
        if job.lone is not None:
            self._take(job, job.lone)
        self._compute(until=job)
        if not job.settled:
            self._with_room(lambda: self._close(job), job.frame)
        self._leaving.append(self._jobs.popleft())
        while len(self._leaving) > self._ahead(job):
            yield self._arrived()

    def _ahead(self, job: Job) -> int:
        """How many frames may be on their way: a batch at least, so that the device has the next one before it ends."""
        ahead = self._engine.ahead
        if not ahead or not job.tiles:
            return ahead
        tile = job.tiles[0]
        return max(ahead, self._engine.sizes.batch_for(tile.y.size, tile.x.size) // len(job.tiles))

    def _arrived(self) -> Frame:
        """Wait for the oldest frame that was sent."""
        job = self._leaving[0]
        self._with_room(lambda: self._land(job), job.frame)
        self._leaving.popleft()
        assert job.output is not None
        return job.output

    def _land(self, job: Job) -> bool:
        """A frame's samples on the host, made again where a tile had overflowed. True: see `_mend`."""
        if job.repeats is not None:
            job.output = like(job.repeats, job.frame)
        elif job.output is None:
            self._mend(job.doubts)
            if job.mends != self._mends:
                self._close(job)
            assert job.planes is not None
            job.output = output_of(job, job.planes)
            # The result may be kept for a while; what led to it need not.
            job.planes = job.picture = job.alpha = job.answers = None
            job.waiting = []
        return True

    def _crowded(self) -> bool:
        """More is waiting than two batches (and two frames), or two frames a thread, need."""
        lone = sum(job.lone is not None for job in self._jobs)
        if lone > 2 * self._lanes.count:
            return True
        if len(self._jobs) - lone <= 2:
            return False
        largest = max((k.height * k.width * self._full(k) for k in self._buckets.oldest_first()), default=0)
        return sum(job.pixels for job in self._jobs) > 2 * largest

    def _full(self, key: Key) -> int:
        """How many tiles make a full batch."""
        return self._engine.sizes.batch_for(key.height, key.width)

    # ------------------------------------------------------------ reuse

    def _repeated(self, frame: Frame, target: Target) -> Job | None:
        """A job without work, when the result of an earlier frame holds for the whole frame."""
        engine = self._engine
        if engine.reuse == "off":
            return None
        tiles = self._plan(frame)
        found = self._recent.find(frame, target)
        if found is not None and self._steady_for(frame, target, tiles):
            return Job(frame, target, repeats=found)
        if found is not None or len(tiles) > 1:
            self._worth_trying.add(key_of(tiles[0], frame, target))
        return None

    def _steady_for(self, frame: Frame, target: Target, tiles: tuple[Tile, ...]) -> bool:
        """Whether a tile of the frame has the same bits whenever it is computed; `near` does not ask."""
        key = key_of(tiles[0], frame, target)
        return self._engine.reuse == "near" or self._full(key) == 1 or self._steady.get(key, False)

    def _plan(self, frame: Frame) -> tuple[Tile, ...]:
        """The tiles of a frame."""
        height, width = self._size(frame)
        return plan(height, width, self._engine.sizes.tile_for(height, width), self._engine.sizes.overlap)

    def _size(self, frame: Frame) -> tuple[int, int]:
        """(height, width) of what the network sees of a frame, which is lengthened where it asks for more."""
        minimum = self._engine.spec.minimum_side
        return max(frame.height, minimum), max(frame.width, minimum)

    def _remembers(self, frame: Frame, target: Target) -> bool:
        """Whether the network is to keep the layers of a frame that has to be computed."""
        two_pictures = target.colour.alpha and frame.colour.alpha
        keeps = self._engine.keeps_layers(*self._size(frame), depth_of(frame, target) > 8)
        return keeps and not two_pictures and self._likeness.sees(frame)

    # ------------------------------------------------------------ a frame a thread

    def _beside(self, frame: Frame, target: Target) -> Job | None:
        """A job for a thread of its own, where frames can be computed side by side."""
        scale, depth = self._engine.scale, depth_of(frame, target)
        resized = (target.height, target.width) != (frame.height * scale, frame.width * scale)
        copies = int(target.colour.alpha and frame.colour.alpha) + int(resized) + int(depth > 8)
        if not self._side_by_side or self._engine.sizes.lanes_for(*self._size(frame), depth > 8, copies) == 1:
            return None
        return Job(frame, target, lone=self._lanes.add(lambda: self._alone(frame, target)))

    def _alone(self, frame: Frame, target: Target) -> Job:
        """`_whole` in a thread that does nothing else."""
        with self._arrays.quiet():
            return self._whole(frame, target)

    def _whole(self, frame: Frame, target: Target) -> Job:
        """All of a frame, from samples to samples."""
        job = self._open(frame, target)
        for picture in job.pictures:
            (tile,) = picture.cut(0, 0)
            results, _ = self._engine.infer(picture.pixels_of(tile)[None], [tile], picture.edge_fp32)
            picture.place(tile, results[0])
            job.tiles += (tile,)
        self._close(job)
        self._land(job)
        return job

    def _take(self, job: Job, lone: Lone[Job]) -> None:
        """Wait for a job's thread; a job that none is there for goes the common way."""
        job.lone = done = None
        try:
            with _about(job.frame.index):
                done = self._lanes.result(lone)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._make_room()
            self._side_by_side = False
        if done is not None:
            job.output = done.output
            self._count(tiles_computed=len(done.tiles), work=float(len(done.tiles)))
            return
        opened = self._with_room(lambda: self._open(job.frame, job.target), job.frame)
        job.picture, job.alpha = opened.picture, opened.alpha
        self._cut(job)

    # ------------------------------------------------------------ a frame's two ends

    def _open(self, frame: Frame, target: Target) -> Job:
        engine = self._engine
        return opened(frame, target, engine.scale, engine.spec.minimum_side, self._arrays, engine.to_rgb)

    def _close(self, job: Job) -> bool:
        """Make a frame's planes and send them to the host. True: see `_mend`."""
        if job.answers is not None:
            for picture, answers, mosaic in zip(job.pictures, job.answers, self._mosaics, strict=False):
                picture.complete(job.tiles, mosaic.show(job.tiles, answers, self._engine.scale))
        planes = planes_of(job, self._arrays, self._engine.to_planes)
        if job.target.surface:
            job.planes = self._arrays.surface(planes, job.target.colour.bit_depth)
        else:
            job.planes = self._arrays.fetch(planes)
        job.doubts, job.mends = self._doubts.added, self._mends
        return True

    # ------------------------------------------------------------ tiles

    def _cut(self, job: Job) -> None:
        """Plan a frame's tiles; those whose results are kept, and hold for it, are not computed."""
        job.tiles = self._plan(job.frame)
        steady = self._steady_for(job.frame, job.target, job.tiles)
        job.answers = None
        if self._engine.reuse != "off":
            job.answers = self._memory.answers(
                job.frame, job.target, job.tiles, len(job.pictures), keep=steady
            )
        job.waiting = None if job.answers is None else [a for answers in job.answers for a in answers]
        key = key_of(job.tiles[0], job.frame, job.target, job.remember)
        for number, picture in enumerate(job.pictures):
            answers: Sequence[Answer | None] = [None] * len(job.tiles)
            if job.answers is None:
                height, width = picture.rgb.shape[-2:]
                picture.cut(self._engine.sizes.tile_for(height, width), self._engine.sizes.overlap)
            else:
                answers = job.answers[number]
            for tile, answer in zip(job.tiles, answers, strict=True):
                if answer is None or not answer.asked:
                    self._buckets.add(key, Piece(picture, tile, answer, job.frame.index))
                    if answer is not None:
                        answer.asked = True
                else:
                    self._count(tiles_reused=1)

    def _cut_again(self) -> None:
        """Tiles became smaller: plan every frame in hand anew, finished ones excepted."""
        # What is thrown away must not be mended later, and what is kept must be whole.
        self._with_room(self._mend, self._jobs[0].frame)
        self._buckets.clear()
        self._memory.forget()
        for job in self._jobs:
            if not job.done and job.repeats is None and job.lone is None:
                self._cut(job)

    def _compute(self, until: Job | None) -> None:
        """Run every full batch, or, given a frame, whatever it takes to finish that frame."""
        while until is None or not until.done:
            key = next((k for k in self._buckets.oldest_first() if self._ready(k, until)), None)
            if key is None:
                return
            self._run_batch(key, self._buckets.take(key, self._full(key)))

    def _ready(self, key: Key, until: Job | None) -> bool:
        return until is not None or self._buckets.waiting(key) >= self._full(key)

    def _run_batch(self, key: Key, batch: list[Piece]) -> None:
        """Compute and place a batch; on exhausted memory put it back and make the next one smaller."""
        computed = self._full(key) if key.video else len(batch)
        with _about(batch[0].frame):
            try:
                self._run_and_place(key, batch)
                self._forgot = False
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # What the batch itself left there must not be taken for room, again and again.
            forgot, self._forgot = self._make_room() and not self._forgot, True
            if forgot or self._engine.sizes.shrink(computed, max(key.height, key.width)):
                self._buckets.put_back(key, [piece for piece in batch if piece.waits])
                return
        self._cut_again()

    def _run_and_place(self, key: Key, batch: list[Piece]) -> None:
        views = [piece.picture.pixels_of(piece.tile) for piece in batch]
        tiles = [piece.tile for piece in batch]
        if key.video:
            wanting = self._full(key) - len(batch)
            views, tiles = views + views[-1:] * wanting, tiles + tiles[-1:] * wanting
        pixels = views[0][None] if len(views) == 1 else self._arrays.stack(views)
        results, finite = self._engine.infer(pixels, tiles, key.edge_fp32, key.remember)
        if key in self._worth_trying and key.video and len(views) > 1 and key not in self._steady:
            self._steady[key] = self._is_steady(key, pixels[:1], tiles[0], results)
        doubted: list[Piece] = []
        if finite is not None:
            self._doubts.add(self._arrays.fetch([finite]), doubted)
        for piece, result in zip(batch, results, strict=False):
            piece.place(result)
            # In their order, also where memory ends before the last one is placed.
            doubted.append(piece)
        share = self._engine.share if key.remember else 1.0
        self._count(
            tiles_computed=len(batch), tiles_in_part=len(batch) if share < 1.0 else 0, work=share * len(batch)
        )

    def _mend(self, until: int | None = None) -> bool:
        """Compute again, in fp32, the tiles that turn out to have overflowed; see `Doubts.settle`.

        True, since `_attempt` takes None for memory that ended.
        """
        bad = self._doubts.settle(until)
        while bad:
            with _about(bad[-1].frame):
                bad[-1].mend(self._engine.redo(bad[-1].picture.pixels_of(bad[-1].tile), bad[-1].tile))
            bad.pop()
            self._mends += 1
            for mosaic in self._mosaics:
                mosaic.forget()
        return True

    def _is_steady(self, key: Key, pixels: Array, tile: Tile, results: Array) -> bool:
        """Whether the first tile's result is the same, bit for bit, in every place of a batch and other company.

        It is on most devices and shapes, but oneDNN's 1x1 convolutions in fp32 are an example where it is not.
        """
        count = len(results)
        same = self._arrays.repeated(pixels, count)
        again, _ = self._engine.infer(same, [tile] * count, key.edge_fp32)
        return all(self._arrays.equal(result, results[0]) for result in again)

    def _with_room(self, step: Callable[[], T], frame: Frame) -> T:
        """Do a step of one frame; when memory ends, hand cached memory back and try once more."""
        with _about(frame.index):
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
        self._make_room()
        return None

    def _make_room(self) -> bool:
        """Memory has ended: hand back what is kept, and wait for frames that are on their way.

        Whether networks had kept anything.
        """
        forgot = self._engine.forget()
        self._recent.forget()
        self._arrays.release()
        try:
            for job in self._leaving:
                self._land(job)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return forgot
