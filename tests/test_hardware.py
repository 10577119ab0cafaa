"""`--hwaccel`: NVIDIA's decoder and frames that stay in a GPU's memory, as far as a machine without one can tell.

The driver is a stand-in (`fake_driver.c`), loaded by a process of its own; libav, PyAV and the project are real.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import fake_driver
import media_maker
import numpy as np
import pytest
import torch
from nearest import nearest_factory, nearest_spec

from rlfn_pipe.engine.host import Host
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.engine.tensors import Tensors
from rlfn_pipe.errors import HardwareFailed, UsageError
from rlfn_pipe.jobs import hardware as roads
from rlfn_pipe.jobs import task
from rlfn_pipe.jobs.hardware import Road, road_for
from rlfn_pipe.media.encoders import plan_encoding
from rlfn_pipe.media.hardware import Hardware, Surfaces, why_not
from rlfn_pipe.media.segment import SegmentSink, read_header, read_packets
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.pipeline import surfaces as surfaces_module
from rlfn_pipe.pipeline.surfaces import planes_of
from rlfn_pipe.types import MATRIX_BT709, RANGE_LIMITED, ColourInfo, Frame, Target

CHILD = Path(__file__).with_name("hardware_child.py")
LAYOUT = ColourInfo(MATRIX_BT709, 1, 1, RANGE_LIMITED)
DEPTHS = {8: "yuv420p", 10: "yuv420p10le"}
SIZE = (240, 160)

driver = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None or not fake_driver.libraries(),
    reason="the stand-in for the driver needs Linux, a C compiler and PyAV's wheel",
)


def ask(folder: Path, check: str) -> dict[str, Any]:
    """What `hardware_child.py` finds."""
    run = subprocess.run(
        [sys.executable, str(CHILD), str(folder), check], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["without"] and found["with"] is None
    return found


def frames_of(depth: int, count: int = 5) -> list[Frame]:
    colour = replace(LAYOUT, bit_depth=depth)
    return [Frame(media_maker.noise(i, DEPTHS[depth], SIZE), colour, i, i) for i in range(count)]


# ------------------------------------------------------------------ with libav and a driver


@driver
def test_contexts(tmp_path: Path) -> None:
    """What stays is decoded in PyTorch's context, all else in one that waits for nobody."""
    found = ask(tmp_path, "contexts")
    assert found["primary"] == "OSError", "libav takes PyTorch's context by this name now"
    assert (found["stays"], found["host"]) == (0, 1)


@driver
@pytest.mark.parametrize(
    ("codec", "kind"),
    [("libx264", "plain"), ("libx265", "plain"), ("libx264", "short"), ("libx264", "filtered")],
)
@pytest.mark.parametrize("road", ["host", "stays"])
def test_a_gpu_decodes_what_software_does(tmp_path: Path, road: str, codec: str, kind: str) -> None:
    """Also what ends within a macroblock. What is filtered comes to the host."""
    found = ask(tmp_path, f"{road} {kind} {codec}")
    kept = road == "stays" and kind != "filtered"
    for part in ("whole", "later"):
        assert found[part] == {"same": True, "arrays": not kept, "notes": []}
    assert found["decoded"] >= 38 and found["missed"] == 0


@driver
def test_a_gpus_decoder_has_pictures_enough_on_many_cores(tmp_path: Path) -> None:
    """It has 32 at most, and libav asks for some for each thread, beside the stream's own."""
    found = ask(tmp_path, "host references libx264")
    assert found["whole"]["same"] and found["later"]["same"]


@driver
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("refused", "the GPU does not take this h264"),
        ("cropped", "the GPU gives 176x144 instead of 176x128"),
        ("failing", "its decoder failed (generic error in an external library)"),
    ],
)
def test_what_a_gpu_does_otherwise_is_told(tmp_path: Path, kind: str, reason: str) -> None:
    """Libav does not cut off what a stream hides on the left; and a GPU that is gone harms no packet."""
    found = ask(tmp_path, f"stays {kind} libx264")
    for part in ("whole", "later"):
        said = f"--hwaccel cuda is not followed, the video is decoded in software: {reason}"
        assert found[part] == said or (kind == "failing" and part == "later" and found[part]["same"])


@driver
@pytest.mark.parametrize(("depth", "device"), [(8, 0), (10, 0), (8, 1)])
def test_pictures_for_a_gpus_encoder(tmp_path: Path, depth: int, device: int) -> None:
    found = ask(tmp_path, f"surfaces {depth} {device}")
    pitch = 512 if depth == 8 else 768
    assert found["pictures"] == [{"format": "cuda", "same": True, "rows": [pitch, pitch]}] * 2
    assert found["formats"] == ["cuda", {8: "nv12", 10: "p010le"}[depth]]


@driver
@pytest.mark.parametrize(("codec", "pix_fmt"), [("h264_nvenc", "yuv420p"), ("hevc_nvenc", "p010le")])
def test_a_gpus_encoder_sees_the_samples(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    """From surfaces as from the host; more pictures than an encoder holds at once."""
    found = ask(tmp_path, f"encoded {codec}")
    assert found["pix_fmt"] == pix_fmt
    for road in ("surfaces", "planes"):
        assert found[road].pop("headers").endswith(b"of its own".hex())
        assert found[road] == {"pts": True, "same": True}


@driver
@pytest.mark.parametrize("lasts", [None, 20])
def test_the_command_by_a_gpus_decoder(tmp_path: Path, lasts: int | None) -> None:
    """Through a worker, in two segments, which begin within the film; and one that fails in the second."""
    film = media_maker.make(
        tmp_path / "in.mp4", frames=30, size=(192, 160), options={**media_maker.B_FRAMES, "g": "12"},
        picture=lambda i: media_maker.noise(i, "yuv420p", (192, 160)),
    )  # fmt: skip
    environment = fake_driver.environment(tmp_path, film, "nv12")
    if lasts is not None:
        environment["FAKE_DRIVER_LASTS"] = str(lasts)
    said = {}
    for name, more in (("plain", []), ("gpu", ["--hwaccel", "cuda"])):
        command = [sys.executable, "-m", "rlfn_pipe", "upscale", str(film), str(tmp_path / f"{name}.mkv")]
        command += ["-s", "2", "--codec", "ffv1", "--segment", "0.6", "--no-reuse", *more]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        said[name] = [line for line in run.stderr.splitlines() if "hwaccel" in line]
    assert (tmp_path / "plain.mkv").read_bytes() == (tmp_path / "gpu.mkv").read_bytes()
    assert said["plain"] == [] and len(said["gpu"]) == (lasts is not None)
    assert all("in software: its decoder failed" in line for line in said["gpu"])


# -------------------------------------------------------------------------- without


@pytest.mark.parametrize("depth", DEPTHS)
def test_surfaces_and_back(depth: int) -> None:
    planes = frames_of(depth)[0].planes
    bits = [torch.from_numpy(plane.view(np.int16) if depth > 8 else plane) for plane in planes]
    there = Host().surface(planes, depth).tensors()
    tensors = Tensors(torch.device("cpu")).surface(bits, depth).tensors()
    for one, other in zip(there, tensors, strict=True):
        assert np.array_equal(one, other.numpy()) and one.dtype == other.numpy().dtype
        assert one.strides == tuple(step * other.element_size() for step in other.stride())
    luma, chroma = there
    assert luma.strides[0] % 256 == 0
    # NVENC is told where a picture begins and how far apart its rows are, no more.
    assert chroma.ctypes.data == luma.ctypes.data + SIZE[1] * luma.strides[0]
    back = planes_of([luma, chroma.reshape(chroma.shape[0], -1, 2)], depth)
    assert fake_driver.same(back, planes)
    assert all(plane.flags.c_contiguous for plane in map(np.asarray, back))


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_engine_takes_planes_that_are_there_and_leaves_its_own(depth: int) -> None:
    """Tensors in, a surface out: the samples of the road by the host."""
    colour = replace(LAYOUT, bit_depth=depth)
    engine = Engine(
        nearest_factory(2), nearest_spec(2), device="cpu", precision="fp32", threads=1, reuse="off"
    )
    frames, size = frames_of(depth), (2 * SIZE[0], 2 * SIZE[1])
    there = [replace(frame, planes=tuple(map(torch.from_numpy, _bits(frame)))) for frame in frames]
    expected = list(engine.run((frame, Target(*size, colour)) for frame in frames))
    found = list(engine.run((frame, Target(*size, colour, surface=True)) for frame in there))
    assert [frame.pts for frame in found] == [frame.pts for frame in expected]
    for one, other in zip(found, expected, strict=True):
        luma, chroma = (np.asarray(plane) for plane in one.planes)
        back = planes_of([luma, chroma.reshape(chroma.shape[0], -1, 2)], depth)
        assert fake_driver.same(back, other.planes)


def _bits(frame: Frame) -> list[np.ndarray]:
    return [plane.view(np.int16) if plane.dtype == np.uint16 else plane.copy() for plane in frame.planes]


def test_an_encoder_is_opened_by_its_first_surface(tmp_path: Path) -> None:
    plan = plan_encoding(tmp_path / "out.mp4", tags=LAYOUT, resolved=LAYOUT, picture=SIZE, codec="libx264")
    written = {}
    for name, surfaces in (("planes", None), ("surfaces", Surfaces(None))):
        path = tmp_path / name
        sink = SegmentSink(path, plan, Fraction(25), name="film", threads=1, surfaces=surfaces)
        for frame in frames_of(8):
            planes = frame.planes if surfaces is None else Host().surface(frame.planes, 8).tensors()
            sink.write(replace(frame, planes=tuple(planes)))
        sink.close()
        written[name] = [(p.pts, bytes(p)) for p in read_packets(path, "film")], read_header(path, "film")
    assert written["planes"] == written["surfaces"] and len(written["planes"][0]) == 5


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("profile", "baseless"), "film: libx264 does not accept these settings"),
        (("nonsense", "1"), "--encoder-option nonsense: libx264 has no such option"),
    ],
)
def test_an_encoder_that_refuses_its_first_surface_says_so(
    tmp_path: Path, option: tuple[str, str], said: str
) -> None:
    plan = plan_encoding(
        tmp_path / "out.mp4", tags=LAYOUT, resolved=LAYOUT, picture=SIZE, codec="libx264",
        encoder_options=dict([option]),
    )  # fmt: skip
    sink = SegmentSink(
        tmp_path / "segment", plan, Fraction(25), name="film", threads=1, surfaces=Surfaces(None)
    )
    (frame,) = frames_of(8, 1)
    with pytest.raises(UsageError, match=said):
        sink.write(replace(frame, planes=tuple(Host().surface(frame.planes, 8).tensors())))
    sink.abort()


def test_a_film_by_surfaces_is_the_same_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nearest_engine: None
) -> None:
    source = media_maker.make(tmp_path / "in.mp4", frames=12)
    plain = media_maker.upscale(source, tmp_path / "plain.mp4")
    taken = []

    def by_surfaces(*arguments: Any) -> Road:
        road = road_for(*arguments)
        taken.append(road)
        return replace(road, target=replace(road.target, surface=True), surfaces=Surfaces(None))

    monkeypatch.setattr(task, "road_for", by_surfaces)
    other = media_maker.upscale(source, tmp_path / "surfaces.mp4")
    assert plain.path.read_bytes() == other.path.read_bytes()
    assert len(taken) == 1 and taken[0].hardware is taken[0].surfaces is None


def test_without_a_gpu_it_is_said_and_done_without(tmp_path: Path, nearest_engine: None) -> None:
    if why_not(0) is None:
        pytest.skip("there is a GPU")
    source = media_maker.make(tmp_path / "in.mp4")
    plain = media_maker.upscale(source, tmp_path / "plain.mp4")
    other = media_maker.upscale(source, tmp_path / "other.mp4", hwaccel="cuda")
    assert plain.path.read_bytes() == other.path.read_bytes()
    (said,) = other.warned
    assert said.startswith("--hwaccel cuda is not followed, the video is decoded in software: ")
    assert said.endswith(str(why_not(0)))


@pytest.mark.parametrize(
    ("clip", "more", "reason"),
    [
        ({"pix_fmt": "yuv444p"}, {}, "not h264 in yuv444p"),
        ({"codec": "mpeg4"}, {}, "not mpeg4 in yuv420p"),
        (
            {},
            {"on_error": "fail"},
            "a GPU does not tell of harmed pictures, which --on-error fail is to find",
        ),
    ],
)
def test_what_is_not_for_a_gpu_is_named(
    tmp_path: Path, nearest_engine: None, clip: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    source = media_maker.make(tmp_path / "in.mkv", **clip)
    (said,) = media_maker.upscale(source, tmp_path / "other.mkv", hwaccel="cuda", **more).warned
    assert said.startswith("--hwaccel cuda is not followed, the video is decoded in software: ")
    assert said.endswith(reason)


@pytest.mark.parametrize("fails", [1, 2])
def test_memory_for_planes_is_looked_for_twice(monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    surface = Host().surface(frames_of(8, 1)[0].planes, 8).tensors()
    surface[1] = surface[1].reshape(surface[1].shape[0], -1, 2)
    real, calls = surfaces_module._apart, []

    def short_of_memory(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) <= fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(surfaces_module, "_apart", short_of_memory)
    if fails == 1:
        assert fake_driver.same(planes_of(surface, 8), frames_of(8, 1)[0].planes)
    else:
        with pytest.raises(HardwareFailed, match="cpu has no memory left for its pictures"):
            planes_of(surface, 8)


def test_a_segment_is_made_again_in_software(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nearest_engine: None
) -> None:
    """Whatever the GPU's decoder does, and wherever."""
    source = media_maker.make(tmp_path / "in.mp4", frames=12)
    plain = media_maker.upscale(source, tmp_path / "plain.mp4")

    class Failing(VideoSource):
        def __iter__(self) -> Iterator[Frame]:
            yield from islice(super().__iter__(), 5)
            raise HardwareFailed("it has had enough")

    def once(*arguments: Any, hardware: Any, **named: Any) -> VideoSource:
        kind = VideoSource if hardware is None else Failing
        return kind(*arguments, **named)

    monkeypatch.setattr(task, "VideoSource", once)
    monkeypatch.setattr(task, "road_for", lambda *given: replace(road_for(*given), hardware=Hardware()))
    other = media_maker.upscale(source, tmp_path / "other.mp4")
    assert plain.path.read_bytes() == other.path.read_bytes()
    assert other.warned == [
        "--hwaccel cuda is not followed, the video is decoded in software: it has had enough"
    ]


# ----------------------------------------------------------------- what goes which way


class _Gpu:
    """All that `road_for` asks of an engine."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


@pytest.mark.parametrize(
    ("options", "device", "codec", "decoded", "stays", "surface"),
    [
        ({}, "cuda:0", "h264_nvenc", False, False, False),
        ({"hwaccel": "cuda"}, "cpu", "libx264", True, False, False),
        ({"hwaccel": "cuda"}, "cuda:1", "libx264", True, False, False),
        ({"hwaccel": "cuda", "reuse": "off"}, "cuda:1", "libx264", True, True, False),
        ({"hwaccel": "cuda"}, "cuda:1", "hevc_nvenc", True, False, True),
        ({"hwaccel": "cuda", "reuse": "off"}, "cuda:1", "hevc_nvenc", True, True, True),
    ],
)
def test_roads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    device: str,
    codec: str,
    decoded: bool,
    stays: bool,
    surface: bool,
) -> None:
    monkeypatch.setattr(roads, "why_not", lambda device: None)
    with VideoSource(media_maker.make(tmp_path / "in.mp4")) as source:
        part = source.part(source.first, source.last)
    plan = plan_encoding(tmp_path / "out.mp4", tags=LAYOUT, resolved=LAYOUT, picture=SIZE, codec=codec)
    engine: Any = _Gpu(device)
    road = road_for(UpscaleOptions(**options), engine, part, plan, Target(*SIZE, LAYOUT))
    assert (road.hardware is not None, road.surfaces is not None, road.target.surface) == (
        decoded,
        surface,
        surface,
    )
    if road.hardware is not None:
        assert road.hardware.device == (engine.device.index or 0)
        assert (road.hardware.planes is planes_of) == stays
    odd = road_for(UpscaleOptions(**options), engine, part, plan, Target(SIZE[0] - 1, SIZE[1], LAYOUT))
    assert odd.surfaces is None and not odd.target.surface
