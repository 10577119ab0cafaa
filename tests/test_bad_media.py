"""Files that are odd or broken in other ways than frames that do not decode: times, headers, other streams."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from media_maker import B_FRAMES, Sound, decoded, make, noise, packets_of, payloads, upscale

from rlfn_pipe.errors import InputError
from rlfn_pipe.media.source import VideoSource

pytestmark = pytest.mark.usefixtures("nearest_engine")


def offsets(path: Path) -> list[Fraction]:
    times = [frame.time for frame in decoded(path)]
    return [time - times[0] for time in times]


# ----------------------------------------------------------------------------- times


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_times_below_zero(tmp_path: Path, suffix: str) -> None:
    """Matroska's reader gives no times for them; they are the frames before the first that has one."""
    source = make(
        tmp_path / "in.mkv",
        times=[40 * i - 120 for i in range(12)],
        time_base=Fraction(1, 1000),
        options={"g": "4"},
        muxer_options={"avoid_negative_ts": "disabled"},
    )
    done = upscale(source, tmp_path / f"out{suffix}")
    assert [f.number for f in decoded(done.path)] == list(range(12))
    assert offsets(done.path) == [Fraction(i, 25) for i in range(12)]


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """Two recordings set end to end: the second goes on where the first one ended, picture and sound."""
    sounds = [Sound("mp2", seconds=1.2)]
    one = make(tmp_path / "one.ts", frames=30, options={**B_FRAMES, "g": "8"}, sounds=sounds)
    source = tmp_path / "in.ts"
    source.write_bytes(one.read_bytes() * 2)
    done = upscale(source, tmp_path / "out.mkv")
    found = decoded(done.path)
    assert [f.number for f in found] == [*range(30)] * 2
    assert all(abs(t - Fraction(i, 25)) <= Fraction(1, 500) for i, t in enumerate(offsets(done.path)))
    assert "set back" in done.said
    sound = packets_of(done.path, "audio")
    assert len(sound) == 2 * len(packets_of(one, "audio"))
    assert abs(sound[-1][0] - found[-1].time) < Fraction(1, 5)
    assert all(a[0] < b[0] for a, b in pairwise(sound))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_gap_of_a_day(tmp_path: Path, suffix: str) -> None:
    day = 24 * 3600 * 100
    times = [*range(0, 40, 4), *range(day, day + 40, 4)]
    source = make(tmp_path / "in.mp4", times=times, time_base=Fraction(1, 100), options={"g": "5"})
    output = upscale(source, tmp_path / f"out{suffix}").path
    assert [f.number for f in decoded(output)] == list(range(20))
    assert offsets(output) == [Fraction(t, 100) for t in times]


def test_times_in_disorder_cost_no_frame(tmp_path: Path) -> None:
    """A writer that got the order of a few frames wrong."""
    good = make(tmp_path / "good.mkv", frames=20, codec="ffv1")
    source = tmp_path / "in.nut"
    with av.open(str(good)) as a, av.open(str(source), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for i, packet in enumerate(p for p in a.demux(video=0) if p.size):
            packet.pts = packet.dts = {8: 10, 10: 8}.get(i, i) * 40
            packet.dts = i * 40 - 200
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            b.mux(packet)
    done = upscale(source, tmp_path / "out.mkv", codec="ffv1")
    found = decoded(done.path)
    assert len(found) == 20
    assert [f.number for f in found[:8]] == list(range(8)) and [f.number for f in found[11:]] == list(
        range(11, 20)
    )
    assert sorted(set(offsets(done.path))) == offsets(done.path)


def test_a_stream_without_times(tmp_path: Path) -> None:
    source = make(tmp_path / "in.h264", frames=20, options={"g": "6"})
    output = upscale(source, tmp_path / "out.mp4").path
    assert [f.number for f in decoded(output)] == list(range(20))
    steps = {b - a for a, b in pairwise(offsets(output))}
    assert len(steps) == 1


# ----------------------------------------------------------------------- other streams


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
@pytest.mark.parametrize("seconds", [0.1, 3.0])
def test_sound_shorter_or_longer_than_the_picture(tmp_path: Path, suffix: str, seconds: float) -> None:
    source = make(tmp_path / "in.mkv", frames=25, sounds=[Sound("mp2", seconds=seconds)])
    output = upscale(source, tmp_path / f"out{suffix}").path
    assert payloads(output) == payloads(source)
    assert offsets(output) == [Fraction(i, 25) for i in range(25)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("codec", ["subrip", "ass"])
def test_damaged_subtitles_stop_nothing(tmp_path: Path, suffix: str, codec: str) -> None:
    text = "0,0,Default,,0,0,0,,{}" if codec == "ass" else "{}"
    words = ["before", "DAMAGED" * 4, "after"]
    film = make(
        tmp_path / "film.mkv",
        frames=25,
        subtitles=[(codec, 0.1 + 0.3 * i, 0.3 + 0.3 * i, text.format(word)) for i, word in enumerate(words)],
    )
    source = tmp_path / "in.mkv"
    source.write_bytes(film.read_bytes().replace(b"DAMAGED" * 4, b"\xff\x00\xfe{\\\xc3\x28," + b"\x80" * 20))
    fast = {"encoder_option": ("cpu-used=8",)} if suffix == ".webm" else {}
    output = upscale(source, tmp_path / f"out{suffix}", **fast).path
    assert len(decoded(output)) == 25
    with av.open(str(output)) as container:
        count = len(container.streams.subtitles)
    shown = b"".join(b"".join(payloads(output, i, kind="subtitle")) for i in range(count))
    assert b"before" in shown and b"after" in shown


# ---------------------------------------------------------------------------- headers


def test_a_film_of_no_frames(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    with pytest.raises(InputError, match="in\\.mp4: ") as caught:
        upscale(source, tmp_path / "out.mp4")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("kind", ["raw.avi", "ffv1.mkv", "raw.y4m", "raw.nut"])
@pytest.mark.parametrize("side", [30_000, 2_000_000_000])
def test_absurd_sizes_in_headers(tmp_path: Path, kind: str, side: int) -> None:
    """Refused in one sentence, before anything of that size is allocated."""
    codec = "ffv1" if "ffv1" in kind else "rawvideo"
    source = tmp_path / kind
    if kind.endswith("y4m"):
        source.write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n" + (b"FRAME\n" + bytes(64 * 48 * 3 // 2)) * 3)
    else:
        make(source, frames=3, codec=codec)
    data = source.read_bytes()
    if kind.endswith("y4m"):
        changed = data.replace(b"W64 H48", f"W{side} H{side}".encode(), 1)
    elif kind.endswith("avi"):
        changed = data.replace(struct.pack("<II", 64, 48), struct.pack("<II", side, side))
    elif kind.endswith("nut"):
        changed = data.replace(b"\x40\x30", b"\x8f\xff\xff\x7f" * 2, 1)
    else:
        at = re.search(rb"\xb0\x81\x40\xba\x81\x30", data)
        assert at
        wide = side.to_bytes(4, "big")
        changed = data[: at.start()] + b"\xb0\x84" + wide + b"\xba\x84" + wide + data[at.end() + 6 :]
    source.write_bytes(changed)
    assert changed != data
    try:
        done = upscale(source, tmp_path / "out.mkv", codec="ffv1")
    except InputError as error:
        assert "\n" not in str(error) and kind in str(error)
    else:
        assert len(decoded(done.path)) == 3  # the bitstream's own size was right


def test_a_picture_that_grows_beyond_the_limit_is_concealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make(tmp_path / "small.ts", frames=12, options={"g": "4"}, size=(64, 48))
    large = make(tmp_path / "large.ts", times=range(12, 24), options={"g": "4"}, size=(320, 240))
    source = tmp_path / "in.ts"
    source.write_bytes(small.read_bytes() + large.read_bytes())
    monkeypatch.setenv("RLFN_PIPE_MAX_PIXELS", str(100 * 100))
    with VideoSource(source, threads=1) as frames:
        shown = list(frames)
    assert len(shown) == 24 and frames.concealed == 12
    assert {f.planes[0].shape for f in shown} == {(48, 64)}
    assert all(np.array_equal(f.planes[0], shown[11].planes[0]) for f in shown[12:])


def test_noise_in_every_place_of_a_header(tmp_path: Path) -> None:
    """Whatever stands there: frames, or one sentence."""
    rng = np.random.default_rng(0)
    for suffix in (".mp4", ".mkv", ".avi"):
        codec = "mpeg4" if suffix == ".avi" else "libx264"
        clip = make(tmp_path / f"clip{suffix}", frames=6, codec=codec, picture=lambda i: noise(i))
        data = clip.read_bytes()
        spots = list(range(700)) if suffix != ".mp4" else list(range(len(data) - 900, len(data)))
        for _ in range(60):
            changed = bytearray(data)
            for at in rng.choice(spots, 3):
                changed[int(at)] = int(rng.integers(0, 256))
            bad = tmp_path / f"bad{suffix}"
            bad.write_bytes(bytes(changed))
            try:
                with VideoSource(bad, threads=1) as source:
                    list(source)
            except InputError as error:
                assert "\n" not in str(error)
