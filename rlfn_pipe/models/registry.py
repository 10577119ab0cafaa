"""The weights that can be used by name: shipped ones (`weights/index.toml`) and fetched ones. No torch."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from rlfn_pipe.errors import UsageError, WeightsError
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.official import OFFICIAL, official_path
from rlfn_pipe.resources import data_path
from rlfn_pipe.types import ModelSpec

__all__ = ["checksums", "details", "file_sha256", "find", "is_file", "models", "native_scales", "verify"]

INDEX = "index.toml"


def models(folder: Path | None = None) -> list[ModelSpec]:
    """Specs of all weights at hand, by name and scale: those of `folder` (default: the shipped
    ones) and, with the default, official files that were fetched.

    Raises WeightsError when the index is damaged. Files are not opened here.
    """
    shipped = [_spec(row, _folder(folder)) for row in _rows(_folder(folder))]
    fetched = [] if folder else [file.spec() for file in OFFICIAL if official_path(file).is_file()]
    return sorted(shipped + fetched, key=lambda spec: (spec.name, spec.scale))


def find(name: str, scale: float, folder: Path | None = None) -> ModelSpec:
    """The weights that serve `name` at `scale`: the native file, else the next larger native one.

    Above 4 it is x4. Raises UsageError for an unknown name (naming the nearest one) and for a
    model without a file of such a scale (listing what exists).
    """
    everything = models(folder)
    names = sorted({spec.name for spec in everything})
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        known = (
            f"did you mean {near[0]!r}? There are {', '.join(names)}"
            if near
            else f"there are {', '.join(names)}"
        )
        if os.path.isfile(name):
            raise UsageError(
                f"{name} is no weights file by its name; {known}, or a .safetensors or .pth file"
            )
        raise UsageError(f"no weights are called {name!r}; {known if names else 'none are installed'}")
    native = {spec.scale: spec for spec in everything if spec.name == name}
    wanted = min(max(scale, 1.0), 4.0)
    for candidate in sorted(native):
        if candidate >= wanted:
            return native[candidate]
    others = ", ".join(f"{spec.name} x{spec.scale}" for spec in everything)
    raise UsageError(f"{name} has no weights for scale {scale:g}; there are {others}")


def is_file(model: str) -> bool:
    """Whether `model` means a weights file rather than a name."""
    return model.endswith((".safetensors", ".pth", ".pt")) or os.sep in model or "/" in model


def native_scales(name: str, folder: Path | None = None) -> tuple[int, ...]:
    """The scales that `name` has weights for."""
    return tuple(spec.scale for spec in models(folder) if spec.name == name)


def details(spec: ModelSpec, folder: Path | None = None) -> dict[str, Any]:
    """Everything that the index says about shipped weights (recipe, data, steps, figures); of others nothing."""
    for row in _rows(_folder(folder)):
        if row["sha256"] == spec.sha256:
            return dict(row)
    return {}


def checksums(model: str) -> list[str]:
    """SHA-256 of the weights that `model`, a name or a file, can mean: a name has some for each scale.

    Raises WeightsError when the file cannot be read.
    """
    if is_file(model):
        return [file_sha256(Path(model))]
    return [spec.sha256 for spec in models() if spec.name == model]


def verify(spec: ModelSpec) -> None:
    """Compare the file's SHA-256 with the index; WeightsError when it is missing or differs."""
    if spec.path is None or not spec.path.is_file():
        raise WeightsError(f"{spec.name} x{spec.scale}: its file {spec.path} is missing; {_remedy(spec)}")
    found = file_sha256(spec.path)
    if found != spec.sha256:
        raise WeightsError(
            f"{spec.path}: its SHA-256 is {found[:12]}..., not {spec.sha256[:12]}... as indexed;"
            f" the file was changed or damaged; {_remedy(spec)}"
        )


def _remedy(spec: ModelSpec) -> str:
    """What mends a file that is missing or damaged."""
    for file in OFFICIAL:
        if spec.path == official_path(file):
            return f"rlfn-pipe weights fetch {file.name} gets it again"
    return "install the package again"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits; WeightsError when it cannot be read."""
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error


def _folder(folder: Path | None) -> Path:
    return folder if folder is not None else data_path("weights")


def _rows(folder: Path) -> tuple[dict[str, Any], ...]:
    path = folder / INDEX
    try:
        modified = path.stat().st_mtime_ns
    except OSError:
        return ()
    return _parsed(path, modified)


@cache
def _parsed(path: Path, _modified: int) -> tuple[dict[str, Any], ...]:
    """The index's rows, read once per version of the file."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8")).get("weights", [])
        if not isinstance(rows, list):
            raise ValueError("weights is no list of tables")
        for number, row in enumerate(rows, 1):
            fault = _fault(row)
            if fault:
                raise ValueError(f"{fault} in entry {number}")
    # A ValueError: no TOML, no UTF-8, or a number too long; RecursionError: brackets in brackets.
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: the weights index is damaged ({error}); install the package again"
        ) from error
    return tuple(rows)


def _fault(row: Any) -> str:
    """What is wrong with a row of the index; "" for nothing."""
    if not isinstance(row, dict):
        return "no table"
    for key in ("name", "network", "file", "sha256"):
        if not isinstance(row.get(key), str) or not row[key]:
            return f"no text {key!r}"
    if not re.fullmatch(r"[0-9a-f]{64}", row["sha256"]):
        return "no checksum"
    # Only files beside the index.
    if row["file"] in (".", "..") or re.search(r"[/\\\0]", row["file"]):
        return f"a file {row['file']!r} elsewhere"
    psnr = row.get("psnr", {})
    if not isinstance(psnr, dict) or not all(_is_number(value) for value in psnr.values()):
        return "a psnr that is no number"
    if row.get("input_range", 1.0) not in (1.0, 255.0) or isinstance(row.get("input_range"), bool):
        return "an input_range that is neither 1 nor 255"
    if type(row.get("parameters", 0)) is not int or not isinstance(row.get("licence", ""), str):
        return "odd parameters or licence"
    try:
        architecture(row["network"], row.get("scale", 0))
    except (UsageError, TypeError) as error:
        return str(error)
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spec(row: dict[str, Any], folder: Path) -> ModelSpec:
    return replace(
        architecture(row["network"], row["scale"]),
        name=row["name"],
        input_range=float(row.get("input_range", 1.0)),
        parameters=int(row.get("parameters", 0)),
        sha256=row["sha256"],
        licence=row.get("licence", ""),
        path=folder / row["file"],
        psnr={key: float(value) for key, value in row.get("psnr", {}).items()},
    )
