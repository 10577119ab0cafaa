"""Every frame keeps its presentation time: what a plain decoder sees in the output and in the source."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_maker import B_FRAMES, Clip, Sound, decoded, make, noise, packed, packets_of, times_of, upscale

from rlfn_pipe.errors import InputError, OutputError
from rlfn_pipe.media.deinterlace import Deinterlacer
from rlfn_pipe.media.matching import Matcher
from rlfn_pipe.media.timing import scan

pytestmark = pytest.mark.usefixtures("nearest_engine")

TICK = {
    ".mp4": 0,
    ".mov": 0,
    ".nut": 0,
    ".mkv": Fraction(1, 1000),
    ".webm": Fraction(1, 1000),
    ".ts": Fraction(1, 90000),
}
#: What makes an encode of a test fast, by output name.
FAST: dict[str, dict[str, Any]] = {".webm": {"codec": "libvpx-vp9", "encoder_option": ("cpu-used=8",)}}


def offsets(times: Sequence[Fraction]) -> list[Fraction]:
    return [time - times[0] for time in times]


def assert_same_times(source: Path, output: Path, *, tick: Fraction | int | None = None) -> None:
    """Frame by frame: same pictures in the same order, times apart by the same offset."""
    before, after = decoded(source), decoded(output)
    assert [f.number for f in after] == [f.number for f in before]
    allowed = (TICK[output.suffix] if tick is None else tick) * Fraction(1, 2)
    shift = after[0].time - before[0].time
    for a, b in zip(after, before, strict=True):
        assert abs(a.time - b.time - shift) <= 2 * allowed


def audio_lead(path: Path) -> Fraction:
    """When the sound is first heard (priming left out), relative to the first picture."""
    with av.open(str(path)) as container:
        sound, video = container.streams.audio[0], container.streams.video[0]
        first = next(f.pts * f.time_base for f in container.decode(sound) if f.pts is not None)
    return first - times_of(path)[0] if video else first


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts", ".avi", ".nut"])
def test_constant_rate_with_b_frames_both_ways(tmp_path: Path, suffix: str) -> None:
    source = make(tmp_path / "in.mp4", frames=12, options=B_FRAMES, time_base=Fraction(1001, 30000))
    output = tmp_path / f"out{suffix}"
    preset = {} if suffix in (".webm", ".avi") else {"encoder_preset": "veryfast"}
    upscale(source, output, **FAST.get(suffix, {}), **preset)
    assert_same_times(source, output, tick=Fraction(0) if suffix == ".avi" else None)
    if suffix in (".mp4", ".mov", ".mkv", ".ts", ".nut"):
        with av.open(str(output)) as container:
            assert container.streams.video[0].codec_context.has_b_frames


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".nut"])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 20)])
def test_b_frames_beside_sound(tmp_path: Path, suffix: str, start: Fraction) -> None:
    """Pictures that are decoded before the film begins."""
    sounds = (Sound("aac", start=start),)
    source = make(tmp_path / "in.mp4", frames=12, options=B_FRAMES, sounds=sounds)
    output = tmp_path / f"out{suffix}"
    upscale(source, output, encoder_preset="veryfast")
    assert_same_times(source, output)
    # NUT does not say that the encoder's priming is not to be heard.
    priming = Fraction(1024, 48_000) if suffix == ".nut" else 0
    assert abs(audio_lead(output) - audio_lead(source)) <= TICK[suffix] + priming


def test_b_frames_beside_sound_where_a_frame_is_a_tick(tmp_path: Path) -> None:
    sounds = (Sound("mp2"),)
    source = make(tmp_path / "in.avi", frames=12, codec="mpeg4", time_base=Fraction(1, 25), sounds=sounds)
    upscale(source, tmp_path / "out.nut", encoder_preset="veryfast")
    assert_same_times(source, tmp_path / "out.nut")
    with av.open(str(tmp_path / "out.nut")) as container:
        assert container.streams.video[0].codec_context.has_b_frames


@pytest.mark.parametrize("scale", [11488, 29917, 600, 90000, 1000, 15360])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_variable_rate_is_exact_in_mp4(tmp_path: Path, suffix: str, scale: int) -> None:
    gaps = np.random.default_rng(scale).integers(scale // 60, scale // 8, 9)
    times = [0, *np.cumsum(gaps).tolist()]
    source = make(
        tmp_path / "in.mp4", times=times, time_base=Fraction(1, scale), last=scale // 5, options=B_FRAMES
    )
    output = upscale(source, tmp_path / f"out{suffix}", encoder_preset="veryfast").path
    assert_same_times(source, output, tick=Fraction(0))
    with av.open(str(source)) as a, av.open(str(output)) as b:
        one, two = a.streams.video[0], b.streams.video[0]
        assert two.time_base == Fraction(1, scale)
        assert movie_seconds(output) == one.duration * one.time_base  # what players show
        # Decoding times, which libav's figure is made of, can fall short by the last B-frame's reordering.
        assert abs(two.duration * two.time_base - one.duration * one.time_base) < Fraction(1, 8)


def movie_seconds(path: Path) -> Fraction:
    """The duration in an mp4's movie header."""
    data = path.read_bytes()
    scale, length = struct.unpack_from(">2I", data, data.index(b"mvhd") + 16)
    return Fraction(length, scale)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts", ".nut"])
def test_variable_rate_elsewhere_is_the_nearest_tick_without_drift(tmp_path: Path, suffix: str) -> None:
    times = [0, *np.cumsum(np.random.default_rng(1).integers(300, 3000, 39)).tolist()]
    source = make(tmp_path / "in.mp4", times=times, time_base=Fraction(1, 29917), options=B_FRAMES)
    done = upscale(source, tmp_path / f"out{suffix}", **FAST.get(suffix, {}))
    tick = TICK[suffix]
    found = offsets(times_of(done.path))
    wanted = [Fraction(t, 29917) for t in times]
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= Fraction(tick) / 2
    assert ("nearest" in done.said) == (suffix != ".nut")
    assert done.said.count("nearest") <= 2  # told once, and once more in the summary


def test_long_clip_does_not_drift_in_matroska(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=250, size=(16, 16), time_base=Fraction(1001, 24000))
    output = upscale(source, tmp_path / "out.mkv").path
    for i, time in enumerate(offsets(times_of(output))):
        assert abs(time - i * Fraction(1001, 24000)) <= Fraction(1, 2000)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts", ".nut"])
@pytest.mark.parametrize(
    ("video_first", "audio_first"),
    [(Fraction(1, 5), Fraction(0)), (Fraction(0), Fraction(1, 5)), (Fraction(0), Fraction(0))],
)
def test_offset_between_sound_and_picture_is_kept(
    tmp_path: Path, suffix: str, video_first: Fraction, audio_first: Fraction
) -> None:
    times = [round(video_first * 600) + i * 24 for i in range(8)]
    source = make(
        tmp_path / "in.mp4",
        times=times,
        time_base=Fraction(1, 600),
        sounds=[Sound("aac", start=audio_first, seconds=0.7)],
        muxer_options={"movie_timescale": "48000"},
    )
    output = upscale(source, tmp_path / f"out{suffix}").path
    tick = Fraction(1, 48000) if suffix in (".mp4", ".mov", ".nut") else TICK[suffix]
    if suffix in (".mp4", ".mov"):
        assert times_of(output) == times_of(source)
    # AAC packets outside mp4 have no edit list that hides their priming: compare packets there.
    assert abs(packet_lead(output) - packet_lead(source)) <= tick


def packet_lead(path: Path) -> Fraction:
    sound = min(time for time, _, _ in packets_of(path, "audio"))
    return sound - min(time for time, _, _ in packets_of(path, "video"))


@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 5)])
@pytest.mark.parametrize("codec", ["aac", "mp2", "pcm_s16le"])
def test_avi_keeps_sound_within_a_frame(tmp_path: Path, codec: str, start: Fraction) -> None:
    """AVI counts frames from zero for every stream."""
    source = make(
        tmp_path / "in.mkv", times=[40 * i + round(start * 1000) for i in range(12)], time_base=Fraction(1, 1000),
        sounds=[Sound(codec, seconds=0.8)],
    )  # fmt: skip
    output = upscale(source, tmp_path / "out.avi").path
    assert [f.number for f in decoded(output)] == list(range(12))
    assert offsets(times_of(output)) == [Fraction(i, 25) for i in range(12)]
    assert abs(packet_lead(output) - packet_lead(source)) <= Fraction(1, 25)


def test_first_frame_late_by_an_edit_list_of_the_video_alone(tmp_path: Path) -> None:
    times = [6000 + 24 * i for i in range(5)]
    source = make(tmp_path / "in.mp4", times=times, time_base=Fraction(1, 600))
    output = upscale(source, tmp_path / "out.mp4").path
    assert times_of(output)[0] == 0  # relative to the earliest kept stream, which is the video itself
    assert_same_times(source, output)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_edit_list_that_hides_leading_frames(tmp_path: Path, suffix: str) -> None:
    """A cut made by an edit list: frames before the cut decode but are not shown."""
    first = make(tmp_path / "a.mp4", frames=20, options={**B_FRAMES, "g": "20"})
    cut = cut_by_edit_list(first, tmp_path / "in.mp4", frames=6)
    before = decoded(cut)
    assert [f.number for f in before] == list(range(6, 20))
    output = upscale(cut, tmp_path / f"out{suffix}").path
    assert_same_times(cut, output)


def cut_by_edit_list(source: Path, target: Path, frames: int) -> Path:
    """The same packets with times that put `frames` of them before zero, which mp4 turns into an edit."""
    with (
        av.open(str(source)) as a,
        av.open(str(target), "w", options={"movflags": "+negative_cts_offsets"}) as b,
    ):
        video = a.streams.video[0]
        out = b.add_stream_from_template(video)
        shift = round(Fraction(frames, 25) / video.time_base)
        for packet in a.demux(video):
            if packet.size:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = out
                b.mux(packet)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts", ".webm", ".avi"])
def test_one_frame(tmp_path: Path, suffix: str) -> None:
    source = make(tmp_path / "in.mp4", times=[0], time_base=Fraction(1, 600), last=300)
    output = upscale(source, tmp_path / f"out{suffix}", **FAST.get(suffix, {})).path
    assert len(decoded(output)) == 1
    if suffix in (".mp4", ".mov"):
        assert packets_of(output, "video")[0][1] == Fraction(1, 2)
    if suffix == ".mkv":
        with av.open(str(output)) as container:
            assert abs(container.duration - 500_000) <= 1000


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_very_few_frames(tmp_path: Path, suffix: str, codec: str, count: int) -> None:
    """libx265 leaves the decoding times of one or two frames unset."""
    source = make(tmp_path / "in.mp4", frames=count)
    output = upscale(source, tmp_path / f"out{suffix}", codec=codec).path
    assert_same_times(source, output)
    with av.open(str(output)) as container:
        stamps = [p.dts * p.time_base for p in container.demux(video=0) if p.size and p.dts is not None]
        assert container.duration == count * 40_000
    assert all(-Fraction(1, 4) <= stamp < Fraction(1, 4) for stamp in stamps)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", ["in.mp4", "in.mkv"])
def test_last_frame_that_stays_long(tmp_path: Path, suffix: str, kind: str) -> None:
    # libav does not tell how long the last frame of an mp4 with B-frames stays.
    options = B_FRAMES if kind == "in.mkv" else {}
    source = make(
        tmp_path / kind, times=[0, 40, 80, 120], time_base=Fraction(1, 1000), last=1500, options=options
    )
    output = upscale(source, tmp_path / f"out{suffix}", encoder_preset="veryfast").path
    with av.open(str(output)) as container:
        assert abs(container.duration - 1_620_000) <= 1000


def test_a_clock_that_leaps_ahead_is_told(tmp_path: Path) -> None:
    times = [i * 40 + (i >= 30) * 5_000_000 for i in range(50)]
    for suffix, told in ((".ts", True), (".mkv", False)):
        source = make(tmp_path / f"in{suffix}", times=times, time_base=Fraction(1, 1000), frames=50)
        done = upscale(source, tmp_path / "out.mkv", overwrite=True)
        found = [frame.time for frame in decoded(done.path)]
        assert len(found) == 50 and 5000 < found[-1] < 5003
        assert ("leaps ahead by 5000 s after 1.2 s; the gap is kept" in done.said) == told


def test_avi_refuses_a_varying_rate(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", times=[0, 40, 160, 200], time_base=Fraction(1, 1000))
    with pytest.raises(OutputError, match=r"varying frame rate.*\.mkv or \.mp4"):
        upscale(source, tmp_path / "out.avi")
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("dropped", [{3, 4, 11}, {4, 9, 14, 19}], ids=["some", "each fifth"])
@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
def test_frames_that_an_avi_lacks_stay_gaps(tmp_path: Path, suffix: str, dropped: set[int]) -> None:
    """As captures drop them: the others keep their numbers, in AVI, too."""
    times = [n for n in range(20) if n not in dropped]
    source = make(
        tmp_path / "in.avi", codec="mpeg4", times=times, time_base=Fraction(1, 25), frames=len(times)
    )
    done = upscale(source, tmp_path / f"out{suffix}")
    found = [frame.time for frame in decoded(done.path)]
    assert [(time - found[0]) * 25 for time in found] == [n - times[0] for n in times] and not done.said


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_frames_that_share_a_time_are_moved_apart(tmp_path: Path, suffix: str) -> None:
    source = make(
        tmp_path / "in.mkv", codec="ffv1", times=[0, 40, 40, 80, 80, 80, 120], time_base=Fraction(1, 1000)
    )
    done = upscale(source, tmp_path / f"out{suffix}")
    found = decoded(done.path)
    assert [f.number for f in found] == list(range(7))
    times = offsets([f.time for f in found])
    assert times == sorted(set(times))
    for time, wanted in zip(times, [0, 40, 40, 80, 80, 80, 120], strict=True):
        assert abs(time - Fraction(wanted, 1000)) <= Fraction(3, 1000)
    assert "moved on" in done.said


# ------------------------------------------------------------------------ selection


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_window_begins_at_zero_and_keeps_sync(tmp_path: Path, suffix: str) -> None:
    source = make(
        tmp_path / "in.mp4", frames=50, options={**B_FRAMES, "g": "12"}, time_base=Fraction(1001, 24000),
        sounds=[Sound("aac", seconds=2.0)], muxer_options={"movie_timescale": "48000"},
    )  # fmt: skip
    done = upscale(source, tmp_path / f"out{suffix}", start="0.7", end="1.4")
    found, all_frames = decoded(done.path), decoded(source)
    origin = all_frames[0].time
    kept = [f for f in all_frames if Fraction(7, 10) <= f.time - origin < Fraction(14, 10)]
    assert [f.number for f in found] == [f.number for f in kept]
    tick = TICK[suffix]
    assert found[0].time == 0
    for a, b in zip(found, kept, strict=True):
        assert abs(a.time - (b.time - kept[0].time)) <= tick
    source_audio = {payload: time for time, _, payload in packets_of(source, "audio")}
    output_audio = packets_of(done.path, "audio")
    assert output_audio
    for time, _, payload in output_audio:
        assert abs(time - (source_audio[payload] - kept[0].time)) <= max(Fraction(tick), Fraction(1, 48000))
        assert -Fraction(1, 10) <= time < Fraction(72, 100)


@pytest.mark.parametrize(
    "kind", ["h264", "h264 open gop", "hevc", *(f"packed mpeg4, {count}" for count in (1, 2, 3))]
)
def test_avi_gives_every_frame_its_turn(tmp_path: Path, kind: str) -> None:
    """AVI has no times of presentation: packets carry those of decoding, whatever order they are shown in."""
    source = tmp_path / "in.avi"
    if kind.startswith("packed mpeg4"):
        more = {"g": "12", "bf": kind[-1], "b_strategy": "0"}
        packed(make(tmp_path / "plain.avi", frames=60, codec="mpeg4", options=more), source)
    elif kind == "hevc":
        # libav's muxer takes no HEVC.
        options = {"preset": "ultrafast", "x265-params": "keyint=12:bframes=3:log-level=none:pools=1"}
        hevc = make(tmp_path / "a.ts", frames=60, codec="libx265", options=options)
        template = make(tmp_path / "b.avi", frames=1)
        with av.open(str(hevc)) as a, av.open(str(template)) as b, av.open(str(source), "w") as c:
            stream = c.add_stream_from_template(b.streams.video[0])
            for i, packet in enumerate(p for p in a.demux(video=0) if p.size):
                packet.pts = packet.dts = i
                packet.time_base, packet.stream = Fraction(1, 25), stream
                c.mux(packet)
        source.write_bytes(source.read_bytes().replace(b"H264", b"HEVC"))
    else:
        more = {"x264-params": "open-gop=1"} if "open" in kind else {}
        make(source, frames=60, options={**B_FRAMES, "g": "12", **more})
    done = upscale(source, tmp_path / "out.mp4")
    assert [f.number for f in decoded(done.path)] == list(range(60))
    assert not done.finished.concealed and not done.said
    part = upscale(source, tmp_path / "part.mp4", start="1.6", frames=5, segment=Fraction(1, 10))
    assert [f.number for f in decoded(part.path)] == list(range(40, 45))


_SEEK = {
    "h264": (".mp4", {"codec": "libx264", "options": {**B_FRAMES, "g": "8", "keyint_min": "8"}}),
    "h264 open gop": (".mkv", {"codec": "libx264", "options": {**B_FRAMES, "g": "8", "x264-params": "open-gop=1"}}),
    "h264 ts": (".ts", {"codec": "libx264", "options": {**B_FRAMES, "g": "8"}}),
    "hevc": (".mp4", {"codec": "libx265", "options": {
        "preset": "ultrafast", "x265-params": "keyint=8:bframes=3:open-gop=1:log-level=none:pools=1"}}),
    "vp9": (".webm", {"codec": "libvpx-vp9", "options": {"g": "8", "deadline": "realtime", "cpu-used": "8"}}),
    "mpeg2": (".ts", {"codec": "mpeg2video", "options": {"g": "8", "bf": "2"}}),
    "mpeg4": (".avi", {"codec": "mpeg4", "options": {"g": "8"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(_SEEK))
def test_seeking_gives_the_frames_of_a_full_decode(tmp_path: Path, kind: str) -> None:
    suffix, more = _SEEK[kind]
    source = make(tmp_path / f"in{suffix}", Clip(frames=40, picture=lambda i: noise(i // 3), **more))
    plain = decoded(source)
    for first in (13, 16, 31):
        start = plain[first].time - plain[0].time
        done = upscale(
            source,
            tmp_path / "out.mkv",
            codec="ffv1",
            start=f"{float(start):.6f}",
            frames=5,
            scale=1,
            overwrite=True,
        )
        found = decoded(done.path)
        assert len(found) == 5
        for a, b in zip(found, plain[first:], strict=False):
            np.testing.assert_allclose(a.planes[0].astype(int), b.planes[0].astype(int), atol=1)


def test_sample_is_a_piece_of_the_middle(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=50, options={"g": "10"})
    found = decoded(upscale(source, tmp_path / "out.mp4", sample="0.4").path)
    assert [f.number for f in found] == list(range(20, 30))
    assert found[0].time == 0


def test_frames_stops_and_the_last_duration_is_that_of_the_source(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", times=[0, 10, 50, 60, 110], time_base=Fraction(1, 600))
    found = packets_of(upscale(source, tmp_path / "out.mp4", frames=3).path, "video")
    assert [(t * 600, d * 600) for t, d, _ in found] == [(0, 10), (10, 40), (50, 10)]


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".h264"), ("libx265", ".h265")])
def test_parts_of_streams_without_times_are_counted(tmp_path: Path, codec: str, suffix: str) -> None:
    """A raw stream has no container, and so no table: it runs at the rate that its header states."""
    options = {
        "libx264": {**B_FRAMES, "g": "8"},
        "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    }
    source = tmp_path / f"in{suffix}"
    whole = make(tmp_path / "whole.mkv", frames=20, codec=codec, options=options[codec])
    muxer = {".h264": "h264", ".h265": "hevc"}[suffix]
    with av.open(str(whole)) as a, av.open(str(source), "w", format=muxer) as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(video=0):
            if packet.size:
                packet.stream = stream
                b.mux(packet)
    chosen = {
        "frames": ({"frames": 3}, range(3)),
        "window": ({"start": "0.2", "end": "0.4"}, range(5, 10)),
        "to the end": ({"start": "0.6"}, range(15, 20)),
        "middle": ({"sample": Fraction(4, 25)}, range(8, 12)),
    }
    for name, (part, expected) in chosen.items():
        done = upscale(source, tmp_path / "out.mp4", overwrite=True, **part)
        assert [f.number for f in decoded(done.path)] == list(expected), name
        assert done.finished.frames == len(expected)
    with pytest.raises(InputError, match=r"nothing lies in the chosen part; the video lasts 0\.800 s"):
        upscale(source, tmp_path / "none.mp4", start="0.9")


@pytest.mark.parametrize("deinterlaced", [False, True])
def test_fields_with_times_of_their_own_are_no_lost_frames(tmp_path: Path, deinterlaced: bool) -> None:
    """H.264 coded in fields has two packets a frame, so that its table has an entry for each."""
    source = make(tmp_path / "in.mkv", frames=60, interlaced=True, options={"x264-params": "tff=1"})
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        timeline = scan(container, stream)
    step = int(timeline.pts[1] - timeline.pts[0])
    fields = np.sort(np.concatenate([timeline.pts, timeline.pts + step // 2]))
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        pictures: Any = container.decode(stream)
        if deinterlaced:
            pictures = Deinterlacer(stream, interlaced=True, force=False, notes=[]).run(pictures)
        matcher = Matcher(
            replace(timeline, pts=fields), 0, len(fields), errors=lambda: 0, codec="h264", interlaced=True, notes=[]
        )  # fmt: skip
        shown = [(pts, concealed) for pts, _, concealed in matcher.run(pictures)]
    # So near to the beginning a gap is put down to damage all the same.
    assert [pts for pts, concealed in shown if not concealed] == timeline.pts.tolist()
    assert not any(concealed for pts, concealed in shown if pts > fields[96])
