"""Which device and which number format, and why.

PyTorch, which takes long to load, is only asked where the system alone does not tell.
"""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rlfn_pipe.allowance import cores, free_memory, processor_flags, system_lines
from rlfn_pipe.errors import UsageError
from rlfn_pipe.types import AnyDevice

__all__ = [
    "PRECISIONS",
    "Device",
    "available_memory",
    "device_name",
    "may_have_a_gpu",
    "resolve_device",
    "resolve_precision",
    "torch_version",
]

PRECISIONS = ("fp32", "bf16", "fp16")
#: What drivers of GPUs that PyTorch can use leave to be seen: NVIDIA's, also on boards of its own and before anybody has
#: asked for a device, AMD's, and either in Windows' Linux.
_DRIVERS = (
    "/dev/nvidiactl",
    "/dev/nvidia0",
    "/proc/driver/nvidia",
    "/sys/module/nvidia",
    "/usr/bin/nvidia-modprobe",
    "/dev/nvhost-ctrl-gpu",
    "/dev/nvgpu",
    "/dev/nvmap",
    "/dev/kfd",
    "/dev/dxg",
)
_NAME = re.compile(r"(cpu|cuda|mps)(?::(\d{1,3}))?")
_FACT = re.compile(r"(\w+)(?::[^=]*)? = '?([^']*)'?")


@dataclass(frozen=True, slots=True)
class Device:
    """A device by the name that PyTorch has for it: `type` is cpu, cuda or mps, `index` that of a CUDA device."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


def may_have_a_gpu() -> bool:
    """Whether PyTorch might find a GPU here: on Linux by its build and by what drivers leave there, elsewhere always."""
    if sys.platform != "linux":
        return True
    builds = [text for name, text in _torch_facts().items() if name in ("cuda", "hip")]
    without = builds and all(text == "None" for text in builds)
    return not without and any(Path(sign).exists() for sign in _DRIVERS)


@cache
def torch_version() -> str:
    """PyTorch's version, without loading it where its own file says."""
    if known := _torch_facts().get("__version__"):
        return known
    import torch

    return str(torch.__version__)


def _torch_facts() -> dict[str, str]:
    """What PyTorch says of itself in lines such as ``cuda: Optional[str] = '13.0'``, by their names."""
    return {fact[1]: fact[2] for line in _torch_lines() if (fact := _FACT.fullmatch(line))}


@cache
def _torch_lines() -> list[str]:
    """The lines of the file in which PyTorch says what it was built for; importlib.metadata takes 20 ms to load."""
    found = find_spec("torch")
    return system_lines(Path(found.origin).with_name("version.py")) if found and found.origin else []


def _mps_available() -> bool:
    if sys.platform != "darwin":
        return False
    import torch

    return torch.backends.mps.is_available()


def resolve_device(name: str = "auto") -> tuple[Device, str]:
    """The device meant by `name` (auto, cpu, cuda, cuda:N, mps) and the reason as text.

    Hardware that nobody has run this on is never chosen by itself.

    Raises UsageError when the name is unknown or the device is not there.
    """
    if name == "auto":
        if not may_have_a_gpu():
            return Device("cpu"), "no GPU is to be seen that this PyTorch could use"
        import torch

        if torch.cuda.is_available():
            return Device("cuda", 0), f"a CUDA device is present ({torch.cuda.get_device_name(0)})"
        if _mps_available():
            reason = "Apple's Metal device is present, but nobody has measured it; --device mps takes it"
            return Device("cpu"), reason
        return Device("cpu"), "no CUDA device is usable by this PyTorch"
    meant = _NAME.fullmatch(name)
    if meant is None:
        raise UsageError(f"--device {name} is not known; use auto, cpu, cuda, cuda:0 or mps")
    device = Device(meant[1], int(meant[2]) if meant[2] and meant[1] == "cuda" else None)
    if device.type == "cuda":
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise UsageError(
                f"--device {name} is not available, since this PyTorch can use {found} CUDA device(s); "
                "use --device auto"
            )
        device = Device("cuda", device.index or 0)
    if device.type == "mps" and not _mps_available():
        raise UsageError(f"--device {name} is not available on this machine; use --device auto")
    return device, "asked for"


def _cpu_bf16_reason() -> str | None:
    """Why bf16 is fast on this CPU, or None."""
    amx, vectors = "the CPU has AMX", "the CPU has AVX-512 bf16"
    if flags := processor_flags():
        return amx if "amx_bf16" in flags else vectors if "avx512_bf16" in flags else None
    import torch

    # PyTorch offers its probes only under private names.
    for probe, reason in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", vectors)):
        check = getattr(torch.cpu, probe, None)
        if check is not None and check():
            return reason
    return None


def resolve_precision(name: str, device: AnyDevice) -> tuple[str, str]:
    """The number format meant by `name` (auto, fp32, bf16, fp16) on `device`, and the reason.

    Returns one of `PRECISIONS` and a text. Raises UsageError for an unknown name.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError(f"--precision {name} is not known; use auto, fp32, bf16 or fp16")
        return name, "asked for"
    if device.type in ("cuda", "mps"):
        return "fp16", f"fp16 is the fast format of {device.type} devices"
    reason = _cpu_bf16_reason()
    return ("bf16", reason) if reason else ("fp32", "the CPU has neither AMX nor AVX-512 bf16")


def device_name(device: AnyDevice) -> str:
    """The device's name for people."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(str(device))
    if device.type == "cpu":
        for line in system_lines(Path("/proc/cpuinfo")):
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({cores()} cores)"
        return platform.processor() or platform.machine()
    return f"{device.type} on {platform.machine()}"


def available_memory(device: AnyDevice) -> int:
    """Free bytes on the device; for the CPU (and unified memory) what the system lets this process have."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(str(device))[0])
    return free_memory()
