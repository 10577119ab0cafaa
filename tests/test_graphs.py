"""Recorded batches, with a recorder for the CPU; and that nothing unmeasured is on by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.engine.transfer import fetch, frames_ahead, send
from rlfn_pipe.errors import UsageError
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.fuse import InferenceNet, build_inference
from rlfn_pipe.models.graphs import SHAPES, GraphedNetwork, Recording
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.types import ColourInfo, Frame, Target
from rlfn_pipe.unmeasured import PARTS, WISH, asked_for


class Recorder:
    """Does what was recorded again, into the same memory, as a CUDA graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], torch.Tensor]) -> Recording:
        self.recorded += 1
        result = work()

        def replay() -> None:
            self.replayed += 1
            result.copy_(work())

        # A graph's result is of no use before it is replayed.
        result.fill_(float("nan"))
        return Recording(result, replay)


@pytest.fixture(scope="module")
def net() -> InferenceNet:
    spec = architecture("rlfn-s", 2)
    torch.manual_seed(4)
    return build_inference(spec, RLFN(spec).eval().requires_grad_(False))


def pictures(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def test_a_recording_gives_what_the_network_gives(net: InferenceNet) -> None:
    recorder = Recorder()
    graphed = GraphedNetwork(net, lambda: recorder)
    calls = [pictures(2, 20, 24, seed) for seed in range(4)]
    calls[2:2] = [pictures(1, 20, 24, 9), pictures(1, 20, 24, 10)]
    results = [graphed(x) for x in calls]
    assert (recorder.recorded, recorder.replayed) == (2, 4), "the first of each shape is not recorded"
    for x, result in zip(calls, results, strict=True):
        torch.testing.assert_close(result, net(x), atol=1e-3, rtol=0)


def test_few_shapes_are_kept_and_all_of_it_can_be_handed_back(net: InferenceNet) -> None:
    recorder = Recorder()
    graphed = GraphedNetwork(net, lambda: recorder)
    assert not graphed.forget()
    sizes = range(16, 16 + SHAPES + 1)
    for width in [w for w in sizes for _ in range(2)]:
        graphed(pictures(1, 16, width, 1))
    assert recorder.recorded == len(sizes)
    graphed(pictures(1, 16, sizes[0], 1))
    assert recorder.recorded == len(sizes), "the oldest shape was dropped and is new again"
    assert graphed.forget() and not graphed.forget()
    assert graphed.to(torch.device("cpu")) is graphed


@pytest.mark.parametrize("tta", [False, True])
def test_tiles_keep_their_places_in_recordings(net: InferenceNet, tta: bool) -> None:
    """All tiles of a frame have one shape, and each its own place in ESA's grid."""
    spec = architecture("rlfn-s", 2)
    layout = ColourInfo(0, range=2, subsampling="rgb")
    rng = np.random.default_rng(3)
    frames = [
        Frame(tuple(rng.integers(0, 256, (90, 100), np.uint8) for _ in range(3)), layout, i, i)
        for i in range(3)
    ]
    recorder = Recorder()
    outputs = []
    for network in (net, GraphedNetwork(net, lambda: recorder)):
        settings = {"tile": 60, "overlap": 12, "batch": 2, "threads": 2, "tta": tta, "reuse": "off"}
        engine = Engine(lambda dtype, edge, n=network: n, spec, device="cpu", precision="fp32", **settings)  # type: ignore[misc,arg-type]
        outputs.append(list(engine.run((frame, Target(200, 180, layout)) for frame in frames)))
        assert engine.forget() == isinstance(network, GraphedNetwork)
    assert recorder.replayed > recorder.recorded >= 1
    for one, other in zip(*outputs, strict=True):
        for p, q in zip(one.planes, other.planes, strict=True):
            assert np.abs(p.astype(int) - q).max() <= 1


def test_nothing_unmeasured_is_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv(WISH, raising=False)
    assert not any(asked_for(part, cuda) for part in PARTS) and frames_ahead(cuda) == 0
    monkeypatch.setenv(WISH, " graphs,ahead")
    assert {part for part in PARTS if asked_for(part, cuda)} == {"graphs", "ahead"}
    assert frames_ahead(cuda) == 2 and frames_ahead(cpu) == 0
    assert not any(asked_for(part, cpu) for part in PARTS)
    monkeypatch.setenv(WISH, "graphs,all")
    with pytest.raises(UsageError, match=r"RLFN_PIPE_CUDA names all; known are .*graphs"):
        asked_for("kernels", cuda)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_there_and_back(dtype: type[np.generic]) -> None:
    array = np.arange(-60, 60).reshape(6, 20).astype(dtype)[1:5, ::2]
    sent = send(array, torch.device("cpu"))
    assert not np.shares_memory(sent.numpy(), array), "a decoder may write to its memory again"
    (got,) = fetch([sent]).tensors()
    np.testing.assert_array_equal(got.numpy(), array)
