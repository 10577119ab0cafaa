"""Work on several things at a time from one thread each, ended cleanly whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")


def for_each(
    things: Sequence[T], work: Callable[[T], None], count: int, on_abort: Callable[[], None]
) -> None:
    """Call `work` on all things in order, `count` at a time; alone it runs in the calling thread.

    The first exception is raised after `on_abort`, which is to end what still runs, and after the
    other threads have ended.
    """
    if count == 1 or len(things) == 1:
        for thing in things:
            work(thing)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="rlfn-pipe job") as pool:
        futures = [pool.submit(work, thing) for thing in things]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            on_abort()
            raise
