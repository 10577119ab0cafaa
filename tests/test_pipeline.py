"""The three stages: order, bounds, errors with their frame, stopping, the stage that limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from rlfn_pipe.errors import Interrupted, OutputError
from rlfn_pipe.pipeline.stages import QUEUE_DEPTH, Pipeline


def doubled(items: Iterator[int]) -> Iterator[int]:
    for item in items:
        yield 2 * item


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("rlfn-pipe")]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    assert our_threads() == []


def run(source: Iterable[int], compute=doubled, sink=None, **more) -> list[int]:  # type: ignore[no-untyped-def]
    out: list[int] = []
    Pipeline(source, compute, sink or out.extend, **more).run()
    return out


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_all_results_in_order(count: int, together: int) -> None:
    assert run(range(count), together=together) == [2 * i for i in range(count)]


def test_compute_may_hold_back_and_flush() -> None:
    def in_pairs(items: Iterator[int]) -> Iterator[int]:
        held: list[int] = []
        for item in items:
            held.append(item)
            if len(held) == 2:
                yield from held
                held = []
        yield from held

    assert run(range(7), in_pairs) == list(range(7))


def test_stages_run_in_threads_of_their_own() -> None:
    names = {}

    def source() -> Iterator[int]:
        names["source"] = threading.current_thread().name
        yield 1

    def compute(items: Iterator[int]) -> Iterator[int]:
        names["compute"] = threading.current_thread().name
        yield from items

    run(source(), compute, lambda items: names.update(sink=threading.current_thread().name))
    assert len(set(names.values())) == 3
    assert names["compute"] == threading.current_thread().name


class Boom(Exception):
    pass


def failing_source(at: int) -> Iterator[int]:
    yield from range(at)
    raise Boom("source")


def failing_compute(items: Iterator[int]) -> Iterator[int]:
    for item in items:
        if item == 5:
            raise Boom("compute")
        yield item


def test_error_of_the_source_carries_its_frame() -> None:
    with pytest.raises(Boom, match="source") as caught:
        run(failing_source(5))
    assert "while reading frame 5" in caught.value.__notes__


def test_error_of_compute_is_raised() -> None:
    with pytest.raises(Boom, match="compute") as caught:
        run(range(10_000), failing_compute)
    assert "while computing frame 5" in caught.value.__notes__


def test_error_of_the_sink_carries_its_frame_and_stops_the_source() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for i in range(100_000):
            taken.append(i)
            yield i

    def sink(items: list[int]) -> None:
        if items[0] == 6:
            raise OutputError("disk full")

    with pytest.raises(OutputError, match="disk full") as caught:
        run(source(), sink=sink)
    assert "while writing frame 3" in caught.value.__notes__
    assert len(taken) < 50


def test_the_first_error_wins() -> None:
    def sink(items: list[int]) -> None:
        raise Boom("sink")

    with pytest.raises(Boom) as caught:
        run(failing_source(1), sink=sink)
    assert str(caught.value) in ("sink", "source")


def test_error_in_a_thread_that_is_no_ordinary_exception() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise MemoryError("out")

    with pytest.raises(MemoryError):
        run(source())


def test_queues_are_bounded() -> None:
    """A sink that stands still lets the source go on only by what fits between them."""
    gate = threading.Event()
    taken: list[int] = []

    def source() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            if len(taken) > 3 * QUEUE_DEPTH:
                gate.set()  # would be a failure: nothing has been written yet
            yield i

    seen: list[int] = []

    def sink(items: list[int]) -> None:
        if not seen:
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline and len(taken) < 2 * QUEUE_DEPTH + 4 and not gate.is_set():
                time.sleep(0.01)
            time.sleep(0.1)
            seen.append(len(taken))

    run(source(), sink=sink)
    assert seen[0] <= 2 * QUEUE_DEPTH + 4


@pytest.mark.parametrize(("size", "held"), [(1, 4), (2, 2), (9, 1)])
def test_results_that_wait_are_bounded_by_their_bytes(size: int, held: int) -> None:
    """Those that are not written yet; however large a result is, one passes."""
    made, written, most = 0, 0, 0

    def compute(items: Iterator[int]) -> Iterator[int]:
        nonlocal made, most
        for item in items:
            most = max(most, made - written)  # the pipeline has taken all that were made before
            made += 1
            yield item

    def sink(items: list[int]) -> None:
        nonlocal written
        time.sleep(0.005)
        written += len(items)

    run(range(20), compute, sink, depth=8, together=3, bytes_of=lambda item: size, most_bytes=4)
    assert written == 20 and most == held


@pytest.mark.parametrize("where", ["before", "source", "compute", "sink"])
def test_stop_ends_the_run(where: str) -> None:
    stop = threading.Event()
    if where == "before":
        stop.set()

    def source() -> Iterator[int]:
        for i in range(100_000):
            if where == "source" and i == 5:
                stop.set()
            yield i

    def compute(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if where == "compute" and item == 5:
                stop.set()
            yield item

    written: list[int] = []

    def sink(items: list[int]) -> None:
        written.extend(items)
        if where == "sink" and len(written) == 5:
            stop.set()

    with pytest.raises(Interrupted) as caught:
        run(source(), compute, sink, stop=stop)
    assert caught.value.exit_code == 130
    assert len(written) < 50


def test_stop_while_everything_waits() -> None:
    stop, release = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        stop.set()
        release.wait(5)
        yield 1

    timer = threading.Timer(0.3, release.set)
    timer.start()
    with pytest.raises(Interrupted):
        run(source(), stop=stop)
    timer.join()


def test_token_that_knows_its_signal() -> None:
    stop = threading.Event()
    stop.signum = 15  # type: ignore[attr-defined]
    stop.set()
    with pytest.raises(Interrupted) as caught:
        run(range(10), stop=stop)
    assert caught.value.exit_code == 143


@pytest.mark.parametrize("slow", ["decode", "compute", "encode"])
def test_the_slowest_stage_is_named(slow: str) -> None:
    def source() -> Iterator[int]:
        for i in range(30):
            time.sleep(0.01 if slow == "decode" else 0)
            yield i

    def compute(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            time.sleep(0.01 if slow == "compute" else 0)
            yield item

    pipeline = Pipeline(
        source(), compute, lambda items: time.sleep(0.01 * len(items) if slow == "encode" else 0)
    )
    pipeline.run()
    times = pipeline.clock.times()
    assert times.limit == slow
    assert max(times.busy, key=times.busy.__getitem__) == slow
    assert (times + times).busy[slow] == 2 * times.busy[slow]


def test_nothing_limits_before_the_start() -> None:
    assert Pipeline(range(3), doubled, lambda items: None).clock.times().limit is None
