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


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of an RLFN's state dict."""
    wide, mid, few = spec.channels, spec.mid_channels, spec.esa_channels
    convs = {"conv_1": (wide, 3, 3), "conv_2": (wide, wide, 3), "upsampler.0": (3 * spec.scale**2, wide, 3)}
    for number in range(1, spec.blocks + 1):
        inner = {
            "c1_r": (mid, wide, 3),
            "c2_r": (mid, mid, 3),
            "c3_r": (wide, mid, 3),
            "c5": (wide, wide, 1),
            "esa.conv1": (few, wide, 1),
            "esa.conv_f": (few, few, 1),
            "esa.conv2": (few, few, 3),
            "esa.conv3": (few, few, 3),
            "esa.conv4": (wide, few, 1),
        }
        convs |= {f"block_{number}.{name}": sizes for name, sizes in inner.items()}
    weights = {f"{name}.weight": (o, i, k, k) for name, (o, i, k) in convs.items()}
    return weights | {f"{name}.bias": (o,) for name, (o, _, _) in convs.items()}


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
