"""Frames that one thread each computes: the bits of frames that all threads share, in order, with nothing lost."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from nearest import NearestNetwork, nearest_spec

from rlfn_pipe.engine.lanes import Lanes
from rlfn_pipe.engine.network import Grid
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.errors import EngineError
from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.native import library as native
from rlfn_pipe.models.weights import load
from rlfn_pipe.threads import _libraries, compiled_threads, let_openmp_rest, only_compiled, work_alone
from rlfn_pipe.types import ColourInfo, Frame, Target

YUV = ColourInfo(matrix=1, range=1)
RGBA = ColourInfo(0, range=2, subsampling="rgb", alpha=True)


def noise(
    count: int, layout: ColourInfo = YUV, size: tuple[int, int] = (36, 50), seed: int = 0
) -> list[Frame]:
    """Frames that have nothing in common."""
    rng = np.random.default_rng(seed)
    top = 1 << layout.bit_depth
    sizes = [size] * (3 + layout.alpha)
    if layout.subsampling == "420":
        sizes[1:3] = [(-(-size[0] // 2), -(-size[1] // 2))] * 2
    return [
        Frame(
            tuple(
                rng.integers(0, top, plane).astype(np.uint16 if top > 256 else np.uint8) for plane in sizes
            ),
            layout,
            index=i,
            pts=i,
            time_base=Fraction(1, 25),
        )
        for i in range(count)
    ]


def held(frame: Frame, count: int) -> list[Frame]:
    """The frame again and again, a bright spot wandering on it."""
    found = []
    for i in range(count):
        luma = frame.planes[0].copy()
        luma[4:8, 3 * i : 3 * i + 4] = 235
        found.append(replace(frame, planes=(luma, *frame.planes[1:])))
    return found


def in_order(frames: list[Frame]) -> list[Frame]:
    return [replace(frame, index=i, pts=i) for i, frame in enumerate(frames)]


def run(made: Engine, frames: list[Frame], scale: float | None = None) -> list[Frame]:
    scale = scale or made.scale
    return list(
        made.run((f, Target(round(f.width * scale), round(f.height * scale), f.colour)) for f in frames)
    )


def check_same(got: list[Frame], wanted: list[Frame]) -> None:
    assert [(f.index, f.pts) for f in got] == [(f.index, f.pts) for f in wanted]
    for one, other in zip(got, wanted, strict=True):
        for p, q in zip(one.planes, other.planes, strict=True):
            np.testing.assert_array_equal(p, q)


class Threads:
    """A network that writes down who computed, and may fail for who it is told."""

    pixel_bytes = 100.0

    def __init__(self, network: NearestNetwork) -> None:
        self._network = network
        self.names: list[str] = []
        self.seconds = 0.0
        self.failure: BaseException | None = None

    def forget(self) -> bool:
        return False

    def __call__(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        name = threading.current_thread().name
        self.names.append(name)
        time.sleep(self.seconds)
        if self.failure is not None and name.startswith("rlfn-pipe compute"):
            raise self.failure
        return self._network(x, grid)

    @property
    def lone(self) -> int:
        return sum(name.startswith("rlfn-pipe compute") for name in self.names)


def nearest(threads: int = 2, **settings: object) -> tuple[Engine, Threads]:
    spec = nearest_spec(2)
    made = Threads(NearestNetwork(2))
    settings = {"device": "cpu", "precision": "fp32", "threads": threads, **settings}
    return Engine(lambda dtype, edge_fp32, device: made, spec, **settings), made  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("rlfn-pipe compute")]


# ---------------------------------------------------------------- lanes alone


def test_work_waits_until_there_is_enough_for_all_threads() -> None:
    lanes: Lanes[int] = Lanes(3)
    gate = threading.Event()

    def work(number: int) -> int:
        gate.wait(10)
        return number

    one, two = (lanes.add(lambda n=n: work(n)) for n in (1, 2))  # type: ignore[misc]
    assert one.future is None and two.future is None
    assert lanes.result(one) is None, "nobody works: the caller may, with all threads"
    three = lanes.add(lambda: work(3))
    assert two.future is None
    four = lanes.add(lambda: work(4))
    assert None not in (two.future, three.future, four.future)
    late = lanes.add(lambda: work(5))
    assert late.future is not None, "some are at work, so that this need not wait for company"
    gate.set()
    assert [lanes.result(lone) for lone in (two, three, four, late)] == [2, 3, 4, 5]
    lanes.close()


def test_what_is_held_back_begins_when_it_is_asked_for_beside_others() -> None:
    lanes: Lanes[int] = Lanes(2)
    gate = threading.Event()
    slow = [lanes.add(lambda: gate.wait(10) and 1) for _ in range(2)]
    lanes.count = 9
    last = lanes.add(lambda: 7)
    assert last.future is None
    threading.Timer(0.1, gate.set).start()
    assert lanes.result(last) == 7 and [lanes.result(lone) for lone in slow] == [1, 1]
    lanes.close()


def test_a_failure_is_the_callers() -> None:
    lanes: Lanes[int] = Lanes(1)

    def fail() -> int:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        lanes.result(lanes.add(fail))
    lanes.close()


# ---------------------------------------------------------------- in an engine


@pytest.mark.parametrize("layout", [YUV, replace(YUV, bit_depth=10), RGBA])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("threads", [2, 3])
def test_frames_come_in_order_with_the_same_samples(layout: ColourInfo, count: int, threads: int) -> None:
    made, seen = nearest(threads)
    frames = noise(count, layout)
    got = run(made, frames)
    check_same(got, run(nearest(1)[0], frames))
    pictures = 2 if layout.alpha else 1
    assert len(seen.names) == made.statistics.tiles_computed == count * pictures
    # One frame is for all threads, and so may be the last ones.
    assert seen.lone == 0 if count < threads else seen.lone >= pictures * (count - threads + 1)


def test_all_threads_are_busy_at_once() -> None:
    made, seen = nearest(3)
    seen.seconds = 0.05
    begin = time.perf_counter()
    run(made, noise(12))
    assert len(set(seen.names) - {"MainThread"}) == 3
    # 12 one after the other would take 0.6.
    assert time.perf_counter() - begin < 0.5


@pytest.mark.parametrize("settings", [{"threads": 1}, {"tile": 24}, {"batch": 2}, {"budget": 1 << 18}])
def test_what_asks_for_another_way_goes_it(settings: dict[str, int]) -> None:
    made, seen = nearest(**settings)
    run(made, noise(4))
    assert seen.names and seen.lone == 0


def test_repeated_frames_are_not_computed() -> None:
    frames = noise(6)
    frames = in_order([frames[i] for i in (0, 0, 1, 2, 1, 2, 2, 3, 4, 5, 5, 0)])
    made, seen = nearest()
    check_same(run(made, frames), run(nearest(1, reuse="off")[0], frames))
    assert len(seen.names) == 6 and made.statistics.frames_repeated == 6


def test_memory_that_ends_beside_others_is_found_together() -> None:
    made, seen = nearest()
    seen.failure = MemoryError()
    frames = noise(7)
    check_same(run(made, frames), run(nearest(1)[0], frames))
    # Those that had begun were in vain; then nobody tries again.
    assert 2 <= seen.lone <= 5 and len(seen.names) == seen.lone + 7
    assert not made.sizes.limits.shrunk


def test_an_error_ends_the_run() -> None:
    made, seen = nearest()
    seen.failure = EngineError("broken")
    with pytest.raises(EngineError, match="broken"):
        run(made, noise(7))


def test_a_run_that_is_given_up_leaves_no_thread() -> None:
    made, seen = nearest()
    seen.seconds = 0.05
    frames = noise(50)
    results = made.run((f, Target(f.width * 2, f.height * 2, f.colour)) for f in frames)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(seen.names) < 15


def test_look_ahead_is_bounded() -> None:
    taken = 0

    def work() -> Iterator[tuple[Frame, Target]]:
        nonlocal taken
        for frame in noise(60):
            taken += 1
            yield frame, Target(frame.width * 2, frame.height * 2, frame.colour)

    made, seen = nearest(4)
    seen.seconds = 0.01
    for count, _ in enumerate(made.run(work()), start=1):
        assert taken <= count + 2 * 4 + 1


@pytest.mark.skipif(native.library("fp32") is None, reason="no compiled part")
@pytest.mark.parametrize(
    ("model", "depth", "scale"), [("rlfn-s", 8, 4), ("rlfn-s", 10, 2.4), ("rlfn", 8, 2.4), ("rlfn", 10, 4)]
)
def test_the_compiled_network_gives_the_same_bits(model: str, depth: int, scale: float) -> None:
    """Moving frames, one that stays but for a spot, moving frames again."""
    layout = replace(YUV, bit_depth=depth)
    moving = noise(6, layout, (64, 104))
    frames = in_order([*moving[:3], *held(moving[3], 5), *moving[4:]])
    spec, module = load(model, 4)

    def engine(threads: int, reuse: str) -> Engine:
        factory = InferenceFactory(spec, weights_of(module))
        return Engine(factory, spec, device="cpu", threads=threads, reuse=reuse, reuse_tolerance=0)

    wanted = run(engine(1, "off"), frames, scale)
    for threads, reuse in ((2, "exact"), (3, "off"), (1, "near")):
        made = engine(threads, reuse)
        check_same(run(made, frames, scale), wanted)
        assert (made.statistics.tiles_in_part > 0) == (reuse != "off")


# ---------------------------------------------------------------- OpenMP


def test_openmp_rests_and_wakes_again() -> None:
    """PyTorch's operators run as before in between."""
    assert _libraries(loaded=True) or not torch.backends.openmp.is_available()
    x = torch.arange(1 << 20, dtype=torch.float32)
    for _ in range(3):
        let_openmp_rest()
        assert float((x * 2).sum(dtype=torch.float64)) == float((1 << 20) * ((1 << 20) - 1))


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="PyTorch is without OpenMP")
def test_one_thread_goes_without_openmp_and_no_other() -> None:
    torch.set_num_threads(3)

    def count() -> tuple[int, int]:
        return torch.get_num_threads(), compiled_threads()

    with ThreadPoolExecutor(1, initializer=work_alone) as pool:
        assert pool.submit(count).result() == (1, 1)
    assert count() == (3, 3)
    with only_compiled(5):
        assert count() == (1, 5)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(count).result() == (3, 3)
    assert count() == (3, 3)
