"""Run by test_hardware.py: one check in a process that has the stand-in for NVIDIA's driver. Prints JSON.

Usage: hardware_child.py FOLDER CHECK
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import media_maker
import numpy as np
from av.codec.codec import Codec
from av.codec.hwaccel import HWAccel
from fake_driver import OnDevice, load, same, tell

from rlfn_pipe.engine.host import Host
from rlfn_pipe.media.colour import reformatted
from rlfn_pipe.media.encoders import plan_encoding
from rlfn_pipe.media.hardware import SEMI_PLANAR, Hardware, Surfaces
from rlfn_pipe.media.segment import SegmentSink, read_header, read_packets
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.pipeline.surfaces import planes_of
from rlfn_pipe.types import ColourInfo, Frame

PIX_FMTS = {"libx264": "yuv420p", "libx265": "yuv420p10le"}


def kept_planes(surface: Sequence[Any], bit_depth: int) -> tuple[np.ndarray, ...]:
    """As on a GPU, whose memory is the host's here."""
    return planes_of([OnDevice(plane, gpu=False) for plane in surface], bit_depth)


def film(folder: Path, codec: str) -> Path:
    options = (
        media_maker.B_FRAMES if codec == "libx264" else {"x265-params": "log-level=none:keyint=12:pools=1"}
    )
    return media_maker.make(
        folder / f"{codec}.mp4",
        codec=codec, pix_fmt=PIX_FMTS[codec], frames=30, size=(192, 160), options={**options, "g": "12"},
        picture=lambda i: media_maker.noise(i, PIX_FMTS[codec], (192, 160)),
    )  # fmt: skip


def decoding(
    driver: Any, folder: Path, codec: str, *, stays: bool, deinterlace: str = "off"
) -> dict[str, Any]:
    """Frames of a film, and of a part that begins within it, against software's."""
    path = film(folder, codec)
    tell(driver, path, SEMI_PLANAR[PIX_FMTS[codec]])
    with VideoSource(path, deinterlace=deinterlace) as whole:
        expected: list[Frame] = list(whole)
        parts = {"whole": whole.part(whole.first, whole.last), "later": whole.part(17, 25)}
    hardware, found = Hardware(0, kept_planes) if stays else Hardware(0), {}
    for name, part in parts.items():
        with VideoSource(path, deinterlace=deinterlace, part=part, hardware=hardware) as source:
            frames = list(source)
        wanted = expected[part.first : part.last]
        found[name] = {
            "same": len(frames) == len(wanted)
            and all(a.pts == b.pts and same(a.planes, b.planes) for a, b in zip(frames, wanted, strict=True)),
            "arrays": all(isinstance(frame.planes[0], np.ndarray) for frame in frames),
            "notes": source.notes,
        }
    return {**found, "decoded": driver.fake_decoded(), "missed": driver.fake_missed()}


def contexts(driver: Any) -> dict[str, Any]:
    """Where decoders work once PyTorch has made the GPU's primary context."""
    codec, found = Codec("h264", "r"), {}
    for name, accel in (
        ("primary", HWAccel("cuda", is_hw_owned=True)),
        ("stays", Hardware().accel(stays=True)),
        ("host", Hardware().accel(stays=False)),
    ):
        before = driver.fake_contexts()
        try:
            accel.create(codec)
        except OSError as error:
            found[name] = type(error).__name__
        else:
            found[name] = driver.fake_contexts() - before
    return found


def surfaces(depth: int) -> dict[str, Any]:
    """Pictures for the GPU's encoder, made of planes that lie there, brought back by libav."""
    pix_fmt = {8: "yuv420p", 10: "yuv420p10le"}[depth]
    wanted = media_maker.noise(3, pix_fmt, (322, 178))
    maker, found = Surfaces(0), []
    for _ in range(2):
        planes = Host().surface(wanted, depth).tensors()
        picture = maker.picture([OnDevice(plane, gpu=True) for plane in planes], pix_fmt)
        back = reformatted(picture, pix_fmt, picture.width, picture.height)
        found.append(
            {
                "format": picture.format.name,
                "same": same(media_maker.read_planes(back), wanted),
                "rows": [plane.line_size for plane in picture.planes],
            }
        )
    return {"pictures": found, "formats": maker.format_for(pix_fmt)}


def encoding(folder: Path, codec: str) -> dict[str, Any]:
    """Segments by the GPU's encoder: of surfaces, and of planes on the host that libav takes there."""
    depth = 10 if codec == "hevc_nvenc" else 8
    colour = ColourInfo(1, 1, 1, 1, bit_depth=depth)
    pix_fmt, size = {8: "yuv420p", 10: "yuv420p10le"}[depth], (322, 178)
    wanted = [media_maker.noise(i, pix_fmt, size) for i in range(70)]
    plan = plan_encoding(folder / "out.mp4", tags=colour, resolved=colour, picture=size, codec=codec)
    found: dict[str, Any] = {"pix_fmt": plan.pix_fmt}
    for name, surfaces in (("surfaces", Surfaces(0)), ("planes", None)):
        sink = SegmentSink(folder / name, plan, Fraction(25), name="film", threads=1, surfaces=surfaces)
        for i, planes in enumerate(wanted):
            given: Any = planes
            if surfaces is not None:
                given = [OnDevice(p, gpu=True) for p in Host().surface(planes, depth).tensors()]
            sink.write(Frame(tuple(given), colour, i, i))
        sink.close()
        packets = list(read_packets(folder / name, "film"))
        # libav hands 8 bit from the host over as YV12.
        yv12 = surfaces is None and plan.pix_fmt == "yuv420p"
        samples = [
            b"".join(
                p.tobytes() for p in (planes[::2] + planes[1:2] if yv12 else _without_gaps(planes, depth))
            )
            for planes in wanted
        ]
        found[name] = {
            "pts": [packet.pts for packet in packets] == list(range(len(wanted))),
            "same": [bytes(packet) for packet in packets] == samples,
            "headers": read_header(folder / name, "film").extradata.hex(),
        }
    return found


def _without_gaps(planes: Sequence[np.ndarray], depth: int) -> Iterator[np.ndarray]:
    """Luma, then chroma in turns, as NVENC is to find them."""
    luma, blue, red = (plane << (16 - depth if depth > 8 else 0) for plane in planes)
    yield luma
    yield np.stack([blue, red], axis=-1)


def main() -> None:
    folder, check = Path(sys.argv[1]), sys.argv[2]
    before = Hardware().why_not(stays=False)
    driver = load(folder)
    driver.fake_runtime(0)
    what, _, which = check.partition(" ")
    if what == "contexts":
        found = contexts(driver)
    elif what == "encoded":
        found = encoding(folder, which)
    elif what == "surfaces":
        found = surfaces(int(which))
    else:
        if what == "refused":
            driver.fake_refuse()
        found = decoding(
            driver, folder, which, stays=what == "stays", deinterlace="on" if what == "filtered" else "off"
        )
    print(json.dumps({"without": before, "with": Hardware().why_not(stays=False), **found}))


if __name__ == "__main__":
    main()
