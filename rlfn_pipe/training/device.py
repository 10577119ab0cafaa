"""Device, precision and processes of a run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from rlfn_pipe.allowance import cores, processor_flags
from rlfn_pipe.errors import TrainingError, UsageError
from rlfn_pipe.models.exact import exact_fp32

Module = TypeVar("Module", bound=nn.Module)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 bf16 or AMX), as Linux tells."""
    return not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and in which precision the steps run; rank and world size of a distributed run."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1

    @property
    def reading_threads(self) -> int:
        """Threads that cut patches: one is enough beside a CPU, a GPU empties the queue faster."""
        return 1 if self.device.type == "cpu" else min(8, cores())

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the forward pass runs."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def exact_fp32(self) -> AbstractContextManager[object]:
        """Context of a whole run: precision fp32 is true fp32."""
        return exact_fp32() if self.dtype == torch.float32 else nullcontext()

    def describe(self) -> str:
        """For logs: the device's name and the precision."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        many = f" x {self.world}" if self.world > 1 else ""
        return f"{name}{many}, {str(self.dtype).removeprefix('torch.')}"


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (N, h, w, 3) -> float32 (N, 3, h, w) in 0..1 on the device, channels last in memory."""
    tensor = torch.from_numpy(images)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return to_unit(tensor)


def to_unit(images: Tensor) -> Tensor:
    """uint8 (N, h, w, 3) -> float32 (N, 3, h, w) in 0..1, channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def to_channels_last(module: Module) -> Module:
    """`module` with its kernels laid out channels last (torch's annotations do not know this form)."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def is_leading() -> bool:
    """Whether this is the only process of a run, or of those that torchrun started the one that writes and speaks."""
    return _rank() == 0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def choose_compute(device: str, precision: str) -> Compute:
    """Settle `auto` in device and precision; join the process group that torchrun set up, if any.

    Raises TrainingError for a device that is not there.
    """
    rank, world = _rank(), int(os.environ.get("WORLD_SIZE", "1"))
    kind = device
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and world > 1:
        kind = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if kind.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError(f"device {device}: no CUDA device is usable here; use --device cpu")
    try:
        chosen = torch.device(kind)
    except RuntimeError as error:
        raise UsageError(f"--device {device} is unknown; use auto, cpu or cuda") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {device} is none to train on; use auto, cpu or cuda")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise TrainingError(f"device {device}: no Apple GPU is usable here; use --device auto or cpu")
    if chosen.type == "cuda":
        chosen = torch.device("cuda", chosen.index or 0)
        if chosen.index >= torch.cuda.device_count():
            raise TrainingError(
                f"device {chosen}: the last CUDA device here is cuda:{torch.cuda.device_count() - 1};"
                " use one up to that, or fewer processes"
            )
        torch.cuda.set_device(chosen)
        # All steps of a stage have one shape: cuDNN's search for the fastest way pays within seconds.
        torch.backends.cudnn.benchmark = True
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if precision == "auto":
        precision = "bf16" if chosen.type == "cuda" or cpu_has_bf16() else "fp32"
    if precision == "fp16" and chosen.type != "cuda":
        raise TrainingError("precision fp16 trains on CUDA only; use bf16 or fp32")
    return Compute(chosen, _DTYPES[precision], rank, world)
