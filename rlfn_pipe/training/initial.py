"""Initial weights of a stage: from a file, with the layers that fit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.models.weights import read, stated_range
from rlfn_pipe.training.grow import narrowed, widened


def read_weights(path: Path, input_range: float) -> dict[str, Tensor]:
    """State dict out of a checkpoint of ours (its moving average if it has one), .pth or .safetensors.

    For values in 0..`input_range`, whatever those of the file range over: the first layer and the last take the
    difference, exactly. Raises WeightsError where the file is none of these, or holds values that are not finite.
    """
    arrays, notes = read(path)
    weights = {key: torch.from_numpy(value) for key, value in arrays.items()}
    gain = stated_range(notes, str(path)) / input_range
    if gain == 1.0:
        return weights
    by = {"conv_1.weight": gain, "upsampler.0.weight": 1 / gain, "upsampler.0.bias": 1 / gain}
    return {key: value * by[key] if key in by else value for key, value in weights.items()}


def take_fitting(model: nn.Module, weights: dict[str, Tensor], where: str) -> list[str]:
    """Load the tensors of equal name and shape; return the names of those left as they were.

    A network of another scale shares all but the last layer. TrainingError when less than half
    of the tensors fit, for then the file is of another architecture.
    """
    own = model.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if 2 * len(fitting) < len(own):
        raise TrainingError(
            f"{where}: only {len(fitting)} of {len(own)} tensors fit the recipe's network;"
            " it is of another architecture"
        )
    model.load_state_dict({**own, **fitting})
    return sorted(own.keys() - fitting.keys())


def take(model: nn.Module, weights: dict[str, Tensor], fit: str, where: str) -> list[str]:
    """Load `weights` into `model` as a stage's `init_fit` says; return the names of new tensors.

    `fit`: "equal" (see `take_fitting`), "widen" or "narrow" (see `grow`). TrainingError when the
    weights are not of a network that can become this one.
    """
    if fit == "equal":
        return take_fitting(model, weights, where)
    try:
        made, left = (widened if fit == "widen" else narrowed)(weights, model.state_dict())
    except ValueError as error:
        raise TrainingError(
            f'{where}: cannot become the recipe\'s network by init_fit = "{fit}" ({error});'
            " give weights of a fitting network"
        ) from error
    model.load_state_dict(made)
    return left
