"""Made-up pictures of cloth: stripes and checks near and beyond what the LR grid can hold.

`python -m rlfn_pipe.training.cloth DIR [--pictures 60] [--seed 5]` writes PNG files to train on among photographs.
Photographs rarely have patterns so fine that shrinking folds them into coarser ones; a network that never saw
that makes bold stripes of the wrong ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

#: Cycles per HR pixel of the patterns, least and most.
_FREQUENCIES = (0.06, 0.42)
_PIECES = 5


def cloth(generator: np.random.Generator, height: int = 768, width: int = 1020) -> np.ndarray:
    """One picture, uint8 RGB (height, width, 3): pieces of differently woven, unevenly lit cloth."""
    down, right = np.mgrid[0:height, 0:width].astype(np.float32)
    owner = np.argmax(np.stack([_smooth(generator, height, width, 5) for _ in range(_PIECES)]), axis=0)
    picture = np.zeros((height, width, 3), np.float32)
    for piece in range(_PIECES):
        frequency = np.exp(generator.uniform(*np.log(_FREQUENCIES)))
        angle = generator.uniform(0, np.pi)
        folds = generator.uniform(0, 1.2) * _smooth(generator, height, width, 6) / frequency
        weave = _threads(
            frequency, np.cos(angle) * right + np.sin(angle) * down + folds, generator.uniform(0.5, 4)
        )
        if generator.random() < 0.3:
            weave = weave * _threads(frequency, np.cos(angle) * down - np.sin(angle) * right + folds, 2.0)
        first = generator.uniform(20, 235) + generator.normal(0, 15, 3)
        second = first + generator.uniform(20, 110) * generator.choice([-1, 1]) * (
            1 + generator.normal(0, 0.1, 3)
        )
        light = 1 + 0.3 * _smooth(generator, height, width, 7)[..., None]
        woven = ((first + second) / 2 + (first - second) / 2 * weave[..., None]) * light
        picture = np.where((owner == piece)[..., None], woven, picture)
    picture += generator.normal(0, 2, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _threads(frequency: float, across: np.ndarray, hardness: float) -> np.ndarray:
    """Stripes in -1..1 over the distance `across` in pixels."""
    return np.tanh(hardness * np.cos(2 * np.pi * frequency * across))


def _smooth(generator: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """A soft random field of about unit variance with `cells` cells from top to bottom."""
    coarse = Image.fromarray(generator.normal(size=(cells, cells * 4 // 3)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m rlfn_pipe.training.cloth", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(given.seed)
    for number in range(given.pictures):
        Image.fromarray(cloth(generator)).save(given.folder / f"cloth-{number:03d}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
