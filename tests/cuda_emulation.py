"""The GPU's kernels as C++ for the CPU, for tests: slow, and each rule of the instructions kept."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from rlfn_pipe.models.cuda import library
from rlfn_pipe.models.cuda.library import Argument

HERE = Path(__file__).parent


class Emulated:
    """A maker of kernels as `rlfn_pipe.models.cuda.library.Gpu`; libraries are kept in `folder`."""

    def __init__(self, folder: Path, shared: int = 227 << 10, processors: int = 2) -> None:
        self.folder, self.shared, self.processors = folder, shared, processors

    def kernel(self, name: str, defines: Mapping[str, object]) -> _Compiled:
        return _Compiled(self, name, defines)


class _Compiled:
    def __init__(self, maker: Emulated, name: str, defines: Mapping[str, object]) -> None:
        self.most = maker.shared
        flags = [f"-D{key}={value}" for key, value in sorted(defines.items())]
        source = Path(library.__file__).with_name("kernels.cu")
        text = f'#include "{HERE / "cuda_emulation.hpp"}"\n#include "{source}"\nEMULATE({name})\n'
        digest = hashlib.sha256(" ".join([name, *flags]).encode()).hexdigest()[:16]
        target = maker.folder / f"{digest}.so"
        if not target.is_file():
            compiler = shutil.which("g++")
            assert compiler, "the emulation needs g++"
            found = subprocess.run(
                [compiler, "-x", "c++", "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas",
                 "-Wno-unused-function", *flags, "-", "-o", str(target)],
                input=text, text=True, capture_output=True, check=False,
            )  # fmt: skip
            assert found.returncode == 0, found.stderr
        self._function = ctypes.CDLL(str(target)).emulate

    def __call__(self, grid: tuple[int, int], block: int, shared: int, *arguments: Argument) -> None:
        assert shared <= self.most and block <= 1024
        values: list[ctypes.c_void_p | ctypes.c_int | ctypes.c_float] = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                assert argument.dim() == 0 or argument.stride(-1) == 1
                values.append(ctypes.c_void_p(argument.data_ptr()))
            elif argument is None:
                values.append(ctypes.c_void_p(None))
            else:
                values.append(
                    ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
                )
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self._function(*grid, block, shared, pointers)
