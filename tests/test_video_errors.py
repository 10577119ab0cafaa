"""What goes wrong with video: damaged input, full disks, wrong settings, interruption."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_maker import B_FRAMES, Clip, Sound, decoded, make, noise, packets_of, upscale

from rlfn_pipe.errors import InputError, Interrupted, OutputError, RlfnPipeError, UsageError
from rlfn_pipe.jobs.run import run
from rlfn_pipe.jobs.work import work_path
from rlfn_pipe.media import opening as opening_module
from rlfn_pipe.media.cut_short import missing_bytes
from rlfn_pipe.media.segment import SegmentSink
from rlfn_pipe.media.sink import VideoSink
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Event, Progress

pytestmark = pytest.mark.usefixtures("nearest_engine")
TESTS = Path(__file__).parent
NO_GPU = not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))


def one_sentence(error: RlfnPipeError) -> str:
    text = str(error)
    assert "\n" not in text and "Traceback" not in text and 20 < len(text) < 600
    return text


def left_behind(folder: Path, *expected: str) -> bool:
    return sorted(p.name for p in folder.iterdir()) != sorted(expected)


# ----------------------------------------------------------------------- bad frames


def damaged(
    path: Path,
    target: Path,
    numbers: set[int],
    *,
    keep: int = 0,
    times: Mapping[int, int | None] | None = None,
) -> Path:
    """A copy whose video packets of these numbers (file order) are garbage behind their first bytes.

    `times`: frame numbers whose times other packets get instead of their own.
    """
    rng = np.random.default_rng(0)
    count = 0
    with av.open(str(path)) as source, av.open(str(target), "w") as output:
        streams = {s.index: output.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if not packet.size:
                continue
            stream = streams[packet.stream.index]
            if packet.stream.type == "video":
                count += 1
                if times and count - 1 in times:
                    frame = times[count - 1]
                    packet.pts = None if frame is None else round(Fraction(frame, 25) / packet.time_base)
                if count - 1 in numbers:
                    data = bytes(packet)
                    junk = rng.integers(0, 256, max(0, len(data) - keep), dtype=np.uint8).tobytes()
                    bad = av.Packet(data[:keep] + (junk if keep else b"\xff" * len(junk)))
                    bad.pts, bad.dts, bad.duration = packet.pts, packet.dts, packet.duration
                    bad.time_base, bad.is_keyframe = packet.time_base, packet.is_keyframe
                    packet = bad
            packet.stream = stream
            output.mux(packet)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("codec", ["ffv1", "libx264"])
def test_packets_that_do_not_decode_are_concealed(tmp_path: Path, suffix: str, codec: str) -> None:
    clean = make(
        tmp_path / "clean.mkv",
        frames=20,
        codec=codec,
        options={"g": "1"},
        sounds=[Sound("pcm_s16le", seconds=0.8)],
    )
    broken = damaged(clean, tmp_path / "in.mkv", {6, 7, 13})
    done = upscale(broken, tmp_path / f"out{suffix}")
    found = decoded(done.path)
    assert [f.time - found[0].time for f in found] == [Fraction(i, 25) for i in range(20)]
    expected = [i if i not in (6, 7, 13) else {6: 5, 7: 5, 13: 12}[i] for i in range(20)]
    assert [f.number for f in found] == expected
    assert done.finished.concealed == 3
    assert "3 of 20 frames did not decode" in done.said


def test_damage_in_the_middle_of_inter_frames_shifts_nothing(tmp_path: Path) -> None:
    clean = make(
        tmp_path / "clean.mp4",
        Clip(
            frames=40,
            options={**B_FRAMES, "g": "10"},
            size=(96, 96),
            picture=lambda i: noise(i, size=(96, 96)),
        ),
    )
    broken = damaged(clean, tmp_path / "in.mp4", {11, 12, 25}, keep=16)
    done = upscale(broken, tmp_path / "out.mkv", codec="ffv1")
    found, before = decoded(done.path), decoded(clean)
    assert len(found) == 40
    for i in (0, 5, 9, 35, 39):
        luma = before[i].planes[0].repeat(2, 0).repeat(2, 1).astype(int)
        assert np.abs(found[i].planes[0].astype(int) - luma).max() <= 1
        assert abs(found[i].time - i * Fraction(1, 25)) <= Fraction(1, 1000)


def test_lost_frames_of_avi_keep_their_place(tmp_path: Path) -> None:
    """AVI's times do not say which picture is missing, but when none came out."""
    clean = make(tmp_path / "clean.avi", frames=60, options={**B_FRAMES, "g": "12"})
    broken = damaged(clean, tmp_path / "in.avi", {20, 21, 30})
    done = upscale(broken, tmp_path / "out.mp4")
    numbers = [f.number for f in decoded(done.path)]
    assert len(numbers) == 60 and done.finished.concealed == 3
    # What refers to a lost picture is harmed up to the next keyframe.
    whole = (*range(17), *range(24, 28), *range(36, 60))
    assert [numbers[i] for i in whole] == list(whole)


def test_frames_that_share_a_time_are_told_by_their_number(tmp_path: Path) -> None:
    """Times go to the wrong frames, one stands twice, and two packets do not decode: nothing drifts."""
    clean = make(tmp_path / "clean.mp4", frames=60, options={**B_FRAMES, "g": "10", "bf": "1"})
    with av.open(str(clean)) as container:
        order = [round(p.pts * p.time_base * 25) for p in container.demux(video=0) if p.size]
    start = order[0]
    wrong = {i: order[min(i + 1, 45)] - start for i in range(3, 46)}
    broken = damaged(clean, tmp_path / "in.mkv", {20, 41}, times=wrong)
    with av.open(str(broken)) as container:
        shown = [p.pts for p in container.demux(video=0) if p.size]
    assert len(set(shown)) == len(shown) - 1 and len(shown) == 60
    done = upscale(broken, tmp_path / "out.mkv")
    found = decoded(done.path)
    assert len(found) == 60 and done.finished.concealed == 2
    assert "2 of 60 frames did not decode" in done.said
    # What refers to a lost picture is harmed up to the next keyframe.
    for i in (*range(18), *range(30, 38), *range(50, 60)):
        assert abs(found[i].number - i) <= 1
    part = upscale(broken, tmp_path / "part.mkv", frames=25)
    assert [f.number for f in decoded(part.path)] == [f.number for f in found[:25]]


def test_what_does_not_decode_is_said_where_times_tell_nothing(tmp_path: Path) -> None:
    clean = make(tmp_path / "clean.mkv", frames=40, options={"g": "1"})
    broken = damaged(clean, tmp_path / "in.mkv", {12, 25}, times=dict.fromkeys(range(5, 30), 29))
    done = upscale(broken, tmp_path / "out.mkv")
    assert [f.number for f in decoded(done.path)] == [i for i in range(40) if i not in (12, 25)]
    assert "2 packets did not decode and were left out" in done.said
    part = upscale(broken, tmp_path / "part.mkv", end=Fraction(35, 25))
    assert len(decoded(part.path)) == 33
    assert "2 packets did not decode and were left out" in part.said


def test_damaged_frames_can_be_an_error(tmp_path: Path) -> None:
    clean = make(tmp_path / "clean.mkv", frames=20, codec="ffv1")
    broken = damaged(clean, tmp_path / "in.mkv", {6})
    with pytest.raises(InputError, match=r"0\.240 s does not decode.*--on-error conceal") as caught:
        upscale(broken, tmp_path / "out.mp4", on_error="fail")
    one_sentence(caught.value)
    assert caught.value.exit_code == 1
    assert not left_behind(tmp_path, "clean.mkv", "in.mkv")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_first_frames_that_cannot_be_decoded_repeat_the_first_good_one(tmp_path: Path, suffix: str) -> None:
    """A stream cut so that it begins between two keyframes."""
    whole = make(tmp_path / "whole.mkv", frames=30, options={"g": "10", "keyint_min": "10"})
    cut = tmp_path / "in.mkv"
    with av.open(str(whole)) as a, av.open(str(cut), "w") as b:
        out = b.add_stream_from_template(a.streams.video[0])
        for i, packet in enumerate(a.demux(video=0)):
            if packet.size and i >= 4:
                packet.stream = out
                b.mux(packet)
    count = len(packets_of(cut, "video"))
    done = upscale(cut, tmp_path / f"out{suffix}")
    found = decoded(done.path)
    assert len(found) == count == 26
    assert [f.time - found[0].time for f in found] == [Fraction(i, 25) for i in range(26)]
    numbers = [f.number for f in found]
    assert numbers[6:] == list(range(10, 30))
    assert done.finished.concealed in (0, 6)
    if done.finished.concealed:
        assert numbers[:6] == [10] * 6


@pytest.mark.parametrize("kind", ["h264.ts", "hevc.ts", "mpeg2.ts"])
def test_transport_stream_cut_anywhere(tmp_path: Path, kind: str) -> None:
    codec = {"h264": "libx264", "hevc": "libx265", "mpeg2": "mpeg2video"}[kind.split(".")[0]]
    options = {"libx264": {**B_FRAMES, "g": "10"}, "mpeg2video": {"g": "10", "bf": "2"},
               "libx265": {"preset": "ultrafast", "x265-params": "keyint=10:log-level=none:pools=1"}}[codec]  # fmt: skip
    whole = make(tmp_path / "whole.ts", frames=60, codec=codec, options=options, size=(96, 64))
    data = whole.read_bytes()
    packets = len(data) // 188
    cut = tmp_path / "in.ts"
    cut.write_bytes(data[188 * (packets // 4) : 188 * (packets - 5)])
    plain = decoded(cut)
    done = upscale(cut, tmp_path / "out.mkv")
    found = decoded(done.path)
    assert done.finished.frames == len(found) >= len(plain)
    good = [f.number for f in plain]
    assert [f.number for f in found][-len(good) + 3 :] == good[3:]
    shift = found[-1].time - plain[-1].time
    for a, b in zip(found[::-1], plain[::-1], strict=False):
        assert abs(a.time - b.time - shift) <= Fraction(1, 1000)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_cut_off_tail(tmp_path: Path, share: float) -> None:
    whole = make(tmp_path / "whole.mkv", frames=40, codec="ffv1", sounds=[Sound("pcm_s16le", seconds=1.6)])
    data = whole.read_bytes()
    cut = tmp_path / "in.mkv"
    cut.write_bytes(data[: int(len(data) * share)])
    done = upscale(cut, tmp_path / "out.mp4")
    found = decoded(done.path)
    assert 40 * share - 5 <= len(found) <= 40 * share + 5
    assert [f.number for f in found][:-1] == list(range(len(found) - 1))
    assert [f.time for f in found] == [Fraction(i, 25) for i in range(len(found))]


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".avi"])
def test_a_file_that_is_cut_short_is_told(tmp_path: Path, suffix: str) -> None:
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(suffix, "libx264")
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    whole = make(tmp_path / f"whole{suffix}", frames=50, codec=codec, picture=noise, muxer_options=options)
    cut = tmp_path / f"cut{suffix}"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 3 // 4])
    assert missing_bytes(whole) == 0 and missing_bytes(cut) == len(data) - len(data) * 3 // 4
    said = upscale(cut, tmp_path / "out.mkv").said
    assert f"it is cut short, {missing_bytes(cut)} bytes are missing at its end" in said
    assert "cut short" not in upscale(whole, tmp_path / "out2.mkv").said


def test_lengths_that_are_left_open_tell_nothing(tmp_path: Path) -> None:
    live = make(tmp_path / "live.mkv", frames=5, muxer_options={"live": "1"})
    odd = {"ten": bytes(10), "none": b"", "boxes": b"\0\0\0\x14ftyp" + bytes(12) + b"\0\0\0\0mdat" + bytes(9)}
    odd["small box"] = b"\0\0\0\x0cftyp" + bytes(4) + b"\0\0\0\x03mdat"
    odd["empty boxes"] = b"\0\0\0\x08free" * 1_000_001
    odd["piped avi"] = b"RIFF\xff\xff\xff\xffAVI LIST"
    odd["half a segment"] = live.read_bytes()[:7]
    for name, content in odd.items():
        (tmp_path / name).write_bytes(content)
        assert missing_bytes(tmp_path / name) == 0, name
    assert missing_bytes(live) == 0


def test_size_that_changes_in_the_stream(tmp_path: Path) -> None:
    a = make(tmp_path / "a.ts", frames=12, options={"g": "4"}, size=(64, 48))
    b = make(tmp_path / "b.ts", times=range(12, 24), options={"g": "4"}, size=(96, 80))
    joined = tmp_path / "in.ts"
    joined.write_bytes(a.read_bytes() + b.read_bytes())
    done = upscale(joined, tmp_path / "out.mp4")
    found = decoded(done.path)
    assert len(found) == 24
    assert {f.planes[0].shape for f in found} == {(96, 128)}
    assert [f.number for f in found] == list(range(12)) * 2
    assert "changes size" in done.said


# -------------------------------------------------------------------- bad input files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.mp4", b"this is not a film\n" * 50, "not media"),
        ("zero.mkv", b"", "empty"),
        ("junk.ts", bytes(range(256)) * 64, "not media|no video|no streams"),
        ("list.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "not media|refused"),
        ("play.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not media|refused"),
    ],
)  # fmt: skip
def test_files_that_are_no_films(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        upscale(source, tmp_path / "out.mp4")
    assert name in one_sentence(caught.value)
    assert not left_behind(tmp_path, name)


def test_sound_alone(tmp_path: Path) -> None:
    source = tmp_path / "sound.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4800), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(InputError, match=r"holds no video to upscale \(only audio\)"):
        upscale(source, tmp_path / "out.mp4")
    assert not left_behind(tmp_path, "sound.mp4")


def test_sound_with_a_cover(tmp_path: Path) -> None:
    source = tmp_path / "song.mp4"
    with av.open(str(source), "w") as output:
        sound, cover = output.add_stream("aac", rate=48000), output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4800), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, 0
        output.mux(sound.encode(frame))
        output.mux(cover.encode(av.VideoFrame(16, 16, "rgb24")))
        output.mux(sound.encode(None))
    with pytest.raises(InputError, match=r"holds no video to upscale \(only a cover picture, audio\)"):
        upscale(source, tmp_path / "out.mp4")


def test_window_with_nothing_in_it(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=10)
    with pytest.raises(InputError, match=r"nothing lies in the chosen part; the video lasts 0\.400 s"):
        upscale(source, tmp_path / "out.mp4", start="5")


# ------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder_preset": "nonsense"}, "--encoder-preset"),
        ({"codec": "libx265", "encoder_preset": "nonsense"}, "--encoder-preset"),
        ({"codec": "libsvtav1", "encoder_preset": "99"}, "--encoder-preset"),
        ({"codec": "libvpx-vp9", "encoder_preset": "nonsense"}, "--encoder-preset"),
        ({"codec": "ffv1", "encoder_preset": "fast"}, "no presets"),
        ({"encoder_option": ("nosuchthing=1",)}, "--encoder-option nosuchthing: libx264 has no such option"),
        ({"encoder_option": ("g=abc",)}, "--encoder-option"),
        ({"encoder_option": ("profile=baseline",), "pix_fmt": "yuv444p"}, "--encoder-option"),
        ({"codec": "nosuchcodec"}, "no such encoder; known are libx264"),
        ({"codec": "h264_nvenc"}, "h264_nvenc needs an NVIDIA GPU" if NO_GPU else "h264_nvenc"),
    ],
)  # fmt: skip
def test_encoder_settings_that_are_refused(
    tmp_path: Path, options: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "in.mp4", frames=3, size=(160, 160))
    with pytest.raises(UsageError, match=words) as caught:
        upscale(source, tmp_path / "out.mkv", **options)
    one_sentence(caught.value)
    assert caught.value.exit_code == 2
    assert not left_behind(tmp_path, "in.mp4")
    if "pix_fmt" not in options:  # libx264 tells a wrong profile by itself
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options", [{"scale": None, "height": 10}, {"scale": None, "size": "4000x3000"}])
def test_impossible_sizes(tmp_path: Path, options: dict[str, Any]) -> None:
    source = make(tmp_path / "in.mp4", frames=3)
    with pytest.raises(UsageError, match="use a size from 1 to 8 times"):
        upscale(source, tmp_path / "out.mp4", **options)
    assert not left_behind(tmp_path, "in.mp4")


# --------------------------------------------------------------- whole or not at all


def test_existing_output_stays_without_y_and_is_replaced_with_it(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=3)
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        upscale(source, output)
    assert output.read_bytes() == b"precious"
    upscale(source, output, overwrite=True)
    assert len(decoded(output)) == 3
    assert not left_behind(tmp_path, "in.mp4", "out.mp4")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    source = make(tmp_path / "in.mp4", frames=2)
    before = os.umask(mask)
    try:
        output = upscale(source, tmp_path / "out.mp4").path
    finally:
        os.umask(before)
    assert stat.S_IMODE(output.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [OutputError("no"), RuntimeError("defect"), MemoryError("much")])
def test_failure_in_the_sink_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, error: BaseException
) -> None:
    source = make(tmp_path / "in.mp4", frames=20, sounds=[Sound()])
    output = tmp_path / "out.mp4"
    if existing:
        output.write_bytes(b"precious")
    real = SegmentSink.write

    def write(self: SegmentSink, frame: Any) -> None:
        if frame.index == 7:
            raise error
        real(self, frame)

    monkeypatch.setattr(SegmentSink, "write", write)
    with pytest.raises(type(error)):
        upscale(source, output, overwrite=existing)
    assert not left_behind(tmp_path, "in.mp4", *(["out.mp4"] if existing else []))
    if existing:
        assert output.read_bytes() == b"precious"
    assert not [t for t in threading.enumerate() if t.name.startswith("rlfn-pipe")]


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=200, sounds=[Sound()])
    stop = threading.Event()

    def on_event(event: Event) -> None:
        if type(event).__name__ == "Started":
            stop.set()

    with pytest.raises(Interrupted):
        run(
            str(source),
            str(tmp_path / "out.mp4"),
            UpscaleOptions(scale=2, threads=1),
            on_event=on_event,
            stop=stop,
        )
    assert not left_behind(tmp_path, "in.mp4")


def test_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", frames=5)
    output = tmp_path / "out.mp4"

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            output.write_bytes(b"another's")

    with pytest.raises(OutputError, match="appeared while"):
        run(str(source), str(output), UpscaleOptions(scale=2, threads=1), on_event=on_event)
    assert output.read_bytes() == b"another's"
    assert not left_behind(tmp_path, "in.mp4", "out.mp4", work_path(output).name)


_CHILD = """
import resource, sys
sys.path.insert(0, {tests!r})
limit = {limit}
from pathlib import Path
import pytest, torch
torch.set_num_threads(1)
from conftest import use_nearest_engine
from media_maker import upscale
from rlfn_pipe.errors import RlfnPipeError
with pytest.MonkeyPatch.context() as patch:
    use_nearest_engine(patch)
    if limit:
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        upscale(Path(sys.argv[1]), Path(sys.argv[2]), **{options!r})
    except RlfnPipeError as error:
        print(type(error).__name__, error)
status = Path("/proc/self/status")  # ru_maxrss would begin with the parent's
lines = status.read_text().splitlines() if status.exists() else []
peak = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
print("peak", *peak or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
"""


def child(source: Path, output: Path, limit: int = 0, **options: Any) -> str:
    code = _CHILD.format(tests=str(TESTS), limit=limit, options=options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(output)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_disk_full(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", frames=30, codec="ffv1", picture=lambda i: noise(i))
    told = child(source, tmp_path / "out.mp4", limit=20_000)
    assert told.startswith("OutputError") and "writing failed" in told and "out.mp4" in told
    assert not left_behind(tmp_path, "in.mkv")


def test_disk_full_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    source = make(tmp_path / "in.mkv", frames=3, codec="ffv1")
    real = VideoSink._open
    monkeypatch.setattr(VideoSink, "_open", lambda self, path: real(self, Path("/dev/full")))
    with pytest.raises(OutputError, match=r"no space left.*free some space"):
        upscale(source, tmp_path / "out.mkv")
    assert not left_behind(tmp_path, "in.mkv", work_path(tmp_path / "out.mkv").name)


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = []
    for count in (60, 600):
        source = make(tmp_path / f"{count}.mkv", frames=count, size=(160, 120), codec="ffv1",
                      picture=lambda i: noise(i % 8, size=(160, 120)), sounds=[Sound("pcm_s16le", seconds=count / 25)])  # fmt: skip
        told = child(source, tmp_path / f"out{count}.mkv")
        peaks.append(int(told.split("peak ")[1]))
    # A frame of the longer clip is 115 KiB at the output: 540 of them would be 60 MiB.
    assert peaks[1] - peaks[0] < 20 * 1024, peaks


def test_limits_are_as_they_were() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_drive_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "in.mkv").write_bytes(b"something")
    with opening_module._File(tmp_path / "in.mkv") as file:
        other = os.open(tmp_path / "in.mkv", os.O_WRONLY)
        os.dup2(other, file.fileno())
        os.close(other)
        with pytest.raises(InputError, match=r"in\.mkv: cannot be read on \(bad file descriptor\)"):
            file.read(4)


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
@pytest.mark.parametrize("opening", [1, 2], ids="opening {}".format)
def test_a_drive_that_fails_for_a_moment_cuts_no_film_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, opening: int
) -> None:
    """Looking through, planning, decoding: each opens the file anew, and may be the one that meets it.

    `opening` counts those that come to the file's middle.
    """
    source = make(tmp_path / f"in{suffix}", frames=60, picture=noise, sounds=[Sound(seconds=2)])
    bad: int = source.stat().st_size // 2
    there: list[object] = []

    class Failing(opening_module._File):
        def read(self, size: int | None = -1) -> bytes:
            if Path(self.name) == source and self.tell() > bad and self not in there:
                there.append(self)
            if there[opening - 1 :] == [self]:
                raise InputError("the drive failed")
            return super().read(size)

    monkeypatch.setattr(opening_module, "_File", Failing)
    with pytest.raises(InputError, match="the drive failed"):
        upscale(source, tmp_path / "out.mkv")
    assert not (tmp_path / "out.mkv").exists()
