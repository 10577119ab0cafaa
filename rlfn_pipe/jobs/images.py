"""Many images through one engine: read and written by worker threads, computed together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING

from rlfn_pipe.errors import EngineError, OutputError, RlfnPipeError, Taken, reason_of
from rlfn_pipe.jobs.geometry import Geometry, output_geometry, shape_notes
from rlfn_pipe.media.images import (
    ImageMeta,
    check_output_size,
    conversion_notes,
    output_format,
    read_image,
    target_colour,
    write_image,
)
from rlfn_pipe.pipeline.stages import Pipeline
from rlfn_pipe.types import Event, Failed, Finished, Frame, Progress, Started, Target, Warned

if TYPE_CHECKING:
    from joblib import Parallel

    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.jobs.image_task import ImageTask
    from rlfn_pipe.jobs.inputs import Item
    from rlfn_pipe.jobs.room import EngineRoom


#: Bytes of results that wait to be written: three of 12 megapixels at x4.
_MOST_UNWRITTEN = 2 << 30


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image and all that is needed to write its upscaled twin."""

    index: int
    item: Item
    frame: Frame
    meta: ImageMeta
    format: str
    target: Target
    geometry: Geometry
    notes: tuple[str, ...]
    begin: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that could not be read or planned, and why."""

    index: int
    item: Item
    error: RlfnPipeError


class ImageRun:
    """Upscales images in order; one that fails does not stop the others, unless it is the only item."""

    def __init__(
        self,
        task: ImageTask,
        room: EngineRoom,
        on_event: Callable[[Event], None],
        stop: threading.Event,
    ) -> None:
        self._task, self._room = task, room
        self._items, self._options, self._workers = task.items, task.options, task.workers
        self._on_event, self._stop = on_event, stop
        self._waiting: dict[int, Picture] = {}
        self._begin = time.monotonic()
        #: What ends does so in the thread that reads, computes or writes.
        self._counting = threading.Lock()
        self._bytes = 0
        self._done = 0

    def run(self) -> None:
        """Work through all items. Raises `Interrupted`, and errors that concern every item."""
        from joblib import Parallel  # 70 ms, which a film need not wait for

        # Reading and writing have a pool of their own each: joblib's pools serve one caller at a time.
        with (
            Parallel(n_jobs=self._workers, backend="threading") as readers,
            Parallel(n_jobs=self._workers, backend="threading") as writers,
        ):
            Pipeline(
                self._read(readers),
                self._compute,
                lambda frames: self._write(writers, frames),
                stop=self._stop,
                depth=max(4, self._workers),
                together=self._workers,
                bytes_of=lambda frame: sum(plane.nbytes for plane in frame.planes),
                most_bytes=_MOST_UNWRITTEN,
            ).run()

    # ------------------------------------------------------------------ stages

    def _read(self, pool: Parallel) -> Iterator[Picture]:
        """Decoded pictures in order; as many are read at a time as there are workers."""
        from joblib import delayed

        for begin in range(0, len(self._items), self._workers):
            indices = range(begin, min(begin + self._workers, len(self._items)))
            for result in pool(delayed(self._read_one)(index) for index in indices):
                if isinstance(result, Unreadable):
                    self._fail(result.item, result.error)
                    continue
                self._waiting[result.index] = result
                yield result

    def _read_one(self, index: int) -> Picture | Unreadable:
        item, options = self._items[index], self._options
        begin = time.monotonic()
        try:
            ours = item.output in self._task.replaceable
            if options.skip_existing and not ours and os.path.lexists(item.output):
                raise Taken(f"{item.output}: appeared meanwhile")
            frame, meta = read_image(item.source, index)
            format = output_format(item.output, meta, options.format)
            geometry = output_geometry(options, frame.width, frame.height, name=str(item.source))
            check_output_size(item.output, geometry.width, geometry.height, format)
            shape = shape_notes(options, geometry, frame.width, frame.height)
            notes = (*meta.notes, *conversion_notes(frame, meta, format, self._options.quality), *shape)
        except RlfnPipeError as error:
            return Unreadable(index, item, error)
        target = Target(geometry.width, geometry.height, target_colour(frame, format))
        return Picture(index, item, frame, meta, format, target, geometry, notes, begin)

    def _compute(self, pictures: Iterator[Picture]) -> Iterable[Frame]:
        """Through the engine of each picture's factor; neighbours with the same one share batches."""
        for engine, group in groupby(pictures, key=lambda p: self._room.engine_for(p.geometry.factor)):
            yield from self._computed(engine, group)

    def _computed(self, engine: Engine, pictures: Iterable[Picture]) -> Iterator[Frame]:
        """What the engine makes of pictures, but for those that do not fit the device."""
        in_hand: dict[int, Picture] = {}
        arriving = self._announced(pictures, in_hand)
        again: list[Picture] = []
        while True:
            try:
                for frame in engine.run(chain([(p.frame, p.target) for p in again], arriving)):
                    del in_hand[frame.index]
                    yield frame
                return
            except EngineError as error:
                if not in_hand:
                    raise
                bad = in_hand.pop(error.frame if error.frame in in_hand else min(in_hand))
                del self._waiting[bad.index]
                self._fail(bad.item, error)
                again = list(in_hand.values())

    def _announced(
        self, pictures: Iterable[Picture], in_hand: dict[int, Picture]
    ) -> Iterator[tuple[Frame, Target]]:
        """What to compute, picture by picture; each is noted in `in_hand`."""
        for picture in pictures:
            in_hand[picture.index] = picture
            item, target = picture.item, picture.target
            self._on_event(
                Started(
                    str(item.source),
                    str(item.output),
                    1,
                    f"{picture.frame.width}x{picture.frame.height} to "
                    f"{target.width}x{target.height}, {picture.format}",
                )
            )
            for note in picture.notes:
                self._on_event(Warned(str(item.source), note))
            yield picture.frame, target

    def _write(self, pool: Parallel, frames: list[Frame]) -> None:
        from joblib import delayed

        pictures = [self._waiting[frame.index] for frame in frames]
        results = pool(
            delayed(self._write_one)(picture, frame) for picture, frame in zip(pictures, frames, strict=True)
        )
        for picture, result in zip(pictures, results, strict=True):
            del self._waiting[picture.index]
            if isinstance(result, RlfnPipeError):
                self._fail(picture.item, result)
            else:
                self._finish(picture, result)

    def _write_one(self, picture: Picture, frame: Frame) -> int | RlfnPipeError:
        output = picture.item.output
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            return write_image(
                output,
                frame,
                picture.meta,
                format=picture.format,
                quality=self._options.quality,
                overwrite=self._options.overwrite or output in self._task.replaceable,
            )
        except RlfnPipeError as error:
            return error
        except OSError as error:
            reason = reason_of(error)
            return OutputError(f"{output}: cannot be written ({reason}); choose another folder")

    # ------------------------------------------------------------------ events

    def _finish(self, picture: Picture, size: int) -> None:
        done = Finished(
            input=str(picture.item.source),
            output=str(picture.item.output),
            frames=1,
            concealed=0,
            seconds=time.monotonic() - picture.begin,
            bytes_written=size,
            width=picture.target.width,
            height=picture.target.height,
            notes=picture.notes,
        )
        self._on_event(done)
        self._ended(done.input, size)

    def _fail(self, item: Item, error: RlfnPipeError) -> None:
        name = str(item.source)
        if self._options.skip_existing and isinstance(error, Taken):
            self._on_event(Warned(name, error.passed_over))
        elif self._task.total == 1:
            raise error
        else:
            self._on_event(Failed(name, str(error)))
        self._ended(name)

    def _ended(self, name: str, size: int = 0) -> None:
        """One more is done with, `size` bytes were written; tells how far it is."""
        with self._counting:
            self._done += 1
            self._bytes += size
            ended, written = self._done, self._bytes
        elapsed = time.monotonic() - self._begin
        fps = ended / elapsed if elapsed > 0 else 0.0
        left = len(self._items) - ended
        done = self._task.before + ended
        self._on_event(
            Progress(
                input=name,
                frames_done=done,
                frames_total=done + left,
                fps=fps,
                eta_seconds=left / fps if fps else None,
                bytes_written=written,
                limit=None,
                items_done=self._task.offset + done,
                items_total=self._task.total,
            )
        )
