"""Compiled networks called with tensors, as those that they are compared with."""

from __future__ import annotations

from typing import Any

import torch

from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.native.memory import RememberingNetwork
from rlfn_pipe.models.native.network import NativeNetwork
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.types import ModelSpec

__all__ = ["NAMES", "Compiled"]

#: Number formats by their names.
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}


class Compiled:
    """`NativeNetwork` of a module, or what that gives by `remembering`; all else is the network's own."""

    def __init__(self, spec: ModelSpec, module: RLFN, dtype: torch.dtype, edge_fp32: bool = False) -> None:
        self.network: NativeNetwork | RememberingNetwork = NativeNetwork(
            spec, weights_of(module), NAMES[dtype], edge_fp32
        )

    def __call__(self, x: torch.Tensor, grid: tuple[torch.Tensor, ...] | None = None) -> torch.Tensor:
        arrays: Any = None if grid is None else tuple(part.numpy() for part in grid)
        return torch.from_numpy(self.network(x.numpy(), arrays))

    def remembering(self, limit: int) -> Any:
        made = object.__new__(Compiled)
        assert isinstance(self.network, NativeNetwork)
        made.network = self.network.remembering(limit)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)
