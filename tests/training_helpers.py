"""Small images and recipes for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

#: A recipe of a few small steps; tests append to it or replace parts.
RECIPE = """
name = "test"
seed = 3
precision = "fp32"
[model]
name = "rlfn-ntire"
scale = 2
[data]
held_back = 0.2
[run]
validate_every = 6
log_every = 3
save_seconds = 0
validation_images = 1
validation_crop = 60
[[stage]]
name = "first"
init = "scratch"
steps = 9
batch = 2
patch = 32
rate = 1e-3
schedule = "cosine"
ema = 0.9
[[stage]]
name = "second"
steps = 6
batch = 2
patch = 48
rate = 5e-4
schedule = "halving"
halve_every = 3
losses = { l1 = 1.0, contrastive = 0.1 }
"""


def picture(seed: int, width: int = 108, height: int = 96) -> Image.Image:
    """A made-up photograph: soft shapes of many sizes and some grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    fine = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
    grain = np.asarray(fine.filter(ImageFilter.GaussianBlur(1.0)), np.float32) - 128
    return Image.fromarray(np.clip(soft + 0.5 * grain, 0, 255).astype(np.uint8))


def write_images(folder: Path, count: int = 5) -> Path:
    """`count` different PNG images in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, 108 + 12 * number).save(folder / f"{number}.png")
    return folder
