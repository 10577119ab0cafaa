"""Benchmark sets on disk: which pictures belong together, and reading them.

Two layouts are known. A folder of pictures is a set of HR pictures whose LR partners are made here. A folder
with `HR/` holds its LR partners in `LRx{scale}/` or `LR_bicubic/X{scale}/` (or lets them be made); an LR file
has the name of its HR picture, with or without `x{scale}` behind it, in any picture format. A folder of such
folders is several sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from natsort import natsorted
from PIL import Image, ImageOps

from rlfn_pipe.errors import InputError
from rlfn_pipe.evaluate.pictures import rgb8
from rlfn_pipe.evaluate.resize import downscale

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "ImagePair",
    "ImageSet",
    "LowSource",
    "find_sets",
    "read_image",
    "read_pair",
]

LowSource = Literal["auto", "make", "read"]

#: File names that count as pictures, in lower case.
EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"}
)
#: Pillow's plug-ins that may see the files. Left to itself it would try all, whatever the name, and
#: hand PostScript to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")


@dataclass(frozen=True, slots=True)
class ImagePair:
    """One HR picture and its LR partner; `low` is None where it is made from the HR one."""

    name: str
    high: Path
    low: Path | None


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A benchmark set in natural order of names."""

    name: str
    pairs: tuple[ImagePair, ...]

    @property
    def low_is_read(self) -> bool:
        """Whether LR pictures come from files rather than from our own downscaling."""
        return self.pairs[0].low is not None


def find_sets(root: Path, scale: int, low_source: LowSource = "auto") -> tuple[ImageSet, ...]:
    """The sets in or directly below `root`, in natural order.

    `low_source`: "auto" reads LR pictures where a folder for `scale` exists and makes them elsewhere, "make"
    always makes them, "read" insists on files. Raises InputError for a missing folder, one without pictures,
    two pictures of one name, or an HR picture without LR partner.
    """
    if not root.exists():
        raise InputError(f"the folder {root} does not exist; give --data a folder of pictures")
    if not root.is_dir():
        raise InputError(f"{root} is a file; give --data the folder that holds the pictures")
    found = [_read_set(folder, scale, low_source) for folder in _set_folders(root)]
    if not found:
        raise InputError(
            f"no pictures in {root}: it needs image files, an HR/ folder, or folders that hold one of these"
        )
    return tuple(found)


def read_image(path: Path) -> np.ndarray:
    """Decode `path` to uint8 RGB (h, w, 3): EXIF orientation applied, grey repeated, alpha left out.

    Samples of 16 bit grey are scaled to 8. Raises InputError when the file is missing or does not decode.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            return rgb8(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's decoders report damage through all of these.
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).rstrip(".")
        raise InputError(
            f"the picture {path} cannot be read ({reason}); replace it or take it out of the set"
        ) from error


def read_pair(pair: ImagePair, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The LR and HR picture, uint8 RGB; HR is cropped to a multiple of `scale`, LR exactly `scale` smaller.

    Raises InputError when a picture cannot be read, is too small, or the two sizes do not fit.
    """
    high = read_image(pair.high)
    height, width = (side // scale for side in high.shape[:2])
    if height == 0 or width == 0:
        raise InputError(f"{pair.high} is {high.shape[1]}x{high.shape[0]}, too small for scale {scale}")
    high = high[: height * scale, : width * scale]
    if pair.low is None:
        return downscale(high, scale), high
    low = read_image(pair.low)
    if low.shape[:2] != (height, width):
        raise InputError(
            f"{pair.low} is {low.shape[1]}x{low.shape[0]}, but {pair.high} at scale {scale} needs "
            f"{width}x{height}; use the LR pictures of this set and scale, or --lr make"
        )
    return low, high


def _pictures(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return natsorted(
        (path for path in files if path.suffix.lower() in EXTENSIONS), key=lambda path: path.name
    )


def _set_folders(root: Path) -> Iterator[Path]:
    """`root` itself where it is a set, else every folder directly below it that is one."""
    if _is_set(root):
        yield root
        return
    for folder in natsorted(root.iterdir(), key=lambda path: path.name):
        # LR pictures without their HR folder must not pass for HR ones.
        if folder.is_dir() and not folder.name.startswith((".", "LR")) and _is_set(folder):
            yield folder


def _is_set(folder: Path) -> bool:
    return bool(_pictures(folder)) or (folder / "HR").is_dir()


def _read_set(folder: Path, scale: int, low_source: LowSource) -> ImageSet:
    high_folder = folder / "HR" if (folder / "HR").is_dir() else folder
    highs = _by_name(high_folder)
    if not highs:
        raise InputError(f"no pictures in {high_folder}; put the HR pictures of the set there")
    low_folder = _low_folder(folder, scale) if low_source != "make" else None
    if low_folder is None:
        if low_source == "read":
            raise InputError(
                f"{folder} has no LRx{scale}/ folder to read; add it or have LR pictures made by --lr make"
            )
        pairs = tuple(ImagePair(name, path, None) for name, path in highs.items())
    else:
        lows = _by_name(low_folder)
        partners = {name: lows.get(name) or lows.get(f"{name}x{scale}") for name in highs}
        missing = [name for name, partner in partners.items() if partner is None]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(highs)} pictures in {high_folder} have no partner in {low_folder} "
                f'(the first is "{missing[0]}"); complete the folder or use --lr make'
            )
        pairs = tuple(ImagePair(name, path, partners[name]) for name, path in highs.items())
    full = folder.resolve()
    return ImageSet(full.parent.name if full.name == "HR" else full.name, pairs)


def _low_folder(folder: Path, scale: int) -> Path | None:
    for candidate in (folder / f"LRx{scale}", folder / "LR_bicubic" / f"X{scale}"):
        if candidate.is_dir():
            return candidate
    return None


def _by_name(folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in _pictures(folder):
        if path.stem in named:
            raise InputError(f"{named[path.stem]} and {path} share one name; rename or remove one of them")
        named[path.stem] = path
    return named
