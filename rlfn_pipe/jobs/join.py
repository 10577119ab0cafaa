"""The last step: segments and copied streams become one file, which is checked and put in place."""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlfn_pipe.errors import MORE_ROOM, OutputError
from rlfn_pipe.jobs.segments import Segment
from rlfn_pipe.jobs.temporary import finished_by_rename
from rlfn_pipe.jobs.video_plan import VideoPlan
from rlfn_pipe.jobs.work import Work
from rlfn_pipe.media.opening import open_media
from rlfn_pipe.media.sink import VideoSink
from rlfn_pipe.media.streams import Carrier
from rlfn_pipe.media.verify import verify_video
from rlfn_pipe.pipeline.stages import interrupted

if TYPE_CHECKING:
    from rlfn_pipe.jobs.inputs import Item
    from rlfn_pipe.options import UpscaleOptions


@dataclass(frozen=True, slots=True)
class Joined:
    """The finished output: its size, and sentences for the summary."""

    bytes: int
    notes: tuple[str, ...]


def join(
    item: Item,
    options: UpscaleOptions,
    plan: VideoPlan,
    work: Work,
    segments: tuple[Segment, ...],
    stop: threading.Event,
) -> Joined:
    """Write the output from finished segments and the source's other streams.

    Raises:
        OutputError: it cannot be written or put in place, or fails the end check; nothing is left.
        Interrupted: `stop` was set.
    """

    def check_stop() -> None:
        if stop.is_set():
            raise interrupted(stop)

    pts = np.array([time for segment in segments for time in work.done[segment.number].pts], dtype=np.int64)
    overwrite = options.overwrite or work.header.overwrite
    with ExitStack() as stack:
        temporary = stack.enter_context(finished_by_rename(item.output, overwrite=overwrite))
        work.joining(temporary)
        _check_room(item.output, work, temporary)
        carrier = stack.enter_context(
            Carrier(lambda: open_media(item.source), plan.streams, base=plan.times.base, window=plan.window)
        )
        sink = VideoSink(
            temporary,
            plan.encoding,
            plan.times,
            pts,
            name=str(item.output),
            sample_aspect_ratio=plan.sample_aspect_ratio,
            display_matrix=plan.matrix,
            crop=plan.crop,
            carrier=carrier,
            stream_plans=plan.streams,
            tags=plan.tags,
            disposition=plan.disposition,
            threads=work_threads(work),
        )
        try:
            first = 0
            for segment in segments:
                sink.write_segment(work.file(segment), first, check_stop=check_stop)
                first += len(work.done[segment.number].pts)
            sink.close()
        except BaseException:
            sink.abort()
            raise
        check_stop()
        verify_video(temporary, str(item.output), sink.expectation())
        work.publishing(temporary)
        return Joined(temporary.stat().st_size, tuple(dict.fromkeys((*sink.notes, *carrier.notes))))


def work_threads(work: Work) -> int:
    """Threads of decoders and encoders: part of what was resolved at the start, for they change bits."""
    threads = work.settings.get("threads")
    return threads if isinstance(threads, int) else 0


def _check_room(output: Path, work: Work, temporary: Path) -> None:
    """Joining needs the film's size once more; better said before than after hours."""
    free, needed = shutil.disk_usage(temporary.parent).free, work.bytes
    if free < needed:
        raise OutputError(
            f"{output}: the film is computed, but putting it together needs {-(-needed >> 20)} MiB and the disk has "
            f"{free >> 20} MiB left; {MORE_ROOM}"
        )
