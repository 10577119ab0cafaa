"""What every source gives and every sink takes, whatever stands behind it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rlfn_pipe.errors import InputError, RlfnPipeError
from rlfn_pipe.media.encoders import plan_encoding
from rlfn_pipe.media.images import read_image, write_image
from rlfn_pipe.media.segment import SegmentSink
from rlfn_pipe.media.sink import SinkTimes, VideoSink
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.media.timing import Clock
from rlfn_pipe.media.verify import verify_video
from rlfn_pipe.media.y4m import PipeSink, PipeSource
from rlfn_pipe.types import ColourInfo, Frame

BUNNY = Path(__file__).parent / "data" / "bunny.mp4"
FRAMES = 6


def remuxed(suffix: str, folder: Path) -> Path:
    """The first frames of the clip as another kind of file."""
    path = folder / f"clip{suffix}"
    codec = {".y4m": "rawvideo", ".mkv": "ffv1", ".mp4": "mpeg4"}[suffix]
    with av.open(str(BUNNY)) as source, av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index, frame in zip(range(FRAMES), source.decode(video=0), strict=False):
            frame.pts, frame.time_base = index, Fraction(1, 25)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return path


@contextmanager
def video_file(path: Path) -> Iterator[Iterator[Frame]]:
    with VideoSource(path, threads=1) as source:
        yield iter(source)


@contextmanager
def pipe(path: Path) -> Iterator[Iterator[Frame]]:
    with path.open("rb") as file, PipeSource(file, threads=1) as source:
        yield iter(source)


@contextmanager
def image(path: Path) -> Iterator[Iterator[Frame]]:
    with VideoSource(path, threads=1) as source:
        frame = next(iter(source))
    grey = Frame(frame.planes[:1], ColourInfo(1, range=2, subsampling="grey"))
    target = path.with_suffix(".png")
    write_image(target, grey, read_meta(target, grey), format="png")
    yield iter([read_image(target)[0]])


def read_meta(path: Path, frame: Frame):  # type: ignore[no-untyped-def]
    import cv2

    cv2.imwrite(str(path), frame.planes[0])
    return read_image(path)[1]


SOURCES = {
    "mp4": (video_file, ".mp4"),
    "mkv": (video_file, ".mkv"),
    "y4m file": (video_file, ".y4m"),
    "y4m pipe": (pipe, ".y4m"),
    "image": (image, ".mkv"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_frames_as_the_engine_takes_them(name: str, tmp_path: Path) -> None:
    opened, suffix = SOURCES[name]
    with opened(remuxed(suffix, tmp_path)) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert len(frames) == (1 if name == "image" else FRAMES)
    times = [frame.pts * frame.time_base for frame in frames if frame.pts is not None and frame.time_base]
    assert times == ([] if name == "image" else [Fraction(i, 25) for i in range(FRAMES)])
    for frame in frames:
        colour = frame.colour
        assert colour == colour.resolved(frame.height), "matrix and range are settled"
        assert (frame.width, frame.height) == (320, 180)
        chroma = [] if colour.subsampling == "grey" else [(90, 160)] * 2
        assert [plane.shape for plane in frame.planes] == [(180, 320), *chroma]
        assert all(plane.dtype == np.uint8 for plane in frame.planes)
        assert not frame.concealed
    assert len({frame.planes[0].tobytes() for frame in frames}) == len(frames), "planes are not overwritten"


@pytest.mark.parametrize("opened", [video_file, pipe])
def test_every_source_refuses_rubbish_in_one_sentence(opened: Callable, tmp_path: Path) -> None:  # type: ignore[type-arg]
    rubbish = tmp_path / "rubbish.mp4"
    rubbish.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(InputError) as caught, opened(rubbish) as source:
        list(source)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------- sinks

LAYOUT = ColourInfo(1, range=1, subsampling="420")


def pictures() -> list[Frame]:
    noise = np.random.default_rng(0)
    sizes = [(48, 64), (24, 32), (24, 32)]
    return [
        Frame(
            tuple(noise.integers(40, 200, s, dtype=np.uint8) for s in sizes),
            LAYOUT,
            i,
            i * 40,
            Fraction(1, 1000),
        )
        for i in range(FRAMES)
    ]


def to_file(path: Path, frames: list[Frame]) -> None:
    plan = plan_encoding(path, tags=LAYOUT, resolved=LAYOUT, picture=(64, 48), codec="ffv1")
    times = SinkTimes(
        Fraction(1, 1000), Fraction(25), 40, Fraction(0), Clock(Fraction(1, 1000), True, 1000, 1000)
    )
    part = path.parent / "part.seg"
    segment = SegmentSink(part, plan, times.rate, name=path.name, threads=1)
    for frame in frames:
        segment.write(frame)
    segment.close()
    sink = VideoSink(path, plan, times, segment.pts, name=path.name, threads=1)
    sink.write_segment(part, 0)
    sink.close()
    assert sink.frames == segment.frames == len(frames)
    verify_video(path, path.name, sink.expectation())


def to_pipe(path: Path, frames: list[Frame]) -> None:
    out = io.BytesIO()
    sink = PipeSink(
        out, width=64, height=48, pix_fmt="yuv420p", rate=Fraction(25), tags=LAYOUT, sample_aspect_ratio=None
    )
    for frame in frames:
        sink.write([frame])
    sink.close()
    assert sink.frames == len(frames)
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize(("write", "suffix"), [(to_file, ".mkv"), (to_file, ".mp4"), (to_pipe, ".y4m")])
def test_every_sink_writes_what_it_gets(write: Callable, suffix: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    path, given = tmp_path / f"out{suffix}", pictures()
    write(path, given)
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
    assert [round(frame.time * 1000) for frame in found] == [frame.pts for frame in given]
    for frame, expected in zip(found, given, strict=True):
        for plane, samples in zip(frame.planes, expected.planes, strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width]
            assert np.array_equal(rows, samples)


def test_a_sink_that_cannot_write_says_so(tmp_path: Path) -> None:
    with pytest.raises(RlfnPipeError) as caught:
        to_file(tmp_path / "no folder" / "out.mkv", pictures())
    assert "out.mkv" in str(caught.value) and "\n" not in str(caught.value)
