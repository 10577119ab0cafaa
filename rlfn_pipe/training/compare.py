"""Which of several weights is better, told on held-back photographs and not on the benchmark sets.

`python -m rlfn_pipe.training.compare WEIGHTS [WEIGHTS ...] --data DIR [--cache DIR]`

PSNR on Y of large central crops of every held-back photograph: finer than the validation of a run, which
sees few and small crops. Each further file is compared with the first, photograph by photograph.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from rlfn_pipe.errors import RlfnPipeError, TrainingError
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.weights import load
from rlfn_pipe.training import checkpoint
from rlfn_pipe.training.cache import build_cache
from rlfn_pipe.training.data import Pairs, split
from rlfn_pipe.training.validate import Validation
from rlfn_pipe.types import ModelSpec

#: Side of the central HR crop in pixels.
CROP = 768


def open_network(path: Path) -> tuple[ModelSpec, torch.nn.Module]:
    """Spec and network of a weights file, or of a checkpoint (its moving average if it has one).

    The network takes and gives RGB in 0 .. `spec.input_range`. Raises TrainingError or WeightsError
    when the file is neither.
    """
    if path.suffix != ".pt":
        return load(path)
    state = checkpoint.load(path)
    module = RLFN(architecture(state.architecture["name"], state.architecture["scale"]))
    module.load_state_dict(state.ema or state.model)
    return module.spec, module.eval()


def compare(
    files: list[Path], data: Path, cache: Path, crop: int = CROP, held_back: float = 0.1
) -> list[np.ndarray]:
    """PSNR-Y in dB of each of `files` on each held-back photograph of `data`: a float array (photographs,).

    All files must be of one scale and take values in 0..1. Raises TrainingError otherwise.
    """
    networks = [open_network(path) for path in files]
    scale = networks[0][0].scale
    for path, (spec, _) in zip(files, networks, strict=True):
        if spec.scale != scale or spec.input_range != 1.0:
            raise TrainingError(
                f"{path}: is of scale {spec.scale} and range {spec.input_range:g}, the comparison of scale"
                f" {scale} and range 1; compare weights of our own training of one scale"
            )
    built = build_cache(data, cache, (scale,))
    names = tuple(image.name for image in built.images)
    pairs = Pairs(names, tuple(built.open(1)), tuple((image,) for image in built.open(scale)), scale)
    _, held = split(pairs, held_back)
    validation = Validation(held, len(held.names), crop, torch.device("cpu"))
    return [np.array(validation.each(module)) for _, module in networks]


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m rlfn_pipe.training.compare", description=__doc__)
    parser.add_argument("weights", type=Path, nargs="+", help="weights files or checkpoints")
    parser.add_argument("--data", type=Path, required=True, help="folder of training images")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder for decoded images")
    parser.add_argument("--crop", type=int, default=CROP, help="side of the central crop in pixels")
    parser.add_argument("--held-back", type=float, default=0.1, help="share held back, as in the recipe")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        found = compare(given.weights, given.data, given.cache, given.crop, given.held_back)
    except RlfnPipeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for path, values in zip(given.weights, found, strict=True):
        difference = values - found[0]
        error_of_mean = difference.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
        sys.stdout.write(
            f"{values.mean():.4f} dB, {difference.mean():+.4f} +- {error_of_mean:.4f} to the first,"
            f" better on {int((difference > 0).sum())} of {len(values)}: {path}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
