"""The bench's frames in a file, as `upscale` would write them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from rlfn_pipe.bench.clip import RATE
from rlfn_pipe.media.encoders import EncodePlan, plan_encoding
from rlfn_pipe.media.segment import SegmentSink
from rlfn_pipe.media.sink import VideoSink
from rlfn_pipe.media.ticks import SinkTimes
from rlfn_pipe.media.timing import Timeline, clock_for
from rlfn_pipe.types import ColourInfo, Frame


def encoding(path: Path, colour: ColourInfo, size: tuple[int, int]) -> EncodePlan:
    """The project's default settings (libx264, crf 18, preset medium) for frames of `size` = (width, height)."""
    return plan_encoding(path, tags=colour, resolved=colour, picture=size, codec="libx264")


def encode(path: Path, frames: Iterable[Frame], threads: int = 0) -> list[int]:
    """Encode frames of one size and layout into a file of packets, as `upscale` does; returns their numbers.

    `frames`: one or more; their own times are replaced by 0, 1, 2 ...
    """
    arriving = iter(frames)
    first = next(arriving)
    plan = encoding(path.with_suffix(".mp4"), first.colour, (first.width, first.height))
    sink = SegmentSink(path, plan, RATE, name=path.name, threads=threads)
    try:
        for index, frame in enumerate(chain((first,), arriving)):
            sink.write(replace(frame, pts=index, time_base=1 / RATE))
        sink.close()
    except BaseException:
        sink.abort()
        raise
    return sink.pts


def write_clip(path: Path, frames: Iterable[Frame]) -> int:
    """Write an mp4 of frames (see `encode`) at a constant rate; returns how many."""
    frames = iter(frames)
    first = next(frames)
    packets = path.with_suffix(".packets")
    pts = encode(packets, chain((first,), frames))
    plan = encoding(path, first.colour, (first.width, first.height))
    timeline = Timeline(np.array(pts, dtype=np.int64), 1 / RATE, 1, RATE, True, True, len(pts))
    times = SinkTimes(1 / RATE, RATE, 1, Fraction(0), clock_for(plan.muxer, timeline, RATE, []))
    sink = VideoSink(path, plan, times, pts, name=path.name)
    try:
        sink.write_segment(packets, 0)
        sink.close()
    except BaseException:
        sink.abort()
        raise
    packets.unlink()
    return len(pts)
