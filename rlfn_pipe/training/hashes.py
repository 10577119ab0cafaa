"""Perceptual hashes: does a photograph repeat a picture of a benchmark set?"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from PIL import Image

#: Bits of one hash: the signs of 16 x 16 horizontal brightness steps.
BITS = 256
#: Hashes at most this many bits apart are taken for the same picture.
SAME_BITS = 40

_SIDE = 17


def _signs(thumbnail: np.ndarray) -> bytes:
    """Signs of the horizontal steps of a (17, 17) float image, as 32 bytes."""
    return np.packbits(thumbnail[:16, 1:] > thumbnail[:16, :-1]).tobytes()


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (17, 17) brightness."""
    small = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32)


def difference_hash(image: np.ndarray) -> bytes:
    """256-bit difference hash of a uint8 RGB image (H, W, 3): robust to size, codec, brightness."""
    return _signs(_thumbnail(image))


def orientation_hashes(image: np.ndarray) -> list[bytes]:
    """Difference hashes of the image in its eight orientations (rotations and mirrorings)."""
    small = _thumbnail(image)
    # The hash leaves the last row out, so a turned picture needs its own thumbnail turned first.
    return [_signs(np.rot90(base, turns)) for base in (small, small[:, ::-1]) for turns in range(4)]


def distance(first: bytes, second: bytes) -> int:
    """Number of bits in which two hashes differ."""
    return (int.from_bytes(first) ^ int.from_bytes(second)).bit_count()


def load_test_hashes() -> dict[str, bytes]:
    """Hashes of the benchmark pictures (Set5, Set14, BSD100), by `set/name`."""
    text = files(__package__).joinpath("test_hashes.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: bytes.fromhex(code) for name, code in rows}


def find_test_image(hashes: list[bytes], known: dict[str, bytes]) -> tuple[str, int] | None:
    """Name and distance of the benchmark picture that one of `hashes` repeats, if any."""
    name, bits = min(
        ((name, min(distance(code, other) for code in hashes)) for name, other in known.items()),
        key=lambda pair: pair[1],
        default=("", BITS),
    )
    return (name, bits) if bits <= SAME_BITS else None
