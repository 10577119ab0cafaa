"""Files that claim more than they hold: refused before anything is allocated; and memory over long jobs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from media_maker import Clip, Sound, make
from PIL import Image

from rlfn_pipe.errors import TrainingError, WeightsError
from rlfn_pipe.models import registry, weights
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.training import checkpoint

TESTS = Path(__file__).parent
MIB = 1 << 20

#: Opens each file as a job would and tells what was said and how much memory that took at most.
MEASURE = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from rlfn_pipe.errors import RlfnPipeError
from rlfn_pipe.media.images import read_image
from rlfn_pipe.media.probe import probe
from rlfn_pipe.media.source import VideoSource
from rlfn_pipe.models import weights
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def video(path):
    probe(path)
    with VideoSource(path, threads=1) as source:
        for number, frame in enumerate(source):
            if number > 50: break
def warm():
    for each in sys.argv[3:5]:
        (read_image if each.endswith("png") else video)(Path(each))
warm()
kinds = {"image": lambda path: read_image(path), "video": video, "weights": lambda path: weights.load(path)}
for name in sys.argv[5:]:
    before = peak()
    try:
        kinds[sys.argv[2]](Path(name))
        said = ""
    except RlfnPipeError as error:
        said = str(error)
    print(json.dumps([Path(name).name, said, peak() - before]), flush=True)
"""


def measured(kind: str, folder: Path, files: dict[str, bytes]) -> dict[str, tuple[str, int]]:
    """What was said of each file, and the memory in bytes that it took at most."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    Image.new("RGB", (40, 30)).save(folder / "warm.png")
    make(folder / "warm.mkv", frames=3)
    # Below every format's own largest size, so that it is our bound that is seen at work.
    bound = {"RLFN_PIPE_MAX_PIXELS": str(10**8)}
    environment = {**os.environ, **bound, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(TESTS), kind, str(folder / "warm.png"), str(folder / "warm.mkv"),
         *(str(folder / name) for name in files)],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (said, grown) for name, said, grown in map(json.loads, done.stdout.splitlines())}


# ---------------------------------------------------------------- pictures


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(extra)
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def zeros(count: int) -> bytes:
    """`count` zero bytes, deflated."""
    packer = zlib.compressobj(9)
    block = bytes(MIB)
    return b"".join(packer.compress(block) for _ in range(count // MIB)) + packer.flush()


def tiff(width: int, height: int, **tags: tuple[int, int, int]) -> bytes:
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
    }
    entries |= {277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, 100)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    body = struct.pack("<H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        body += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + body + bytes(4)


def avif_with_size(avif: bytes, width: int, height: int) -> bytes:
    at = avif.index(b"ispe") + 8
    return avif[:at] + struct.pack(">II", width, height) + avif[at + 8 :]


def picture(folder: Path, name: str, **more: Any) -> bytes:
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(folder / name, **more)
    return (folder / name).read_bytes()


def test_pictures_that_claim_too_much_are_refused_before_they_are_made(tmp_path: Path) -> None:
    jpeg = picture(tmp_path, "a.jpg")
    start = jpeg.index(b"\xff\xc0") + 5
    lossy, lossless = picture(tmp_path, "a.webp"), picture(tmp_path, "b.webp", lossless=True)
    canvas = (
        b"VP8X"
        + struct.pack("<IB3x", 10, 2)
        + (16_382).to_bytes(3, "little")
        + (2**24 - 1).to_bytes(3, "little")
    )
    bmp = picture(tmp_path, "a.bmp")
    files = {
        "huge.png": png(60_000, 60_000),
        "tall.png": png(1, 2**31 - 1),
        "deep.png": png(20_000, 20_000, depth=16, colour=6),
        "bits.png": png(2**30, 2**30, depth=1, colour=0),
        "zero.png": png(0, 10),
        "huge.jpg": jpeg[:start] + struct.pack(">HH", 65_500, 65_500) + jpeg[start + 4 :],
        "huge.webp": lossy[:12] + canvas + lossy[12:],
        "vp8l.webp": lossless[:21] + b"\xff\xff\xff\x0f" + lossless[25:],
        "huge.bmp": bmp[:18] + struct.pack("<ii", 100_000, -100_000) + bmp[26:],
        "most.bmp": bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:],
        "huge.tif": tiff(60_000, 60_000),
        "most.tif": tiff(2**32 - 1, 2**32 - 1),
        "samples.tif": tiff(4000, 4000, t277=(3, 1, 65_535)),
        "count.tif": tiff(40, 30, t258=(3, 2**32 - 1, 8)),
        "strips.tif": tiff(40, 30, t273=(4, 2**31, 8), t279=(4, 2**31, 8)),
        "text.tif": tiff(40, 30, t270=(2, 2**32 - 1, 8)),
        "huge.avif": avif_with_size(picture(tmp_path, "a.avif"), 60_000, 60_000),
        "most.avif": avif_with_size(picture(tmp_path, "a.avif"), 2**32 - 1, 2**32 - 1),
    }
    readable = {"count.tif", "text.tif"}  # a tag that leads nowhere is left aside
    for name, (said, grown) in measured("image", tmp_path / "bombs", files).items():
        assert said or name in readable, name
        assert "\n" not in said and len(said) < 400, (name, said)
        assert grown < 40 * MIB, (name, said, grown)


def test_metadata_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    packed = zeros(256 * MIB)
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x010E, 2, 2**32 - 1, 26) + bytes(4)
    whole = picture(tmp_path, "a.png")
    split = whole.index(b"IDAT") - 4

    def with_chunk(kind: bytes, body: bytes) -> bytes:
        return whole[:split] + chunk(kind, body) + whole[split:]

    jpeg = picture(tmp_path, "a.jpg")
    segment = b"Exif\0\0" + exif
    files = {
        "iccp.png": with_chunk(b"iCCP", b"x\0\0" + packed),
        "ztxt.png": with_chunk(b"zTXt", b"x\0\0" + packed),
        "itxt.png": with_chunk(b"iTXt", b"x\0\1\0\0\0" + packed),
        "exif.png": with_chunk(b"eXIf", exif),
        "many.png": whole[:split] + 3000 * chunk(b"zTXt", b"x\0\0" + zeros(MIB)) + whole[split:],
        "frames.png": with_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        "exif.jpg": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:],
    }
    for name, (said, grown) in measured("image", tmp_path / "bombs", files).items():
        assert grown < 150 * MIB, (name, said, grown)
        assert not said or "\n" not in said


# ---------------------------------------------------------------- videos


def replaced(data: bytes, *pairs: tuple[bytes, bytes]) -> bytes:
    for old, new in pairs:
        assert old in data and len(old) == len(new)
        data = data.replace(old, new)
    return data


def test_videos_that_claim_too_much_are_refused_or_bounded(tmp_path: Path) -> None:
    y4m = b"YUV4MPEG2 W%d H%d F%s Ip A1:1 C420jpeg\n"
    small = 3 * (b"FRAME\n" + bytes(64 * 48 * 3 // 2))
    mp4 = make(tmp_path / "a.mp4", frames=5, sounds=[Sound()]).read_bytes()
    mkv = make(
        tmp_path / "a.mkv", Clip(frames=5, codec="ffv1", sounds=[Sound("pcm_s16le", seconds=0.2)])
    ).read_bytes()
    jpegs = make(tmp_path / "a.avi", Clip(frames=3, codec="mjpeg", pix_fmt="yuvj420p")).read_bytes()
    at = jpegs.index(b"\xff\xc0\x00\x11\x08") + 5
    gif = tmp_path / "a.gif"
    Image.new("P", (64, 48), 3).save(
        gif, save_all=True, append_images=[Image.new("P", (64, 48), 5)], duration=40
    )
    visual = mp4.index(b"avc1", mp4.index(b"stsd"))
    sound = mp4.index(b"mp4a", mp4.index(b"stsd", mp4.index(b"soun")))
    table = mp4.index(b"stsz") + 12
    stts = mp4.index(b"stts") + 8
    header = mp4.index(b"mvhd") + 12 + 8
    files = {
        "huge.y4m": y4m % (100_000, 100_000, b"25:1") + small,
        "wide.y4m": y4m % (20_000, 20_000, b"25:1") + small,
        "fast.y4m": y4m % (64, 48, b"1000000000:1") + small,
        "slow.y4m": y4m % (64, 48, b"1:1000000000") + small,
        "never.y4m": y4m % (64, 48, b"0:0") + small,
        "jpeg.avi": jpegs[:at] + struct.pack(">HH", 65_500, 65_500) + jpegs[at + 4 :],
        "avih.avi": replaced(jpegs, (struct.pack("<II", 64, 48), struct.pack("<II", 2**31 - 1, 2**31 - 1))),
        "size.gif": gif.read_bytes()[:6] + struct.pack("<HH", 65_535, 65_535) + gif.read_bytes()[10:],
        "entry.mp4": mp4[: visual + 28] + struct.pack(">HH", 65_535, 65_535) + mp4[visual + 32 :],
        "channels.mp4": mp4[: sound + 20] + struct.pack(">HH", 65_535, 65_535) + mp4[sound + 24 :],
        "rate.mp4": mp4[: sound + 28] + struct.pack(">I", 2**32 - 1) + mp4[sound + 32 :],
        "samples.mp4": mp4[:table] + struct.pack(">II", 0, 2**32 - 1) + mp4[table + 8 :],
        "equal.mp4": mp4[:table] + struct.pack(">II", 1, 2**32 - 1) + mp4[table + 8 :],
        "times.mp4": mp4[:stts] + struct.pack(">III", 1, 2**32 - 1, 2**32 - 1) + mp4[stts + 12 :],
        "scale.mp4": mp4[:header] + struct.pack(">II", 1, 2**32 - 1) + mp4[header + 8 :],
        "size.mkv": replaced(mkv, (b"\xb0\x81\x40\xba\x81\x30", b"\xb0\x84\x7f\xff\xff\xff")),
        "rate.mkv": replaced(mkv, (struct.pack(">d", 48_000.0), struct.pack(">d", 1e300))),
        "scale.mkv": replaced(mkv, (b"\x2a\xd7\xb1\x83\x0f\x42\x40", b"\x2a\xd7\xb1\x83\xff\xff\xff")),
    }
    for name, (said, grown) in measured("video", tmp_path / "bombs", files).items():
        assert "\n" not in said and "internal" not in said, (name, said)
        assert grown < 150 * MIB, (name, said, grown)


def test_thousands_of_streams_and_endless_nesting_end(tmp_path: Path) -> None:
    """Transport streams can name a stream a table entry, mp4 a track a box, Matroska a level a few bytes."""
    mp4 = make(tmp_path / "a.mp4", frames=2).read_bytes()
    at = mp4.index(b"trak") - 4
    (length,) = struct.unpack_from(">I", mp4, at)
    moov = mp4.index(b"moov") - 4
    (size,) = struct.unpack_from(">I", mp4, moov)
    extra = mp4[at : at + length] * 2000
    tracks = mp4[:moov] + struct.pack(">I", size + len(extra)) + mp4[moov + 4 : at] + extra + mp4[at:]
    nested = b"".join(struct.pack(">I4s", 8 * (2000 - level), b"moov") for level in range(2000))
    mkv = make(tmp_path / "a.mkv", frames=2).read_bytes()
    cluster = mkv.index(b"\x1f\x43\xb6\x75")
    groups = b"\x1f\x43\xb6\x75\x01\xff\xff\xff\xff\xff\xff\xff" * 5000
    files = {
        "tracks.mp4": tracks,
        "nested.mp4": mp4[: mp4.index(b"ftyp") - 4 + struct.unpack_from(">I", mp4, 0)[0]] + nested,
        "clusters.mkv": mkv[:cluster] + groups + mkv[cluster:],
    }
    for name, (said, grown) in measured("video", tmp_path / "bombs", files).items():
        assert "\n" not in said and grown < 400 * MIB, (name, said, grown)


# ---------------------------------------------------------------- weights and checkpoints


class Hostile:
    """Unpickling this makes a folder: proof that code ran."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.trace,)


def pickle_target(files: dict[str, bytes]) -> str:
    """The folder that the code in `files` would make."""
    text = files["pickle.pth"]
    start = text.index(b"/")
    return text[start : text.index(b"/ran") + 4].decode()


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hostile_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files by name; any of them that runs code makes the folder `ran` (`pickle_target`)."""
    folder = tmp_path_factory.mktemp("made")
    trace = folder / "ran"
    code = pickle.dumps(Hostile(trace))
    state = RLFN(architecture("rlfn-ntire", 2)).state_dict()
    torch.save(state, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    with zipfile.ZipFile(folder / "whole.pth") as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    data = next(name for name in entries if name.endswith("data.pkl"))
    torch.save({**state, "conv_1.weight": Hostile(trace)}, folder / "mixed.pth")
    wide = {
        key: torch.zeros(1).expand(*(10**6 if side == 46 else side for side in value.shape))
        for key, value in state.items()
    }
    torch.save(wide, folder / "wide.pth")
    many = {f"block_{number}.c1_r.weight": torch.zeros(1) for number in range(1, 200)}
    torch.save({**state, **many}, folder / "blocks.pth")
    torch.save({**state, f"block_{'9' * 5000}.x": torch.zeros(1)}, folder / "digits.pth")
    torch.save({**state, "conv_2.bias": state["conv_2.bias"].to_sparse()}, folder / "sparse.pth")
    torch.save({**state, "conv_2.bias": state["conv_2.bias"].to("meta")}, folder / "meta.pth")
    torch.save({**state, "conv_2.bias": state["conv_2.bias"].to(torch.complex64)}, folder / "complex.pth")
    torch.save({"spec": torch.zeros(5), "params": state, 3: 4}, folder / "odd.pth")
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    made = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    return {
        **{name: content for name, content in made.items() if name not in ("whole.pth", "odd.pth")},
        "pickle.pth": code,
        "pickle.pt": code,
        "pickle.bin.pth": code,
        "pickle.safetensors": code,
        "legacy.pth": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001) + pickle.dumps({}) + code,
        "in_zip.pth": archive({**entries, data: code}),
        "in_zip.safetensors": archive({**entries, data: code}),
        "deflated.pth": archive({**entries, data.replace("data.pkl", "data/0"): bytes(150 * MIB)}, zipfile.ZIP_DEFLATED),
        "two_ends.pth": whole + archive({**entries, data: code}),
        "length.safetensors": struct.pack("<Q", 2**63) + b"{}",
        "most.safetensors": struct.pack("<Q", 2**64 - 1) + b"{}",
        "header.safetensors": struct.pack("<Q", 90 * MIB) + b'{"a":[' + b"[" * 1000,
        "shape.safetensors": struct.pack("<Q", len(header)) + header + bytes(8),
        "nested.safetensors": struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995,
    }  # fmt: skip


def test_weights_run_no_code_and_allocate_no_more_than_they_hold(
    tmp_path: Path, hostile_weights: dict[str, bytes]
) -> None:
    for name, (said, grown) in measured("weights", tmp_path / "bombs", hostile_weights).items():
        assert said and "\n" not in said and len(said) < 600, (name, said)
        assert grown < 100 * MIB, (name, said, grown)
    assert not Path(pickle_target(hostile_weights)).exists()


def test_checkpoints_run_no_code_and_must_be_whole(tmp_path: Path, hostile_weights: dict[str, bytes]) -> None:
    """What `--resume` of the training reads."""
    files = dict(hostile_weights)
    state = RLFN(architecture("rlfn-ntire", 2)).state_dict()
    fields = {"format": 1, "recipe_name": "r", "recipe": "", "model": state, "architecture": {}}
    odd: dict[str, Callable[[], Any]] = {
        "step.pt": lambda: {**fields, "step": "1"},
        "model.pt": lambda: {**fields, "model": [1]},
        "tensors.pt": lambda: {**fields, "model": {"a": 1}},
        "recipe.pt": lambda: {**fields, "recipe": 5},
        "lacking.pt": lambda: {"format": 1, "recipe_name": "r"},
    }
    for name, content in odd.items():
        torch.save(content(), tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
    for name, data in files.items():
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(TrainingError) as caught:
            checkpoint.load(tmp_path / "x.pt")
        assert "\n" not in str(caught.value), name
    assert not Path(pickle_target(hostile_weights)).exists()
    checkpoint.save(
        tmp_path / "good.pt", checkpoint.State(**{k: v for k, v in fields.items() if k != "format"})
    )
    assert checkpoint.load(tmp_path / "good.pt").recipe_name == "r"


def test_a_name_inside_weights_cannot_lead_elsewhere(tmp_path: Path) -> None:
    """The name ends up in file names (`evaluate --save`) and on the terminal."""
    spec = architecture("rlfn-ntire", 2)
    for name in ("../../evil", "/evil", "a\x1b[31m", "", "x" * 200, "."):
        weights.save(tmp_path / "a.safetensors", RLFN(spec), spec, {"name": name})
        assert weights.load(tmp_path / "a.safetensors")[0].name == "rlfn-ntire"


INDEX = """
[[weights]]
name = "a"
network = "rlfn"
scale = 4
file = "a.safetensors"
sha256 = "{digest}"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"a.safetensors"', '"../a.safetensors"'), ('"a.safetensors"', '"/etc/passwd"'), ('"a.safetensors"', "3"),
        ("4", '"4"'), ("4", "5"), ("4", "[4]"), ("4", "true"), ('"rlfn"', '"other"'), ('name = "a"', "name = 7"), ("[[weights]]", "[weights]"),
        ("scale", "input_range = 3.5\nscale"), ("scale", "psnr = 3\nscale"), ("scale", "psnr = {a = 'b'}\nscale"),
        ("scale", "parameters = 'many'\nscale"), ("scale", "licence = 3\nscale"), ("{digest}", "abc"), ("4", "9" * 9000),
        ("4", "[" * 9000),
    ],
)  # fmt: skip
def test_an_index_with_odd_entries_is_one_sentence(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "index.toml").write_text(INDEX.replace("{digest}", "a" * 64))
    assert registry.models(tmp_path)[0].path == tmp_path / "a.safetensors"
    os.utime(tmp_path / "index.toml", ns=(1, 1))
    (tmp_path / "index.toml").write_text(INDEX.replace(old, new).replace("{digest}", "a" * 64))
    with pytest.raises(WeightsError, match="index is damaged"):
        registry.models(tmp_path)


# ---------------------------------------------------------------- memory over a long job


LONG = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import pytest, torch
torch.set_num_threads(1)
from conftest import use_nearest_engine
use_nearest_engine(pytest.MonkeyPatch())
from rlfn_pipe.jobs.run import run
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Finished, Progress
page = os.sysconf("SC_PAGESIZE")
def resident():
    with open("/proc/self/statm") as file: return int(file.read().split()[1]) * page
seen = []
def on_event(event):
    if isinstance(event, Progress): seen.append((event.frames_done, resident()))
options = UpscaleOptions(scale=1, threads=1, **json.loads(sys.argv[4]))
run(sys.argv[2], sys.argv[3], options, on_event=on_event)
print(json.dumps(seen))
"""


def resident_over(tmp_path: Path, source: Path, output: Path, **options: Any) -> list[tuple[int, int]]:
    """(frames done, resident bytes of the process) over a job in a process of its own."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(TESTS), str(source), str(output), json.dumps(options)],
        capture_output=True, text=True, timeout=900, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [(frames, size) for frames, size in json.loads(done.stdout)]


def growth(seen: list[tuple[int, int]], begin: int, end: int) -> float:
    """Growth of the highest resident size from the frames before `begin` to those up to `end`, as a share."""
    early = max(size for frames, size in seen if begin // 2 <= frames <= begin)
    late = max(size for frames, size in seen if begin < frames <= end)
    return late / early - 1


@pytest.mark.slow
def test_memory_does_not_grow_over_six_thousand_frames(tmp_path: Path) -> None:
    source = make(
        tmp_path / "in.mkv",
        frames=6_000,
        options={"g": "50"},
        sounds=[Sound("flac", seconds=240.0, rate=8000)],
    )
    seen = resident_over(tmp_path, source, tmp_path / "out.mkv", encoder_preset="ultrafast")
    assert seen[-1][0] > 5_900 and growth(seen, 1_500, 6_000) < 0.02, seen[:: max(1, len(seen) // 20)]


@pytest.mark.slow
def test_memory_does_not_grow_over_fifteen_hundred_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.linear_gradient("L").convert("RGB").resize((64, 48)).save(folder / "0000.png")
    data = (folder / "0000.png").read_bytes()
    for number in range(1, 1_500):
        (folder / f"{number:04}.png").write_bytes(data)
    seen = resident_over(tmp_path, folder, tmp_path / "out")
    assert seen[-1][0] == 1_500 and growth(seen, 500, 1_500) < 0.02, seen[:: max(1, len(seen) // 20)]
