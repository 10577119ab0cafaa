"""What the user gets beside the pictures: sound byte by byte, subtitles, chapters, tags, rotation, aspect."""

from __future__ import annotations

import bisect
import itertools
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_maker import (
    Clip,
    Sound,
    decoded,
    make,
    noise,
    packets_of,
    payloads,
    read_planes,
    shown,
    turned,
    upscale,
)

from rlfn_pipe.jobs.plan import describe
from rlfn_pipe.media.matroska import TrackChange, amend_tracks, pixel_crop
from rlfn_pipe.media.side_data import stereo_mode
from rlfn_pipe.media.tags import later_timecode
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Warned

pytestmark = pytest.mark.usefixtures("nearest_engine")

TWO_LANGUAGES = (
    Sound("aac", tags={"language": "eng"}, disposition=int(Disposition.default)),
    Sound(
        "aac",
        layout="stereo",
        tags={"language": "deu", "title": "Kommentar"},
        disposition=int(Disposition.comment),
    ),
)


def languages(path: Path, kind: str) -> list[str]:
    with av.open(str(path)) as container:
        return [s.metadata.get("language", "und") for s in container.streams if s.type == kind]


def chapters_of(path: Path) -> list[tuple[Fraction, Fraction, str]]:
    with av.open(str(path)) as container:
        return [
            (
                c["start"] * Fraction(c["time_base"]),
                c["end"] * Fraction(c["time_base"]),
                c["metadata"].get("title", ""),
            )
            for c in container.chapters()
        ]


# ------------------------------------------------------------------------------ sound


@pytest.mark.parametrize("source", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("target", [".mp4", ".mkv", ".mov"])
def test_sound_is_copied_byte_by_byte(tmp_path: Path, source: str, target: str) -> None:
    clip = make(
        tmp_path / f"in{source}",
        frames=25,
        sounds=TWO_LANGUAGES,
        muxer_options={"movie_timescale": "48000"} if source != ".mkv" else {},
    )
    output = upscale(clip, tmp_path / f"out{target}").path
    tick = Fraction(1, 48000) if ".mkv" not in (source, target) else Fraction(1, 1000)
    for index in (0, 1):
        assert payloads(output, index) == payloads(clip, index)
        before, after = packets_of(clip, "audio", index), packets_of(output, "audio", index)
        shift = packets_of(output, "video")[0][0] - packets_of(clip, "video")[0][0]
        for (a, _, _), (b, _, _) in zip(before, after, strict=True):
            assert abs(b - a - shift) <= tick
    # QuickTime's own list of languages has another code of German; a .mov made here cannot hold "deu".
    second_language = {".mov": "ger"}.get(target, "deu") if source != ".mov" else "und"
    assert languages(output, "audio") == ["eng", second_language]
    with av.open(str(output)) as container:
        first, second = container.streams.audio
        assert Disposition.default in first.disposition and Disposition.default not in second.disposition
        if ".mkv" in (source, target) and source == target:
            assert Disposition.comment in second.disposition
        assert second.codec_context.layout.name == "stereo"
        assert first.codec_context.extradata


@pytest.mark.parametrize(("codec", "source", "target"), [
    ("mp2", "in.ts", "out.mkv"), ("ac3", "in.mkv", "out.ts"), ("mp2", "in.mkv", "out.avi"), ("pcm_s16le", "in.mov", "out.mkv"),
    ("flac", "in.mkv", "out.mp4"), ("libopus", "in.mkv", "out.webm"), ("ac3", "in.mp4", "out.mov"), ("libmp3lame", "in.avi", "out.mkv"),
])  # fmt: skip
def test_other_sound_is_copied_where_the_container_can(
    tmp_path: Path, codec: str, source: str, target: str
) -> None:
    clip = make(tmp_path / source, frames=25, sounds=[Sound(codec)])
    more = (
        {"codec": "libvpx-vp9", "encoder_preset": "realtime", "encoder_option": ("cpu-used=8",)}
        if target.endswith("webm")
        else {}
    )
    done = upscale(clip, tmp_path / target, **more)
    assert b"".join(payloads(done.path)) == b"".join(payloads(clip))
    assert "converted" not in done.said


def test_converted_sound_is_said(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", frames=25, sounds=[Sound("aac")])
    done = upscale(clip, tmp_path / "out.webm", encoder_preset="realtime", encoder_option=("cpu-used=8",))
    with av.open(str(done.path)) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == "opus"
    assert "converted to opus" in done.said
    warned = [e.message for e in done.events if isinstance(e, Warned)]
    assert sum("converted to opus" in message for message in warned) == 1  # said once


@pytest.mark.parametrize("suffix", [".ts", ".avi", ".nut"])
def test_sound_that_a_trim_hides_stays_hidden(tmp_path: Path, suffix: str) -> None:
    """A telephone's trim is an edit list; these containers have none, and play all that is in them."""
    source = make(tmp_path / "in.mov", frames=25, sounds=(Sound("aac", start=Fraction(-1), seconds=2.0),))
    with av.open(str(source)) as container:
        hidden = [p.is_discard for p in container.demux(audio=0) if p.dts is not None]
    assert hidden.count(True) > 40 and not hidden[-1]
    done = upscale(source, tmp_path / f"out{suffix}")
    with av.open(str(done.path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        times: dict[str, list[float]] = {"video": [], "audio": []}
        for packet in container.demux(video, sound):
            if packet.pts is not None:
                times[packet.stream.type].append(float(packet.pts * packet.time_base))
    assert len(times["video"]) == 25
    assert min(times["video"]) - 0.2 < min(times["audio"]) <= min(times["video"]) + 0.03
    assert max(times["audio"]) == pytest.approx(max(times["video"]), abs=0.1)


def test_sound_left_out_as_asked(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", frames=5, sounds=TWO_LANGUAGES)
    done = upscale(clip, tmp_path / "out.mp4", audio="none")
    with av.open(str(done.path)) as container:
        assert not container.streams.audio


def test_sound_longer_than_the_picture(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", frames=5, sounds=[Sound("aac", seconds=2.0)])
    output = upscale(clip, tmp_path / "out.mkv").path
    assert payloads(output) == payloads(clip)


# ---------------------------------------------------------------- all the rest of a film


@pytest.fixture(scope="module")
def rich_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        tmp_path_factory.mktemp("film") / "film.mkv",
        frames=50, sounds=TWO_LANGUAGES, tags={"title": "The Film", "ARTIST": "Someone", "comment": "äöü ✓"},
        video_tags={"language": "fra", "title": "main picture"},
        subtitles=[("subrip", 0.2, 0.9, "first"), ("ass", 1.0, 1.5, "0,0,Default,,0,0,0,,{\\b1}bold")],
        chapters=[(0.0, 1.0, "One"), (1.0, 2.0, "Zwei")], attachment=("font.ttf", "font/ttf", b"not really a font" * 10),
    )  # fmt: skip


def test_everything_from_mkv_to_mkv(tmp_path: Path, rich_film: Path) -> None:
    output = upscale(rich_film, tmp_path / "out.mkv").path
    with av.open(str(rich_film)) as a, av.open(str(output)) as b:
        assert [s.type for s in b.streams] == [s.type for s in a.streams]
        for one, two in zip(a.streams, b.streams, strict=True):
            assert two.disposition == one.disposition
            for key in ("language", "title", "filename", "mimetype"):
                assert two.metadata.get(key) == one.metadata.get(key)
        assert {k: v for k, v in b.metadata.items() if k.lower() != "encoder"} == {
            k: v for k, v in a.metadata.items() if k.lower() != "encoder"
        }
        fonts = [s for s in b.streams if s.type == "attachment"]
        assert fonts[0].data == b"not really a font" * 10
    for index in (0, 1):
        assert payloads(output, index) == payloads(rich_film, index)
        assert packets_of(output, "subtitle", index) == packets_of(rich_film, "subtitle", index)
    assert chapters_of(output) == chapters_of(rich_film) == [(0, 1, "One"), (1, 2, "Zwei")]


def test_everything_from_mkv_to_mp4(tmp_path: Path, rich_film: Path) -> None:
    done = upscale(rich_film, tmp_path / "out.mp4")
    assert [payloads(done.path, i) for i in (0, 1)] == [payloads(rich_film, i) for i in (0, 1)]
    assert languages(done.path, "audio") == ["eng", "deu"]
    assert languages(done.path, "video") == ["fra"]
    assert chapters_of(done.path) == [(0, 1, "One"), (1, 2, "Zwei")]
    with av.open(str(done.path)) as container:
        assert container.metadata["title"] == "The Film" and container.metadata["comment"] == "äöü ✓"
        assert [s.codec_context.name for s in container.streams.subtitles] == ["mov_text", "mov_text"]
    cues = [(t, d, text[2:].decode()) for t, d, text in packets_of(done.path, "subtitle") if text[2:]]
    assert cues == [(Fraction(1, 5), Fraction(7, 10), "first")]
    for words in ("mov_text", "font.ttf"):
        assert words in done.said


def test_what_avi_cannot_carry_is_named(tmp_path: Path, rich_film: Path) -> None:
    done = upscale(rich_film, tmp_path / "out.avi")
    for words in ("subtitle stream", "chapters left out", "font.ttf"):
        assert words in done.said
    assert len(decoded(done.path)) == 50


def test_window_takes_the_rest_along(tmp_path: Path, rich_film: Path) -> None:
    done = upscale(rich_film, tmp_path / "out.mkv", start="0.4", end="1.2")
    assert chapters_of(done.path) == [(0, Fraction(3, 5), "One"), (Fraction(3, 5), Fraction(4, 5), "Zwei")]
    cues = packets_of(done.path, "subtitle")
    assert [(t, d) for t, d, _ in cues] == [(0, Fraction(1, 2))]
    whole = payloads(rich_film)
    part = payloads(done.path)
    at = whole.index(part[0])
    assert part == whole[at : at + len(part)]


def test_second_video_and_cover_come_along(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "clips" / "torchcodec" / "nasa_13013.mp4"
    done = upscale(source, tmp_path / "out.mkv", frames=5)
    with av.open(str(source)) as a, av.open(str(done.path)) as b:
        assert sorted(s.type for s in b.streams) == sorted(s.type for s in a.streams if s.type != "data")


def test_captions_inside_the_pictures_are_named(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "clips" / "androidx-media" / "mp4__fragmented_captions.mp4"
    assert "closed captions (CEA-608, CEA-708)" in upscale(source, tmp_path / "out.mkv", frames=3).said


@pytest.mark.parametrize(
    ("clip", "note"),
    [
        ("mp4__sample_with_color_info.mp4", "its Dolby Vision layer is left out"),
        ("mp4__water_180_mvhevc_5frames.mov", "a second view, say"),
    ],
)
def test_what_goes_with_pictures_and_is_left_out_is_named(shared_data: Path, clip: str, note: str) -> None:
    path = shared_data / "clips" / "androidx-media" / clip
    options = UpscaleOptions(scale=2, frames=1)
    assert sum(note in said for said in describe(str(path), None, options).notes) == 1


def test_two_eyes_are_kept_in_matroska_and_named_elsewhere(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", frames=3)
    with av.open(str(source)) as before, av.open(str(tmp_path / "two.mkv"), "w") as output:
        video = before.streams.video[0]
        stream = output.add_stream_from_template(video)
        stream.metadata["stereo_mode"] = "left_right"
        for packet in before.demux(video):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)

    def mode(path: Path) -> str | None:
        with av.open(str(path)) as container:
            return container.streams.video[0].metadata.get("stereo_mode")

    for name in ("kept.mkv", "kept.webm"):
        kept = upscale(tmp_path / "two.mkv", tmp_path / name)
        assert mode(kept.path) == "left_right" and "stereo" not in kept.said
    packed = {"x264-params": "frame-packing=3"}
    turning = make(tmp_path / "turning.mp4", frames=3, matrix=turned(90, 64, 48), options=packed)
    for given, name, rotate in ((tmp_path / "two.mkv", "lost.mp4", "keep"), (turning, "turned.mkv", "bake")):
        lost = upscale(given, tmp_path / name, rotate=rotate)
        assert "its stereo 3D layout is left out" in lost.said and mode(lost.path) is None
    assert [stereo_mode(struct.pack("<6i", *v, 0, 0, 0, 0)) for v in ((0, 0), (2, 1), (5, 0))] == [
        "",
        "bottom_top",
        None,
    ]
    assert stereo_mode(None) == ""


@pytest.mark.parametrize(("packing", "mode"), [(3, "left_right"), (4, "top_bottom"), (2, None), (5, None)])
@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_two_eyes_keep_their_pixel_aspect(
    tmp_path: Path, packing: int, mode: str | None, suffix: str
) -> None:
    """x264's frame packing 3 and 4 are halves, 2 and 5 are rows and frames that alternate."""
    ratio = Fraction(2, 1) if packing == 3 else Fraction(1, 2)
    source = make(
        tmp_path / "in.mp4", frames=3, ratio=ratio, options={"x264-params": f"frame-packing={packing}"}
    )
    done = upscale(source, tmp_path / f"out{suffix}")
    with av.open(str(done.path)) as container:
        stream = container.streams.video[0]
        assert stream.metadata.get("stereo_mode") == mode and stream.sample_aspect_ratio == ratio
    assert ("stereo 3D layout is left out" in done.said) == (mode is None)


def test_a_spherical_projection_is_named(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=3)
    film = bytearray(source.read_bytes())

    def box(start: int, end: int, kind: bytes) -> tuple[int, int]:
        while start < end:
            size = int.from_bytes(film[start : start + 4])
            if film[start + 4 : start + 8] == kind:
                return start, size
            start += size
        raise AssertionError(kind)

    text = (
        b'<rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
        b' xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/"><GSpherical:Spherical>true</GSpherical:Spherical>'
        b"<GSpherical:Stitched>true</GSpherical:Stitched>"
        b"<GSpherical:StitchingSoftware>a test</GSpherical:StitchingSoftware>"
        b"<GSpherical:ProjectionType>equirectangular</GSpherical:ProjectionType></rdf:SphericalVideo>"
    )
    marker = bytes.fromhex("ffcc8263f8554a938814587a02521fdd") + text
    marker = (len(marker) + 8).to_bytes(4) + b"uuid" + marker
    movie, size = box(0, len(film), b"moov")
    assert movie + size == len(film), "nothing behind it moves"
    track, length = box(movie + 8, movie + size, b"trak")
    film[movie : movie + 4] = (size + len(marker)).to_bytes(4)
    film[track : track + 4] = (length + len(marker)).to_bytes(4)
    film[track + length : track + length] = marker
    source.write_bytes(film)
    assert (
        "its spherical projection (360 degree video) is left out" in upscale(source, tmp_path / "o.mp4").said
    )


# -------------------------------------------------------------------------- timecode


@pytest.mark.parametrize(
    ("rate", "sign"),
    [("25", ":"), ("24000/1001", ":"), ("30000/1001", ";"), ("30000/1001", ":"), ("60000/1001", ";")],
)
def test_timecodes_count_frames(rate: str, sign: str) -> None:
    """Counted one by one through a day: in drop-frame time no minute but the tenth has a frame 0 or 1."""
    fps = round(Fraction(rate))
    drops = fps // 15 if sign == ";" else 0

    def frames_of(minute: int) -> list[str]:
        return [
            f"{minute // 60:02d}:{minute % 60:02d}:{second:02d}{sign}{number:02d}"
            for second in range(60)
            for number in range(drops if minute % 10 and not second else 0, fps)
        ]

    ends = list(itertools.accumulate(60 * fps - (drops if minute % 10 else 0) for minute in range(24 * 60)))
    day = ends[-1]

    def name(frame: int) -> str:
        minute = bisect.bisect_right(ends, frame % day)
        return frames_of(minute)[frame % day - ends[minute]]

    for start in (0, 1, 1799, 17_981, 17_982, 54_321, day - 1):
        for step in (0, 1, 2, 1797, 1798, 1800, 17_982, 107_892, day - 1):
            assert later_timecode(name(start), step, Fraction(rate)) == name(start + step)
    assert later_timecode("no timecode", 5, Fraction(rate)) == "no timecode"


def test_a_window_begins_at_its_own_timecode(tmp_path: Path) -> None:
    source = make(
        tmp_path / "in.mov", frames=12, codec="prores_ks", pix_fmt="yuv422p10le",
        video_tags={"timecode": "01:02:03:20"},
    )  # fmt: skip
    for suffix in (".mov", ".mp4", ".mkv"):
        done = upscale(source, tmp_path / f"out{suffix}", start="0.32", encoder_preset="ultrafast")
        with av.open(str(done.path)) as container:
            tags = {key.lower(): value for key, value in container.streams.video[0].metadata.items()}
        assert tags["timecode"] == "01:02:04:03"


# -------------------------------------------------------------------------- rotation

ALL_TURNS = [(angle, mirrored) for angle in (0, 90, 180, 270) for mirrored in (False, True)]


def matrix_of(path: Path) -> tuple[int, ...] | None:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        for item in frame.side_data:
            if item.type.name == "DISPLAYMATRIX":
                return tuple(np.frombuffer(bytes(item)[:36], np.int32).tolist())
    return None


@pytest.mark.parametrize(("angle", "mirrored"), ALL_TURNS)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_rotation_is_kept(tmp_path: Path, suffix: str, angle: int, mirrored: bool) -> None:
    given = turned(angle, 64, 48, mirrored=mirrored)
    source = make(tmp_path / "in.mp4", frames=2, matrix=given)
    done = upscale(source, tmp_path / f"out{suffix}")
    before, after = matrix_of(source), matrix_of(done.path)
    if (angle, mirrored) == (0, False):
        assert after is None
        return
    assert before is not None and after is not None
    assert [after[i] for i in (0, 1, 3, 4)] == [before[i] for i in (0, 1, 3, 4)]
    if suffix != ".mkv":
        assert after[6:8] == (2 * before[6], 2 * before[7])
    assert decoded(done.path)[0].planes[0].shape == (96, 128)  # stored as it was


@pytest.mark.parametrize(("angle", "mirrored"), ALL_TURNS)
@pytest.mark.parametrize(
    ("suffix", "how"), [(".mkv", {"rotate": "bake", "codec": "ffv1"}), (".avi", {"codec": "ffv1"})]
)
def test_rotation_is_baked(
    tmp_path: Path, suffix: str, how: dict[str, Any], angle: int, mirrored: bool
) -> None:
    size = (64, 40)
    matrix = turned(angle, *size, mirrored=mirrored)
    source = make(
        tmp_path / "in.mp4", frames=2, size=size, matrix=matrix, picture=lambda i: noise(i, size=size)
    )
    done = upscale(source, tmp_path / f"out{suffix}", **how)
    assert matrix_of(done.path) is None
    for a, b in zip(decoded(done.path), decoded(source), strict=True):
        wanted = shown(b.planes[0], matrix).repeat(2, 0).repeat(2, 1)
        assert a.planes[0].shape == wanted.shape
        assert np.abs(a.planes[0].astype(int) - wanted.astype(int)).max() <= 1
        for plane, other in zip(a.planes[1:], b.planes[1:], strict=True):
            turned_chroma = shown(other, matrix)
            assert abs(float(plane.mean()) - float(turned_chroma.mean())) < 1
    if suffix == ".avi" and (angle, mirrored) != (0, False):
        assert "turned upright" in done.said


@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv444p", "yuv420p10le"])
def test_baking_by_a_quarter_turn_in_other_subsamplings(tmp_path: Path, pix_fmt: str) -> None:
    size = (64, 40)
    matrix = turned(90, *size)
    source = make(
        tmp_path / "in.mov",
        frames=2,
        codec="libx264",
        pix_fmt=pix_fmt,
        size=size,
        matrix=matrix,
        picture=lambda i: noise(i, pix_fmt, size),
    )
    done = upscale(source, tmp_path / "out.mkv", rotate="bake", codec="ffv1")
    found, before = decoded(done.path), decoded(source)
    wanted = shown(before[1].planes[0], matrix).repeat(2, 0).repeat(2, 1)
    assert np.abs(found[1].planes[0].astype(int) - wanted.astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("suffix", "how"),
    [(".avi", {}), (".avi", {"rotate": "bake"}), (".mp4", {"rotate": "bake"}), (".mp4", {})],
)
def test_other_angles_are_never_baked(tmp_path: Path, suffix: str, how: dict[str, Any]) -> None:
    cos, sin = round(65536 * 0.5), round(65536 * 0.8660254)  # 60 degrees
    matrix = (cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    source = make(tmp_path / "in.mp4", frames=2, matrix=matrix)
    done = upscale(source, tmp_path / f"out{suffix}", scale=None, height=96, **how)
    with av.open(str(done.path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == ((128, 96) if suffix == ".avi" else (96, 72))
    assert abs(frame.rotation) == (0 if suffix == ".avi" else 60)
    assert ("turned by 60 degrees cannot be turned upright" in done.said) == (suffix == ".avi" or bool(how))
    assert ("its turn is left out" in done.said) == (suffix == ".avi")


def test_asked_height_is_that_of_the_display(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=2, matrix=turned(90, 64, 48))
    done = upscale(source, tmp_path / "out.mp4", scale=None, height=128)  # shown 48 wide, 64 high
    assert (done.finished.width, done.finished.height) == (128, 96)


@pytest.mark.parametrize("ratio", [None, Fraction(2)])
def test_cropping_by_the_container(tmp_path: Path, ratio: Fraction | None) -> None:
    source = make(tmp_path / "in.mkv", frames=2, codec="ffv1")
    display = (64 * int(ratio or 1), 32)
    amend_tracks(source, "in.mkv", {0: TrackChange(display_size=display, crop=(0, 10, 0, 6))})
    assert b"\x54\xbb\x81\x0a\x54\xaa\x81\x06" in source.read_bytes()
    done = upscale(source, tmp_path / "out.mkv", scale=3)
    assert pixel_crop(done.path, 0) == (0, 30, 0, 18) and not done.said
    # libav reckons it from the display size and what is left of the picture.
    assert ratio_of(done.path) == (ratio or 1)
    other = upscale(source, tmp_path / "other.mp4")
    assert "players crop the picture; .mp4 does not get that" in other.said


# ---------------------------------------------------------------- sample aspect ratio


def ratio_of(path: Path) -> Fraction | None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        next(container.decode(stream))
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        return Fraction(ratio) if ratio else None


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", ".mp4"), ("libx264", ".mov"), ("libx264", ".mkv"), ("libx264", ".ts"), ("libx264", ".nut"), ("libx265", ".mp4"),
        ("libx265", ".ts"), ("libvpx-vp9", ".webm"), ("libvpx-vp9", ".mp4"), ("libsvtav1", ".mp4"), ("libsvtav1", ".webm"), ("ffv1", ".mkv"), ("mpeg4", ".avi"),
        ("libx264", ".avi"), ("mpeg4", ".ts"), ("prores_ks", ".mov"), ("mpeg2video", ".mkv"), ("ffv1", ".mp4"),
    ],
)  # fmt: skip
def test_sample_aspect_ratio_is_kept(tmp_path: Path, codec: str, suffix: str) -> None:
    source = make(tmp_path / "in.mkv", frames=14, ratio=Fraction(16, 11))
    assert ratio_of(source) == Fraction(16, 11)
    fast = {"libvpx-vp9": {"encoder_preset": "realtime"}, "libsvtav1": {"encoder_preset": "12"}}.get(
        codec, {}
    )
    done = upscale(source, tmp_path / f"out{suffix}", codec=codec, **fast)
    found = ratio_of(done.path)
    assert found is not None and abs(found / Fraction(16, 11) - 1) < Fraction(1, 500)


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_sample_aspect_ratio_turns_with_baked_pixels(tmp_path: Path, suffix: str) -> None:
    source = make(tmp_path / "in.mp4", frames=3, ratio=Fraction(16, 11), matrix=turned(90, 64, 48))
    done = upscale(source, tmp_path / f"out{suffix}", rotate="bake")
    assert ratio_of(done.path) == Fraction(11, 16)


@pytest.mark.parametrize("ratio", [None, Fraction(1)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_square_pixels_stay_square(tmp_path: Path, suffix: str, ratio: Fraction | None) -> None:
    source = make(tmp_path / "in.mp4", frames=12, ratio=ratio)
    assert ratio_of(upscale(source, tmp_path / f"out{suffix}").path) in (None, Fraction(1))


# ------------------------------------------------------------------------- interlace


def test_interlaced_video_is_woven_a_frame_for_a_frame(tmp_path: Path) -> None:
    """Moving bars whose fields come from two instants: the comb disappears, times and count stay."""

    def combed(i: int) -> tuple[np.ndarray, ...]:
        luma = np.full((64, 64), 40, np.uint8)
        luma[0::2, 8 + 4 * i : 24 + 4 * i] = 220
        luma[1::2, 10 + 4 * i : 26 + 4 * i] = 220
        return luma, np.full((32, 32), 128, np.uint8), np.full((32, 32), 128, np.uint8)

    source = make(
        tmp_path / "in.mkv",
        Clip(frames=8, codec="mpeg2video", size=(64, 64), interlaced=True, picture=combed),
    )
    done = upscale(source, tmp_path / "out.mkv", codec="ffv1")
    kept = upscale(source, tmp_path / "kept.mkv", codec="ffv1", deinterlace="off")
    found, plain = decoded(done.path), decoded(kept.path)
    assert [f.time for f in found] == [f.time for f in plain]
    assert len(found) == 8

    def comb(planes: tuple[np.ndarray, ...]) -> float:
        luma = planes[0][::2, ::2].astype(int)
        return float(np.abs(luma[1:-1] * 2 - luma[:-2] - luma[2:]).mean())

    assert comb(found[4].planes) < 0.6 * comb(plain[4].planes)
    assert len(done.warned) == 1 and "was deinterlaced" in done.warned[0], "once, not again for each segment"
    assert "deinterlaced" not in kept.said
    assert "two fields as one picture, marked progressive" in kept.said


def test_helpers_agree_with_libav(tmp_path: Path) -> None:
    """The reference rotation of these tests is that of libav's own tag."""
    source = make(tmp_path / "in.mp4", frames=1, matrix=turned(90, 64, 48))
    with av.open(str(source)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == -90  # libav counts counter-clockwise
        assert read_planes(frame)[0].shape == (48, 64)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_streams_without_anything_in_the_chosen_part(tmp_path: Path, suffix: str) -> None:
    """The muxer of mp4 and mov writes no track for them, without a word."""
    source = make(
        tmp_path / "in.mkv",
        frames=40,
        sounds=[Sound(start=Fraction(1), seconds=0.5)],
        subtitles=[("subrip", 1.2, 1.5, "late")],
        options={"g": "10"},
    )
    done = upscale(source, tmp_path / f"out{suffix}", end="0.4")
    assert len(decoded(done.path)) == 10
    with av.open(str(done.path)) as container:
        kinds = [stream.type for stream in container.streams]
    if suffix == ".mkv":
        assert kinds == ["video", "audio", "subtitle"] and not done.said
    else:
        assert kinds == ["video", "subtitle"]
        assert "audio stream 1 has nothing in the chosen part and is left out" in done.said
