"""Made-up cloth has what photographs lack: detail that does not survive the shrinking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from training_helpers import picture

from rlfn_pipe.evaluate.resize import downscale, upscale
from rlfn_pipe.training.cloth import cloth, main


def lost(image: np.ndarray) -> float:
    """Share of the variance that shrinking to a third and enlarging again does not bring back."""
    image = image[: image.shape[0] // 3 * 3, : image.shape[1] // 3 * 3]
    again = upscale(downscale(image, 3), 3).astype(float)
    return float(((again - image) ** 2).mean() / image.astype(float).var())


def test_cloth_has_fine_patterns_of_many_kinds() -> None:
    pictures = [cloth(np.random.default_rng(seed), 192, 240) for seed in range(4)]
    assert all(p.shape == (192, 240, 3) and p.dtype == np.uint8 and p.std() > 15 for p in pictures)
    assert np.mean([lost(p) for p in pictures]) > 0.06
    smooth = np.asarray(picture(0).resize((240, 192), Image.Resampling.BICUBIC))
    assert lost(smooth) < 0.02


def test_command_writes_the_same_pictures_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main([str(tmp_path / name), "--pictures", "1"]) == 0
    (first,), (second,) = (list((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert first.name == second.name == "cloth-000.png"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.size == (1020, 768)
