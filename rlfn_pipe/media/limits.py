"""Bounds on what an untrusted file may make us allocate, and on what a format can hold."""

from __future__ import annotations

import os
from pathlib import Path

from rlfn_pipe.errors import InputError, OutputError, UsageError

#: Largest picture that is decoded, in pixels (16384 x 16384), unless the environment says otherwise.
MAX_PIXELS = 16384 * 16384
MAX_PIXELS_VARIABLE = "RLFN_PIPE_MAX_PIXELS"

#: Largest side in pixels that the format, or the encoder behind it, accepts.
LARGEST_SIDE = {
    "png": 2**31 - 1,
    "jpg": 65500,
    "webp": 16383,
    "tiff": 2**32 - 1,
    "bmp": 2**31 - 1,
    "avif": 16384,
}


def max_pixels() -> int:
    """The bound on width x height of an input picture.

    Raises:
        UsageError: the environment variable is not a positive whole number.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"{MAX_PIXELS_VARIABLE}={text!r} is not a positive whole number; correct it")
    return int(text)


def check_picture_size(path: Path, width: int, height: int) -> None:
    """Refuse a picture whose header announces no pixels or more than the bound. Nothing is allocated before.

    Raises:
        InputError: the size is empty or above `max_pixels()`.
    """
    if width <= 0 or height <= 0:
        raise InputError(f"{path}: the header announces a size of {width}x{height}; the file is damaged")
    limit = max_pixels()
    if width * height > limit:
        raise InputError(
            f"{path}: {width}x{height} is {width * height / 1e6:.4g} megapixels and the limit is "
            f"{limit / 1e6:.4g}; if you trust the file, set {MAX_PIXELS_VARIABLE}={width * height} or more"
        )


def check_output_size(path: Path, width: int, height: int, format: str) -> None:
    """Refuse a picture that `format` ("png", "jpg", ...) cannot hold; call it before the work starts.

    Raises:
        OutputError: a side is longer than the format allows.
    """
    side = LARGEST_SIDE[format]
    if max(width, height) > side:
        raise OutputError(
            f"{path}: {width}x{height} does not fit, {format} pictures have at most {side} pixels a side; "
            "write png or tiff, or choose a smaller scale"
        )
