"""Run by test_hardware.py: one check in a process that has the stand-in for NVIDIA's driver. Prints JSON.

Usage: hardware_child.py FOLDER CHECK
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import media_maker
import numpy as np
from av.codec.codec import Codec
from av.codec.hwaccel import HWAccel
from fake_driver import OnDevice, load, same, tell

from rlfn_pipe.engine.host import Host
from rlfn_pipe.errors import HardwareFailed
from rlfn_pipe.media.colour import reformatted
from rlfn_pipe.media.encoders import plan_encoding
from rlfn_pipe.media.hardware import SEMI_PLANAR, Hardware, Surfaces, why_not
from rlfn_pipe.media.segment import SegmentSink, read_header, read_packets
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.pipeline.surfaces import planes_of
from rlfn_pipe.types import ColourInfo, Frame

PIX_FMTS = {"libx264": "yuv420p", "libx265": "yuv420p10le"}


def kept_planes(surface: Sequence[Any], bit_depth: int) -> tuple[np.ndarray, ...]:
    """As on a GPU, whose memory is the host's here."""
    return planes_of([OnDevice(plane) for plane in surface], bit_depth)


def film(folder: Path, codec: str, size: tuple[int, int] = (192, 160), **more: str) -> Path:
    options = (
        media_maker.B_FRAMES if codec == "libx264" else {"x265-params": "log-level=none:keyint=12:pools=1"}
    )
    return media_maker.make(
        folder / f"{codec}.mp4",
        codec=codec, pix_fmt=PIX_FMTS[codec], frames=30, size=size, options={**options, "g": "12", **more},
        picture=lambda i: media_maker.noise(i, PIX_FMTS[codec], size),
    )  # fmt: skip


#: What is asked for by the second word of a check: size, encoder's options, `--deinterlace`.
KINDS: dict[str, tuple[tuple[int, int], dict[str, str], str]] = {
    "plain": ((192, 160), {}, "off"),
    "filtered": ((192, 160), {}, "on"),
    "short": ((200, 150), {}, "off"),
    "references": ((192, 160), {"refs": "16"}, "off"),
    "cropped": ((192, 160), {"x264-params": "crop-rect=16,16,16,16"}, "off"),
}


def decoding(driver: Any, folder: Path, codec: str, road: str, kind: str) -> dict[str, Any]:
    """Frames of a film, and of a part that begins within it, against software's."""
    size, options, deinterlace = KINDS[kind]
    path = film(folder, codec, size, **options)
    tell(driver, path, SEMI_PLANAR[PIX_FMTS[codec]])
    with VideoSource(path, deinterlace=deinterlace) as whole:
        expected: list[Frame] = list(whole)
        parts = {"whole": whole.part(whole.first, whole.last), "later": whole.part(17, 25)}
    hardware, found = Hardware(0, kept_planes if road == "stays" else None), {}
    for name, part in parts.items():
        frames: list[Frame] = []
        try:
            with VideoSource(
                path, deinterlace=deinterlace, part=part, threads=24, hardware=hardware
            ) as source:
                frames.extend(source)
        except HardwareFailed as error:
            found[name] = str(error)
            continue
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


def inside(driver: Any, device: int) -> Callable[[], AbstractContextManager[object]]:
    """As `rlfn_pipe.pipeline.surfaces.Context`: the GPU is the thread's meanwhile."""

    @contextmanager
    def entered() -> Iterator[None]:
        before = driver.fake_device()
        driver.fake_runtime(device, 0)
        try:
            yield
        finally:
            driver.fake_runtime(before, 0)

    return entered


def surfaces(driver: Any, depth: int, device: int) -> dict[str, Any]:
    """Pictures for the GPU's encoder, made of planes that lie there, brought back by libav."""
    pix_fmt = {8: "yuv420p", 10: "yuv420p10le"}[depth]
    wanted = media_maker.noise(3, pix_fmt, (322, 178))
    maker, found = Surfaces(device, inside(driver, device)), []
    for _ in range(2):
        planes = Host().surface(wanted, depth).tensors()
        picture = maker.picture([OnDevice(plane, driver, device) for plane in planes], pix_fmt)
        back = reformatted(picture, pix_fmt, picture.width, picture.height)
        found.append(
            {
                "format": picture.format.name,
                "same": same(media_maker.read_planes(back), wanted),
                "rows": [plane.line_size for plane in picture.planes],
            }
        )
    return {"pictures": found, "formats": maker.format_for(pix_fmt)}


def encoding(driver: Any, folder: Path, codec: str) -> dict[str, Any]:
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
                given = [OnDevice(p, driver) for p in Host().surface(planes, depth).tensors()]
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
    before = why_not(0)
    why_not.cache_clear()
    driver = load(folder)
    driver.fake_runtime(0, 0)
    what, *more = check.split()
    if what == "contexts":
        found = contexts(driver)
    elif what == "encoded":
        found = encoding(driver, folder, *more)
    elif what == "surfaces":
        found = surfaces(driver, *map(int, more))
    else:
        kind, codec = more
        if kind == "refused":
            driver.fake_refuse()
        elif kind == "failing":
            driver.fake_fail_after(20)
        found = decoding(driver, folder, codec, what, kind if kind in KINDS else "plain")
    print(json.dumps({"without": before, "with": why_not(0), **found}))


if __name__ == "__main__":
    main()
