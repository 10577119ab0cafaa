"""Damaged videos, pictures and weights through the command, in a child process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from media_maker import B_FRAMES, Clip, Sound, make, turned
from PIL import Image

from fuzz.finds import Finds
from fuzz.mutate import damaged, steps
from fuzz.runner import Ran, Runner
from rlfn_pipe.media.signatures import IMAGE_EXTENSIONS

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
#: Real files above this many bytes take too long for the number of tries.
LARGEST_REAL = 400_000

many = settings(
    max_examples=40,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def clips(folder: Path) -> list[Path]:
    """A small clip of each container and codec, and real ones where there are any."""
    folder.mkdir(exist_ok=True)
    sound = [Sound(seconds=0.3)]
    made = [
        make(folder / "a.mp4", Clip(frames=12, options=B_FRAMES, sounds=sound)),
        make(folder / "b.mov", Clip(frames=6, codec="mjpeg", pix_fmt="yuvj420p", matrix=turned(90, 64, 48))),
        make(folder / "c.mkv", Clip(frames=12, sounds=[Sound("flac", seconds=0.3)], attachment=("f.ttf", "font/ttf", b"x" * 50), chapters=[(0, 0.2, "one")], subtitles=[("subrip", 0.0, 0.2, "hi")])),
        make(folder / "d.webm", Clip(frames=6, codec="libvpx-vp9", sounds=[Sound("libopus", seconds=0.3, rate=48000)])),
        make(folder / "e.ts", Clip(frames=12, codec="mpeg2video", options={"g": "4", "bf": "2"}, sounds=[Sound("mp2", seconds=0.3)])),
        make(folder / "f.avi", Clip(frames=6, codec="mpeg4", sounds=[Sound("mp3", seconds=0.3)])),
        make(folder / "g.mkv", Clip(frames=6, codec="ffv1", pix_fmt="yuv422p10le")),
        make(folder / "h.nut", Clip(frames=6, codec="ffv1")),
        make(folder / "i.mkv", Clip(frames=8, codec="libx265", size=(64, 64), options={"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"})),
        make(folder / "j.mp4", Clip(frames=6, codec="libsvtav1", size=(64, 64), options={"preset": "12"})),
    ]  # fmt: skip
    y4m = folder / "k.y4m"
    y4m.write_bytes(b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n" + 3 * (b"FRAME\n" + bytes(range(256)) * 18))
    gif = folder / "l.gif"
    frames = [Image.linear_gradient("L").rotate(90 * i).resize((48, 40)) for i in range(3)]
    frames[0].save(gif, save_all=True, append_images=frames[1:], duration=40)
    real = sorted(SHARED.glob("clips/*/*")) if SHARED.is_dir() else []
    return [
        *made,
        y4m,
        gif,
        *(path for path in real if path.is_file() and 0 < path.stat().st_size < LARGEST_REAL),
    ]


def pictures(folder: Path) -> list[Path]:
    """A small picture of each format and layout, and real ones where there are any."""
    folder.mkdir(exist_ok=True)
    base = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * i) for i in range(3)]).resize((40, 30))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    made: list[Path] = []

    def save(name: str, picture: Image.Image, **more: object) -> None:
        picture.save(folder / name, **more)
        made.append(folder / name)

    for suffix in ("png", "jpg", "webp", "tif", "avif"):
        save(f"a.{suffix}", base, exif=exif, icc_profile=_profile())
    save("b.bmp", base)
    save("c.png", base.convert("P"), transparency=3)
    save("d.png", Image.linear_gradient("L").convert("I;16").resize((40, 30)))
    save("e.png", base.convert("RGBA"), save_all=True, append_images=[base.convert("RGBA").rotate(90)])
    save(
        "f.webp",
        base.convert("RGBA"),
        save_all=True,
        append_images=[base.convert("RGBA").rotate(90)],
        lossless=True,
    )
    save("g.jpg", base.convert("CMYK"), progressive=True)
    save("h.tif", base, compression="tiff_lzw", tiffinfo={274: 5})
    save("i.tif", base.convert("1"), compression="group4")
    save("j.tif", base.convert("LAB"), compression="packbits")
    import cv2
    import numpy as np

    deep = (np.arange(40 * 30 * 3).reshape(30, 40, 3) * 17).astype(np.uint16)
    for suffix, parameters in (("png", []), ("tif", []), ("avif", [cv2.IMWRITE_AVIF_DEPTH, 10])):
        picture = deep >> 6 if parameters else deep
        if cv2.imwrite(str(folder / f"k.{suffix}"), picture, parameters):
            made.append(folder / f"k.{suffix}")
    real = sorted(SHARED.glob("images/*/*")) if SHARED.is_dir() else []
    return [
        *made,
        *(
            p
            for p in real
            if p.is_file() and p.parent.name != "bombs" and 0 < p.stat().st_size < LARGEST_REAL
        ),
    ]


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def judged(ran: Ran, folder: Path, output: Path, before: set[str]) -> str:
    """What is wrong with a run of `upscale`; "" for nothing."""
    if ran.fault:
        return ran.fault
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - before
    extra = left - {output.name}
    if extra and not all(name.split("/")[0].startswith(f".{output.name}") for name in extra):
        return f"left behind: {sorted(extra)}"
    if (ran.code == 0) != output.exists():
        return f"exit code {ran.code} and the output {'is' if output.exists() else 'is not'} there\n{ran.err}"
    return f"{_fault_of(output)}\n{ran.err}" if ran.code == 0 and _fault_of(output) else ""


def _fault_of(output: Path) -> str:
    """Why an output cannot be read as what it should be; "" for nothing."""
    try:
        if output.suffix in IMAGE_EXTENSIONS:
            with Image.open(output) as picture:
                picture.load()
            return ""
        # A transport stream of a frame or two is too short to be told from its content.
        with av.open(str(output), format="mpegts" if output.suffix == ".ts" else None) as made:
            return "" if any(True for _ in made.decode(video=0)) else "the output holds no frame"
    except (OSError, ValueError, SyntaxError) as error:
        return f"the output does not read: {error}"


def try_file(
    runner: Runner, finds: Finds, data: bytes, suffix: str, targets: list[str], options: list[str]
) -> None:
    """One damaged file through `probe` and `upscale`."""
    folder = runner.folder / "try"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    source = folder / f"in{suffix}"
    source.write_bytes(data)
    finds.tried += 1
    ran = runner.run("probe", str(source), "--json")
    if ran.fault:
        finds.add(ran.fault, data, suffix)
    for target in targets:
        before = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        ran = runner.run("upscale", str(source), str(folder / target), "-y", "--threads", "1", *options)
        fault = judged(ran, folder, folder / target, before)
        if fault:
            finds.add(fault, data, suffix)


def test_damaged_videos(runner: Runner, finds: Finds, going: Callable[[], bool], tmp_path: Path) -> None:
    sources = clips(tmp_path / "clips")
    targets = st.sampled_from(["out.mkv", "out.mp4", "out.avi", "out.webm", "out.ts", "out.mov"])
    options = st.sampled_from([[], [], ["--on-error", "fail"], ["--sample", "0.1"], ["--deinterlace", "on"], ["--rotate", "bake"]])  # fmt: skip

    @many
    @given(st.sampled_from(sources), steps, targets, options)
    def attempt(source: Path, wanted: list, target: str, option: list[str]) -> None:
        if going():
            data = damaged(source.read_bytes(), wanted)
            more = ["--scale", "1", "--frames", "30", *option]
            if option[:1] == ["--sample"]:
                more = ["--scale", "1", *option]
            if target.endswith(".webm"):
                more += ["--encoder-option", "cpu-used=8"]
            try_file(runner, finds, data, source.suffix, [target], more)

    while going():
        attempt()


def test_damaged_pictures(runner: Runner, finds: Finds, going: Callable[[], bool], tmp_path: Path) -> None:
    sources = pictures(tmp_path / "pictures")

    @many
    @given(st.sampled_from(sources), steps, st.sampled_from(["png", "jpg", "webp", "tiff", "bmp", "avif"]))
    def attempt(source: Path, wanted: list, target: str) -> None:
        if going():
            try_file(
                runner,
                finds,
                damaged(source.read_bytes(), wanted),
                source.suffix,
                [f"out.{target}"],
                ["-s", "2"],
            )

    while going():
        attempt()


def test_damaged_weights(runner: Runner, finds: Finds, going: Callable[[], bool], tmp_path: Path) -> None:
    import torch

    from rlfn_pipe.models import weights
    from rlfn_pipe.models.architectures import architecture
    from rlfn_pipe.models.rlfn import RLFN
    from rlfn_pipe.training import checkpoint

    spec = architecture("rlfn-ntire", 2)
    state = RLFN(spec).state_dict()
    weights.save(tmp_path / "a.safetensors", RLFN(spec), spec)
    torch.save(state, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    small = {key: value[:1] for key, value in state.items()}
    torch.save(small, tmp_path / "d.pth")
    checkpoint.save(tmp_path / "e.pt", checkpoint.State(state, {"name": "rlfn-ntire"}, "", "r"))
    files = sorted(path for path in tmp_path.iterdir() if path.is_file())

    @many
    @given(st.sampled_from(files), steps, st.sampled_from(["verify", "import"]))
    def attempt(source: Path, wanted: list, command: str) -> None:
        if not going():
            return
        data = damaged(source.read_bytes(), wanted)
        folder = runner.folder / "try"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / source.name).write_bytes(data)
        finds.tried += 1
        more = [str(folder / "out.safetensors")] if command == "import" else []
        ran = runner.run("weights", command, str(folder / source.name), *more)
        names = {path.name for path in folder.iterdir()} - {source.name}
        if ran.fault:
            finds.add(ran.fault, data, source.suffix)
        elif names != ({"out.safetensors"} if command == "import" and ran.code == 0 else set()):
            finds.add(f"exit code {ran.code} and {names}\n{ran.err}", data, source.suffix)

    while going():
        attempt()
