"""The output plays with the input's colours: code values of flat fields, tags in container and bitstream."""

from __future__ import annotations

import io
import itertools
import re
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from media_maker import decoded, flat, make, read_planes, upscale

from rlfn_pipe.errors import InputError
from rlfn_pipe.jobs.plan import describe
from rlfn_pipe.media.colour import LAYOUTS, planar_format, planes_of
from rlfn_pipe.media.encoders import plan_encoding
from rlfn_pipe.media.encoding import picture_for
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import ColourInfo, Frame

pytestmark = pytest.mark.usefixtures("nearest_engine")

BT709, SMPTE170M, BT2020 = (1, 1, 1), (6, 6, 6), (9, 14, 9)
PQ, HLG, UNTAGGED = (9, 16, 9), (9, 18, 9), (2, 2, 2)
LIMITED, FULL = 1, 2
KR_KB = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593), 7: (0.212, 0.087), 4: (0.30, 0.11)}
#: What makes each encoder lossless.
LOSSLESS: dict[str, dict[str, Any]] = {
    "ffv1": {},
    "libx264": {"encoder_option": ("qp=0",)},
    "libx265": {"encoder_option": ("x265-params=lossless=1",)},
}


def code_values(
    rgb: tuple[float, float, float], matrix: int, colour_range: int, depth: int
) -> tuple[int, int, int]:
    """Y, Cb, Cr of an R'G'B' triple 0..1 (H.273 equations)."""
    kr, kb = KR_KB[matrix]
    r, g, b = rgb
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    unit = 1 << (depth - 8)
    if colour_range == FULL:
        top = (1 << depth) - 1
        return round(y * top), round(cb * top + 128 * unit), round(cr * top + 128 * unit)
    return round((219 * y + 16) * unit), round((224 * cb + 128) * unit), round((224 * cr + 128) * unit)


def tags_of(path: Path) -> tuple[int, int, int, int]:
    """(matrix, transfer, primaries, range) of the first decoded frame."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return int(frame.colorspace), int(frame.color_trc), int(frame.color_primaries), int(frame.color_range)


def bitstream_tags(path: Path) -> tuple[int, int, int, int]:
    """The same from the elementary stream alone, without what the container says."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        name = stream.codec_context.codec.canonical_name
        kind = {"h264": "h264", "hevc": "hevc", "av1": "obu", "vp9": "ivf", "prores": "mov"}[name]
        data = b""
        if name in ("h264", "hevc"):
            bsf = BitStreamFilterContext(f"{name}_mp4toannexb", stream)
            data = b"".join(
                bytes(p) for packet in container.demux(stream) if packet.size for p in bsf.filter(packet)
            )
    with av.open(io.BytesIO(data), format=kind) as bare:
        frame = next(bare.decode(video=0))
        return int(frame.colorspace), int(frame.color_trc), int(frame.color_primaries), int(frame.color_range)


_FIELDS = [
    (0.5, 0.5, 0.5),
    (0.75, 0.1, 0.1),
    (0.1, 0.6, 0.2),
    (0.2, 0.2, 0.8),
    (1.0, 1.0, 1.0),
    (0.0, 0.0, 0.0),
]
_CASES = [
    (codec, matrix, colour_range, depth, chroma)
    for codec in LOSSLESS
    for matrix, colour_range, (depth, chroma) in itertools.product(
        (BT709, SMPTE170M, BT2020),
        (LIMITED, FULL),
        [(8, "420"), (8, "422"), (8, "444"), (10, "420"), (10, "422"), (10, "444")] + ([(12, "420")] if codec != "libx264" else []),
    )
]  # fmt: skip


@pytest.mark.parametrize(("codec", "matrix", "colour_range", "depth", "chroma"), _CASES)
def test_flat_fields_within_one_code_value_and_tags(
    tmp_path: Path, codec: str, matrix: tuple[int, int, int], colour_range: int, depth: int, chroma: str
) -> None:
    pix_fmt = f"yuv{chroma}p" + ("" if depth == 8 else f"{depth}le")
    values = [code_values(rgb, matrix[0], colour_range, depth) for rgb in _FIELDS]
    source = make(
        tmp_path / "in.mkv", frames=len(values), codec="ffv1", pix_fmt=pix_fmt, colour=(*matrix, colour_range),
        picture=lambda i: flat(values[i], pix_fmt),
    )  # fmt: skip
    done = upscale(source, tmp_path / "out.mkv", codec=codec, **LOSSLESS[codec])
    found = decoded(done.path)
    assert len(found) == len(values)
    for frame, wanted in zip(found, values, strict=True):
        for plane, value in zip(frame.planes, wanted, strict=True):
            assert np.abs(plane.astype(int) - value).max() <= 1
    assert tags_of(done.path) == (*matrix, colour_range)
    if codec != "ffv1":
        assert bitstream_tags(done.path) == (*matrix, colour_range)


# ------------------------------------------------------------------------------ tags

_FAST: dict[str, dict[str, Any]] = {
    "libsvtav1": {"encoder_preset": "12"},
    "libvpx-vp9": {"encoder_preset": "realtime", "encoder_option": ("cpu-used=8",)},
}
_HOMES = [
    ("libx264", ".mp4"), ("libx264", ".mov"), ("libx264", ".mkv"), ("libx264", ".ts"), ("libx264", ".avi"), ("libx264", ".nut"),
    ("libx265", ".mp4"), ("libx265", ".mkv"), ("libx265", ".ts"), ("libsvtav1", ".mp4"), ("libsvtav1", ".webm"),
    ("libvpx-vp9", ".webm"), ("libvpx-vp9", ".mp4"), ("ffv1", ".mkv"), ("ffv1", ".avi"), ("ffv1", ".mp4"), ("ffv1", ".nut"),
    ("prores_ks", ".mov"), ("prores_ks", ".mkv"), ("mpeg4", ".mp4"), ("mpeg4", ".mkv"), ("mpeg4", ".avi"), ("mpeg4", ".ts"),
    ("mpeg2video", ".ts"), ("mpeg2video", ".mkv"), ("mpeg2video", ".mp4"),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "suffix"), _HOMES)
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT709, SMPTE170M, UNTAGGED])
def test_a_player_sees_the_same_colour(
    tmp_path: Path, codec: str, suffix: str, colour_range: int, matrix: tuple[int, int, int]
) -> None:
    """Whatever a container can say: what a player makes of the output equals what it made of the input.

    The player goes by the tags it finds, else by its rules for height and range.
    """
    values = code_values((0.7, 0.25, 0.15), 6 if matrix == UNTAGGED else matrix[0], colour_range, 8)
    source = make(
        tmp_path / "in.mkv",
        frames=14,
        codec="ffv1",
        colour=(*matrix, colour_range),
        picture=lambda i: flat(values, "yuv420p"),
    )
    done = upscale(source, tmp_path / f"out{suffix}", codec=codec, **_FAST.get(codec, {}))
    for a, b in zip(played(source), played(done.path), strict=True):
        assert abs(a - b) < 0.025, (tags_of(source), tags_of(done.path), done.said)
    found = tags_of(done.path)
    if matrix == UNTAGGED:
        assert found[0] in (2, 5, 6)
    elif codec not in ("mpeg4", "ffv1") or suffix in (".mp4", ".mkv"):
        assert found[0] == matrix[0] and found[1] in (matrix[1], 2) and found[2] in (matrix[2], 2)
    if colour_range == FULL and found[3] != FULL:
        assert "full range became limited range" in done.said


def played(path: Path) -> tuple[float, float, float]:
    """Mean R'G'B' 0..1 of the second frame, as a player understands it."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        next(frames)
        frame = next(frames)
        depth = frame.format.components[0].bits
        unit = 1 << (depth - 8)
        y, cb, cr = (float(p.mean()) for p in read_planes(frame)[:3])
        matrix = int(frame.colorspace)
        kr, kb = KR_KB[{5: 6, 2: 6 if frame.height < 720 else 1}.get(matrix, matrix)]
        full = int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")
    if full:
        top = (1 << depth) - 1
        y, cb, cr = y / top, (cb - 128 * unit) / top, (cr - 128 * unit) / top
    else:
        y, cb, cr = (
            (y - 16 * unit) / (219 * unit),
            (cb - 128 * unit) / (224 * unit),
            (cr - 128 * unit) / (224 * unit),
        )
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return r, (y - kr * r - kb * b) / (1 - kr - kb), b


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_untagged_picture_that_grows_past_720_lines(tmp_path: Path, suffix: str) -> None:
    """Players guess BT.601 for the source and would guess BT.709 for the output: it is tagged, or converted."""
    values = code_values((0.7, 0.25, 0.15), 6, LIMITED, 8)
    source = make(
        tmp_path / "in.mkv",
        frames=12,
        codec="ffv1",
        size=(16, 400),
        picture=lambda i: flat(values, "yuv420p", (16, 400)),
    )
    done = upscale(source, tmp_path / f"out{suffix}")
    for a, b in zip(played(source), played(done.path), strict=True):
        assert abs(a - b) < 0.025
    assert tags_of(done.path)[0] == (2 if suffix == ".avi" else 6)
    assert ("it became BT.709, which players assume at 800 lines" in done.said) == (suffix == ".avi")


def test_a_matrix_that_is_not_supported_is_told_before_the_work(tmp_path: Path) -> None:
    """By the dry run as by the run, with the file's name."""
    for code, name in ((8, "YCgCo"), (12, "derived")):
        source = make(tmp_path / "in.mkv", frames=2, colour=(code, 1, 1, 1))
        words = re.escape(f"{source}: its colour matrix, {name}, is not supported; convert it")
        for target in (str(tmp_path / "out.mkv"), "-"):
            with pytest.raises(InputError, match=words):
                describe(str(source), target, UpscaleOptions(scale=2))
        with pytest.raises(InputError, match=words):
            upscale(source, tmp_path / "out.mkv")
        assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


def test_untagged_picture_that_stays_low_stays_untagged(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=2)
    assert tags_of(upscale(source, tmp_path / "out.mp4").path) == (2, 2, 2, 0)


@pytest.mark.parametrize("source", [("mjpeg", "yuvj420p", "in.avi"), ("libx264", "yuvj420p", "in.mp4")])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_j_formats_are_full_range(tmp_path: Path, source: tuple[str, str, str], suffix: str) -> None:
    codec, pix_fmt, name = source
    clip = make(
        tmp_path / name,
        frames=5,
        codec=codec,
        pix_fmt=pix_fmt,
        colour=(2, 2, 2, 2),
        picture=lambda i: flat((255, 128, 128), pix_fmt),
    )
    done = upscale(
        clip, tmp_path / f"out{suffix}", **_FAST.get("libvpx-vp9" if suffix == ".webm" else "", {})
    )
    assert played(done.path)[0] == pytest.approx(1.0, abs=0.01)
    assert tags_of(done.path)[3] == (FULL if suffix != ".avi" else tags_of(done.path)[3])


# -------------------------------------------------------------------- other sources


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name"),
    [
        ("png", "rgb24", "in.mov"),
        ("gif", "bgr8", "in.gif"),
        ("ffv1", "bgr0", "in.mkv"),
        ("qtrle", "rgb24", "in.mov"),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_rgb_sources(tmp_path: Path, codec: str, pix_fmt: str, name: str, suffix: str) -> None:
    source = tmp_path / name
    write_rgb(source, codec, pix_fmt)
    done = upscale(
        source, tmp_path / f"out{suffix}", **_FAST.get("libvpx-vp9" if suffix == ".webm" else "", {})
    )
    found = tags_of(done.path)
    assert found[0] == 1 and found[3] in (0, LIMITED)
    r, g, b = played(done.path)
    assert (r, g, b) == pytest.approx((224 / 255, 64 / 255, 85 / 255), abs=0.05)


def test_rgb_into_ffv1_stays_rgb(tmp_path: Path) -> None:
    source = tmp_path / "in.mov"
    write_rgb(source, "png", "rgb24")
    done = upscale(source, tmp_path / "out.mkv", codec="ffv1")
    with av.open(str(done.path)) as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == "bgr0", "8 bits stay 8 bits"
        assert np.abs(frame.to_ndarray(format="rgb24")[10, 10].astype(int) - (224, 64, 85)).max() <= 1


@pytest.mark.parametrize(("pix_fmt", "packed"), [("gbrp", "bgr0"), ("gbrap", "bgra")])
def test_packing_changes_no_sample(pix_fmt: str, packed: str) -> None:
    rng = np.random.default_rng(3)
    colour = ColourInfo(0, range=2, subsampling="rgb", alpha=pix_fmt == "gbrap")
    planes = tuple(rng.integers(0, 256, (37, 53), np.uint8) for _ in range(3 + colour.alpha))
    plan = plan_encoding(Path("out.mkv"), tags=colour, resolved=colour, picture=(53, 37), codec="ffv1")
    assert plan.pix_fmt == packed
    picture = picture_for(Frame(planes, colour), plan, 0, Fraction(1, 25))
    assert picture.format.name == packed
    back = planes_of(picture.reformat(format=pix_fmt))
    assert all(np.array_equal(a, b) for a, b in zip(back, planes, strict=True))


def write_rgb(path: Path, codec: str, pix_fmt: str) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pix_fmt
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), (224, 64, 85), np.uint8), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts = i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "gray16le"])
@pytest.mark.parametrize("codec", ["ffv1", "libx264"])
def test_grey_sources(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    depth = av.VideoFormat(pix_fmt).components[0].bits
    value = 180 << (depth - 8)
    source = make(
        tmp_path / "in.mkv",
        frames=2,
        codec="ffv1",
        pix_fmt=pix_fmt,
        picture=lambda i: flat((value,), pix_fmt),
    )
    found = decoded(upscale(source, tmp_path / "out.mkv", codec=codec, **LOSSLESS[codec]).path)
    out_depth = depth if codec == "ffv1" else min(depth, 10)
    assert np.abs(found[0].planes[0].astype(int) - (180 << (out_depth - 8))).max() <= 1
    for plane in found[0].planes[1:]:
        assert (plane == 128 << (out_depth - 8)).all()


@pytest.mark.parametrize("pix_fmt", ["nv12", "yuyv422", "yuv411p", "yuv410p", "rgb565le", "bgra", "ya8"])
def test_formats_that_are_not_planar(tmp_path: Path, pix_fmt: str) -> None:
    """Raw video of any layout: the colour of a flat grey field comes through."""
    source = tmp_path / "in.nut"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pix_fmt
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 132, np.uint8), format="rgb24").reformat(
                format=pix_fmt
            )
            frame.pts = i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert played(upscale(source, tmp_path / "out.mp4").path) == pytest.approx([132 / 255] * 3, abs=0.03)


# ------------------------------------------------------------------------------- HDR

_MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("auto", ".mp4"), ("auto", ".mkv"), ("libsvtav1", ".mp4"), ("auto", ".webm"), ("auto", ".ts")],
)
def test_hdr_keeps_depth_and_tags(
    tmp_path: Path, transfer: tuple[int, int, int], codec: str, suffix: str
) -> None:
    source = make(
        tmp_path / "in.mkv",
        frames=12,
        codec="ffv1",
        pix_fmt="yuv420p10le",
        size=(64, 64),
        colour=(*transfer, LIMITED),
    )
    preset = {"encoder_preset": "12"} if codec == "libsvtav1" or suffix == ".webm" else {}
    done = upscale(source, tmp_path / f"out{suffix}", codec=codec, **preset)
    assert tags_of(done.path) == (*transfer, LIMITED)
    with av.open(str(done.path)) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p10le"
        if context.codec.canonical_name == "hevc":
            assert context.profile == "Main 10"


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx265", ".mp4"),
        ("libx265", ".mkv"),
        ("libsvtav1", ".mp4"),
        ("libsvtav1", ".webm"),
        ("libx264", ".mkv"),
        ("libx264", ".ts"),
    ],
)
def test_hdr10_metadata_comes_along(tmp_path: Path, codec: str, suffix: str) -> None:
    params = f"lossless=1:log-level=none:pools=1:hdr10=1:repeat-headers=1:master-display={_MASTERING}:max-cll=1000,400"
    source = make(
        tmp_path / "in.mkv", frames=4, codec="libx265", pix_fmt="yuv420p10le", size=(64, 64), colour=(*PQ, LIMITED),
        options={"preset": "ultrafast", "x265-params": params},
    )  # fmt: skip
    preset = {"encoder_preset": "12"} if codec == "libsvtav1" else {}
    done = upscale(source, tmp_path / f"out{suffix}", codec=codec, **preset)
    before, after = light(source), light(done.path)
    assert before[1] == after[1] == (1000, 400)
    # AV1 counts chromaticities in 1/65536 and luminance in 1/256 and 1/16384.
    assert after[0] == pytest.approx(before[0], abs=2e-3 if codec == "libsvtav1" else 1e-9)
    lost = upscale(source, tmp_path / "vp9.mkv", codec="libvpx-vp9", encoder_preset="realtime")
    assert "mastering display and light levels (HDR10) are left out; libvpx-vp9" in lost.said


def light(path: Path) -> tuple[list[float], tuple[int, ...]]:
    """Mastering display as numbers and (MaxCLL, MaxFALL) of the first frame."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        data = {item.type.name: bytes(item) for item in frame.side_data}
    numbers = struct.unpack_from("<20i", data["MASTERING_DISPLAY_METADATA"])
    return [numbers[i] / numbers[i + 1] for i in range(0, 20, 2)], struct.unpack_from(
        "<2I", data["CONTENT_LIGHT_LEVEL"]
    )


def test_every_pixel_format_of_libav_has_a_planar_one() -> None:
    assert {planar_format(name) for name in av.video.format.names} <= LAYOUTS.keys()


@pytest.mark.parametrize(
    ("codec", "suffix", "location"),
    [("flv", ".flv", "centre"), ("mjpeg", ".mov", "centre"), ("mpeg4", ".mp4", "left")],
)
def test_where_chroma_lies_follows_from_the_codec(
    tmp_path: Path, codec: str, suffix: str, location: str
) -> None:
    """By the names that libav has for its decoders."""
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = make(tmp_path / f"in{suffix}", frames=2, codec=codec, pix_fmt=form, options={})
    with VideoSource(source) as opened:
        assert opened.format.tags.chroma_location == location
