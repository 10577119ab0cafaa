"""Containers and codecs in and out: what goes together, sizes, pixel formats, quality, speed settings."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_maker import Clip, Sound, bars, decoded, flat, make, noise, to_frame, upscale

from rlfn_pipe.errors import UsageError
from rlfn_pipe.jobs.plan import describe
from rlfn_pipe.media.colour import planes_of, reformatted
from rlfn_pipe.media.encoders import ENCODERS, MUXERS, plan_encoding
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import ColourInfo, Frame

pytestmark = pytest.mark.usefixtures("nearest_engine")

FAST: dict[str, dict[str, Any]] = {
    "libx264": {"encoder_preset": "ultrafast"},
    "libx265": {"encoder_preset": "ultrafast"},
    "libsvtav1": {"encoder_preset": "12"},
    "libvpx-vp9": {"encoder_preset": "realtime", "encoder_option": ("cpu-used=8",)},
}
LIMITED_8 = ColourInfo(1, 1, 1, 1)
SOFTWARE = [name for name in ENCODERS if "nvenc" not in name]
DECODED_AS = {
    "libx264": "h264", "libx265": "hevc", "libsvtav1": "av1", "libvpx-vp9": "vp9", "prores_ks": "prores",
}  # fmt: skip


def codec_of(path: Path) -> str:
    with av.open(str(path)) as container:
        return str(container.streams.video[0].codec_context.codec.canonical_name)


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("clips") / "small.mp4", frames=5)


@pytest.mark.parametrize("codec", SOFTWARE)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".nut"])
def test_every_encoder_in_every_container(tmp_path: Path, small_clip: Path, codec: str, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    if MUXERS[suffix] not in ENCODERS[codec].muxers:
        with pytest.raises(UsageError, match=f"{codec} does not go into .{suffix[1:]}; use --codec"):
            upscale(small_clip, output, codec=codec)
        assert not output.exists()
        return
    upscale(small_clip, output, codec=codec, **FAST.get(codec, {}))
    found = decoded(output)
    assert [f.number for f in found] == list(range(5))
    assert found[0].planes[0].shape == (96, 128)
    assert codec_of(output) == DECODED_AS.get(codec, codec)


_SOURCES = {
    "h264.mp4": Clip(frames=4),
    "hevc.mkv": Clip(frames=4, codec="libx265"),
    "vp9.webm": Clip(frames=4, codec="libvpx-vp9"),
    "vp8.webm": Clip(frames=4, codec="libvpx", options={"b": "2M", "deadline": "realtime", "lag-in-frames": "0"}),
    "av1.mp4": Clip(frames=4, codec="libsvtav1"),
    "mpeg2.ts": Clip(frames=9, codec="mpeg2video"),
    "mpeg4.avi": Clip(frames=4, codec="mpeg4"),
    "prores.mov": Clip(frames=4, codec="prores_ks", pix_fmt="yuv422p10le"),
    "ffv1.mkv": Clip(frames=4, codec="ffv1"),
    "mjpeg.avi": Clip(frames=4, codec="mjpeg", pix_fmt="yuvj422p", colour=(2, 2, 2, 2)),
    "huffyuv.avi": Clip(frames=4, codec="huffyuv", pix_fmt="yuv422p"),
    "dnxhd.mov": Clip(frames=4, codec="dnxhd", pix_fmt="yuv422p10le", size=(320, 240), options={"profile": "dnxhr_hqx"}),
    "raw.nut": Clip(frames=4, codec="rawvideo"),
    "h264.flv": Clip(frames=4, codec="libx264", time_base=Fraction(1, 1000), times=[0, 40, 80, 120]),
    "cfhd.mov": Clip(frames=4, codec="cfhd", pix_fmt="yuv422p10le"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(_SOURCES))
def test_sources_of_every_codec(tmp_path: Path, name: str) -> None:
    clip = _SOURCES[name]
    source = make(tmp_path / name, clip)
    done = upscale(source, tmp_path / "out.mkv", codec="ffv1")
    found, before = decoded(done.path), decoded(source)
    assert [f.number for f in found] == [f.number for f in before] == list(range(clip.frames))
    for a, b in zip(found, before, strict=True):
        luma = b.planes[0].repeat(2, 0).repeat(2, 1).astype(int)
        assert np.abs(a.planes[0].astype(int) - luma).max() <= (1 if a.planes[0].dtype == np.uint8 else 2)


# ----------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("codec", SOFTWARE)
@pytest.mark.parametrize("size", [(65, 65), (67, 80), (80, 67)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p"])
def test_odd_sizes(tmp_path: Path, codec: str, size: tuple[int, int], pix_fmt: str) -> None:
    """Every encoder takes odd sizes, or gets the least larger even one with the edge repeated, said."""
    source = make(
        tmp_path / "in.mkv",
        frames=3,
        codec="ffv1",
        size=size,
        pix_fmt=pix_fmt,
        picture=lambda i: bars(i, pix_fmt, size),
    )
    suffix = ".mov" if codec == "prores_ks" else ".mkv"
    done = upscale(source, tmp_path / f"out{suffix}", codec=codec, scale=1, **FAST.get(codec, {}))
    found = decoded(done.path)
    assert len(found) == 3
    height, width = found[0].planes[0].shape
    assert (width - size[0], height - size[1]) in {
        (0, 0),
        (size[0] % 2, 0),
        (0, size[1] % 2),
        (size[0] % 2, size[1] % 2),
    }
    assert ("needs even sides" in done.said) == ((width, height) != size)
    if not ENCODERS[codec].even:
        assert (width, height) == size
    tail = found[1].planes[0][-1, -1] >> (2 if found[1].planes[0].dtype != np.uint8 else 0)
    assert tail > 190  # the edge goes on into what was added


@pytest.mark.parametrize("codec", SOFTWARE)
@pytest.mark.parametrize("side", [1, 2, 3, 7, 16, 33])
def test_tiny_sizes_work_or_are_refused_before_the_start(tmp_path: Path, codec: str, side: int) -> None:
    source = make(
        tmp_path / "in.mkv",
        frames=2,
        codec="ffv1",
        options={"level": "1"},
        size=(side, side),
        pix_fmt="yuv444p",
    )
    output = tmp_path / ("out.mov" if codec == "prores_ks" else "out.mkv")
    wanted = side + side % 2 if ENCODERS[codec].even else side
    if wanted < ENCODERS[codec].minimum:
        with pytest.raises(UsageError, match=rf"{codec} takes no picture below \d+ pixels"):
            upscale(source, output, codec=codec, scale=1)
        assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]
    else:
        upscale(source, output, codec=codec, scale=1, **FAST.get(codec, {}))
        assert len(decoded(output)) == 2


@pytest.mark.parametrize(
    ("codec", "size", "words"),
    [
        ("libsvtav1", (66, 24), "takes no picture below 25 pixels a side where the other is above 64"),
        ("libsvtav1", (24, 128), "takes no picture below 25 pixels a side where the other is above 64"),
        ("libsvtav1", (66, 25), ""),
        ("libsvtav1", (25, 200), ""),
        ("libsvtav1", (64, 4), ""),
        ("libx264", (16386, 16), "takes no picture above 16384 pixels a side"),
        ("libx264", (16384, 16), ""),
        ("mpeg4", (8192, 16), "takes no picture above 8191 pixels a side"),
        ("mpeg4", (16, 8191), ""),
    ],
)
def test_long_sizes_work_or_are_refused_before_the_start(
    tmp_path: Path, codec: str, size: tuple[int, int], words: str
) -> None:
    """SVT-AV1 would stand still for ever; of the others libav says that something external failed."""
    source = make(
        tmp_path / "in.mkv", frames=2, codec="ffv1", options={"level": "1"}, size=size, pix_fmt="yuv444p"
    )
    output = tmp_path / "out.mkv"
    if words:
        with pytest.raises(UsageError, match=words):
            upscale(source, output, codec=codec, scale=1)
    else:
        upscale(source, output, codec=codec, scale=1, **FAST.get(codec, {}))
        assert len(decoded(output)) == 2


def test_one_pixel_in_every_container(tmp_path: Path) -> None:
    source = make(
        tmp_path / "in.mkv", frames=20, codec="ffv1", options={"level": "1"}, size=(1, 1), pix_fmt="yuv444p"
    )
    for suffix in (".mp4", ".mkv", ".webm", ".avi", ".ts"):
        assert len(decoded(upscale(source, tmp_path / f"out{suffix}", scale=4).path)) == 20


def test_transport_stream_of_one_frame_is_written_and_read(tmp_path: Path) -> None:
    """Too short to be told from its content; the name helps."""
    source = make(tmp_path / "in.mp4", frames=1)
    first = upscale(source, tmp_path / "first.ts").path
    assert len(decoded(upscale(first, tmp_path / "out.mp4").path)) == 1


def test_asked_height_keeps_the_aspect_in_even_numbers(tmp_path: Path, small_clip: Path) -> None:
    done = upscale(small_clip, tmp_path / "out.mp4", scale=None, height=101)
    assert (done.finished.width, done.finished.height) == (134, 102)
    done = upscale(small_clip, tmp_path / "out2.mp4", scale=None, size="200x120")
    assert (done.finished.width, done.finished.height) == (200, 120)


# ---------------------------------------------------------------------- pixel formats


@pytest.mark.parametrize(
    ("codec", "source", "expected"),
    [
        ("libx264", "yuv420p", "yuv420p"), ("libx264", "yuv422p", "yuv422p"), ("libx264", "yuv444p", "yuv444p"),
        ("libx264", "yuv420p10le", "yuv420p10le"), ("libx264", "gray", "yuv420p"), ("libx264", "yuv420p12le", "yuv420p10le"),
        ("libx265", "yuv422p10le", "yuv422p10le"), ("libx265", "yuv444p12le", "yuv444p12le"),
        ("libx265", "yuva420p", "yuv420p"), ("libsvtav1", "yuv444p10le", "yuv420p10le"),
        ("libvpx-vp9", "yuv440p", "yuv440p"), ("libx264", "yuv440p", "yuv444p"), ("libvpx-vp9", "yuva420p", "yuva420p"), ("libvpx-vp9", "yuva444p", "yuva420p"),
        ("ffv1", "gray", "gray"), ("ffv1", "yuv422p10le", "yuv422p10le"), ("ffv1", "yuva444p16le", "yuva444p16le"),
        ("ffv1", "gbrp10le", "gbrp10le"), ("prores_ks", "yuv420p", "yuv422p10le"), ("prores_ks", "yuva444p10le", "yuva444p12le"),
        ("mpeg4", "yuv422p", "yuv420p"), ("mpeg2video", "yuv422p", "yuv422p"),
    ],
)  # fmt: skip
def test_pixel_format_stays_where_the_encoder_can(
    tmp_path: Path, codec: str, source: str, expected: str
) -> None:
    clip = make(tmp_path / "in.mkv", frames=2, codec="ffv1", pix_fmt=source)
    output = tmp_path / ("out.mov" if codec == "prores_ks" else "out.mkv")
    done = upscale(clip, output, codec=codec, **FAST.get(codec, {}))
    with av.open(str(output)) as container:
        context = container.streams.video[0].codec_context
        found = context.pix_fmt
        assert found in (
            expected,
            expected.replace("yuva420p", "yuv420p"),
        )  # libav's own VP9 decoder shows no alpha
        if codec == "prores_ks":
            assert context.profile == ("4444" if "444" in expected else "HQ")
    assert len(decoded(output)) == 2
    if "12le" in source and "12le" not in expected:
        assert "12 were rounded" in done.said
    if "yuva" in source and "yuva" not in expected:
        assert "transparency was dropped" in done.said


def test_transparency_of_webm_is_seen_and_kept(tmp_path: Path) -> None:
    """Most decoders of VP9 pass over the alpha that WebM keeps beside each picture."""
    plain = make(
        tmp_path / "in.mkv",
        frames=6,
        codec="ffv1",
        pix_fmt="yuva420p",
        picture=lambda i: flat((120, 128, 128, 40 + 30 * i), "yuva420p"),
    )
    fast = {"encoder_preset": "realtime", "encoder_option": ("cpu-used=8",)}
    webm = upscale(plain, tmp_path / "first.webm", **fast).path
    again = upscale(webm, tmp_path / "second.webm", start="0.08", **fast).path
    exact = decoded(upscale(webm, tmp_path / "exact.mkv", codec="ffv1").path)
    assert [round(float(f.planes[3].mean()) / 30 - 4 / 3) for f in exact] == list(range(6))
    with av.open(str(again)) as container:
        assert container.streams.video[0].metadata["alpha_mode"] == "1"  # in lower case: not a mere tag
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        frames = [f for p in container.demux(video=0) if p.size for f in decoder.decode(p)]
    assert [f.format.name for f in frames] == ["yuva420p"] * 4
    assert abs(int(np.frombuffer(frames[0].planes[3], np.uint8)[5]) - 100) <= 3
    assert "transparency was dropped" in upscale(webm, tmp_path / "out.mp4").said


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "ffv1"])
def test_grey_can_be_asked_for(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    """H.264's decoder shows it as 4:2:0 without colour."""
    clip = make(tmp_path / "in.mkv", frames=2, picture=noise)
    output = upscale(clip, tmp_path / "out.mkv", codec=codec, pix_fmt=pix_fmt).path
    with av.open(str(output)) as container:
        frame = next(container.decode(video=0)).reformat(format="rgb48le")
    red, green, blue = np.moveaxis(frame.to_ndarray().astype(int), -1, 0)
    assert max(abs(red - green).max(), abs(blue - green).max()) <= 300 and np.ptp(green) > 20_000


def test_chroma_that_is_reduced_is_told(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mkv", pix_fmt="yuv444p", frames=3)
    reduced = upscale(clip, tmp_path / "out.mp4", codec="libsvtav1", encoder_preset="12")
    assert "chroma was reduced from 444 to 420; libsvtav1 holds no more" in reduced.said
    assert "chroma" not in upscale(clip, tmp_path / "kept.mp4", codec="libx264").said


@pytest.mark.parametrize(
    ("suffix", "codec", "form", "kept"),
    [
        (".mp4", "libvpx-vp9", "yuva420p", False),
        (".nut", "libvpx-vp9", "yuva420p", False),
        (".mkv", "libvpx-vp9", "yuva420p", True),
        (".webm", "auto", "yuva444p10le", True),
    ],
)
def test_alpha_beside_the_picture_is_where_a_container_keeps_it(
    tmp_path: Path, suffix: str, codec: str, form: str, kept: bool
) -> None:
    """VP9's lies beside it, which mp4 and nut drop; a deep source with alpha is none for AV1."""
    deep = 256 if "10" in form else 64
    clip = make(
        tmp_path / "in.mkv",
        frames=2,
        codec="ffv1",
        pix_fmt=form,
        picture=lambda i: flat((deep, 2 * deep, 2 * deep, deep), form),
    )
    fast = {"encoder_preset": "realtime", "encoder_option": ("cpu-used=8",)}
    done = upscale(clip, tmp_path / f"out{suffix}", codec=codec, **fast)
    assert ("transparency was dropped; libvpx-vp9 does not hold it" in done.said) != kept
    with VideoSource(done.path) as source:
        assert source.format.colour.alpha == kept


def test_a_plan_asks_the_encoder_for_its_options(tmp_path: Path, small_clip: Path) -> None:
    options = UpscaleOptions(scale=2, encoder_option=("bogus=1",))
    with pytest.raises(UsageError, match="--encoder-option bogus: libx264 has no such option"):
        describe(str(small_clip), str(tmp_path / "out.mp4"), options)


def test_what_a_wanted_pixel_format_loses_is_told(tmp_path: Path) -> None:
    form = "yuva444p10le"
    clip = make(
        tmp_path / "in.mkv", frames=2, codec="ffv1", pix_fmt=form, picture=lambda i: flat((480, 512, 512, 300), form)
    )  # fmt: skip
    assert upscale(clip, tmp_path / "out.mp4", pix_fmt="yuv420p").warned == [
        "yuv420p holds 8 bits a sample; the source's 10 were rounded",
        "chroma was reduced from 444 to 420; yuv420p holds no more",
        "transparency was dropped; yuv420p does not hold it",
    ]


def test_alpha_that_hides_nothing_is_not_missed(tmp_path: Path) -> None:
    """Every GIF is decoded with alpha; what counts is whether a pixel is transparent, in any frame."""

    def clip(name: str, transparent: int | None, form: str = "yuva420p") -> Path:
        alphas = [100 if i == transparent else 255 for i in range(4)]
        return make(
            tmp_path / name,
            frames=4,
            codec="ffv1",
            pix_fmt=form,
            picture=lambda i: flat((120, 128, 128, alphas[i]), form),
        )

    assert "transparency" not in upscale(clip("opaque.mkv", None), tmp_path / "opaque.mp4").said
    for name, frame in (("first", 0), ("last", 3)):
        done = upscale(clip(f"{name}.mkv", frame), tmp_path / f"{name}.mp4")
        assert done.warned == ["transparency was dropped; libx264 does not hold it"]
    # VP9 has alpha at 4:2:0 only: worth it where the first frame shows that there is something to lose.
    fast = {"encoder_preset": "realtime", "encoder_option": ("cpu-used=8",)}
    for name, frame, words in (
        ("first", 0, "chroma was reduced from 444 to 420; libvpx-vp9 holds no more beside transparency"),
        ("last", 3, "transparency was dropped; yuv444p does not hold it, --pix-fmt yuva420p does"),
        ("never", None, ""),
    ):
        done = upscale(clip(f"{name}444.mkv", frame, "yuva444p"), tmp_path / f"{name}.webm", **fast)
        assert done.warned == ([words] if words else [])


@pytest.mark.parametrize("suffix", sorted(MUXERS))
def test_the_same_film_is_the_same_file(tmp_path: Path, suffix: str) -> None:
    """Scripts compare files; Matroska's muxer would put random identifiers into them."""
    clip = make(
        tmp_path / "in.mkv",
        frames=4,
        sounds=(Sound("aac", seconds=0.2),),
        attachment=("a.txt", "text/plain", b"a"),
    )
    made = [
        upscale(clip, tmp_path / f"{name}{suffix}", reuse=reuse).path
        for name, reuse in (("a", "exact"), ("b", "off"))
    ]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_blu_ray_packets_by_the_name(tmp_path: Path, small_clip: Path) -> None:
    """With sound that Blu-ray does not know they would call it private data."""
    heard = make(tmp_path / "heard.mkv", frames=5, sounds=(Sound("aac", seconds=0.2),))
    ac3 = make(tmp_path / "ac3.mkv", frames=5, sounds=(Sound("ac3", seconds=0.2),))
    for source, name, sync in (
        (small_clip, "out.m2ts", 4),
        (small_clip, "out.ts", 0),
        (heard, "heard.m2ts", 0),
        (ac3, "ac3.M2TS", 4),
    ):
        done = upscale(source, tmp_path / name)
        data = done.path.read_bytes()
        size = 188 + sync
        assert len(data) % size == 0 and set(data[sync::size]) == {0x47}
        assert len(decoded(done.path)) == len(decoded(source))
        assert ("Blu-ray's packets know no aac" in done.said) == (source is heard)


def test_alpha_can_be_asked_for_without_there_being_any(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mkv", frames=2, picture=noise)
    for form in ("bgra", "yuva420p"):
        done = upscale(clip, tmp_path / f"{form}.mkv", codec="ffv1", pix_fmt=form)
        with av.open(str(done.path)) as container:
            frame = next(container.decode(video=0))
        assert frame.format.name == form
        assert (frame.reformat(format="rgba").to_ndarray()[..., 3] == 255).all()


def test_wanted_pixel_format(tmp_path: Path, small_clip: Path) -> None:
    output = upscale(small_clip, tmp_path / "out.mp4", pix_fmt="yuv444p10le").path
    with av.open(str(output)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv444p10le"
    with pytest.raises(UsageError, match="--pix-fmt yuv440p is not one that libx264 takes; use yuv420p"):
        upscale(small_clip, tmp_path / "no.mp4", pix_fmt="yuv440p")
    with pytest.raises(UsageError, match="--pix-fmt yuv9: no such pixel format"):
        upscale(small_clip, tmp_path / "no.mp4", pix_fmt="yuv9")


@pytest.mark.parametrize(
    ("suffix", "pix_fmt", "codec"),
    [
        (".mp4", "yuv420p", "h264"), (".mp4", "yuv420p10le", "hevc"), (".mov", "yuv422p", "h264"), (".mkv", "yuv444p12le", "hevc"),
        (".webm", "yuv420p", "vp9"), (".webm", "yuv420p10le", "av1"), (".avi", "yuv420p", "mpeg4"), (".ts", "yuv420p10le", "h264"),
    ],
)  # fmt: skip
def test_automatic_codec(tmp_path: Path, suffix: str, pix_fmt: str, codec: str) -> None:
    source = make(tmp_path / "in.mkv", frames=20, codec="ffv1", pix_fmt=pix_fmt)
    assert codec_of(upscale(source, tmp_path / f"out{suffix}", encoder_preset=None).path) == codec


def test_deep_picture_too_small_for_x265_takes_x264(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", frames=2, codec="ffv1", pix_fmt="yuv420p10le", size=(16, 16))
    output = upscale(source, tmp_path / "out.mp4").path
    assert codec_of(output) == "h264"
    assert decoded(output)[0].planes[0].dtype == np.uint16


# -------------------------------------------------------------------------- settings


@pytest.mark.parametrize("codec", [c for c in SOFTWARE if ENCODERS[c].quality])
def test_crf_rules_the_size(tmp_path: Path, codec: str) -> None:
    source = make(tmp_path / "in.mkv", frames=3, codec="ffv1", picture=lambda i: noise(i), size=(96, 96))
    encoder, sizes = ENCODERS[codec], []
    for crf in (encoder.best + 2, encoder.worst * 0.7):
        done = upscale(
            source, tmp_path / "out.mkv", codec=codec, crf=round(crf), overwrite=True, **FAST.get(codec, {})
        )
        sizes.append(done.finished.bytes_written)
    assert sizes[0] > 1.2 * sizes[1]
    if encoder.worst == 63:
        return
    with pytest.raises(
        UsageError, match=f"out of range for {codec}; use {encoder.best:g} to {encoder.worst:g}"
    ):
        upscale(source, tmp_path / "no.mkv", codec=codec, crf=encoder.worst + 1)


def test_crf_without_such_a_setting(tmp_path: Path, small_clip: Path) -> None:
    with pytest.raises(UsageError, match="--crf does not apply to ffv1"):
        upscale(small_clip, tmp_path / "out.mkv", codec="ffv1", crf=3)


def test_x265_parameters_are_merged_with_ours(
    tmp_path: Path, small_clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = upscale(
        small_clip, tmp_path / "out.mkv", codec="libx265", encoder_option=("x265-params=lossless=1:keyint=2",)
    )
    with av.open(str(done.path)) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
    assert sum(keys) == 3
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""


@pytest.mark.parametrize("codec", SOFTWARE)
def test_encoders_say_nothing_on_the_terminal(
    tmp_path: Path, small_clip: Path, codec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    upscale(
        small_clip,
        tmp_path / ("out.mov" if codec == "prores_ks" else "out.mkv"),
        codec=codec,
        **FAST.get(codec, {}),
    )
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""


def test_encoder_options_reach_the_encoder(tmp_path: Path, small_clip: Path) -> None:
    output = upscale(
        small_clip, tmp_path / "out.mp4", encoder_option=("g=1", "profile=main", "coder=ac")
    ).path
    with av.open(str(output)) as container:
        assert all(p.is_keyframe for p in container.demux(video=0) if p.size)
        assert container.streams.video[0].codec_context.profile == "Main"


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", ("qp=0",)),
        ("libx265", ("x265-params=lossless=1",)),
        ("libvpx-vp9", ("lossless=1", "cpu-used=8")),
    ],
)
def test_wanted_rate_control_is_not_overruled_by_our_quality(
    tmp_path: Path, codec: str, options: tuple[str, ...]
) -> None:
    source = make(tmp_path / "in.mkv", frames=3, codec="ffv1", picture=lambda i: noise(i))
    exact = decoded(upscale(source, tmp_path / "exact.mkv", codec="ffv1").path)
    preset = {} if codec != "libvpx-vp9" else {"encoder_preset": "realtime"}
    found = decoded(upscale(source, tmp_path / "out.mkv", codec=codec, encoder_option=options, **preset).path)
    for a, b in zip(found, exact, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a.planes, b.planes, strict=True))


def test_wanted_bit_rate_is_used(tmp_path: Path) -> None:
    source = make(
        tmp_path / "in.mkv",
        frames=25,
        codec="ffv1",
        size=(128, 96),
        picture=lambda i: noise(i, size=(128, 96)),
    )
    sizes = [
        upscale(source, tmp_path / f"{rate}.mp4", encoder_option=(f"b={rate}",)).finished.bytes_written
        for rate in ("200k", "2M")
    ]
    assert sizes[1] > 2 * sizes[0]


# ------------------------------------------------------------------------- containers


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_index_is_really_at_the_front(tmp_path: Path, small_clip: Path, suffix: str) -> None:
    data = upscale(small_clip, tmp_path / f"out{suffix}").path.read_bytes()
    assert boxes(data).index(b"moov") < boxes(data).index(b"mdat")


def boxes(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found.append(kind)
        if size == 1:
            size = struct.unpack_from(">Q", data, at + 8)[0]
        at += size or len(data)
    return found


def test_hevc_in_mp4_is_tagged_as_apple_wants_it(tmp_path: Path, small_clip: Path) -> None:
    data = upscale(small_clip, tmp_path / "out.mp4", codec="libx265").path.read_bytes()
    assert b"hvc1" in data and b"hev1" not in data


def test_name_without_a_container(tmp_path: Path, small_clip: Path) -> None:
    with pytest.raises(UsageError, match=r"\.xyz.*use one of \.avi"):
        upscale(small_clip, tmp_path / "out.xyz")


@pytest.mark.parametrize(
    ("codec", "subsampling", "depth", "pix_fmt"),
    [
        ("h264_nvenc", "420", 8, "yuv420p"),
        ("h264_nvenc", "420", 10, "yuv420p"),
        ("hevc_nvenc", "420", 10, "p010le"),
        ("hevc_nvenc", "444", 8, "yuv444p"),
        ("hevc_nvenc", "444", 10, "yuv444p16le"),
        ("av1_nvenc", "420", 10, "p010le"),
        ("av1_nvenc", "444", 8, "yuv420p"),
    ],
)
def test_nvidias_encoders_get_what_they_hold(
    tmp_path: Path, codec: str, subsampling: Any, depth: int, pix_fmt: str
) -> None:
    """Their lists are one for all of them, and what they have for 10 bit of 4:2:0 is no planar format."""
    tags = ColourInfo(1, 1, 1, 1, bit_depth=depth, subsampling=subsampling)
    path = tmp_path / "out.mkv"
    plan = plan_encoding(path, tags=tags, resolved=tags, picture=(640, 480), codec=codec)
    assert plan.pix_fmt == pix_fmt and bool(plan.notes) == (pix_fmt == "yuv420p" and tags != LIMITED_8)


@pytest.mark.parametrize(
    ("packed", "planar"), [("p010le", "yuv420p10le"), ("y210le", "yuv422p10le"), ("p416le", "yuv444p16le")]
)
def test_threads_of_a_conversion_do_not_write_over_one_another(packed: str, planar: str) -> None:
    """libswscale's do, at widths that are no multiple of a vector: 8 samples at the head of a thread's rows."""
    size = (322, 178)
    planes = noise(3, planar, size)
    frame = reformatted(to_frame(planes, planar), packed, *size)
    for _ in range(20):
        back = reformatted(frame, planar, *size)
        assert all(np.array_equal(p, q) for p, q in zip(planes_of(back), planes, strict=True))


@pytest.mark.parametrize("deinterlace", ["off", "on"])
def test_packed_samples_are_read_as_they_are(tmp_path: Path, deinterlace: str) -> None:
    size, planar = (322, 178), "yuv422p10le"
    films: dict[str, list[Frame]] = {}
    for codec, pix_fmt in (("rawvideo", "y210le"), ("ffv1", planar)):
        path = tmp_path / f"{codec}.mkv"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            for i in range(8):
                frame = to_frame(noise(i, planar, size), planar)
                if pix_fmt != planar:
                    frame = reformatted(frame, pix_fmt, *size)
                frame.pts = i
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        with VideoSource(path, deinterlace=deinterlace) as source:
            films[codec] = list(source)
            assert source.format.pix_fmt == planar
    assert len(films["rawvideo"]) == 8
    for i, (one, other) in enumerate(zip(films["rawvideo"], films["ffv1"], strict=True)):
        assert all(map(np.array_equal, one.planes, other.planes))
        assert all(map(np.array_equal, one.planes, noise(i, planar, size))) == (deinterlace == "off")
