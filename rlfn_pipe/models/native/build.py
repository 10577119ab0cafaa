"""Compiles the native part when the package is built or installed from source; hatchling calls this.

Where there is no C++ compiler, or the system is another one, the package is built without it and the network runs
through PyTorch alone. The result asks for nothing but the C library, and is loaded only where the processor has what
it was compiled for, so that it can ship in wheels.
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
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
TARGET = HERE / "_kernel.so"
#: Products and sums are never joined on the compiler's own account: it might do so in one copy of a function only.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"),
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
            self.app.display_warning(f"the native part is left out: {fault}")
            return
        build_data["artifacts"].append(TARGET.relative_to(self.root).as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def build() -> str | None:
    """Compile where the sources are newer; what went wrong, or None."""
    sources = [*HERE.glob("*.cpp"), *HERE.glob("*.hpp"), Path(__file__)]
    if TARGET.is_file() and all(source.stat().st_mtime <= TARGET.stat().st_mtime for source in sources):
        return None
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "no C++ compiler was found"
    try:
        with tempfile.TemporaryDirectory(dir=HERE) as folder:
            made = Path(folder) / TARGET.name
            command = [*shlex.split(compiler), *FLAGS, "-o", str(made), str(HERE / "network.cpp")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return (done.stderr.strip().splitlines() or [f"{compiler} failed"])[-1]
            # Whoever has the old one loaded keeps it.
            os.replace(made, TARGET)
    except OSError as error:
        return str(error)
    return None
