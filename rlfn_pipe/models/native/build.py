"""Compiles the native part when the package is built or installed from source; hatchling calls this.

The same sources give one library for each number format and set of instructions that serve it best.
Where there is no C++ compiler, or the system is another one, the package is built without it and the network runs
through PyTorch alone. The results ask for nothing but the C library, and are loaded only where the processor has what
they were compiled for, so that they can ship in wheels.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
_AVX512 = ("-DRLFN_WIDE=1", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")
_BF16 = ("-DRLFN_BF16=1", *_AVX512, "-mavx512bf16")
#: What each library is compiled for; library.py knows what it takes to run them.
KERNELS = {
    "fp32": ("-mavx2", "-mfma"),
    "avx512": _AVX512,
    "bf16": _BF16,
    "amx": ("-DRLFN_AMX=1", *_BF16, "-mamx-tile", "-mamx-bf16"),
}
#: Products and sums are never joined on the compiler's own account: it might do so in one copy of a function only.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-static-libstdc++", "-static-libgcc"),
)


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled part to a wheel, which then is one for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before each build."""
        if self.target_name != "wheel" or (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return
        fault = build()
        if fault:
            self.app.display_warning(f"the native part is not complete: {fault}")
        made = [target for target in map(_target, KERNELS) if target.is_file()]
        if not made:
            return
        build_data["artifacts"].extend(target.relative_to(self.root).as_posix() for target in made)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _target(kernel: str) -> Path:
    return HERE / f"_kernel_{kernel}.so"


def build() -> str | None:
    """Compile what is older than its sources, side by side; what went wrong, or None."""
    newest = max(path.stat().st_mtime for path in (*HERE.glob("*.cpp"), *HERE.glob("*.hpp"), Path(__file__)))
    old = [name for name in KERNELS if not _target(name).is_file() or _target(name).stat().st_mtime < newest]
    if not old:
        return None
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "no C++ compiler was found"
    faults = []
    try:
        with tempfile.TemporaryDirectory(dir=HERE) as folder, ThreadPoolExecutor() as pool:
            for fault in pool.map(lambda name: _compile(compiler, name, Path(folder)), old):
                faults += [fault] if fault else []
    except OSError as error:
        return str(error)
    return "; ".join(faults) or None


def _compile(compiler: str, kernel: str, folder: Path) -> str | None:
    made = folder / _target(kernel).name
    command = [
        *shlex.split(compiler),
        *FLAGS,
        *KERNELS[kernel],
        "-o",
        str(made),
        str(HERE / "network.cpp"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{kernel}: {(done.stderr.strip().splitlines() or [f'{compiler} failed'])[-1]}"
    # Whoever has the old one loaded keeps it.
    os.replace(made, _target(kernel))
    return None
