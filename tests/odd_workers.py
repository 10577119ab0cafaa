"""Worker processes that misbehave, and one that computes with the nearest pixel; for test_workers.py."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import pytest

from rlfn_pipe.errors import SlowerThanMeant
from rlfn_pipe.jobs import serve as real
from rlfn_pipe.jobs.task import SegmentTask


def nearest(connection: Connection) -> None:
    """A worker whose engine repeats pixels."""
    from conftest import use_nearest_engine

    with pytest.MonkeyPatch.context() as patch:
        use_nearest_engine(patch)
        real.serve(connection)


def _odd(connection: Connection, act: Any) -> None:
    run = real._run

    def odd(task: Any, *rest: Any) -> Any:
        # Only the second segment is fateful.
        if isinstance(task, SegmentTask) and task.part.first >= 15:
            act()
        return run(task, *rest)

    real._run = odd
    nearest(connection)


def slower(connection: Connection) -> None:
    """Has a faster way that does not work, and libraries that warn of something."""

    def act() -> None:
        warnings.warn("the fast way is not used", SlowerThanMeant, stacklevel=1)
        warnings.warn("a library's own words", UserWarning, stacklevel=1)

    _odd(connection, act)


def segfault(connection: Connection) -> None:
    """Dies of a segmentation fault at its second segment, always."""
    _odd(connection, lambda: ctypes.string_at(0))


def hang(connection: Connection) -> None:
    """Says nothing any more at its second segment, always."""
    _odd(connection, lambda: time.sleep(600))


def leave(connection: Connection) -> None:
    """Ends with an exit code at its second segment, always."""
    _odd(connection, lambda: os._exit(7))


def defect(connection: Connection) -> None:
    """Has a defect at its second segment."""

    def act() -> None:
        error = ZeroDivisionError("by design")
        error.add_note("while reading frame 0")
        raise error

    _odd(connection, act)


def picky_about_images(connection: Connection) -> None:
    """Dies whenever it reads an image whose name says so."""
    from rlfn_pipe.jobs import images

    read = images.read_image

    def odd(path: Any, *rest: Any) -> Any:
        if "deadly" in path.name:
            os._exit(9)
        return read(path, *rest)

    images.read_image = odd
    nearest(connection)


def slow(connection: Connection) -> None:
    """Takes a tenth of a second for each packet that is looked at, and for each batch of tiles."""
    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.media import timing

    packets, grid = timing.readable_packets, Engine._grid

    def slow_packets(*of: Any) -> Any:
        for packet in packets(*of):
            time.sleep(0.1)
            yield packet

    def slow_grid(self: Any, tiles: Any) -> Any:
        time.sleep(0.1)
        return grid(self, tiles)

    timing.readable_packets, Engine._grid = slow_packets, slow_grid
    nearest(connection)


def crash_at_opening(connection: Connection) -> None:
    """Dies of a segmentation fault whenever it opens a file whose name says so."""
    from rlfn_pipe.jobs import video_plan

    opening = video_plan.open_source

    def odd(item: Any, *rest: Any) -> Any:
        if "deadly" in item.source.name:
            ctypes.string_at(0)
        return opening(item, *rest)

    video_plan.open_source = odd
    nearest(connection)
