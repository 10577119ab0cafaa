"""The plain network as others would run it: eager in fp32, by torch.compile, by OpenVINO.

Each takes an RGB tensor and gives one, without colour conversion. What cannot run here is refused
with one sentence, so that the rest is measured all the same.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlfn_pipe.engine.tensors import DTYPES
from rlfn_pipe.models.rlfn import RLFN

#: Seconds that a compiler may take for one line of C++.
_COMPILER_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Subject:
    """The network to run, the frame size it gets as (height, width), and where and how the engine runs it."""

    module: RLFN
    height: int
    width: int
    device: torch.device
    precision: str
    threads: int

    def picture(self) -> torch.Tensor:
        """(1, 3, height, width) float32 RGB in the network's own range, on the device; always the same."""
        noise = torch.rand(1, 3, self.height, self.width, generator=torch.Generator().manual_seed(0))
        return (noise * self.module.spec.input_range).to(self.device)


@dataclass(frozen=True, slots=True)
class Baseline:
    """One road to the network's answer for `Subject.picture`, in `precision`; or none, and in `refused` why."""

    name: str
    precision: str
    road: Callable[[], torch.Tensor] | None = None
    refused: str | None = None


def official(subject: Subject) -> Baseline:
    """As the published scripts run it: fp32, eager, default memory layout.

    In a process whose allocator keeps large buffers; a script of its own pays for page faults as well
    (benchmarks/end_to_end.py has that comparison).
    """
    module = copy.deepcopy(subject.module).to(subject.device, torch.float32).eval()
    picture = subject.picture()
    return Baseline("official", "fp32", torch.inference_mode()(lambda: module(picture)))


def compiled(subject: Subject) -> Baseline:
    """torch.compile with frozen weights, channels_last, in the engine's number format.

    Compiles at once, for this size only; that takes ten seconds and more.
    """
    if subject.device.type == "cpu" and not _cpp_compiler_works():
        return _refused(
            "compile",
            subject.precision,
            "torch.compile needs a C++ compiler and none works here; install g++ or name one in CXX",
        )
    if subject.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return _refused(
            "compile", subject.precision, "torch.compile needs Triton for CUDA, which is not installed"
        )
    if subject.device.type == "mps":
        return _refused("compile", subject.precision, "torch.compile is not measured on Metal devices")
    dtype = DTYPES[subject.precision]
    module = copy.deepcopy(subject.module).to(subject.device, dtype).eval()
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    picture = subject.picture().to(dtype, memory_format=torch.channels_last)
    with warnings.catch_warnings():
        # The compiler's own remarks (precision hints, deprecations of its parts) concern nobody here.
        warnings.simplefilter("ignore")
        import torch._inductor.config as inductor

        function: Callable[[torch.Tensor], torch.Tensor] = torch.compile(module, dynamic=False)

        # Weights are only frozen where no gradient can be asked for.
        @torch.no_grad()
        def road() -> torch.Tensor:
            return function(picture)

        with inductor.patch(freezing=True):
            road()
    return Baseline("compile", subject.precision, road)


def openvino(subject: Subject) -> Baseline:
    """OpenVINO on the CPU, converted from the plain module, in the engine's number format."""
    if subject.device.type != "cpu":
        return _refused("openvino", "fp32", f"openvino is measured on the CPU only, not on {subject.device}")
    if importlib.util.find_spec("openvino") is None:
        return _refused(
            "openvino", "fp32", 'openvino is not installed; pip install "rlfn-pipe[openvino]" brings it'
        )
    ov: Any = importlib.import_module("openvino")
    short = subject.precision == "bf16"
    module = copy.deepcopy(subject.module).to(torch.float32).eval()
    picture = subject.picture()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on sizes that are constant here
        model = ov.convert_model(module, example_input=picture, input=[tuple(picture.shape)])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if short else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": subject.threads,
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    array = picture.numpy()

    def road() -> torch.Tensor:
        return torch.from_numpy(request.infer([array], share_inputs=True, share_outputs=True)[0])

    return Baseline("openvino", "bf16" if short else "fp32", road)


BASELINES: dict[str, Callable[[Subject], Baseline]] = {
    "official": official,
    "compile": compiled,
    "openvino": openvino,
}


def _refused(name: str, precision: str, why: str) -> Baseline:
    return Baseline(name, precision, refused=why)


def _cpp_compiler_works() -> bool:
    """Whether a shared library can be made of C++ with OpenMP, which is what torch.compile asks for."""
    found = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))), None)
    if found is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <cmath>\nint probe() { return 0; }\n", encoding="ascii")
        command = [found, "-shared", "-fPIC", "-fopenmp", str(source), "-o", str(Path(folder) / "probe.so")]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_COMPILER_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0
