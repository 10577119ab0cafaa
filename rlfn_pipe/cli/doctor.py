"""`rlfn-pipe doctor`: is everything here that upscaling needs, and how to get what is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlfn_pipe import __version__
from rlfn_pipe.cli.text import human_bytes, json_line, printable
from rlfn_pipe.errors import RlfnPipeError, WeightsError

if TYPE_CHECKING:
    import torch

REINSTALL = "pip install --force-reinstall"
PACKAGES = [
    "torch",
    "av",
    "opencv-python-headless",
    "numpy",
    "pillow",
    "safetensors",
    "joblib",
    "natsort",
    "typer",
    "rich",
]
#: Encoders without which a default output cannot be written, and those that only some options need.
NEEDED_ENCODERS = ("libx264", "libx265", "aac")
OPTIONAL_ENCODERS = ("libsvtav1", "libvpx-vp9", "ffv1", "prores_ks", "mpeg4", "libopus", "flac")
NEEDED_DECODERS = ("h264", "hevc", "vp8", "vp9", "mpeg2video", "mpeg4", "prores", "ffv1", "mjpeg", "aac")
OPTIONAL_DECODERS = ("libdav1d", "vvc", "opus", "vorbis", "ac3", "mp3", "flac")
HARDWARE_ENCODERS = ("h264_nvenc", "hevc_nvenc", "av1_nvenc", "h264_videotoolbox", "hevc_videotoolbox")
LOW_DISK = 2 * 10**9

Status = Literal["ok", "warning", "missing"]
Mode = Literal["r", "w"]


@dataclass(frozen=True)
class Check:
    """One finding. `advice` says how to get what is missing."""

    name: str
    status: Status
    detail: str
    advice: str = ""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Check this machine: device, codecs, weights, disk.

    Ends with exit code 1 when something is missing that upscaling needs.
    """
    checks = list(examine())
    missing = [check for check in checks if check.status == "missing"]
    if json:
        typer.echo(json_line({"ok": not missing, "checks": checks}))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}[check.status]
            typer.echo(f"{mark}  {check.name:<{width}}  {printable(check.detail)}")
            if check.advice:
                typer.echo(f"{'':9}{'':<{width}}  -> {printable(check.advice)}")
    if missing:
        raise typer.Exit(1)


def examine() -> Iterator[Check]:
    """All findings about this machine; a check that cannot run is a finding, too."""
    yield Check(
        "rlfn-pipe", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    yield from _packages()
    for section in (_compute, _codecs, _images, _weights):
        yield from _guarded(section)
    yield from _disk()


def _guarded(section: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The section's findings; a library that is absent or does not load becomes a finding."""
    name = section.__name__.strip("_")
    try:
        yield from section()
    except (ImportError, OSError) as error:
        library = getattr(error, "name", None) or "a library"
        yield Check(name, "missing", f"{library} does not load: {error}", f"{REINSTALL} rlfn-pipe")
    except RlfnPipeError as error:
        yield Check(name, "missing", str(error), f"{REINSTALL} rlfn-pipe")


def _packages() -> Iterator[Check]:
    found, absent = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
    # OpenCV comes under four distribution names that all give cv2; any of them will do.
    if "opencv-python-headless" in absent:
        for other in ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"):
            if importlib.metadata.packages_distributions().get("cv2") and other in _distributions("cv2"):
                found.append(f"{other} {importlib.metadata.version(other)}")
                absent.remove("opencv-python-headless")
                break
    yield Check("packages", "ok", ", ".join(found))
    if absent:
        yield Check("packages", "missing", ", ".join(absent), f"pip install {' '.join(absent)}")


def _distributions(module: str) -> list[str]:
    return importlib.metadata.packages_distributions().get(module, [])


def _compute() -> Iterator[Check]:
    import torch

    from rlfn_pipe.allowance import cores
    from rlfn_pipe.engine.device import (
        Device,
        available_memory,
        device_name,
        resolve_device,
        resolve_precision,
    )

    device, why = resolve_device("auto")
    memory = human_bytes(available_memory(device))
    yield Check("device", "ok", f"{device}: {device_name(device)}, {memory} free; {why}")
    precision, reason = resolve_precision("auto", device)
    yield Check("precision", "ok", f"{precision}: {reason}")
    yield Check("threads", "ok", f"{torch.get_num_threads()} for PyTorch, {cores()} cores usable")
    yield Check("cpu", "ok", f"{torch.backends.cpu.get_cpu_capability()}; {_cpu_flags()}")
    yield _native(resolve_precision("auto", Device("cpu"))[0])
    if device.type == "cuda":
        yield _kernels(torch.device(str(device)))


def _kernels(device: torch.device) -> Check:
    """Whether networks on a GPU run by our own kernels, which take a fifth of the time of PyTorch's operators."""
    from rlfn_pipe.models.cuda.library import why_not
    from rlfn_pipe.models.cuda.trial import WISH

    if os.environ.get(WISH) == "off":
        return Check("kernels", "ok", f"not used: {WISH}=off")
    reason, advice = why_not(device)
    if reason is None:
        return Check("kernels", "ok", "used for fp16 wherever they give what PyTorch gives")
    return Check(
        "kernels", "warning", f"not used, so that this GPU takes five times the time: {reason}", advice
    )


def _native(precision: str) -> Check:
    """Whether networks run by the compiled part, which takes this processor half the time or less."""
    from rlfn_pipe.models.native import library

    reason, found = library.why_not(precision), library.library(precision)
    if found is not None:
        return Check("native part", "ok", f"used for {precision} on the CPU, built for {found.instructions}")
    advice = f"install g++, then {REINSTALL} rlfn-pipe" if library.can_be_built(precision) else ""
    return Check("native part", "warning" if advice else "ok", f"not used for {precision}: {reason}", advice)


def _cpu_flags() -> str:
    """The CPU's flags that decide how fast convolutions are, where the system tells."""
    wanted = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "flags unknown on this system"
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return " ".join(flag for flag in wanted if flag in present) or "no vector flags"
    return "flags unknown on this system"


def _codecs() -> Iterator[Check]:
    import av

    versions = getattr(av, "library_versions", {})
    avcodec = ".".join(str(part) for part in versions.get("libavcodec", ()))
    yield Check("libavcodec", "ok", avcodec or "version unknown")
    advice = f"{REINSTALL} --only-binary av av"
    kinds: tuple[tuple[str, tuple[str, ...], tuple[str, ...], Mode], ...] = (
        ("encoders", NEEDED_ENCODERS, OPTIONAL_ENCODERS, "w"),
        ("decoders", NEEDED_DECODERS, OPTIONAL_DECODERS, "r"),
    )
    for title, needed, optional, mode in kinds:
        absent = [name for name in needed if not _has_codec(name, mode)]
        lacking = [name for name in optional if not _has_codec(name, mode)]
        present = [name for name in (*needed, *optional) if name not in (*absent, *lacking)]
        yield Check(title, "ok", " ".join(present))
        if absent:
            yield Check(title, "missing", " ".join(absent), advice)
        if lacking:
            yield Check(title, "warning", f"not in this build: {' '.join(lacking)}", advice)
    hardware = [name for name in HARDWARE_ENCODERS if _has_codec(name, "w")]
    if hardware:
        yield Check("hardware encoders", "ok", f"compiled in (not tried): {' '.join(hardware)}")
    from rlfn_pipe.media.hardware import why_not

    reason = why_not(0)
    yield Check("hardware decoders", "ok", "--hwaccel cuda has one" if reason is None else f"none: {reason}")


def _has_codec(name: str, mode: Mode) -> bool:
    import av
    import av.codec.codec

    try:
        av.codec.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _images() -> Iterator[Check]:
    import cv2
    from PIL import features

    present = {
        "png": cv2.haveImageWriter(".png") and features.check("zlib"),
        "jpg": cv2.haveImageWriter(".jpg") and features.check("jpg"),
        "webp": bool(features.check("webp")),
        "tiff": cv2.haveImageWriter(".tiff"),
        "bmp": cv2.haveImageWriter(".bmp"),
        "avif": bool(features.check("avif")),
    }
    yield Check("image formats", "ok", " ".join(name for name, there in present.items() if there))
    absent = [name for name, there in present.items() if not there]
    if absent:
        needed: Status = "missing" if {"png", "jpg"} & set(absent) else "warning"
        yield Check(
            "image formats",
            needed,
            f"not in these builds: {' '.join(absent)}",
            f"{REINSTALL} opencv-python-headless pillow",
        )


def _weights() -> Iterator[Check]:
    from rlfn_pipe.models.registry import models, verify
    from rlfn_pipe.options import DEFAULT_SCALE, UpscaleOptions

    verified, default = [], False
    for spec in models():
        try:
            verify(spec)
        except WeightsError as error:
            yield Check("weights", "missing", str(error), f"{REINSTALL} rlfn-pipe")
        else:
            verified.append(f"{spec.name} x{spec.scale}")
            default |= (spec.name, spec.scale) == (UpscaleOptions().model, DEFAULT_SCALE)
    if verified:
        yield Check("weights", "ok", f"verified: {', '.join(verified)}")
    if not default:
        name = f"{UpscaleOptions().model} x{DEFAULT_SCALE:g}"
        yield Check(
            "weights", "missing", f"the default network {name} is not there", f"{REINSTALL} rlfn-pipe"
        )


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    status: Status = "ok" if free >= LOW_DISK else "warning"
    advice = "" if free >= LOW_DISK else "a long video at four times the size needs more; choose another disk"
    yield Check("disk", status, f"{human_bytes(free)} free in {Path.cwd()}", advice)
