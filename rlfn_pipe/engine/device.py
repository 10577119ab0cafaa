"""Which device and which number format, and why; what counts as out of memory."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from rlfn_pipe.allowance import cores, free_memory, system_lines
from rlfn_pipe.errors import UsageError

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _mps_available() -> bool:
    return torch.backends.mps.is_available()


def resolve_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device meant by `name` (auto, cpu, cuda, cuda:N, mps) and the reason as text.

    Hardware that nobody has run this on is never chosen by itself.

    Raises UsageError when the name is unknown or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0), f"a CUDA device is present ({torch.cuda.get_device_name(0)})"
        cpu = torch.device("cpu")
        if _mps_available():
            return cpu, "Apple's Metal device is present, but nobody has measured it; --device mps takes it"
        return cpu, "no CUDA device is usable by this PyTorch"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name} is not known; use auto, cpu, cuda, cuda:0 or mps")
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise UsageError(
                f"--device {name} is not available, since this PyTorch can use {found} CUDA device(s); "
                "use --device auto"
            )
        device = torch.device("cuda", device.index or 0)
    if device.type == "mps" and not _mps_available():
        raise UsageError(f"--device {name} is not available on this machine; use --device auto")
    return device, "asked for"


def _cpu_bf16_reason() -> str | None:
    """Why bf16 is fast on this CPU, or None. PyTorch offers the two probes only under private names."""
    for probe, reason in (
        ("_is_amx_tile_supported", "the CPU has AMX"),
        ("_is_avx512_bf16_supported", "the CPU has AVX-512 bf16"),
    ):
        check = getattr(torch.cpu, probe, None)
        if check is not None and check():
            return reason
    return None


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """The number format meant by `name` (auto, fp32, bf16, fp16) on `device`, and the reason.

    Returns a key of `DTYPES` and a text. Raises UsageError for an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UsageError(f"--precision {name} is not known; use auto, fp32, bf16 or fp16")
        return name, "asked for"
    if device.type in ("cuda", "mps"):
        return "fp16", f"fp16 is the fast format of {device.type} devices"
    reason = _cpu_bf16_reason()
    return ("bf16", reason) if reason else ("fp32", "the CPU has neither AMX nor AVX-512 bf16")


def device_name(device: torch.device) -> str:
    """The device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        for line in system_lines(Path("/proc/cpuinfo")):
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({cores()} cores)"
        return platform.processor() or platform.machine()
    return f"{device.type} on {platform.machine()}"


def available_memory(device: torch.device) -> int:
    """Free bytes on the device; for the CPU (and unified memory) what the system lets this process have."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()
