"""Feature difference maps as pictures, as in the paper's figures (section 3.2).

`python -m rlfn_pipe.training.feature_maps IMAGE OUT.png [--vgg FILE]` shows, for an image and its
blurred version, where the features differ: of the random extractor and, given its weights, of
layers 1 and 13 of VGG-19.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from rlfn_pipe.errors import RlfnPipeError, TrainingError
from rlfn_pipe.training.cache import FORMATS
from rlfn_pipe.training.device import to_tensor
from rlfn_pipe.training.losses import Extractor, RandomExtractor, VggExtractor, feature_difference_map

#: The layers of VGG-19 that the paper shows.
SHOWN_VGG_LAYERS = (1, 13)


def difference_maps(
    image: np.ndarray, blur: float = 2.0, vgg: Path | None = None, seed: int = 0
) -> list[np.ndarray]:
    """Maps for a uint8 RGB image (H, W, 3) against its Gaussian-blurred version (sigma `blur` pixels).

    First the random extractor's, then, given `vgg`, those of layers 1 and 13. Each is uint8, of
    the size of its layer, stretched so that its 99.9th percentile is white.
    """
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur)))
    first, second = (to_tensor(each[None].copy(), torch.device("cpu")) for each in (image, blurred))
    extractors: list[Extractor] = [RandomExtractor(seed)]
    if vgg is not None:
        extractors.append(VggExtractor(vgg, SHOWN_VGG_LAYERS))
    maps = [each for extractor in extractors for each in feature_difference_map(extractor, first, second)]
    return [_stretched(each.numpy()) for each in maps]


def _stretched(values: np.ndarray) -> np.ndarray:
    white = max(float(np.percentile(values, 99.9)), 1e-12)
    return np.clip(np.rint(values / white * 255), 0, 255).astype(np.uint8)


def write_difference_maps(source: Path, target: Path, blur: float = 2.0, vgg: Path | None = None) -> None:
    """Write the image and its maps side by side; TrainingError when a file cannot be read or written."""
    try:
        with Image.open(source, formats=FORMATS) as opened:
            image = np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TrainingError(f"{source}: cannot be read as an image ({error})") from error
    height, width = image.shape[:2]
    maps = difference_maps(image, blur, vgg)
    sheet = Image.new("RGB", (width * (1 + len(maps)), height))
    sheet.paste(Image.fromarray(image), (0, 0))
    for number, each in enumerate(maps, 1):
        shown = Image.fromarray(each).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(shown, (number * width, 0))
    try:
        sheet.save(target)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{target}: cannot be written ({error})") from error


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m rlfn_pipe.training.feature_maps", description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vgg", type=Path, help="state dict of torchvision's vgg19")
    parser.add_argument("--blur", type=float, default=2.0, help="sigma of the blur in pixels")
    given = parser.parse_args(arguments)
    try:
        write_difference_maps(given.image, given.out, given.blur, given.vgg)
    except RlfnPipeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
