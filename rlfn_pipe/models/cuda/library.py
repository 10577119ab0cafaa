"""Compiles the kernels when they are first needed, by NVRTC, which comes with PyTorch for CUDA, and starts them."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from rlfn_pipe.allowance import cores
from rlfn_pipe.files import cache_folder, write_atomically

__all__ = [
    "Argument",
    "Gpu",
    "Kernel",
    "Maker",
    "architecture_for",
    "compiled",
    "gpu",
    "machine_code",
    "on",
    "why_not",
]

#: Tensors are passed as addresses, None as none, numbers as int32 or float32.
Argument = torch.Tensor | int | float | None
#: What capitals in kernels.cu stand for.
Defines = Mapping[str, object]
#: Compute capability that the kernels' instructions ask for.
_LEAST = (8, 0)
_SOURCE = Path(__file__).with_name("kernels.cu")


class Kernel(Protocol):
    """A kernel ready to be started: blocks across and down, threads a block, bytes of shared memory, arguments."""

    def __call__(self, grid: tuple[int, int], block: int, shared: int, *arguments: Argument) -> None: ...


class Maker(Protocol):
    """Where kernels come from: `shared` is the bytes of shared memory that a block may have, `processors` run blocks."""

    shared: int
    processors: int

    def kernel(self, name: str, defines: Defines) -> Kernel: ...


class Gpu:
    """An NVIDIA GPU with compute capability 8.0 or above. Raises RuntimeError where CUDA's libraries say no."""

    def __init__(self, device: torch.device) -> None:
        from cuda.bindings import driver

        self._driver, self._device = driver, device
        properties = torch.cuda.get_device_properties(device)
        self._architecture = architecture_for(properties.major, properties.minor)
        #: Threads in which the device's context is known to be current.
        self._entered = threading.local()
        self.processors: int = properties.multi_processor_count
        self.shared: int = getattr(properties, "shared_memory_per_block_optin", 99 << 10)
        self._made: dict[tuple[str, tuple[tuple[str, object], ...]], _Loaded] = {}
        self._pool = ThreadPoolExecutor(min(8, cores()), "nvrtc")

    def kernel(self, name: str, defines: Defines) -> _Loaded:
        """The kernel with these definitions; compiled beside others, and waited for when it is first started."""
        key = (name, tuple(sorted(defines.items())))
        if key not in self._made:
            self._made[key] = _Loaded(
                self, name, self._pool.submit(machine_code, dict(defines), self._architecture)
            )
        return self._made[key]

    def loaded(self, code: bytes, name: str) -> Any:
        """The function of that name in machine code, on the device that is current."""
        self._enter()
        module = _checked(self._driver.cuModuleLoadData(code))
        return _checked(self._driver.cuModuleGetFunction(module, name.encode()))

    def _enter(self) -> None:
        """In a thread that has not worked on a GPU yet no context is current (pytorch/pytorch#195256): make it so."""
        if getattr(self._entered, "yes", False):
            return
        driver = self._driver
        if not int(_checked(driver.cuCtxGetCurrent())):
            ordinal = _checked(driver.cuDeviceGet(self._device.index))
            context = _checked(driver.cuDevicePrimaryCtxRetain(ordinal))
            _checked(driver.cuCtxSetCurrent(context))
        self._entered.yes = True

    def start(
        self, function: Any, grid: tuple[int, int], block: int, shared: int, arguments: tuple[Argument, ...]
    ) -> None:
        """Start it on the current stream of the device."""
        self._enter()
        values: list[object] = []
        types: list[object] = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                values.append(argument.data_ptr())
                types.append(ctypes.c_void_p)
            elif argument is None:
                values.append(0)
                types.append(ctypes.c_void_p)
            elif isinstance(argument, float):
                values.append(argument)
                types.append(ctypes.c_float)
            else:
                values.append(argument)
                types.append(ctypes.c_int)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        _checked(
            self._driver.cuLaunchKernel(
                function, grid[0], grid[1], 1, block, 1, 1, shared, stream, (tuple(values), tuple(types)), 0
            )
        )

    def allow(self, function: Any, shared: int) -> None:
        """Let a function have more shared memory than the 48 KiB that each may have."""
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(self._driver.cuFuncSetAttribute(function, attribute, shared))


class _Loaded:
    """A kernel on its GPU."""

    def __init__(self, gpu: Gpu, name: str, code: Any) -> None:
        self._gpu, self._name, self._code = gpu, name, code
        self._function: Any = None
        self._shared = 48 << 10

    def __call__(self, grid: tuple[int, int], block: int, shared: int, *arguments: Argument) -> None:
        if self._function is None:
            self._function = self._gpu.loaded(self._code.result(), self._name)
        if shared > self._shared:
            self._gpu.allow(self._function, shared)
            self._shared = shared
        self._gpu.start(self._function, grid, block, shared, arguments)


def machine_code(defines: Defines, architecture: str) -> bytes:
    """The kernel with these definitions for an architecture such as "sm_90", from the last time where it is kept.

    RuntimeError with NVRTC's words where it cannot be compiled.
    """
    from cuda.bindings import nvrtc

    # Each variant leaves some of the primitives unused.
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--diag-suppress=177"]
    options += [f"-D{key}={value}" for key, value in sorted(defines.items())]
    source = _SOURCE.read_bytes()
    version = _checked(nvrtc.nvrtcVersion())
    digest = hashlib.sha256(repr((version, options, source)).encode()).hexdigest()[:32]
    kept = cache_folder("kernels") / f"{digest}.cubin"
    try:
        return kept.read_bytes()
    except OSError:
        code, _ = compiled(source, options)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, code)
    except OSError:
        pass  # It is compiled again the next time.
    return code


def compiled(source: bytes, options: Sequence[str]) -> tuple[bytes, str]:
    """Machine code and the compiler's words; RuntimeError with them where it fails."""
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(source, b"kernels.cu", 0, [], []))
    try:
        encoded = [option.encode() for option in options]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        # Written to, so never `b" " * size`: of one byte there is a single object in all of Python.
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        words = log.decode(errors="replace").strip("\0 \n")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            fault = next((line for line in words.splitlines() if "error" in line), words)
            raise RuntimeError(f"NVRTC: {result.name}: {fault}")
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code), words
    finally:
        _checked(nvrtc.nvrtcDestroyProgram(program))


def architecture_for(major: int, minor: int) -> str:
    """The newest architecture that the compiler knows and a GPU of this compute capability can run."""
    from cuda.bindings import nvrtc

    known = _checked(nvrtc.nvrtcGetSupportedArchs())
    fitting = [number for number in known if number // 10 == major and number % 10 <= minor]
    return f"sm_{max(fitting, default=10 * major + minor)}"


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call of CUDA's libraries gives; RuntimeError with the name of what went wrong."""
    if int(answer[0]):
        raise RuntimeError(f"CUDA: {answer[0].name}")
    return answer[1] if len(answer) == 2 else answer[1:]


def on(device: torch.device) -> AbstractContextManager[object]:
    """Where kernels have to be called: they go to the current device, whatever their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def gpu(device: torch.device) -> Gpu | None:
    """The GPU, or None where the kernels cannot run; see `why_not`."""
    if why_not(device)[0] is not None:
        return None
    return _gpu(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=16)
def _gpu(index: int) -> Gpu:
    return Gpu(torch.device("cuda", index))


@lru_cache(maxsize=16)
def why_not(device: torch.device) -> tuple[str | None, str]:
    """Why the kernels cannot run on a device (None: they can), and the command that mends it, or nothing."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "it is none of NVIDIA's", ""
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _LEAST:
        return f"it has compute capability {major}.{minor}, 8.0 is needed", ""
    install = f"pip install 'cuda-bindings=={torch.version.cuda.partition('.')[0]}.*'"
    try:
        from cuda.bindings import driver, nvrtc

        compiler, runs = _checked(nvrtc.nvrtcVersion())[0], _checked(driver.cuDriverGetVersion()) // 1000
    except ImportError:
        return "cuda-bindings is not installed", install
    except Exception as error:  # whatever looking for CUDA's libraries may raise: there is another road
        return f"CUDA's compiler cannot be used ({f'{error}'.partition(chr(10))[0]})", install
    if runs < compiler:
        return f"the driver is for CUDA {runs} and the compiler of CUDA {compiler}", install
    return None, ""
