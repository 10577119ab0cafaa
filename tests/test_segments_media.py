"""Segments on the media side: parts of a source, files of packets, and the file that they are joined into."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_maker import B_FRAMES, Clip, bars, decoded, make, noise

from rlfn_pipe.errors import InputError, OutputError
from rlfn_pipe.media.encoders import ENCODERS, EncodePlan, plan_encoding
from rlfn_pipe.media.encoding import encoder_options, open_encoder, picture_for
from rlfn_pipe.media.part import Selection
from rlfn_pipe.media.segment import SegmentSink, count_segment, read_header, read_packets
from rlfn_pipe.media.sink import SinkTimes, VideoSink
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.media.timing import Clock
from rlfn_pipe.media.verify import Expectation, verify_video
from rlfn_pipe.types import ColourInfo, Frame

SOFTWARE = [name for name in ENCODERS if "nvenc" not in name]
LAYOUT = ColourInfo(1, 1, 1, 1)
SIZE = (96, 80)
FAST: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast"},
    "libsvtav1": {"preset": "8", "crf": "20"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "mpeg4": {"bf": "2"},
    "mpeg2video": {"bf": "2"},
}
MUXER_NAMES = {
    "mp4": ".mp4", "mov": ".mov", "matroska": ".mkv", "webm": ".webm", "avi": ".avi", "mpegts": ".ts", "nut": ".nut",
}  # fmt: skip
CUTS = {"one": (), "each frame": range(1, 9), "1": (1,), "2": (2,), "8": (8,), "3 5": (3, 5)}


# ------------------------------------------------------------------ parts of a source

Shown = tuple[int, bool, tuple[bytes, ...]]


def taken(source: Iterable[Frame]) -> list[Shown]:
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    return [(f.pts, f.concealed, tuple(p.tobytes() for p in f.planes)) for f in frames]  # type: ignore[misc]


def in_parts(path: Path, whole: VideoSource, cuts: Iterable[int], **options: Any) -> list[Shown]:
    """The frames of parts, each by a source of its own that is told of the whole by a pickle."""
    found = []
    for first, last in pairwise((whole.first, *cuts, whole.last)):
        part = pickle.loads(pickle.dumps(whole.part(first, last)))
        with VideoSource(path, threads=1, part=part, **options) as source:
            assert source.format == whole.format
            found += taken(source)
    return found


_X265 = {"preset": "ultrafast", "x265-params": "keyint=8:bframes=3:open-gop=1:log-level=none:pools=1"}
_VP9 = {"g": "8", "deadline": "realtime", "cpu-used": "8"}
CLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264 mp4": (".mp4", {"options": {**B_FRAMES, "g": "8"}}),
    "h264 mkv": (".mkv", {"options": {**B_FRAMES, "g": "8"}}),
    "h264 ts": (".ts", {"options": {**B_FRAMES, "g": "8"}}),
    "h264 open gop": (".mkv", {"options": {**B_FRAMES, "g": "8", "x264-params": "open-gop=1"}}),
    "h264 intra refresh": (".mp4", {"options": {
        "preset": "veryfast", "crf": "20", "qp": "-1", "x264-params": "intra-refresh=1:keyint=8:bframes=0"}}),
    "hevc open gop mp4": (".mp4", {"codec": "libx265", "options": _X265}),
    "hevc open gop mkv": (".mkv", {"codec": "libx265", "options": _X265}),
    "mpeg2 ts": (".ts", {"codec": "mpeg2video", "options": {"g": "8", "bf": "2"}}),
    "mpeg4 avi": (".avi", {"codec": "mpeg4", "options": {"g": "8"}}),
    "h264 avi": (".avi", {"options": {**B_FRAMES, "g": "8"}}),
    "h264 open gop avi": (".avi", {"options": {**B_FRAMES, "g": "8", "x264-params": "open-gop=1"}}),
    "vp9 webm": (".webm", {"codec": "libvpx-vp9", "options": _VP9}),
    "ffv1 mkv": (".mkv", {"codec": "ffv1", "options": {"g": "1"}}),
    "one keyframe": (".mp4", {"options": {"g": "250"}}),
    "varying rate": (".mp4", {"options": {**B_FRAMES, "g": "7"}, "time_base": Fraction(1, 29917), "times": [
        0, *np.cumsum(np.random.default_rng(1).integers(300, 3000, 19)).tolist()]}),
    "a day's gap": (".mp4", {"options": {"g": "8"}, "time_base": Fraction(1, 100), "times": [
        *range(0, 40, 4), *range(24 * 3600 * 100, 24 * 3600 * 100 + 40, 4)]}),
    "negative start": (".mkv", {"options": {"g": "8"}, "time_base": Fraction(1, 1000),
        "times": [40 * i - 120 for i in range(20)], "muxer_options": {"avoid_negative_ts": "disabled"}}),
    "late start": (".mp4", {"options": {**B_FRAMES, "g": "8"}, "times": range(250, 270)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLIPS)
def test_parts_are_the_whole_wherever_it_is_cut(tmp_path: Path, kind: str) -> None:
    suffix, more = CLIPS[kind]
    count = {} if "times" in more else {"frames": 20}
    path = make(tmp_path / f"in{suffix}", Clip(picture=lambda i: noise(i // 2), **{**count, **more}))
    with VideoSource(path, threads=1) as whole:
        frames = taken(whole)
        assert whole.timeline.trusted and len(frames) == 20 and not whole.concealed
        assert len(whole.timeline.keyframes) >= (1 if kind in ("one keyframe", "negative start") else 2)
        for cut in range(1, 20):
            assert in_parts(path, whole, [cut]) == frames, f"cut at {cut}"
        assert in_parts(path, whole, range(1, 20)) == frames


@pytest.mark.parametrize("deinterlace", ["auto", "on", "off"])
def test_parts_of_interlaced_video(tmp_path: Path, deinterlace: str) -> None:
    """The filter looks at neighbours, which a part must have seen as well."""
    path = make(
        tmp_path / "in.mkv",
        Clip(
            frames=18,
            codec="mpeg2video",
            interlaced=True,
            options={"g": "5", "bf": "2", "flags": "+ildct+ilme"},
            picture=lambda i: noise(i),
        ),
    )
    with VideoSource(path, threads=1, deinterlace=deinterlace) as whole:
        frames = taken(whole)
        assert len(frames) == 18
        for cut in range(1, 18, 2):
            assert in_parts(path, whole, [cut], deinterlace=deinterlace) == frames


def test_parts_of_a_selection_and_of_an_edit_list(tmp_path: Path) -> None:
    path = make(
        tmp_path / "in.mp4",
        Clip(frames=30, options={**B_FRAMES, "g": "8"}, picture=lambda i: noise(i)),
    )
    cut = tmp_path / "cut.mp4"
    with (
        av.open(str(path)) as a,
        av.open(str(cut), "w", options={"movflags": "+negative_cts_offsets"}) as b,
    ):
        video = a.streams.video[0]
        out = b.add_stream_from_template(video)
        shift = round(Fraction(6, 25) / video.time_base)
        for packet in a.demux(video):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, out
                b.mux(packet)
    plain = taken(VideoSource(path, threads=1).__enter__())
    for source, chosen, first in ((path, Selection(start=Fraction(2, 5), frames=12), 10), (cut, None, 6)):
        with VideoSource(source, threads=1, selection=chosen) as whole:
            frames = taken(whole)
            assert [f[2] for f in frames] == [f[2] for f in plain[first : first + len(frames)]]
            for at in range(whole.first + 1, whole.last):
                assert in_parts(source, whole, [at]) == frames
            with pytest.raises(ValueError, match="does not lie within"):
                whole.part(whole.first, whole.last + 1)


def test_parts_of_video_that_changes_its_size(tmp_path: Path) -> None:
    a = make(tmp_path / "a.ts", frames=10, options={"g": "4"}, size=(64, 48))
    b = make(tmp_path / "b.ts", times=range(10, 20), options={"g": "4"}, size=(96, 80))
    path = tmp_path / "in.ts"
    path.write_bytes(a.read_bytes() + b.read_bytes())
    for options in ({}, {"deinterlace": "on"}):
        with VideoSource(path, threads=1, **options) as whole:
            frames = taken(whole)
            assert len(frames) == 20 and {len(f[2][0]) for f in frames} == {64 * 48}
            for cut in range(1, 20, 3):
                assert in_parts(path, whole, [cut], **options) == frames


def test_real_clips_in_parts(shared_data: Path) -> None:
    """Every codec and container of the real clips with more than one keyframe, and the corrupt one."""
    names = [
        "androidx-media/mkv__sample_with_multiple_key_frames.mkv", "androidx-media/mp4__iibbibb_editlist_videoonly.mp4",
        "androidx-media/mp4__trim_optimization_failure.mp4", "ffmpegwasm/video-1s.avi", "libopenshot/test1.mp4",
        "shaka-player/hls-ts-muxed-mp3-h264__seg-1-v1-a1.ts", "decord/corrupted.mp4", "imageio/newtonscradle.gif",
        "androidx-media/ts__sample_h264_iframes_only.ts", "androidx-media/mp4__sample_android_slow_motion.mp4",
    ]  # fmt: skip
    for name in names:
        path = shared_data / "clips" / name
        with VideoSource(path, threads=1) as whole:
            frames, count = taken(whole), whole.timeline.frames
            assert len(frames) == count
            places = sorted({1, count // 3, count // 2, count - 1} - {0})
            assert in_parts(path, whole, places) == frames, name


def harmed(path: Path, target: Path, numbers: set[int], how: str) -> Path:
    """A copy in which these video packets (file order) are junk behind their first bytes, cut, or missing."""
    rng = np.random.default_rng(len(numbers))
    with av.open(str(path)) as source, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            data = bytes(packet)
            if number in numbers and how == "missing":
                continue
            if number in numbers:
                keep = len(data) // 3 if how == "cut" else 12
                junk = rng.integers(0, 256, 0 if how == "cut" else max(0, len(data) - keep), dtype=np.uint8)
                bad = av.Packet(data[:keep] + junk.tobytes())
                bad.pts, bad.dts, bad.duration = packet.pts, packet.dts, packet.duration
                bad.time_base, bad.is_keyframe = packet.time_base, packet.is_keyframe
                packet = bad
            packet.stream = stream
            output.mux(packet)
    return target


@pytest.mark.parametrize("how", ["junk", "cut", "missing"])
@pytest.mark.parametrize(
    "kind",
    ["h264 mp4", "h264 ts", "hevc open gop mkv", "mpeg2 ts", "mpeg4 avi", "h264 avi", "vp9 webm", "ffv1 mkv"],
)
def test_parts_of_a_damaged_file(tmp_path: Path, kind: str, how: str) -> None:
    """Counts, times and what is concealed do not depend on where the film is cut; nor do pixels away from harm.

    Within harmed groups of pictures libav mends with what its recycled buffers hold.
    """
    suffix, more = CLIPS[kind]
    clean = make(tmp_path / f"clean{suffix}", Clip(frames=32, picture=lambda i: noise(i // 2), **more))
    for numbers in ({3}, {8, 9}, {31}, *([{0}] if how != "missing" else [])):
        path = harmed(clean, tmp_path / f"in{suffix}", numbers, how)
        with VideoSource(path, threads=1) as whole:
            frames = taken(whole)
            table, concealed = whole.timeline.pts.tolist(), whole.concealed
            assert [f[0] for f in frames] == table, "every frame has its place, whatever became of it"
            away = [i for i, f in enumerate(frames) if abs(i - min(numbers)) > 12]
            for cut in range(1, len(table), 4):
                found, seen = [], 0
                for first, last in ((0, cut), (cut, len(table))):
                    with VideoSource(path, threads=1, part=whole.part(first, last)) as source:
                        found += taken(source)
                        seen += source.concealed
                assert [f[:2] for f in found] == [f[:2] for f in frames], (numbers, cut)
                assert seen == concealed
                assert [found[i] for i in away] == [frames[i] for i in away], (numbers, cut)


def test_damage_before_a_part_is_not_its_own(tmp_path: Path) -> None:
    clean = make(tmp_path / "clean.mkv", frames=24, codec="ffv1", options={"g": "1"})
    path = harmed(clean, tmp_path / "in.mkv", {4, 9}, "cut")
    with VideoSource(path, threads=1) as whole:
        list(whole)
        assert whole.concealed == 2
        counts = []
        for first, last in ((0, 5), (5, 9), (9, 10), (10, 24)):
            with VideoSource(path, threads=1, part=whole.part(first, last)) as source:
                frames = list(source)
            counts.append(source.concealed)
            assert len(frames) == last - first
        assert counts == [1, 0, 1, 0]
        # The part that begins with a bad frame repeats the good one before it.
        with VideoSource(path, threads=1, part=whole.part(9, 12)) as source:
            parts = list(source)
        with VideoSource(path, threads=1, part=whole.part(8, 9)) as source:
            before = next(iter(source))
        assert np.array_equal(parts[0].planes[0], before.planes[0]) and parts[0].concealed


@pytest.mark.parametrize("how", ["junk", "missing"])
def test_on_error_fail_stops_only_where_the_harm_is(tmp_path: Path, how: str) -> None:
    clean = make(tmp_path / "clean.mkv", frames=24, codec="libx264", options={"g": "6"})
    path = harmed(clean, tmp_path / "in.mkv", {12}, how)
    with VideoSource(path, threads=1) as whole:
        list(whole)
        last = whole.last
        for first, stop, bad in ((0, 6, False), (12, 18, True), (18, last, False)):
            with VideoSource(path, threads=1, part=whole.part(first, stop), on_error="conceal") as source:
                assert len(list(source)) == stop - first
            bad = bool(source.concealed or source.damaged)
            assert bad == (first == 12) or how == "missing"
            if bad:
                with (
                    pytest.raises(InputError, match=r"does not decode.*--on-error conceal"),
                    VideoSource(path, threads=1, part=whole.part(first, stop), on_error="fail") as source,
                ):
                    list(source)
            else:
                with VideoSource(path, threads=1, part=whole.part(first, stop), on_error="fail") as source:
                    assert len(list(source)) == stop - first


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_parts_of_a_file_whose_tail_is_cut_off(tmp_path: Path, suffix: str) -> None:
    clean = make(tmp_path / f"clean{suffix}", Clip(frames=40, options={**B_FRAMES, "g": "8"}, size=SIZE,
                 picture=lambda i: noise(i, size=SIZE)))  # fmt: skip
    path = tmp_path / f"in{suffix}"
    path.write_bytes(clean.read_bytes()[: int(clean.stat().st_size * 0.7)])
    with VideoSource(path, threads=1) as whole:
        frames = taken(whole)
        assert 20 <= len(frames) == whole.timeline.frames <= 36
        for cut in range(1, len(frames), 4):
            assert [f[:2] for f in in_parts(path, whole, [cut])] == [f[:2] for f in frames]


def test_untrusted_times_make_one_part(tmp_path: Path) -> None:
    path = make(
        tmp_path / "in.mkv", codec="ffv1", times=[0, 40, 40, 80, 80, 120], time_base=Fraction(1, 1000)
    )
    with VideoSource(path, threads=1) as whole:
        assert not whole.timeline.trusted
        frames = taken(whole)
        assert in_parts(path, whole, []) == frames and len(frames) == 6


def open_files() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{n}")
        for n in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{n}")
    }


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see threads and files")
def test_abandoned_iterations_leave_no_file_and_no_decoder(tmp_path: Path) -> None:
    path = make(tmp_path / "in.mp4", frames=40, options={"g": "8"})
    with VideoSource(path, threads=3) as whole:
        part = whole.part(20, 40)
    del whole
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    for _ in range(5):
        with VideoSource(path, threads=3, part=part) as source:
            frames = iter(source)
            next(frames)
            assert str(path) in open_files()
    with pytest.raises(RuntimeError, match="given up"), VideoSource(path, threads=3, part=part) as source:
        for _frame in source:
            raise RuntimeError("given up")
    del frames, source, _frame
    gc.collect()
    assert str(path) not in open_files()
    assert len(os.listdir("/proc/self/task")) <= before
    assert threading.active_count() >= 1


# ------------------------------------------------------------------ files of packets


def plan_for(path: Path, codec: str, layout: ColourInfo = LAYOUT, **options: str) -> EncodePlan:
    plan = plan_encoding(path, tags=layout, resolved=layout, picture=SIZE, codec=codec)
    return replace(plan, options={**plan.options, **FAST.get(codec, {}), **options})


def pictures(count: int, times: list[int] | None = None, pix_fmt: str = "yuv420p") -> list[Frame]:
    """Frames whose bars spell their number."""
    every = times or [40 * i for i in range(count)]
    return [
        Frame(bars(i, pix_fmt, SIZE), LAYOUT, i, pts, Fraction(1, 1000))
        for i, pts in enumerate(every[:count])
    ]


def coded(frames: list[Frame], plan: EncodePlan, **changes: str) -> list[Any]:
    """The packets of PyAV's encoder, by hand."""
    plan = replace(plan, options={**plan.options, **changes})
    context = open_encoder(plan, Fraction(25), name="by hand", sample_aspect_ratio=None, threads=1)
    packets = []
    for i, frame in enumerate(frames):
        packets += context.encode(picture_for(frame, plan, i, context.time_base))
    return packets + context.encode(None)


def write_segment(path: Path, plan: EncodePlan, frames: list[Frame]) -> Path:
    sink = SegmentSink(path, plan, Fraction(25), name="film", threads=1)
    for frame in frames:
        sink.write(frame)
    sink.close()
    assert (sink.frames, sink.pts) == (len(frames), [frame.pts for frame in frames])
    return path


@pytest.mark.parametrize("codec", SOFTWARE)
def test_packets_come_back_as_they_were(tmp_path: Path, codec: str) -> None:
    suffix = MUXER_NAMES[sorted(ENCODERS[codec].muxers)[0]]
    plan, frames = plan_for(tmp_path / f"out{suffix}", codec), pictures(12)
    path = write_segment(tmp_path / "one.seg", plan, frames)
    expected, found = coded(frames, plan), list(read_packets(path, "film"))
    assert [bytes(p) for p in found] == [bytes(p) for p in expected]
    assert [(p.pts, p.dts, p.is_keyframe) for p in found] == [(p.pts, p.dts, p.is_keyframe) for p in expected]
    assert found[0].is_keyframe and sorted(p.pts for p in found) == list(range(12))
    assert count_segment(path, "film") == 12
    header = read_header(path, "film")
    assert (header.codec, header.rate) == (codec, 25)


def test_alpha_beside_the_picture_comes_back(tmp_path: Path) -> None:
    layout = replace(LAYOUT, alpha=True)
    plan = plan_for(tmp_path / "out.webm", "libvpx-vp9", layout)
    assert plan.pix_fmt == "yuva420p"
    alpha = [np.full((SIZE[1], SIZE[0]), 20 * i, np.uint8) for i in range(5)]
    frames = [
        replace(f, planes=(*f.planes, a), colour=layout) for f, a in zip(pictures(5), alpha, strict=True)
    ]
    path = write_segment(tmp_path / "one.seg", plan, frames)
    beside = [bytes(p.get_sidedata("matroska_block_additional")) for p in read_packets(path, "film")]
    assert beside == [bytes(p.get_sidedata("matroska_block_additional")) for p in coded(frames, plan)]
    assert all(beside)


@pytest.mark.parametrize("codec", SOFTWARE)
def test_equal_frames_give_equal_bits(tmp_path: Path, codec: str) -> None:
    """Also in x264, whose AVX-512 code reads what nobody wrote at such widths."""
    suffix = MUXER_NAMES[sorted(ENCODERS[codec].muxers)[0]]
    plan = plan_for(tmp_path / f"out{suffix}", codec)
    frames = [
        Frame(tuple(np.roll(p, i, 1) for p in noise(i // 4, size=SIZE)), LAYOUT, i, 40 * i, Fraction(1, 1000))
        for i in range(10)
    ]
    files = set()
    for turn in range(4):
        # What was freed is found again, and must not matter.
        rubbish = [np.full(SIZE[0] * 997, 37 * turn, np.uint8) for _ in range(30)]
        del rubbish
        files.add(write_segment(tmp_path / "one.seg", plan, frames).read_bytes())
    assert len(files) == 1


def test_what_was_asked_of_x264_stays_in_force(tmp_path: Path) -> None:
    plan = plan_for(tmp_path / "out.mp4", "libx264", **{"x264-params": "keyint=2:asm=sse2"})
    assert encoder_options(plan)["x264-params"] == "keyint=2:asm=sse2"
    plan = plan_for(tmp_path / "out.mp4", "libx264", **{"x264-params": "keyint=2"})
    assert encoder_options(plan)["x264-params"].endswith("keyint=2")
    path = write_segment(tmp_path / "one.seg", plan, pictures(6))
    assert sum(p.is_keyframe for p in read_packets(path, "film")) == 3


def test_a_segment_that_is_not_whole_is_no_segment(tmp_path: Path) -> None:
    path = write_segment(tmp_path / "one.seg", plan_for(tmp_path / "out.mp4", "libx264"), pictures(6))
    data = path.read_bytes()
    bad = tmp_path / "bad.seg"
    rng = np.random.default_rng(0)
    for length in [0, 4, *rng.integers(8, len(data), 40).tolist(), len(data) - 1]:
        bad.write_bytes(data[:length])
        with pytest.raises(OutputError, match=r"bad\.seg cannot be used"):
            count_segment(bad, "film")
    for at in rng.integers(0, len(data), 60).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(0, 8))
        bad.write_bytes(bytes(changed))
        with pytest.raises(OutputError, match=r"bad\.seg cannot be used") as caught:
            count_segment(bad, "film")
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match=r"cannot be used .no such file"):
        count_segment(tmp_path / "none.seg", "film")
    empty = SegmentSink(bad, plan_for(tmp_path / "out.mp4", "libx264"), Fraction(25), name="film", threads=1)
    empty.close()
    assert count_segment(bad, "film") == 0


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OutputError, match=r"no space left.*free some space"):
        write_segment(Path("/dev/full"), plan_for(tmp_path / "out.mkv", "ffv1"), pictures(6))


def test_times_that_do_not_rise_are_a_defect(tmp_path: Path) -> None:
    sink = SegmentSink(
        tmp_path / "a.seg", plan_for(tmp_path / "o.mkv", "ffv1"), Fraction(25), name="f", threads=1
    )
    sink.write(pictures(2)[1])
    with pytest.raises(ValueError, match="has pts 0 after 40"):
        sink.write(pictures(1)[0])
    sink.abort()


# ---------------------------------------------------------------------------- joining


def times_for(plan: EncodePlan) -> SinkTimes:
    tick = {"avi": Fraction(1, 25), "mpegts": Fraction(1, 90000)}.get(plan.muxer, Fraction(1, 1000))
    return SinkTimes(Fraction(1, 1000), Fraction(25), 40, Fraction(0), Clock(tick, True, 1000, 1000))


def joined(path: Path, plan: EncodePlan, frames: list[Frame], cuts: Iterable[int]) -> Expectation:
    """Write frames in segments and join them."""
    sink = VideoSink(path, plan, times_for(plan), [f.pts for f in frames], name="film", threads=1)  # type: ignore[misc]
    for first, last in pairwise((0, *cuts, len(frames))):
        sink.write_segment(write_segment(path.parent / "part.seg", plan, frames[first:last]), first)
    sink.close()
    assert sink.frames == len(frames) and sink.notes == []
    verify_video(path, "film", sink.expectation())
    return sink.expectation()


def packets_in(path: Path, muxer: str) -> list[Any]:
    with av.open(str(path), format=muxer) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


PAIRS = [(codec, MUXER_NAMES[muxer]) for codec in SOFTWARE for muxer in sorted(ENCODERS[codec].muxers)]


@pytest.mark.parametrize(("codec", "suffix"), PAIRS)
def test_one_segment_is_what_the_encoder_gives(tmp_path: Path, codec: str, suffix: str) -> None:
    """Payload, times, durations and keyframes as from PyAV's own encoder and muxer, by hand."""
    path = tmp_path / f"out{suffix}"
    plan, frames = plan_for(path, codec), pictures(12)
    joined(path, plan, frames, ())
    other = tmp_path / f"hand{suffix}"
    tick = times_for(plan).clock.tick
    options = {"avoid_negative_ts": "disabled"} if plan.muxer in ("matroska", "webm", "nut", "avi") else {}
    if plan.muxer in ("mp4", "mov"):
        options = {"video_track_timescale": "1000", "movie_timescale": "1000"}
    with av.open(str(other), "w", format=plan.muxer, container_options=options) as output:
        stream = output.add_stream(codec, rate=25, options=encoder_options(plan))
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = plan.width, plan.height, plan.pix_fmt
        context.time_base, context.thread_count = Fraction(1, 25), 1
        context.colorspace, context.color_trc, context.color_primaries, context.color_range = 1, 1, 1, 1
        stream.time_base = tick
        output.start_encoding()
        tick = stream.time_base
        packets = []
        for i, frame in enumerate(frames):
            packets += stream.encode(picture_for(frame, plan, i, Fraction(1, 25)))
        for packet in packets + stream.encode(None):
            unit = round(Fraction(1, 25) / tick)
            dts = packet.pts if packet.dts is None else packet.dts
            packet.pts, packet.dts, packet.duration = packet.pts * unit, dts * unit, unit
            packet.time_base, packet.stream = tick, stream
            output.mux(packet)
    found, expected = packets_in(path, plan.muxer), packets_in(other, plan.muxer)
    assert [bytes(p) for p in found] == [bytes(p) for p in expected]
    keys = ("pts", "dts", "duration", "is_keyframe", "time_base")
    assert [[getattr(p, k) for k in keys] for p in found] == [[getattr(p, k) for k in keys] for p in expected]


@pytest.mark.parametrize(("codec", "suffix"), PAIRS)
def test_joined_segments_play_as_one_film(tmp_path: Path, codec: str, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    plan = plan_for(path, codec)
    frames = pictures(9, pix_fmt=plan.pix_fmt)
    for name, cuts in CUTS.items():
        joined(path, plan, frames, cuts)
        shown = decoded(path)
        assert [f.number for f in shown] == list(range(9)), name
        assert [f.time - shown[0].time for f in shown] == [Fraction(i, 25) for i in range(9)]
        packets = packets_in(path, plan.muxer)
        steps = [p.dts for p in packets if p.dts is not None]
        assert all(a < b for a, b in pairwise(steps))
        assert all(p.dts <= p.pts for p in packets if p.dts is not None)
        assert packets[0].is_keyframe


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_varying_times_over_joins(tmp_path: Path, codec: str, suffix: str) -> None:
    every = [0, *np.cumsum(np.random.default_rng(3).integers(10, 300, 11)).tolist()]
    path = tmp_path / f"out{suffix}"
    plan, frames = plan_for(path, codec), pictures(12, every)
    for cuts in ((), (1, 2, 3, 7), range(1, 12)):
        joined(path, plan, frames, cuts)
        shown = decoded(path)
        assert [f.number for f in shown] == list(range(12))
        assert [round((f.time - shown[0].time) * 1000) for f in shown] == every


def test_segments_of_an_encoder_set_up_otherwise_still_play(tmp_path: Path) -> None:
    """Another version, or another number of threads: what the header cannot say goes before the picture."""
    frames = pictures(9)
    for codec, suffix, changes in (
        ("libx264", ".mp4", {"x264-params": "ref=3:cabac=0"}),
        ("libx264", ".mkv", {"x264-params": "ref=3:cabac=0"}),
        ("libx265", ".mkv", {"x265-params": "log-level=none:no-sao=1:ctu=16"}),
        ("libsvtav1", ".mp4", {"svtav1-params": "enable-cdef=0"}),
        ("mpeg4", ".mp4", {"flags": "+qpel"}),
        ("mpeg2video", ".mkv", {"intra_vlc": "1"}),
    ):
        path = tmp_path / f"out{suffix}"
        plan = plan_for(path, codec)
        sink = VideoSink(path, plan, times_for(plan), [f.pts for f in frames], name="film", threads=1)  # type: ignore[misc]
        other = replace(plan, options={**plan.options, **changes})
        headers = set()
        for first, last, made in ((0, 3, plan), (3, 6, other), (6, 9, plan)):
            part = write_segment(tmp_path / "part.seg", made, frames[first:last])
            headers.add(read_header(part, "film").extradata)
            sink.write_segment(part, first)
        sink.close()
        verify_video(path, "film", sink.expectation())
        assert [f.number for f in decoded(path)] == list(range(9)), codec


def test_headers_that_no_place_is_left_for_are_refused(tmp_path: Path) -> None:
    frames = pictures(4)
    for codec, suffix, changes in (
        ("libx265", ".mp4", {"x265-params": "log-level=none:no-sao=1:ctu=16"}),
        ("ffv1", ".mkv", {"coder": "range_tab"}),
    ):
        path = tmp_path / f"out{suffix}"
        plan = plan_for(path, codec)
        other = replace(plan, options={**plan.options, **changes})
        sink = VideoSink(path, plan, times_for(plan), [f.pts for f in frames], name="film", threads=1)  # type: ignore[misc]
        with pytest.raises(OutputError, match=r"made by .* with other settings") as caught:
            sink.write_segment(write_segment(tmp_path / "part.seg", other, frames), 0)
        assert "\n" not in str(caught.value)
        sink.abort()


def test_joining_stops_when_told_and_says_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "out.mkv"
    plan, frames = plan_for(path, "ffv1"), pictures(9)
    part = write_segment(tmp_path / "part.seg", plan, frames)

    def new(count: int) -> VideoSink:
        times = [f.pts for f in frames[:count]]
        return VideoSink(path, plan, times_for(plan), times, name="film", threads=1)  # type: ignore[arg-type]

    def stop() -> None:
        raise KeyboardInterrupt

    sink = new(9)
    with pytest.raises(KeyboardInterrupt):
        sink.write_segment(part, 0, check_stop=stop)
    sink.abort()
    sink = new(5)
    with pytest.raises(OutputError, match="more frames than belong there"):
        sink.write_segment(part, 0)
    sink.abort()
    sink = new(9)
    with pytest.raises(ValueError, match="where frame 0 follows"):
        sink.write_segment(part, 3)
    with pytest.raises(OutputError, match="0 of 9 frames"):
        sink.close()
    sink.abort()


def test_no_encoder_hangs_or_fails_without_a_frame(tmp_path: Path) -> None:
    """The file's header is made by an encoder that never gets one."""
    for codec, suffix in PAIRS:
        path = tmp_path / f"out{suffix}"
        plan = plan_for(path, codec)
        sink = VideoSink(path, plan, times_for(plan), [0], name="film", threads=1)
        sink.abort()
        del sink


# --------------------------------------------------------------------- the end check


def _other(**changes: Any) -> Callable[[Expectation], Expectation]:
    return lambda expected: replace(expected, **changes)


def _plan(**changes: Any) -> Callable[[Expectation], Expectation]:
    return lambda expected: replace(expected, plan=replace(expected.plan, **changes))


def _tags(**changes: Any) -> Callable[[Expectation], Expectation]:
    return lambda e: replace(e, plan=replace(e.plan, tags=replace(e.plan.tags, **changes)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: replace(e, ticks=e.ticks[:-1]), "8 frames were written and 9 are in the file"),
        (lambda e: replace(e, ticks=e.ticks + (e.ticks >= 160)), r"frame 4 is shown at 0\.160000 s instead of 0\.161"),
        (lambda e: replace(e, length=e.length + 3), r"lasts 0\.360000 s instead of 0\.363"),
        (_other(streams={"video": 1, "audio": 1}), "0 audio streams instead of 1"),
        (_other(streams={"video": 2}), "1 video streams instead of 2"),
        (_other(stream_index=4), "cannot be read back"),
        (_plan(width=98), "96x80 pixels instead of 98x80"),
        (_plan(pix_fmt="yuv444p"), "yuv420p instead of yuv444p"),
        (_tags(matrix=5), "colour matrix reads as 1 instead of 5"),
        (_tags(transfer=16), "colour transfer reads as 1 instead of 16"),
        (_tags(primaries=9), "colour primaries reads as 1 instead of 9"),
        (_tags(range=2), "colour range reads as 1 instead of 2"),
    ],
)  # fmt: skip
def test_the_end_check_finds(tmp_path: Path, suffix: str, change: Any, words: str) -> None:
    path = tmp_path / f"out{suffix}"
    expected = joined(path, plan_for(path, "libx264"), pictures(9), (4,))
    with pytest.raises(OutputError, match=words) as caught:
        verify_video(path, "film", change(expected))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("film: ")


@pytest.mark.parametrize("suffix", [".ts", ".avi"])
def test_the_end_check_finds_the_one_frame_that_is_off_where_all_are_moved(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out{suffix}"
    expected = joined(path, plan_for(path, "mpeg2video" if suffix == ".ts" else "ffv1"), pictures(9), (4,))
    verify_video(path, "film", replace(expected, ticks=expected.ticks + 40))
    ticks = expected.ticks.copy()
    ticks[5] += 40
    with pytest.raises(OutputError, match="frame 5 is shown at"):
        verify_video(path, "film", replace(expected, ticks=ticks))


def test_the_end_check_reads_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out.mkv"
    expected = joined(path, plan_for(path, "ffv1"), pictures(9), (4,))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(OutputError, match="are in the file"):
        verify_video(path, "film", expected)
    path.write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be read back"):
        verify_video(path, "film", expected)
