"""`--hwaccel`: NVIDIA's decoder and frames that stay in a GPU's memory, as far as a machine without one can tell.

The driver is a stand-in (`fake_driver.c`), loaded by a process of its own; libav, PyAV and the project are real.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
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
from rlfn_pipe.errors import UsageError
from rlfn_pipe.jobs import task
from rlfn_pipe.jobs.hardware import Road, road_for
from rlfn_pipe.media.encoders import plan_encoding
from rlfn_pipe.media.hardware import Hardware, Surfaces
from rlfn_pipe.media.segment import SegmentSink, read_header, read_packets
from rlfn_pipe.options import UpscaleOptions
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
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("road", ["host", "stays", "filtered"])
def test_a_gpu_decodes_what_software_does(tmp_path: Path, road: str, codec: str) -> None:
    found = ask(tmp_path, f"{road} {codec}")
    for part in ("whole", "later"):
        assert found[part] == {"same": True, "arrays": road != "stays", "notes": []}
    assert found["decoded"] >= 38 and found["missed"] == 0


@driver
def test_software_decodes_what_a_gpu_does_not(tmp_path: Path) -> None:
    found = ask(tmp_path, "refused libx264")
    assert found["whole"]["same"] and found["later"]["same"] and found["decoded"] == 0
    assert found["whole"]["notes"] == [
        "--hwaccel cuda is not followed, the video is decoded in software: the GPU does not take this h264"
    ]


@driver
@pytest.mark.parametrize("depth", DEPTHS)
def test_pictures_for_a_gpus_encoder(tmp_path: Path, depth: int) -> None:
    """Two of them: the second one has the context of the first."""
    found = ask(tmp_path, f"surfaces {depth}")
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
        assert found[road] == {"pts": True, "same": True, "headers": found["planes"]["headers"]}
    assert found["planes"]["headers"]


@driver
def test_the_command_by_a_gpus_decoder(tmp_path: Path) -> None:
    """Through a worker, in two segments, which begin within the film."""
    film = media_maker.make(
        tmp_path / "in.mp4", frames=30, size=(192, 160), options={**media_maker.B_FRAMES, "g": "12"},
        picture=lambda i: media_maker.noise(i, "yuv420p", (192, 160)),
    )  # fmt: skip
    environment = fake_driver.environment(tmp_path, film, "nv12")
    said = {}
    for name, more in (("plain", []), ("gpu", ["--hwaccel", "cuda"])):
        command = [sys.executable, "-m", "rlfn_pipe", "upscale", str(film), str(tmp_path / f"{name}.mkv")]
        command += ["-s", "2", "--codec", "ffv1", "--segment", "0.6", "--no-reuse", *more]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        said[name] = [line for line in run.stderr.splitlines() if line.startswith(("warning", "note"))]
    assert (tmp_path / "plain.mkv").read_bytes() == (tmp_path / "gpu.mkv").read_bytes()
    assert said["plain"] == said["gpu"] and not any("hwaccel" in line for line in said["gpu"])


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


def test_an_encoder_that_refuses_its_first_surface_says_so(tmp_path: Path) -> None:
    plan = plan_encoding(
        tmp_path / "out.mp4", tags=LAYOUT, resolved=LAYOUT, picture=SIZE, codec="libx264",
        encoder_options=(("profile", "baseless"),),
    )  # fmt: skip
    sink = SegmentSink(
        tmp_path / "segment", plan, Fraction(25), name="film", threads=1, surfaces=Surfaces(None)
    )
    (frame,) = frames_of(8, 1)
    with pytest.raises(UsageError, match="film: libx264 does not accept these settings"):
        sink.write(replace(frame, planes=tuple(Host().surface(frame.planes, 8).tensors())))
    sink.abort()


def test_a_film_by_surfaces_is_the_same_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nearest_engine: None
) -> None:
    source = media_maker.make(tmp_path / "in.mp4", frames=12)
    plain = media_maker.upscale(source, tmp_path / "plain.mp4")
    roads = []

    def by_surfaces(*arguments: Any) -> Road:
        road = road_for(*arguments)
        roads.append(road)
        return replace(road, target=replace(road.target, surface=True), surfaces=Surfaces(None))

    monkeypatch.setattr(task, "road_for", by_surfaces)
    other = media_maker.upscale(source, tmp_path / "surfaces.mp4")
    assert plain.path.read_bytes() == other.path.read_bytes()
    assert len(roads) == 1 and roads[0].hardware is roads[0].surfaces is None


def test_without_a_gpu_it_is_said_and_done_without(tmp_path: Path, nearest_engine: None) -> None:
    if Hardware().why_not(stays=False) is None:
        pytest.skip("there is a GPU")
    source = media_maker.make(tmp_path / "in.mp4")
    plain = media_maker.upscale(source, tmp_path / "plain.mp4")
    other = media_maker.upscale(source, tmp_path / "other.mp4", hwaccel="cuda")
    assert plain.path.read_bytes() == other.path.read_bytes()
    (said,) = other.warned
    assert said.startswith("--hwaccel cuda is not followed, the video is decoded in software: ")


def test_what_no_gpu_decodes_here_is_named(tmp_path: Path, nearest_engine: None) -> None:
    source = media_maker.make(tmp_path / "in.mkv", codec="libx264", pix_fmt="yuv444p")
    other = media_maker.upscale(source, tmp_path / "other.mkv", hwaccel="cuda")
    assert other.warned == [
        "--hwaccel cuda is not followed, the video is decoded in software: "
        "a GPU decodes yuv420p and yuv420p10le here, not yuv444p"
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
    options: dict[str, Any],
    device: str,
    codec: str,
    decoded: bool,
    stays: bool,
    surface: bool,
) -> None:
    from rlfn_pipe.media.source import VideoSource

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
