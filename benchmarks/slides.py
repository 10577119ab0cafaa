"""A made-up screen recording: pages of text held for seconds, a cursor that moves now and then.

    python benchmarks/slides.py OUT.mp4 [--size 640x360] [--seconds 12] [--rate 25]

Encoded by libx264 at crf 23 and preset veryfast, as recorders do; so held pages still change a little
for some frames after each cut, where the encoder refines them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAGE_SECONDS = 3.0
#: In each page the cursor moves in this part of the time.
MOVING = (0.35, 0.6)
PAGES = (
    ("Quarterly figures", ("Revenue grew by 12 %", "Costs stayed where they were", "Two new sites opened")),
    ("How a frame travels", ("Decoded planes go to the device", "Tiles share a border", "Planes come back")),
    ("def main(arguments):", ("    options = parse(arguments)", "    for item in options.items:", "        run(item)")),
    ("Next steps", ("Measure before changing", "Write the test first", "Ask when in doubt")),
)  # fmt: skip


def frames(width: int, height: int, count: int, rate: float) -> Iterator[np.ndarray]:
    """(height, width, 3) uint8 pictures."""
    for index in range(count):
        seconds = index / rate
        page, within = int(seconds / PAGE_SECONDS), (seconds % PAGE_SECONDS) / PAGE_SECONDS
        picture = _page(page % len(PAGES), width, height)
        low, high = MOVING
        way = min(max((within - low) / (high - low), 0.0), 1.0)
        x = width * (0.2 + 0.6 * (way if page % 2 == 0 else 1 - way))
        y = height * (0.5 + 0.25 * math.sin(math.pi * way))
        arrow = [
            (x, y),
            (x, y + height / 22),
            (x + height / 60, y + height / 30),
            (x + height / 32, y + height / 32),
        ]
        ImageDraw.Draw(picture).polygon(arrow, fill=(0, 0, 0), outline=(255, 255, 255))
        yield np.asarray(picture)


def _page(number: int, width: int, height: int) -> Image.Image:
    title, lines = PAGES[number]
    picture = Image.new("RGB", (width, height), (250, 250, 247))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width, height // 12), fill=(40 + 30 * number, 80, 140))
    large, small = (ImageFont.load_default(size) for size in (height / 10, height / 17))
    draw.text((width / 16, height / 6), title, font=large, fill=(20, 20, 30))
    for row, line in enumerate(lines):
        draw.text((width / 14, height * (0.36 + 0.1 * row)), line, font=small, fill=(40, 40, 50))
    footer = ImageFont.load_default(height / 28)
    text = "The quick brown fox jumps over the lazy dog. " * 2
    for row in range(4):
        draw.text((width / 14, height * (0.74 + 0.05 * row)), text[row:], font=footer, fill=(90, 90, 95))
    draw.text((width * 0.92, height * 0.94), str(number + 1), font=footer, fill=(90, 90, 95))
    return picture


def write(path: Path, width: int, height: int, seconds: float, rate: int) -> int:
    """Write the clip; returns its number of frames."""
    count = round(seconds * rate)
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in frames(width, height, count, rate):
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        writer.mux(stream.encode(None))
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--rate", type=int, default=25)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    write(options.target, width, height, options.seconds, options.rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
