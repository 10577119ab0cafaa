"""Initial weights from a network of the family of another size: wider and deeper exactly, smaller roughly.

Widening keeps the function (Net2Net's aim, by another way): what the smaller network has computes what
it computed, since no old channel reads a new one; new channels see random mixtures of what comes before
them, at the strength of trained channels, and wait to be read. The weights that read them are zero but
have gradients from the first step, because what they read is not zero; one step later the random ones
have gradients too.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

_BLOCK = re.compile(r"block_(\d+)\.(.+)")
_LAST = "upsampler.0."


def widened(weights: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """State dict for the network of `own` that computes what that of `weights` does.

    `own` (freshly random values of the wider, or deeper, network) gives shapes and the randomness.
    Blocks beyond those of `weights` become the identity: the attention is 1/2 everywhere, its 1x1
    convolution doubles. An upsampler of another scale is left as in `own`. Returns the state dict
    and the names of such tensors. ValueError with a clause on what does not fit when a tensor of
    `weights` is larger than its place, or is missing.
    """
    made: dict[str, Tensor] = {}
    left: list[str] = []
    there = _blocks(weights)
    for key, value in own.items():
        found = _BLOCK.fullmatch(key)
        if found and int(found[1]) > there:
            made[key] = _of_identity(found[2], value)
        elif key not in weights or weights[key].ndim != value.ndim:
            raise ValueError(f"{key} is missing")
        elif key.startswith(_LAST) and weights[key].shape[0] != value.shape[0]:
            made[key] = value
            left.append(key)
        else:
            made[key] = _grown(key, weights[key], value)
    if there > _blocks(own):
        raise ValueError(f"it has {there} blocks, more than the recipe's {_blocks(own)}")
    return made, left


def narrowed(weights: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """State dict for the smaller network of `own` out of what matters most in `weights`.

    A start, not the same function. Of the blocks the first ones and the last stay; of the channels
    between two blocks, and inside a block, those with the largest product of the norms of the
    weights that write and that read them. Returns as `widened` does; ValueError likewise.
    """
    blocks, there = _blocks(own), _blocks(weights)
    if there < blocks:
        raise ValueError(f"it has {there} blocks, fewer than the recipe's {blocks}")
    taken = [*range(1, blocks), there]
    source = {key: value for key, value in weights.items() if not _BLOCK.fullmatch(key)}
    for new, old in enumerate(taken, 1):
        for key, value in weights.items():
            if key.startswith(f"block_{old}."):
                source[f"block_{new}." + key.split(".", 1)[1]] = value
    missing = own.keys() - source.keys()
    if missing:
        raise ValueError(f"{min(missing)} is missing")
    for writers, readers in _streams(blocks):
        _keep_best(source, own, writers, readers)
    left = [key for key in own if key.startswith(_LAST) and source[key].shape != own[key].shape]
    made = {key: value if key in left else source[key] for key, value in own.items()}
    for key, value in made.items():
        if value.shape != own[key].shape:
            raise ValueError(f"{key} is smaller than the recipe's")
    return made, left


def _blocks(weights: dict[str, Tensor]) -> int:
    """Number of the last block in a state dict."""
    return max((int(found[1]) for key in weights if (found := _BLOCK.fullmatch(key))), default=0)


def _of_identity(part: str, value: Tensor) -> Tensor:
    """Tensor `part` of a block that returns its input: its branch adds nothing, 2 x 1/2 is 1.

    c1_r, c2_r and the attention's inner layers stay random, so that c3_r and conv4 have gradients.
    """
    if part == "c5.weight":
        return 2 * torch.eye(value.shape[0], dtype=value.dtype, device=value.device)[:, :, None, None]
    if part.startswith(("c3_r.", "esa.conv4.")) or part.endswith("bias"):
        return torch.zeros_like(value)
    return value


def _grown(key: str, old: Tensor, own: Tensor) -> Tensor:
    """`old` in a corner of a tensor like `own`: old outputs do not read new inputs, new outputs are random."""
    if any(a > b for a, b in zip(old.shape, own.shape, strict=True)) or old.shape[2:] != own.shape[2:]:
        raise ValueError(f"{key} is {tuple(old.shape)}, larger than the recipe's {tuple(own.shape)}")
    made = torch.zeros_like(own)
    if old.ndim == 1:
        made[: len(old)] = old
        return made
    outputs, inputs = old.shape[:2]
    made[:outputs, :inputs] = old
    if len(own) > outputs:
        fresh = own[outputs:]
        strength = old.square().sum(dim=(1, 2, 3)).mean() / fresh.square().sum(dim=(1, 2, 3)).mean()
        made[outputs:] = fresh * strength.sqrt()
    return made


def _streams(blocks: int) -> list[tuple[list[str], list[str]]]:
    """Groups of layers that share a set of channels: (those that write it, those that read it)."""
    streams = []
    for number in range(blocks + 1):
        before, after = f"block_{number}.", f"block_{number + 1}."
        writers = [before + "c5", before + "esa.conv4"] if number else ["conv_1", "conv_2"]
        readers = [before + "esa.conv1"] if number else ["upsampler.0"]
        if number < blocks:
            writers.append(after + "c3_r")
            readers += [after + "c1_r", after + "c5"]
        else:
            readers.append("conv_2")
        streams.append((writers, readers))
        if number < blocks:
            streams += [([after + "c1_r"], [after + "c2_r"]), ([after + "c2_r"], [after + "c3_r"])]
    return streams


def _keep_best(
    source: dict[str, Tensor], own: dict[str, Tensor], writers: list[str], readers: list[str]
) -> None:
    """Cut one group's channels in `source` to the number that `own` has."""
    width, wanted = len(source[writers[0] + ".bias"]), len(own[writers[0] + ".bias"])
    if wanted >= width:
        return
    written = sum(source[name + ".weight"].square().sum(dim=(1, 2, 3)) for name in writers)
    read = sum(source[name + ".weight"].square().sum(dim=(0, 2, 3)) for name in readers)
    assert isinstance(written, Tensor) and isinstance(read, Tensor)
    best = (written * read).topk(wanted).indices.sort().values
    for name in writers:
        source[name + ".weight"] = source[name + ".weight"][best]
        source[name + ".bias"] = source[name + ".bias"][best]
    for name in readers:
        source[name + ".weight"] = source[name + ".weight"][:, best]
