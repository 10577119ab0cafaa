"""Which form a network has where, and how it is built. PyTorch is loaded only for the forms that are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlfn_pipe.models.folding import Weights
from rlfn_pipe.models.native.library import cpu_form
from rlfn_pipe.models.native.network import NativeNetwork, fits
from rlfn_pipe.types import AnyDevice, ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rlfn_pipe.models.compiled import CompiledNetwork
    from rlfn_pipe.models.fuse import InferenceNet
    from rlfn_pipe.models.native.network import Grid
    from rlfn_pipe.models.rlfn import RLFN
    from rlfn_pipe.models.strips import StripNetwork

__all__ = ["InferenceFactory", "form_on"]


def form_on(device: AnyDevice, precision: str, spec: ModelSpec, *, compile: bool = False) -> str:
    """The form that a network of `spec` has in `precision` on a device, for what depends on its last bits."""
    if compile:
        return "compiled"
    if device.type == "cpu":
        return cpu_form(precision) if fits(spec, precision) else "strips"
    import torch

    from rlfn_pipe.models.cuda.trial import wanted

    return "cuda" if precision == "fp16" and wanted(torch.device(str(device))) else "operators"


class InferenceFactory:
    """Builds the fastest form of one network on demand, as `rlfn_pipe.engine.runner.Engine` asks for it.

    `weights` are an RLFN's of `spec`; `compile` asks for PyTorch's compiler.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, *, compile: bool = False) -> None:
        self.spec, self.weights, self.compile = spec, weights, compile
        self._module: RLFN | None = None

    def serves(self, device: str, precision: str) -> bool:
        """Whether the fastest form on a device in a number format is the compiled part, which takes arrays."""
        return device == "cpu" and not self.compile and fits(self.spec, precision)

    def host(self, precision: str, edge_fp32: bool) -> NativeNetwork | _OnTensors:
        """A form on the CPU that takes arrays: the compiled part, or strips where there is none in that format."""
        if fits(self.spec, precision):
            return NativeNetwork(self.spec, self.weights, precision, edge_fp32)
        import torch

        formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return _OnTensors(self(formats[precision], edge_fp32))

    @property
    def module(self) -> RLFN:
        """The network as a module of PyTorch."""
        if self._module is None:
            from rlfn_pipe.models.weights import module_of

            self._module = module_of(self.spec, self.weights)
        return self._module

    def __call__(
        self, dtype: torch.dtype, edge_fp32: bool, device: str = "cpu"
    ) -> StripNetwork | CompiledNetwork | InferenceNet:
        """A form of PyTorch's in `dtype` on a device; see `build_inference`."""
        if self.compile:
            from rlfn_pipe.models.compiled import CompiledNetwork

            return CompiledNetwork(self.spec, self.module, dtype, edge_fp32, device)
        if device == "cpu":
            from rlfn_pipe.models.strips import StripNetwork

            return StripNetwork(self.spec, self.module, dtype, edge_fp32)
        from rlfn_pipe.models.fuse import for_device

        return for_device(self.spec, self.module, dtype, edge_fp32, device)


class _OnTensors:
    """A network of tensors called with arrays, which are not copied."""

    def __init__(self, network: StripNetwork | CompiledNetwork | InferenceNet) -> None:
        self._network = network

    def __call__(self, x: np.ndarray, grid: Grid | None = None) -> np.ndarray:
        import torch

        rows = None if grid is None else tuple(torch.from_numpy(part.copy()) for part in grid)
        result: np.ndarray = self._network(torch.from_numpy(x.copy()), rows).numpy()  # type: ignore[arg-type]
        return result
