"""Initial weights of a stage: from a file, with the layers that fit."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.models.pickles import Unreadable, load_plain
from rlfn_pipe.training.grow import narrowed, widened

#: What values range over in a file that does not say so, as in those of the networks' authors.
_FOREIGN_RANGE = 255.0


def read_weights(path: Path, input_range: float) -> dict[str, Tensor]:
    """State dict out of a checkpoint of ours (its moving average if it has one), .pth or .safetensors.

    For values in 0..`input_range`, whatever those of the file range over: the first layer and the last take the
    difference, exactly. TrainingError where the file is none of these, or holds values that are not finite.
    """
    weights, stated = _read(path)
    if not all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point()):
        raise TrainingError(f"{path}: holds values that are not finite; give another file")
    gain = stated / input_range
    if gain == 1.0:
        return weights
    by = {"conv_1.weight": gain, "upsampler.0.weight": 1 / gain, "upsampler.0.bias": 1 / gain}
    return {key: value * by[key] if key in by else value for key, value in weights.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], float]:
    """State dict, and what its network's values range over."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as opened:
                stated = (opened.metadata() or {}).get("input_range", _FOREIGN_RANGE)
                return {key: opened.get_tensor(key) for key in opened.keys()}, float(stated)  # noqa: SIM118
        found = load_plain(path)
    except ImportError as error:
        raise TrainingError(
            f"{path}: reading it needs the package safetensors; install it or use a .pth"
        ) from error
    except Unreadable as error:
        raise TrainingError(f"{path}: {error}; give a weights file or a checkpoint") from error
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be opened ({error.strerror or error}); check its name"
        ) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise TrainingError(f"{path}: is no valid safetensors file ({error})") from error
        raise
    stated = _FOREIGN_RANGE
    if isinstance(found, dict):
        spec = found.get("architecture") or found.get("spec")
        if isinstance(spec, dict):
            stated = float(spec.get("input_range", _FOREIGN_RANGE))
        if "recipe_name" in found:
            found = found["ema"] or found["model"]
        elif isinstance(found.get("params"), dict):
            found = found["params"]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise TrainingError(f"{path}: holds no state dict to start from; give a weights file or a checkpoint")
    return found, stated


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
