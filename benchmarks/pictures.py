"""What writing a picture takes: our settings of each lossless format beside others, CPU time and size.

    python benchmarks/pictures.py UPSCALED.png MORE.webp ... [--rounds 2]

8-bit RGB. Mean CPU ms (the least of the rounds) and MB of a picture; one JSON object a setting, first what
`rlfn_pipe.media.image_write` does.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from rlfn_pipe.media.image_metadata import ImageMeta
from rlfn_pipe.media.image_write import write_image
from rlfn_pipe.types import ColourInfo, Frame

Writer = Callable[[np.ndarray], int]


def pillow(format: str, **settings: Any) -> Writer:
    def write(array: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format, **settings)
        return buffer.tell()

    return write


def opencv(*settings: int) -> Writer:
    return lambda array: len(cv2.imencode(".png", cv2.cvtColor(array, cv2.COLOR_RGB2BGR), settings)[1])


def ours(format: str, folder: Path) -> Writer:
    """`write_image` from planes to file, lossless."""

    def write(array: np.ndarray) -> int:
        frame = Frame(tuple(array.transpose(2, 0, 1)), ColourInfo(matrix=0, range=2, subsampling="rgb"))
        quality = 100 if format == "webp" else None
        return write_image(folder / "made", frame, ImageMeta(), format=format, quality=quality)

    return write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    arrays = [np.array(Image.open(path).convert("RGB")) for path in options.pictures]
    level, strategy = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_STRATEGY
    with tempfile.TemporaryDirectory(prefix="rlfn-pipe-bench-") as name:
        writers: dict[str, Writer] = {
            f"ours, {kind}": ours(kind, Path(name)) for kind in ("png", "webp", "tiff")
        }
        writers |= {f"Pillow png, level {n}": pillow("PNG", compress_level=n) for n in (1, 3, 6)}
        writers |= {f"OpenCV png, level {n}": opencv(level, n) for n in (1, 2, 4, 6)}
        writers["OpenCV png, run lengths"] = opencv(level, 1, strategy, cv2.IMWRITE_PNG_STRATEGY_RLE)
        writers |= {
            f"webp, method {method}, quality {quality}": pillow(
                "WEBP", lossless=True, exact=True, method=method, quality=quality
            )
            for method, quality in ((0, 0), (0, 20), (0, 50), (1, 0), (4, 50))
        }
        for title, write in writers.items():
            times = []
            for _ in range(options.rounds):
                begin = time.process_time()
                sizes = [write(array) for array in arrays]
                times.append(time.process_time() - begin)
            ms, mb = 1e3 * min(times) / len(arrays), sum(sizes) / len(arrays) / 1e6
            print(json.dumps({"writer": title, "ms": round(ms, 1), "mb": round(mb, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
