"""What makes two runs the same job: all that changes a pixel or a bit of the output."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlfn_pipe.errors import InputError, reason_of
from rlfn_pipe.media.opening import library_versions

if TYPE_CHECKING:
    from rlfn_pipe.options import UpscaleOptions

#: Options that leave every byte of the output as it is; all others belong to the fingerprint.
_HARMLESS = frozenset(
    {"overwrite", "skip_existing", "recursive", "resume", "work_dir", "stall_timeout", "jobs", "nice"}
    | {"dry_run", "json", "quiet", "verbose", "log_file", "preset", "threads"}
)
#: Options that only images have.
_OF_IMAGES = frozenset({"format", "quality"})
_PIECE = 1 << 20


def lasting_options(options: UpscaleOptions) -> dict[str, Any]:
    """The options that change what is written, as plain JSON values.

    `threads` is not among them: what follows from it is in the engine's resolved settings.
    """
    chosen = {name: value for name, value in options.to_dict().items() if name not in _HARMLESS}
    if chosen.get("reuse") == "off":
        chosen["reuse"] = "exact"  # the same bits
    return chosen


def input_identity(path: Path) -> dict[str, Any]:
    """Size, time of change, and a hash over the first, middle and last MiB of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = hashlib.blake2b(digest_size=16)
            for place in (0, max(0, status.st_size // 2 - _PIECE // 2), max(0, status.st_size - _PIECE)):
                file.seek(place)
                content.update(file.read(_PIECE))
    except OSError as error:
        reason = reason_of(error)
        raise InputError(f"{path}: cannot be read ({reason}); check its permissions") from None
    return {"size": status.st_size, "changed": status.st_mtime_ns, "content": content.hexdigest()}


def file_identity(path: Path) -> list[int] | None:
    """Size and time of change of a file, by which it is known again; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def fingerprint(
    path: Path, options: UpscaleOptions, machine: dict[str, Any], encoding: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The fingerprint of one item as plain JSON values.

    `machine`: what the engine says of weights, device, precision, threads and libraries; `encoding`: what the options
    mean for this item's encoder, which another version may settle otherwise.
    """
    from rlfn_pipe import __version__

    chosen = {name: value for name, value in lasting_options(options).items() if name not in _OF_IMAGES}
    return {
        "input": input_identity(path),
        "options": chosen,
        "encoding": encoding or {},
        "machine": machine,
        "version": {"rlfn-pipe": __version__, **library_versions()},
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words; empty when they are equal."""
    found, said = [], set[str]()
    if before.get("input") != now["input"]:
        found.append("the input file has changed")
    for group, prefix in (("options", "--"), ("encoding", ""), ("machine", ""), ("version", "")):
        old, new = before.get(group), now.get(group, {})
        old = old if isinstance(old, dict) else {}
        for key in sorted(old.keys() | new.keys()):
            # The engine's settings repeat some options.
            if old.get(key) != new.get(key) and key not in said:
                said.add(key)
                name = key.replace("_", "-") if prefix else key
                found.append(f"{prefix}{name} was {_shown(old.get(key))} and is {_shown(new.get(key))}")
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
