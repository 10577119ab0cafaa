"""Where the files lie that ship with the package: presets and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

DataKind = Literal["presets", "weights"]


def data_path(kind: DataKind) -> Path:
    """Folder of the shipped `kind` of data.

    An installed wheel carries it as `rlfn_pipe/_data/<kind>`; an editable install or a plain
    checkout has it at the checkout's root. The installed copy wins. The returned folder need
    not exist (a checkout without weights): what reads it says so in its own words.
    """
    package = Path(__file__).resolve().parent
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind
