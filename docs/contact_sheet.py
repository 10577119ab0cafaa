"""Makes docs/contact-sheet.png: eight crops by bicubic, our weights, the authors' weights, and the truth.

    python docs/contact_sheet.py CLIP OFFICIAL [MODEL]

CLIP is the 1280x720 excerpt of Big Buck Bunny ((c) Blender Foundation, CC BY 3.0, peach.blender.org) that the
clip in tests/data was cut from; OFFICIAL the authors' x4 file (`rlfn-pipe weights fetch rlfn-s`). Whole frames
are shrunk by MATLAB's bicubic and enlarged again, so the crops have their surroundings. Under each crop stands
its PSNR on Y.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rlfn_pipe.evaluate.metrics import luma, psnr
from rlfn_pipe.evaluate.resize import downscale, upscale
from rlfn_pipe.evaluate.run import super_resolve
from rlfn_pipe.models.weights import load

SCALE = 4
#: Frame, left and top of each crop in the clip's pixels.
CROPS = (
    (22, 436, 190),  # a face
    (22, 356, 20),  # flowers between leaves
    (66, 20, 60),  # twigs
    (66, 430, 10),  # an open mouth before foliage
    (66, 830, 280),  # edges of stones, soft surfaces
    (44, 640, 180),  # yellow flowers
    (44, 960, 80),  # fir before the sky
    (110, 420, 560),  # blades of grass
)
SIDE = 160
_ACROSS = 2
_GAP, _LINE = 4, 16
_COLUMNS = ("bicubic", "rlfn-pipe", "authors' weights", "truth")


def frames(clip: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """RGB frames, uint8 (720, 1280, 3), by number."""
    with av.open(str(clip)) as container:
        found = {
            number: frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(video=0))
            if number in wanted
        }
    if found.keys() != wanted:
        raise SystemExit(f"{clip} lacks the frames {sorted(wanted - found.keys())}")
    return found


def network(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 RGB (h, w, 3) -> (4 h, 4 w, 3) by a name or a file of weights, in fp32."""
    spec, module = load(model, SCALE)
    return lambda low: super_resolve(module.eval(), low, spec)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("official", help="the authors' weights: a file, or the name official-rlfn-s")
    parser.add_argument("model", nargs="?", default="rlfn-s", help="ours")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("contact-sheet.png"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways = (lambda low: upscale(low, SCALE), network(given.model), network(given.official))
    rows: dict[int, tuple[np.ndarray, ...]] = {}
    for number, truth in frames(given.clip, {frame for frame, _, _ in CROPS}).items():
        low = downscale(truth, SCALE)
        rows[number] = (*(way(low) for way in ways), truth)
    font = ImageFont.load_default(11)
    cell_width, cell_height = SIDE + _GAP, SIDE + _LINE
    columns = len(_COLUMNS)
    size = (_ACROSS * (columns * cell_width + _GAP), len(CROPS) // _ACROSS * cell_height + _LINE)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (number, left, top) in enumerate(CROPS):
        x = index % _ACROSS * (columns * cell_width + 2 * _GAP)
        y = index // _ACROSS * cell_height + _LINE
        window = np.s_[top : top + SIDE, left : left + SIDE]
        truth = rows[number][-1][window]
        for column, (name, picture) in enumerate(zip(_COLUMNS, rows[number], strict=True)):
            at = x + column * cell_width
            crop = picture[window]
            sheet.paste(Image.fromarray(np.ascontiguousarray(crop)), (at, y))
            figure = "" if column == columns - 1 else f"{psnr(luma(crop), luma(truth)):.2f} dB"
            draw.text((at, y + SIDE + 1), figure, "black", font)
            if index < _ACROSS:
                draw.text((at, 1), name, "black", font)
    sheet.save(given.to, optimize=True)
    print(f"{given.to} {given.to.stat().st_size} bytes")


if __name__ == "__main__":
    main()
