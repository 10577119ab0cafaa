"""The compiled part: finding it, telling whether this processor has its instructions, calling it. No torch here."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rlfn_pipe.allowance import processor_flags

__all__ = [
    "MOST_TAPS",
    "Job",
    "Library",
    "LibraryBlock",
    "LibraryNet",
    "Planes",
    "Stretch",
    "Taps",
    "any_library",
    "can_be_built",
    "cpu_form",
    "library",
    "why_not",
]

#: Where the build puts its libraries (`rlfn_pipe/models/native/build.py`): for networks in fp32, for these on
#: processors with AVX-512, for networks in bf16, and for these on processors with AMX.
PATHS = {name: Path(__file__).with_name(f"_kernel_{name}.so") for name in ("fp32", "avx512", "bf16", "amx")}
#: Of a filter of `Planes`.
MOST_TAPS = 12
#: `RLFN_VERSION` of network.cpp.
VERSION = 9
#: Environment variable that overrides the choice.
WISH = "RLFN_PIPE_NATIVE"
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})
_BF16 = _AVX512 | {"avx512_bf16"}
_AMX = frozenset({"amx_tile", "amx_bf16"})
#: What each library's code uses, by the names in /proc/cpuinfo.
FLAGS = {"fp32": frozenset({"avx2", "fma"}), "avx512": _AVX512, "bf16": _BF16, "amx": _BF16 | _AMX}

INSTRUCTIONS = {"fp32": "AVX2", "avx512": "AVX-512", "bf16": "AVX-512 bf16", "amx": "AMX"}


class LibraryBlock(ctypes.Structure):
    """`Block` of layout.hpp: packed weights and biases of one RLFB."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            *("conv_0", "conv_1", "conv_2", "c5", "reduce", "conv2", "conv_f", "conv4"),
            *(
                "bias_0",
                "bias_1",
                "bias_2",
                "c5_bias",
                "reduce_bias",
                "conv2_bias",
                "conv_f_bias",
                "conv4_bias",
            ),
            *("conv3", "conv3_bias"),
        )
    ]


class LibraryNet(ctypes.Structure):
    """`Net` of layout.hpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("vectors", "inputs", "mid_inputs", "blocks", "scale", "tail_float")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("head", "head_bias", "body_bias", "tail_bias", "body", "tail")
        ),
        ("block", ctypes.POINTER(LibraryBlock)),
    ]


class Stretch(ctypes.Structure):
    """`Stretch` of layout.hpp: where ESA's small map goes."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("row", "column", "row_share", "column_share", "border")]


class Job(ctypes.Structure):
    """`Job` of layout.hpp: one picture."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("height", "width", "threads", "columns", "rows")),
        *((name, ctypes.c_void_p) for name in ("picture", "result", "workspace", "memory")),
        ("stretch", Stretch),
    ]


class Taps(ctypes.Structure):
    """`Taps` of planes.hpp: weights of neighbours, the first of them `first` away."""

    _fields_ = [("first", ctypes.c_int32), ("count", ctypes.c_int32), ("weight", ctypes.c_float * MOST_TAPS)]


class Planes(ctypes.Structure):
    """`Planes` of planes.hpp: a picture and what becomes of it."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("height", "width", "threads", "bytes", "half_x", "half_y", "scale")
        ),
        *((name, ctypes.c_float) for name in ("top", "red", "green", "blue", "luma_gain", "luma_offset")),
        *((name, ctypes.c_float) for name in ("cb_gain", "cr_gain", "chroma_offset")),
        *((name, Taps) for name in ("along", "down")),
        *((name, ctypes.c_void_p) for name in ("rgb", "excess", "y", "cb", "cr")),
    ]


class Samples(ctypes.Structure):
    """`Samples` of planes.hpp: planes and the picture that becomes of them."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("height", "width", "threads", "bytes", "half_x", "half_y")),
        *((name, ctypes.c_float) for name in ("black", "luma_gain", "zero", "chroma_gain", "red")),
        ("green", ctypes.c_float * 2),
        ("blue", ctypes.c_float),
        *((name, Taps * 2) for name in ("along", "down")),
        *((name, ctypes.c_int64) for name in ("luma_step", "chroma_step")),
        *((name, ctypes.c_void_p) for name in ("y", "cb", "cr", "rgb")),
    ]


class Library:
    """The functions of the compiled part. They let other Python threads run.

    `kernel` is its name in `PATHS`, `lanes` the numbers in one of its vectors, `instructions` what it is built for.
    """

    def __init__(self, kernel: str) -> None:
        """Raises OSError or AttributeError for a file that is no such library, one of another version, or one that
        does not run here.
        """
        path = PATHS[kernel]
        self.kernel, self.lanes = kernel, 8 if kernel == "fp32" else 16
        self.instructions = INSTRUCTIONS[kernel]
        handle = ctypes.CDLL(str(path))
        handle.rlfn_layout.restype = ctypes.c_size_t
        structures = sum(ctypes.sizeof(each) for each in (LibraryNet, Job, LibraryBlock, Planes, Samples))
        if handle.rlfn_layout() != structures + 1000 * VERSION:
            raise OSError(f"{path} was built from other sources; install rlfn-pipe again")
        if handle.rlfn_try():
            raise OSError(f"{path} has instructions that this process may not use")
        self.workspace = _function(handle.rlfn_workspace, ctypes.c_size_t, LibraryNet, Job)
        self.memory = _function(handle.rlfn_memory, ctypes.c_size_t, LibraryNet, Job)
        self.run = _work(handle.rlfn_run, LibraryNet, Job)
        self.compare = _work(handle.rlfn_compare, LibraryNet, Job)
        self.update = _work(handle.rlfn_update, LibraryNet, Job)
        self.planes = _work(handle.rlfn_planes, Planes)
        self.picture = _work(handle.rlfn_picture, Samples)


def _function(found: Any, result: Any, *structures: type[ctypes.Structure]) -> Callable[..., Any]:
    """A function that takes such structures."""
    found.argtypes, found.restype = [ctypes.POINTER(each) for each in structures], result
    function: Callable[..., Any] = found
    return function


def _work(found: Any, *structures: type[ctypes.Structure]) -> Callable[..., float]:
    """A function that may need memory; MemoryError where there is none."""

    def checked(result: float, function: Any, arguments: Any) -> float:
        if result < 0:
            raise MemoryError("the compiled part found no memory for its rows")
        return result

    found.errcheck = checked
    return _function(found, ctypes.c_double, *structures)


def why_not(precision: str) -> str | None:
    """Why the compiled part is not used here for networks in `precision` (bf16, fp32); None when it is.

    `RLFN_PIPE_NATIVE=off` turns it off. Where there is AMX, but the library for it was not built, `on` takes the one
    for AVX-512 instead of PyTorch, whose convolutions use AMX. `avx2` keeps float32 from AVX-512.
    """
    wish = os.environ.get(WISH, "auto")
    if wish == "off":
        return f"{WISH}=off"
    if precision not in ("bf16", "fp32"):
        return f"there is none for {precision}"
    return _obstacle(_chosen(precision))


def _chosen(precision: str) -> str:
    """The library to use, if any is."""
    kernel = _kernel(precision)
    return precision if os.environ.get(WISH) == "on" and _obstacle(kernel) else kernel


def _kernel(precision: str) -> str:
    """The library that suits this processor best; in bf16, whether or not it is there."""
    if precision == "bf16":
        if not processor_flags() >= _AMX:
            return "bf16"
        # What the system does not let this process use of AMX, PyTorch may not use either.
        return "amx" if _loaded("amx") or not PATHS["amx"].is_file() else "bf16"
    wide = os.environ.get(WISH) != "avx2" and _obstacle("avx512") is None
    return "avx512" if wide else "fp32"


def _obstacle(kernel: str) -> str | None:
    missing = FLAGS[kernel] - processor_flags()
    if missing:
        return f"this processor lacks {', '.join(sorted(missing))}"
    if not PATHS[kernel].is_file():
        return "it was not built"
    return None if _loaded(kernel) else "it does not load here"


def can_be_built(precision: str) -> bool:
    """Whether all that is missing is the compiled file."""
    kernel = _kernel(precision)
    return not PATHS[kernel].is_file() and not FLAGS[kernel] - processor_flags()


def cpu_form(precision: str) -> str:
    """The form that networks in `precision` have on this machine's CPU, for what depends on their last bits."""
    found = library(precision)
    if found is None:
        return "strips"
    # Float32 has the same bits by either vectors.
    return "native" if found.kernel in (precision, "avx512") else f"native, {found.kernel}"


def library(precision: str) -> Library | None:
    """The compiled part for networks in `precision` (bf16, fp32), or None where it is not used."""
    return _loaded(_chosen(precision)) if why_not(precision) is None else None


def any_library() -> Library | None:
    """One of them, for what does not depend on the network's number format."""
    return library("bf16") or library("fp32")


@cache
def _loaded(kernel: str) -> Library | None:
    try:
        return Library(kernel)
    except (OSError, AttributeError):
        # Built for another system, or by another version.
        return None
