"""`-` as INPUT or OUTPUT: YUV4MPEG2 through real pipes of real processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_maker import Sound, flat, make
from PIL import Image

from rlfn_pipe.cli.text import human_bytes
from rlfn_pipe.jobs.pipe import _raw_format
from rlfn_pipe.resources import data_path
from rlfn_pipe.types import ColourInfo

BUNNY = Path(__file__).parent / "data" / "bunny.mp4"
QUICK = ["-s", "2", "--frames", "2", "--threads", "1"]


def command(*arguments: str, feed: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "rlfn_pipe", "upscale", *arguments],
        input=feed if feed is not None else b"",
        capture_output=True,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def raw() -> bytes:
    """Three frames of the clip as YUV4MPEG2."""
    out = io.BytesIO()
    with av.open(str(BUNNY)) as source, av.open(out, "w", format="yuv4mpegpipe") as sink:
        stream = sink.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index, frame in zip(range(3), source.decode(video=0), strict=False):
            frame.pts = index
            frame.time_base = Fraction(1, 25)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return out.getvalue()


def test_pipe_in_and_pipe_out_equal_files_in_and_out(raw: bytes, tmp_path: Path) -> None:
    piped = command("-", "-", *QUICK, feed=raw)
    assert piped.returncode == 0, piped.stderr
    with av.open(io.BytesIO(piped.stdout), format="yuv4mpegpipe") as result:
        frames = [frame.to_ndarray() for frame in result.decode(video=0)]
    # The same stream as a file: YUV4MPEG2 has no colour tags, so the clip itself would be read otherwise.
    (tmp_path / "in.y4m").write_bytes(raw)
    from_file = command(str(tmp_path / "in.y4m"), str(tmp_path / "out.mkv"), *QUICK, "--codec", "ffv1")
    assert from_file.returncode == 0, from_file.stderr
    with av.open(str(tmp_path / "out.mkv")) as result:
        expected = [frame.to_ndarray() for frame in result.decode(video=0)]
    assert len(frames) == len(expected) == 2
    assert all((a == b).all() for a, b in zip(frames, expected, strict=True))


def test_rgb_is_sent_as_yuv_when_asked_for(tmp_path: Path) -> None:
    """Halves of two colours, with alpha, which the stream does not hold."""
    colours = np.repeat(np.array([[224, 64, 85, 120], [30, 200, 90, 120]], np.uint8), 16, axis=0)
    picture = np.broadcast_to(colours[:, None], (32, 32, 4))
    with av.open(str(tmp_path / "in.mov"), "w") as output:
        stream = output.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgba"
        for pts in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgba")
            frame.pts = pts
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    refused = command(str(tmp_path / "in.mov"), "-", *QUICK)
    assert refused.returncode == 2 and b"give --pix-fmt yuv444p" in refused.stderr
    done = command(str(tmp_path / "in.mov"), "-", *QUICK, "--pix-fmt", "yuv444p")
    assert done.returncode == 0 and b"transparency was dropped" in done.stderr, done.stderr
    with av.open(io.BytesIO(done.stdout), format="yuv4mpegpipe") as result:
        planes = next(result.decode(video=0)).to_ndarray().astype(int)
    for row, (r, g, b) in ((10, (224, 64, 85)), (54, (30, 200, 90))):
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        wanted = (
            16 + luma * 219 / 255,
            128 + (b - luma) / 1.772 * 224 / 255,
            128 + (r - luma) / 1.402 * 224 / 255,
        )
        assert planes[:, row, 30] == pytest.approx(wanted, abs=2)


def header(path: Path, *arguments: str) -> str:
    done = command(str(path), "-", *QUICK, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition(b"\n")[0].decode()


def test_the_header_says_how_pixels_and_chroma_lie(tmp_path: Path) -> None:
    """And a reader of it sees the same as in the file."""
    clip = make(tmp_path / "in.mkv", ratio=Fraction(128, 117), colour=(1, 1, 1, 1), frames=2)
    words = header(clip).split()
    assert {"A128:117", "C420mpeg2", "XYSCSS=420MPEG2", "XCOLORRANGE=LIMITED"} < set(words)
    assert "A0:0" in header(make(tmp_path / "square.mkv", frames=2))
    assert "C422 XYSCSS=422" in header(clip, "--pix-fmt", "yuv422p")
    assert "Cmono10" in header(clip, "--pix-fmt", "gray10le")
    deep = command(str(clip), "-", *QUICK, "--pix-fmt", "yuv420p10le")
    assert human_bytes(len(deep.stdout)) in deep.stderr.decode()
    with av.open(io.BytesIO(deep.stdout), format="yuv4mpegpipe") as result:
        stream = result.streams.video[0]
        frames = list(result.decode(stream))
    assert stream.sample_aspect_ratio == Fraction(128, 117) and len(frames) == 2
    assert (frames[0].format.name, int(frames[0].color_range)) == ("yuv420p10le", 1)
    again = command("-", str(tmp_path / "out.mkv"), *QUICK, feed=deep.stdout)
    assert again.returncode == 0, again.stderr
    with av.open(str(tmp_path / "out.mkv")) as result:
        # Matroska has it in whole pixels of the display.
        assert float(result.streams.video[0].sample_aspect_ratio) == pytest.approx(128 / 117, abs=0.002)


def test_colours_are_those_that_a_reader_assumes(tmp_path: Path) -> None:
    """YUV4MPEG2 says no matrix: below 720 lines readers take BT.601, from there on BT.709."""
    y, u, v = 81, 90, 240  # red by BT.601
    red = flat((y, u, v), "yuv420p", (32, 400))
    clip = make(
        tmp_path / "in.mkv",
        frames=2, size=(32, 400), colour=(6, 6, 6, 1), codec="ffv1", picture=lambda i: red,
    )  # fmt: skip
    done = command(str(clip), "-", *QUICK)
    assert done.returncode == 0, done.stderr
    assert b"it became BT.709, which players assume at 800 lines" in done.stderr
    with av.open(io.BytesIO(done.stdout), format="yuv4mpegpipe") as result:
        planes = next(result.decode(video=0)).to_ndarray().astype(int)
    luma, chroma = planes[:800], planes[800:].reshape(2, 400, 32)
    assert (luma[400, 30], *chroma[:, 200, 16]) == pytest.approx((63, 102, 240), abs=3)


def test_what_the_stream_does_not_hold_is_named(tmp_path: Path) -> None:
    clip = make(
        tmp_path / "in.mkv",
        frames=2, pix_fmt="yuv420p10le", codec="ffv1", colour=(9, 16, 9, 1), sounds=[Sound("flac"), Sound("flac")],
        subtitles=[("subrip", 0.0, 1.0, "word")],
    )  # fmt: skip
    done = command(str(clip), "-", "--size", "256x96", "--frames", "2")
    assert done.returncode == 0, done.stderr
    for words in (
        b"cannot say the transfer PQ, the primaries BT.2020: tell the program that reads it",
        b"it became BT.601, which players assume at 96 lines",
        b"streams left out: 2 audio, 1 subtitle",
        b"2 times wider than it was",
    ):
        assert words in done.stderr
    quiet = command(str(clip), "-", *QUICK, "--audio", "none", "--subtitles", "none")
    assert b"left out" not in quiet.stderr


def test_a_stream_that_ends_inside_a_frame_is_told(raw: bytes, tmp_path: Path) -> None:
    for cut, told in ((0, False), (1, True), (320 * 180, True)):
        done = command("-", str(tmp_path / "out.mkv"), "-s", "2", "-y", feed=raw[: len(raw) - cut])
        assert done.returncode == 0, done.stderr
        assert (b"ends inside frame 2, which is left out" in done.stderr) == told, cut


def test_a_stream_that_ends_inside_a_frame_fails_when_asked_to(raw: bytes, tmp_path: Path) -> None:
    done = command("-", str(tmp_path / "out.mkv"), "-s", "2", "--on-error", "fail", feed=raw[:-1])
    assert done.returncode == 1 and b"--on-error conceal" in done.stderr
    assert b"Traceback" not in done.stderr and not list(tmp_path.iterdir())
    # What is not asked for may be missing.
    done = command("-", str(tmp_path / "out.mkv"), *QUICK, "--on-error", "fail", feed=raw[:-1])
    assert done.returncode == 0, done.stderr


def test_no_frame_more_than_asked_for_is_waited_for(raw: bytes, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "rlfn_pipe", "upscale", "-", str(tmp_path / "out.mkv"), "-q", *QUICK],
        stdin=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as upscale:
        assert upscale.stdin is not None
        upscale.stdin.write(raw[: -len(b"FRAME\n") - 320 * 180 * 3 // 2])
        upscale.stdin.flush()
        assert upscale.wait(timeout=60) == 0  # with the pipe still open
    with av.open(str(tmp_path / "out.mkv")) as result:
        assert len(list(result.decode(video=0))) == 2


def test_a_part_of_a_stream_that_has_none_is_one_sentence(raw: bytes, tmp_path: Path) -> None:
    done = command("-", str(tmp_path / "out.mkv"), "-s", "2", "--start", "1", feed=raw)
    assert done.returncode == 1 and b"nothing lies in the chosen part" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_pipe_into_a_file(raw: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = command("-", str(out), "-s", "2", "--threads", "1", feed=raw)
    assert done.returncode == 0, done.stderr
    with av.open(str(out)) as result:
        frames = list(result.decode(video=0))
    assert [(f.width, f.height, float(f.time)) for f in frames] == [(640, 360, i / 25) for i in range(3)]
    again = command("-", str(out), *QUICK, feed=raw)
    assert again.returncode == 1 and b"-y" in again.stderr


@pytest.mark.parametrize(
    "feed", [b"", b"no video at all\n" * 50, b"YUV4MPEG2 W64 H64 F25:1 Ip C420\nFRAME\n"]
)
def test_a_bad_stream_is_one_sentence(feed: bytes, tmp_path: Path) -> None:
    done = command("-", str(tmp_path / "out.mp4"), feed=feed)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"standard input" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_ends_quietly(raw: bytes) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "rlfn_pipe", "upscale", str(BUNNY), "-", "-q", "-s", "2", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as upscale:
        assert upscale.stdout is not None and upscale.stderr is not None
        assert upscale.stdout.read(64).startswith(b"YUV4MPEG2 W640 H360")
        upscale.stdout.close()
        errors = upscale.stderr.read()
        upscale.wait(timeout=120)
    assert errors.strip() == b""


def begun(*arguments: str, feed: bytes = b"", **how: Any) -> subprocess.Popen[bytes]:
    """The command, once it has said what it does; `feed` is all that comes of its source, which stays open."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlfn_pipe", "upscale", *arguments, "-s", "2", "--threads", "1"],
        stderr=subprocess.PIPE,
        pipesize=1 << 20,
        **how,
    )
    if feed:
        assert process.stdin is not None
        process.stdin.write(feed)
        process.stdin.flush()
    assert process.stderr is not None and b" -> " in process.stderr.readline()
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_for_a_silent_source(
    raw: bytes, tmp_path: Path, signum: signal.Signals
) -> None:
    with begun("-", str(tmp_path / "out.mkv"), feed=raw, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        time.sleep(0.5)  # what there is has been read by then
        process.send_signal(signum)
        assert process.wait(timeout=10) == 128 + signum
        said = process.stderr.read()
    assert said.count(b"\n") == 1 and b"stopped before the end" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_ends_the_wait_for_a_reader_that_stands_still(signals: int) -> None:
    with begun(str(BUNNY), "-", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1) == b"Y"
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        said = process.stderr.read()
    (ended,) = (line for line in said.splitlines() if not line.startswith(b"warning: "))
    assert b"stopped" in ended
    assert b"removed" not in said and b"same command" not in said


def test_a_sink_that_fails_does_not_wait_for_a_silent_source(raw: bytes) -> None:
    with begun("-", "-", feed=raw, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=10) == 1


def test_a_picture_is_not_sent_as_film(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in.png")
    for more in ([], ["--dry-run"]):
        done = command(str(tmp_path / "in.png"), "-", *more)
        assert done.returncode == 1 and b"is a picture, and OUTPUT - takes films only" in done.stderr


def test_json_and_raw_video_do_not_share_standard_output() -> None:
    done = command(str(BUNNY), "-", "--json", *QUICK)
    assert done.returncode == 2 and b"--json" in done.stderr


def plan_of(*arguments: str) -> dict[str, Any]:
    done = command(*arguments, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_dry_runs_of_pipes(tmp_path: Path) -> None:
    """Not a frame of a pipe is read, so that its plan says what is known without."""
    coming = plan_of("-", str(tmp_path / "out.mp4"), "-s", "2")
    assert (coming["source_size"], coming["scale"], coming["container"]) == (None, 2, "mp4")
    clip = make(tmp_path / "in.mkv", frames=3, sounds=[Sound("flac")])
    going = plan_of(str(clip), "-", "-s", "2")
    assert (going["output_size"], going["codec"], going["pix_fmt"]) == ([128, 96], "rawvideo", "yuv420p")
    assert going["frames"] == 3 and "1 audio" in " ".join(going["notes"])
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]
    text = command("-", str(tmp_path / "out.mp4"), "--size", "64x64", "--dry-run")
    assert text.returncode == 0 and b"64x64" in text.stdout, text.stderr


def test_a_pipe_into_a_file_that_is_there(raw: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"there")
    done = command("-", str(out), *QUICK, "--skip-existing", feed=raw)
    assert done.returncode == 0 and b"skipped, its output is there already" in done.stderr
    assert out.read_bytes() == b"there"
    assert plan_of("-", str(out), "--skip-existing")["items"] == 0
    refused = command("-", str(out), "--dry-run")
    assert refused.returncode == 1 and b"--skip-existing leaves what is there" in refused.stderr


def test_a_network_that_enlarges_less_is_told_of(raw: bytes, tmp_path: Path) -> None:
    """Through a pipe as between files."""
    weights = shutil.copy(data_path("weights") / "rlfn-s-x2.safetensors", tmp_path / "mine.safetensors")
    done = command("-", str(tmp_path / "out.mkv"), "-m", str(weights), "-s", "3", "--frames", "1", feed=raw)
    assert done.returncode == 0, done.stderr
    assert b"mine.safetensors enlarges 2 times" in done.stderr


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (("420", 8), "yuv420p"), (("440", 8), "yuv444p"), (("440", 10), "yuv444p10le"), (("422", 9), "yuv422p10le"),
        (("420", 9), "yuv420p10le"), (("444", 12), "yuv444p12le"), (("grey", 8), "gray"),
    ],
)  # fmt: skip
def test_the_least_format_that_holds_the_source_is_sent(layout: tuple[Any, int], expected: str) -> None:
    """A film in 4:2:2 that is turned upright is one in 4:4:0."""
    colour = ColourInfo(1, range=1, subsampling=layout[0], bit_depth=layout[1])
    assert _raw_format("auto", colour) == expected
