"""Makes docs/before-after.png: a piece of the clip in tests/data, enlarged by bicubic and by the tool.

    python docs/before_after.py

The right half comes out of `upscale` itself, encoded without loss and read back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

from rlfn_pipe import upscale

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "tests" / "data" / "bunny.mp4"
FRAME = 25
SCALE = 4
#: Left, top, width, height of the piece in the clip's pixels.
PIECE = (0, 4, 120, 136)
_GAP = 8


def _frame(path: Path, index: int) -> np.ndarray:
    """The frame as BGR, (H, W, 3) uint8."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == index:
                return frame.to_ndarray(format="bgr24")
    raise SystemExit(f"{path} has no frame {index}")


def _labelled(picture: np.ndarray, text: str) -> np.ndarray:
    picture = picture.copy()
    for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (12, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, width, cv2.LINE_AA)
    return picture


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.mkv"
        upscale(CLIP, large, scale=SCALE, frames=FRAME + 1, codec="ffv1")
        ours = _frame(large, FRAME)
    small = _frame(CLIP, FRAME)
    left, top, width, height = PIECE
    bicubic = cv2.resize(small, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    window = np.s_[top * SCALE : (top + height) * SCALE, left * SCALE : (left + width) * SCALE]
    before, after = _labelled(bicubic[window], "bicubic"), _labelled(ours[window], f"rlfn-pipe -s {SCALE}")
    gap = np.full((before.shape[0], _GAP, 3), 255, np.uint8)
    target = ROOT / "docs" / "before-after.png"
    cv2.imwrite(str(target), np.hstack([before, gap, after]), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{target} {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
