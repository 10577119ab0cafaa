"""A picture's samples as the measures and the training take them: 8 bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["rgb8"]


def rgb8(picture: Image.Image) -> np.ndarray:
    """uint8 RGB (h, w, 3) of an open picture: grey repeated, alpha left out, 16 bit grey scaled to 8.

    Raises ValueError for samples of 32 bit, whose range nobody knows, and whatever Pillow's decoders raise.
    """
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture, dtype=np.float64)
        return np.repeat(np.rint(grey / 257.0).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise ValueError(f"it has {picture.mode} samples of 32 bit; convert it to 8 bit RGB")
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))
