"""What the engine has in hand: a frame's job, the tiles that have to be computed for it, and what may share a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlfn_pipe.engine.arrays import Array, Arrival
from rlfn_pipe.engine.lanes import Lone
from rlfn_pipe.engine.picture import Picture
from rlfn_pipe.engine.reuse import Answer
from rlfn_pipe.engine.tiling import Tile
from rlfn_pipe.types import Frame, Target

__all__ = ["Job", "Key", "Piece", "depth_of", "key_of", "like"]


@dataclass(frozen=True, slots=True)
class Key:
    """What tiles must have in common to share a batch.

    Batches of `video` are always full (filled up where tiles are wanting): all its tiles are computed by
    the same kernels, so that a tile's bits do not depend on when it came. With `remember` the network keeps
    what the next frame may have in common with this one.
    """

    height: int
    width: int
    whole: bool
    edge_fp32: bool
    video: bool
    remember: bool = False


@dataclass(slots=True)
class Job:
    """A frame in hand.

    `alpha` is a picture, a constant in 0..1, or None where none is wanted. `answers` has a list of tiles'
    answers for each picture, where they are kept. A job that `repeats` another has no picture, nor has one
    that is computed by a thread of its own (`lone`) as long as it is. `planes` are its samples on their way to the
    host, made when the run had added `doubts` batches to those in doubt and mended tiles `mends` times.
    """

    frame: Frame
    target: Target
    picture: Picture | None = None
    alpha: Picture | float | None = None
    repeats: Job | None = None
    lone: Lone[Job] | None = None
    remember: bool = False
    output: Frame | None = None
    tiles: tuple[Tile, ...] = ()
    answers: list[list[Answer]] | None = None
    waiting: list[Answer] | None = None
    planes: Arrival | None = None
    doubts: int = 0
    mends: int = 0
    #: Low-resolution pixels that are computed for it.
    pixels: int = 0

    def __post_init__(self) -> None:
        self.pixels = self.frame.width * self.frame.height * max(1, len(self.pictures))

    @property
    def settled(self) -> bool:
        """True when no planes are to be made."""
        return self.repeats is not None or self.output is not None

    @property
    def pictures(self) -> list[Picture]:
        found = [self.picture, self.alpha]
        return [picture for picture in found if isinstance(picture, Picture)]

    @property
    def done(self) -> bool:
        """Whether all that the result is made of has been computed."""
        if self.repeats is not None:
            return self.repeats.output is not None or self.repeats.done
        if self.lone is not None:
            return self.lone.done
        if self.waiting is None:
            return all(picture.done for picture in self.pictures)
        while self.waiting and self.waiting[-1].part is not None:
            self.waiting.pop()
        return not self.waiting


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A tile to compute, and where its result goes: to the picture, or to an answer that is kept.

    `frame` is the index of the frame that it was first wanted for.
    """

    picture: Picture
    tile: Tile
    answer: Answer | None
    frame: int

    @property
    def waits(self) -> bool:
        return self.answer.part is None if self.answer else self.picture.waits_for(self.tile)

    def place(self, result: Array) -> None:
        """Put the tile's result (3, s h, s w) float32 where it goes."""
        if self.answer is None:
            self.picture.place(self.tile, result)
        else:
            self.answer.set(self.tile, result, self.picture.scale, self.picture.arrays)

    def mend(self, result: Array) -> None:
        """Put a result where `place` put zeros."""
        if self.answer is None:
            self.picture.mend(self.tile, result)
        else:
            self.answer.set(self.tile, result, self.picture.scale, self.picture.arrays)


def depth_of(frame: Frame, target: Target) -> int:
    """Bits a sample that a frame's way asks for: the larger of its own and its result's."""
    return max(frame.colour.bit_depth, target.colour.bit_depth)


def key_of(tile: Tile, frame: Frame, target: Target, remember: bool = False) -> Key:
    """All tiles of a frame have one size; a frame of a video has a time."""
    edge_fp32 = depth_of(frame, target) > 8
    return Key(tile.y.size, tile.x.size, tile.whole, edge_fp32, frame.pts is not None, remember)


def like(done: Job, frame: Frame) -> Frame:
    """`frame` with the result of a job that is done."""
    output = done.output
    assert output is not None
    # Pictures go to callers who may write to them; a video's frames go to an encoder.
    planes = output.planes if frame.pts is not None else tuple(plane.copy() for plane in output.planes)
    return replace(frame, planes=planes, colour=output.colour)
