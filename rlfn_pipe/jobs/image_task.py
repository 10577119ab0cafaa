"""Images to work on, as a worker is told of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlfn_pipe.jobs.inputs import Item
    from rlfn_pipe.jobs.room import EngineRoom
    from rlfn_pipe.options import UpscaleOptions
    from rlfn_pipe.types import Event


@dataclass(frozen=True, slots=True)
class ImageTask:
    """Images to work on. Picklable.

    `workers`: threads that read and write; `total`: items of the whole run; `offset`: items of it
    that come before these; `before`: images of this task that earlier attempts have dealt with;
    `replaceable`: outputs that were there at the start and may be replaced.
    """

    items: tuple[Item, ...]
    options: UpscaleOptions
    workers: int
    total: int
    offset: int = 0
    before: int = 0
    replaceable: frozenset[Path] = frozenset()

    def run(self, room: EngineRoom, on_event: Callable[[Event], None], stop: threading.Event) -> None:
        """Work through all items; see `ImageRun.run`."""
        from rlfn_pipe.jobs.images import ImageRun  # OpenCV and Pillow, which a film need not wait for

        ImageRun(self, room, on_event, stop).run()
