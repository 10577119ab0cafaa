"""Results' memory is used again, and only when nobody can read the former result any more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rlfn_pipe.models.native import library as native
from rlfn_pipe.models.native import results
from rlfn_pipe.models.native.network import NativeNetwork
from rlfn_pipe.models.native.results import Results
from rlfn_pipe.models.weights import load_weights

SHAPE = (1, 3, 40, 50)


def filled(ready: Results, value: float) -> np.ndarray:
    result = ready.empty(SHAPE)
    result[:] = value
    return result


def test_memory_comes_back_with_the_last_view_of_a_result() -> None:
    ready = Results()
    result = filled(ready, 1.0)
    assert (
        result.shape == SHAPE
        and result.dtype == np.float32
        and result.flags.c_contiguous
        and result.flags.writeable
    )
    place = result.ctypes.data
    views = [result[0], result[0, 1, 5:, ::2][3:], np.asarray(memoryview(result.reshape(3, -1)))]
    del result
    while views:
        other = filled(ready, 2.0)
        assert other.ctypes.data != place
        assert all(bool((view == 1.0).all()) for view in views)
        del other
        views.pop()
    assert place in [kept.ctypes.data for kept in [ready.empty(SHAPE) for _ in range(2)]]


def test_another_size_takes_no_buffer_and_leaves_none() -> None:
    ready = Results()
    first = ready.empty(SHAPE)
    del first
    assert ready.empty((1, 3, 40, 51)).size == 3 * 40 * 51
    assert [len(buffer) for buffer in ready._spare] == [3 * 40 * 51]
    ready.release()
    assert not ready._spare


@pytest.mark.parametrize(("least", "most", "waiting"), [(2, 1, 2), (0, 1, 1), (0, 3, 3), (4, 3, 4)])
def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, least: int, most: int, waiting: int) -> None:
    """By bytes, but one result for each that computes waits however large it is."""
    monkeypatch.setattr(results, "LEAST_SPARE", least * 4 * 3 * 40 * 50)
    ready = Results()
    ready.most = most
    held = [ready.empty(SHAPE) for _ in range(5)]
    del held
    assert len(ready._spare) == waiting


def test_threads_never_share_a_buffer() -> None:
    ready = Results()

    def work(number: int) -> bool:
        held: list[np.ndarray] = []
        for turn in range(300):
            result = filled(ready, number)
            held = [*held[-2:], result] if turn % 3 else []
            if not all(bool((kept == number).all()) for kept in held):
                return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(work, range(6)))


@pytest.mark.skipif(native.library("fp32") is None, reason=f"no compiled part: {native.why_not('fp32')}")
def test_a_result_that_is_held_stays_what_it_was() -> None:
    network = NativeNetwork(*load_weights("rlfn-s", 4), "fp32")
    pictures = 255.0 * np.random.default_rng(0).random((4, 1, 3, 24, 33), np.float32)
    expected = [network(x).copy() for x in pictures]
    remembering = network.remembering(1 << 30)
    for call in (network, remembering):
        held = [call(x) for x in pictures]
        assert all(np.array_equal(one, other) for one, other in zip(held, expected, strict=True))
        del held
        for x, other in zip(pictures, expected, strict=True):
            assert np.array_equal(call(x), other)  # in a used buffer, whatever lay there
    assert network.forget() and not network.forget()
    assert not network.results._spare
