"""A CUDA graph for each shape of a batch: one launch instead of some hundred. Unmeasured; see `rlfn_pipe.unmeasured`.

It pays where tiles are small, so that the host takes longer to launch a layer than the device to compute it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch

from rlfn_pipe.models.fuse import Grid, InferenceNet

__all__ = ["CudaRecorder", "GraphedNetwork", "Recorder", "Recording"]

#: Shapes whose graphs are kept. A video has one, or two where its last batch is not filled up.
SHAPES = 4
#: Calls before a graph is recorded, by which libraries choose their algorithms and take their memory.
WARM_UP = 2

_Shapes = tuple[torch.Size, ...]


class Recording(NamedTuple):
    """What was recorded: `replay` computes `result` anew, in the same place, from what the inputs hold then."""

    result: torch.Tensor
    replay: Callable[[], None]


Recorder = Callable[[Callable[[], torch.Tensor]], Recording]


class CudaRecorder:
    """Records what some work has the current CUDA device do, for it to be done again at once.

    Recordings share their memory: each result has to be taken away before anything else is replayed.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # Libraries keep memory for each stream that they have seen; other streams may be in use, by copies.
        self._aside, self._recorded = (torch.cuda.Stream() for _ in range(2))  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], torch.Tensor]) -> Recording:
        current = torch.cuda.current_stream()
        self._aside.wait_stream(current)
        with torch.cuda.stream(self._aside):
            for _ in range(WARM_UP):
                work()
        current.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._recorded, capture_error_mode="thread_local"
        ):
            result = work()
        return Recording(result, graph.replay)


class _Kept(NamedTuple):
    inputs: list[torch.Tensor]
    recording: Recording


class GraphedNetwork:
    """An `InferenceNet` that replays a recording from the second batch of a shape on."""

    def __init__(self, net: InferenceNet, make_recorder: Callable[[], Recorder] = CudaRecorder) -> None:
        self._net, self._make_recorder = net, make_recorder
        self._recorder: Recorder | None = None
        #: Oldest first; None for shapes that were seen once, as pictures of a folder are.
        self._kept: OrderedDict[_Shapes, _Kept | None] = OrderedDict()

    def __call__(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        """As `InferenceNet`; the result is the caller's."""
        given = [x, *(grid or ())]
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in self._kept:
            self._keep(shapes, None)
            result: torch.Tensor = self._net(x, grid)
            return result
        kept = self._kept[shapes] or self._record(given)
        self._keep(shapes, kept)
        for tensor, value in zip(kept.inputs, given, strict=True):
            tensor.copy_(value)
        kept.recording.replay()
        return kept.recording.result.clone()

    def to(self, device: torch.device) -> GraphedNetwork:
        """The network itself; it is where it was made for."""
        return self

    def forget(self) -> bool:
        """Hand back the graphs' memory. False when there was none."""
        had = any(self._kept.values())
        self._kept.clear()
        self._recorder = None
        return had

    def _record(self, given: list[torch.Tensor]) -> _Kept:
        inputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in given]
        x, *grid = inputs
        self._recorder = self._recorder or self._make_recorder()
        return _Kept(inputs, self._recorder(lambda: self._net(x, tuple(grid) or None)))

    def _keep(self, shapes: _Shapes, kept: _Kept | None) -> None:
        self._kept[shapes] = kept
        self._kept.move_to_end(shapes)
        while len(self._kept) > SHAPES:
            self._kept.popitem(last=False)
