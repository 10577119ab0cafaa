"""Reading what `torch.save` wrote, by someone who may mean harm: tensors and plain data, nothing else."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from rlfn_pipe.errors import reason_of

__all__ = ["Unreadable", "load_plain"]


class Unreadable(Exception):
    """The file cannot be taken; the message says why in a few words, for an error that names the file."""


def load_plain(path: Path) -> Any:
    """What lies in a .pth file or checkpoint: tensors on the CPU, and plain data.

    torch's restricted loader runs no code from the file. Before it begins, archives are looked
    through: torch never compresses, so a compressed entry, or entries that claim more bytes than
    the file has, are there to fill the memory.

    Raises:
        Unreadable: the file is missing, damaged, of another kind, or asks for code to be run.
    """
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch reports both refused code and garbage so; its long advice is of no use here.
        raise Unreadable("is damaged, or asks for code to be run, which is refused") from error
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(f"cannot be opened ({reason_of(error)})") from error
    # The loader runs into whatever a damaged file leads it to: KeyError, TypeError, RuntimeError, ...
    except Exception as error:
        raise Unreadable(f"is damaged or of another kind ({type(error).__name__})") from error


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise Unreadable("is a damaged archive") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Unreadable("is a compressed archive, which torch does not write")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise Unreadable("claims to hold more bytes than the file has")
