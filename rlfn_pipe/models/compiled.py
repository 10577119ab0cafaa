"""The inference form through PyTorch's compiler (`--compile on`).

On the CPU it needs a C++ compiler, on CUDA Triton, and half a minute for each size of tile when its cache is
cold; the cache lies in the user's cache folder and serves later runs. docs/performance.md says what it gains.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rlfn_pipe.errors import EngineError
from rlfn_pipe.files import cache_folder
from rlfn_pipe.models.fuse import Grid, build_inference

if TYPE_CHECKING:
    from rlfn_pipe.models.rlfn import RLFN
    from rlfn_pipe.types import ModelSpec

__all__ = ["CompiledNetwork"]

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class CompiledNetwork:
    """`rlfn_pipe.models.fuse.InferenceNet`, compiled for each shape when it first comes; arguments as there."""

    def __init__(
        self, spec: ModelSpec, module: RLFN, dtype: torch.dtype, edge_fp32: bool, device: str
    ) -> None:
        # Read when the compiler first runs; the user's own choice wins.
        os.environ.setdefault(_CACHE, str(cache_folder("compiled")))
        self._net = build_inference(spec, module, dtype, edge_fp32=edge_fp32).to(device)
        self._run = self._compiled()
        self._seen: set[tuple[tuple[int, ...], bool]] = set()

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        """As `InferenceNet`. Raises EngineError when the compiler does not work here."""
        key = (tuple(x.shape), grid is None)
        if key in self._seen:
            result: torch.Tensor = self._run(x, grid)
            return result
        from torch._dynamo.exc import TorchDynamoException

        try:
            with _hushed():
                result = self._run(x, grid)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise EngineError(
                f"the network cannot be compiled here ({reason}); install a C++ compiler (on CUDA Triton) "
                "or give --compile off"
            ) from error
        self._seen.add(key)
        return result

    def _compiled(self) -> Any:
        with _hushed():
            return torch.compile(self._net, dynamic=False, options={"freezing": True})


@contextmanager
def _hushed() -> Iterator[None]:
    """Without the compiler's remarks on deprecated parts of its own, which concern nobody here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
