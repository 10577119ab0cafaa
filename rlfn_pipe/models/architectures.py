"""The networks of the family by name. No torch here."""

from __future__ import annotations

import difflib

from rlfn_pipe.errors import UsageError
from rlfn_pipe.types import ModelSpec

#: name -> (channels, channels inside a block, blocks)
ARCHITECTURES: dict[str, tuple[int, int, int]] = {
    "rlfn": (52, 52, 6),
    "rlfn-s": (48, 48, 6),
    "rlfn-ntire": (46, 48, 4),
}
SCALES = (2, 3, 4)


def architecture(name: str, scale: int) -> ModelSpec:
    """The spec (without weights) of network `name` at native `scale`, input range 0..1.

    Raises UsageError for an unknown name (naming the nearest) or a scale that is not native.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}" if near else f"choose one of {', '.join(ARCHITECTURES)}"
        raise UsageError(f"unknown network {name!r}; {hint}")
    if scale not in SCALES:
        raise UsageError(f"networks exist for the scales 2, 3 and 4, not {scale}; choose one of them")
    channels, mid_channels, blocks = ARCHITECTURES[name]
    return ModelSpec(name=name, scale=scale, channels=channels, mid_channels=mid_channels, blocks=blocks)
