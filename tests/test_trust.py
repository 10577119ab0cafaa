"""Input that means harm: nothing is opened, run, written or shown but what the person asked for."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
from canary import CAN_WATCH, Server, Watch, serve
from media_maker import Sound, make

from rlfn_pipe.cli.app import main
from rlfn_pipe.errors import UsageError
from rlfn_pipe.files import TEMPORARY_SUFFIX, atomic_path, write_atomically
from rlfn_pipe.jobs.temporary import finished_by_rename
from rlfn_pipe.options import UpscaleOptions, option_infos
from rlfn_pipe.presets import load_preset, resolve

pytestmark = pytest.mark.usefixtures("nearest_engine")
TESTS = Path(__file__).parent


def one_sentence(text: str) -> bool:
    """Whether what a failed command said is a single line of the usual form."""
    lines = [line for line in text.splitlines() if not line.startswith(("failed:", "warning:"))]
    return len(lines) == 1 and "internal error" not in text and "Traceback" not in text


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real video that no input below may bring the program to open."""
    folder = tmp_path_factory.mktemp("canary")
    return make(folder / "canary.mp4", frames=5, sounds=[Sound()])


@pytest.fixture
def watch(canary: Path) -> Iterator[Watch]:
    if not CAN_WATCH:
        pytest.skip("opens are watched on Linux only")
    watched = Watch(canary)
    yield watched
    watched.close()


# ---------------------------------------------------------------- other files, other hosts


def playlist(file: str, url: str) -> bytes:
    return (
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:10\n"
        f'#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXT-X-MAP:URI="{url}"\n'
        f"#EXTINF:10,\n{file}\n#EXTINF:10,\nfile://{file}\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n"
    ).encode()


def manifest(file: str, url: str) -> bytes:
    return (
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        "mediaPresentationDuration='PT5S' profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'><Period>"
        "<AdaptationSet><Representation id='1' bandwidth='1' mimeType='video/mp4' codecs='avc1'>"
        f"<BaseURL>{url}</BaseURL><SegmentBase/></Representation></AdaptationSet></Period></MPD>"
    ).encode()


def concatenation(file: str, url: str) -> bytes:
    return (
        f"ffconcat version 1.0\nfile '{file}'\nfile {url}\nfile subfile:,,start,0,end,0,,:{file}\n".encode()
    )


def session(file: str, url: str) -> bytes:
    port = url.split(":")[2].split("/")[0]
    return (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {port} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:{url}\r\n"
    ).encode()


def smooth_streaming(file: str, url: str) -> bytes:
    return f"<SmoothStreamingMedia MajorVersion='2'><StreamIndex Type='video' Url='{url}'/></SmoothStreamingMedia>".encode()


def redirector(file: str, url: str) -> bytes:
    return f"[Reference]\r\nRef1={url}\r\nRef2=file://{file}\r\n".encode()


def asx(file: str, url: str) -> bytes:
    return f"<ASX version='3.0'><Entry><Ref href='{url}'/><Ref href='file://{file}'/></Entry></ASX>".encode()


def drawing(file: str, url: str) -> bytes:
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' width='64' height='64'>"
        f"<image xlink:href='{url}' width='64' height='64'/><image href='file://{file}'/></svg>"
    ).encode()


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def reference_movie(file: str, url: str) -> bytes:
    """QuickTime's movie that is only the address of another one."""
    entry = box(
        b"rmda", box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(url) + 1), url.encode(), b"\0")
    )
    return box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + box(b"moov", box(b"rmra", entry))


def with_data_reference(movie: bytes, kind: bytes, address: bytes) -> bytes:
    """An mp4 or mov (index at its end) whose samples are said to lie in another file."""
    data = bytearray(movie)
    at = data.index(b"dref") - 4
    (length,) = struct.unpack_from(">I", data, at)
    entry = box(kind, bytes(4), address)
    new = box(b"dref", bytes(4), struct.pack(">I", 1), entry)
    data[at : at + length] = new
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = data.index(parent) - 4
        (size,) = struct.unpack_from(">I", data, place)
        struct.pack_into(">I", data, place, size + len(new) - length)
    return bytes(data)


def alias(file: str) -> bytes:
    """A Macintosh alias record (version 2) with an absolute path."""
    record = bytearray(150)
    struct.pack_into(">HH", record, 4, 0, 2)
    path = file.encode()
    padding = bytes(len(path) % 2)
    record += struct.pack(">hH", 2, len(path)) + path + padding
    record += struct.pack(">hH", 18, len(path)) + path + padding + struct.pack(">hH", -1, 0)
    struct.pack_into(">H", record, 4, len(record))
    return bytes(record)


@pytest.fixture(scope="module")
def plain_movie(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plain")
    return {suffix: make(folder / f"a{suffix}", frames=3).read_bytes() for suffix in (".mov", ".mkv")}


def with_linked_segment(matroska: bytes, name: str) -> bytes:
    """Matroska's name of the file that follows, in the place of the muxer's own name."""
    at = matroska.index(b"\x57\x41\x8d")
    element = b"\x3e\x83\xbb\x8c" + name.encode().ljust(12, b"\0")
    assert len(element) == 16
    return matroska[:at] + element + matroska[at + 16 :]


PLAYLISTS: list[tuple[str, Callable[[str, str], bytes]]] = [
    *(
        (name, playlist)
        for name in ("a.m3u8", "a.m3u", "a.mp4", "a.ts", "a.mkv", "a.avi", "a.ass", "a.png", "a")
    ),
    *((name, manifest) for name in ("a.mpd", "a.mp4", "a.webm")),
    *((name, concatenation) for name in ("a.ffconcat", "a.txt", "a.mkv", "a.srt")),
    *((name, session) for name in ("a.sdp", "a.mp4")),
    *((name, smooth_streaming) for name in ("a.ism", "a.mp4")),
    *((name, redirector) for name in ("a.asf", "a.wmv")),
    *((name, asx) for name in ("a.asx", "a.wmv")),
    *((name, drawing) for name in ("a.svg", "a.png", "a.tiff", "a.webp")),
    ("a.mov", reference_movie),
    ("a.mp4", reference_movie),
]


@pytest.mark.parametrize(("name", "content"), PLAYLISTS, ids=lambda value: getattr(value, "__name__", value))
def test_playlists_in_any_disguise_reach_nothing(
    name: str,
    content: Callable[[str, str], bytes],
    tmp_path: Path,
    canary: Path,
    watch: Watch,
    server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / name
    source.write_bytes(content(str(canary), server.url))
    output = tmp_path / ("out.png" if source.suffix in (".png", ".tiff", ".webp") else "out.mkv")
    if main(["probe", str(source)]):  # a movie without tracks can be told of
        assert one_sentence(capsys.readouterr().err)
    assert main(["upscale", str(source), str(output)]) == 1
    assert one_sentence(capsys.readouterr().err)
    assert watch.touched() == [] and server.requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_the_canaries_notice(tmp_path: Path, canary: Path, watch: Watch, server: Server) -> None:
    """The same playlist, opened as libav does by itself, reaches both."""
    source = tmp_path / "a.m3u8"
    source.write_bytes(playlist(str(canary), server.url))
    options = {
        "allowed_extensions": "ALL",
        "extension_picky": "0",
        "protocol_whitelist": "file,http,tcp,crypto",
    }
    try:
        with av.open(str(source), options=options) as container:
            list(container.demux())
    except av.FFmpegError:
        pass
    assert server.requests
    with av.open(str(canary)):
        assert watch.touched()


@pytest.mark.parametrize("kind", ["url", "url relative", "file url", "alias", "matroska"])
def test_data_kept_in_another_file_is_not_fetched(
    kind: str,
    tmp_path: Path,
    canary: Path,
    watch: Watch,
    server: Server,
    plain_movie: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever comes of such a file, it is made of the file itself and of nothing else."""
    movie, address = plain_movie[".mov"], str(canary)
    (tmp_path / "near.mp4").symlink_to(canary)
    content = {
        "url": lambda: with_data_reference(movie, b"url ", server.url.encode() + b"\0"),
        "url relative": lambda: with_data_reference(movie, b"url ", b"near.mp4\0"),
        "file url": lambda: with_data_reference(movie, b"url ", f"file://{address}\0".encode()),
        "alias": lambda: with_data_reference(movie, b"alis", alias(address)),
        "matroska": lambda: with_linked_segment(plain_movie[".mkv"], "near.mp4"),
    }[kind]()
    source = tmp_path / ("in.mkv" if kind == "matroska" else "in.mov")
    source.write_bytes(content)
    code = main(["upscale", str(source), str(tmp_path / "out.mkv"), "-s", "2"])
    said = capsys.readouterr().err
    assert watch.touched() == [] and server.requests == []
    if code:
        assert one_sentence(said) and not (tmp_path / "out.mkv").exists()
    else:
        with av.open(str(tmp_path / "out.mkv")) as made:
            assert sum(1 for _ in made.decode(video=0)) == 3


@pytest.mark.parametrize(
    "address",
    [
        "concat:{file}|{file}", "subfile:,,start,0,end,0,,:{file}", "file:{file}", "file://{file}", "{url}",
        "async:{url}", "cache:{url}", "crypto:{file}", "data:video/mp4;base64,AAAA", "pipe:0", "fd:0", "tee:{file}",
        "concatf:{file}", "tcp://127.0.0.1:{port}", "udp://127.0.0.1:{port}", "rtmp://127.0.0.1:{port}/x.mp4",
        "unix:{file}", "image2:%03d.png", "lavfi:color", "hls+{url}",
    ],
)  # fmt: skip
def test_names_are_names_and_no_addresses(
    address: str,
    tmp_path: Path,
    canary: Path,
    watch: Watch,
    server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = address.format(file=canary, url=server.url, port=server.port)
    for command in (["probe", text], ["upscale", text, str(tmp_path / "out.mkv")]):
        assert main(command) == 1
        assert "does not exist" in capsys.readouterr().err
    assert watch.touched() == [] and server.requests == []


def test_files_called_like_addresses_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the working folder is the output folder, so that names stand without a folder before them."""
    clip = make(tmp_path / "clip.mp4", frames=2).read_bytes()
    inputs = tmp_path / "in"
    names = [
        f"http:/127.0.0.1:{server.port}/a.mp4", "subfile:,,start,0,end,0,,:a.mp4", "concat:a|b.mp4", "%03d.mp4",
        "pipe:1.mp4", "-i.mp4", "a\nb.mp4", "CON.mp4", "nul.mp4", "a:b?.mp4", "end. .mp4", "\x1b[31mred.mp4",
    ]  # fmt: skip
    for name in names:
        (inputs / name).parent.mkdir(parents=True, exist_ok=True)
        (inputs / name).write_bytes(clip)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert main(["upscale", str(inputs), ".", "-s", "2"]) == 0
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.mp4")}
    assert made == set(names) and server.requests == []
    assert "\x1b" not in capsys.readouterr().err
    # And one by one, as the person would name them.
    for name in ("concat:a|b.mp4", "%03d.mp4", "pipe:1.mp4"):
        assert main(["upscale", name, f"again-{name}", "-s", "1"]) == 0
        assert Path(f"again-{name}").is_file()
    assert main(["upscale", "-s", "1", "--", "-i.mp4", "-o.mp4"]) == 0
    assert Path("-o.mp4").is_file()


def test_a_playlist_through_standard_input_reaches_nothing(
    tmp_path: Path, canary: Path, watch: Watch, server: Server
) -> None:
    for content in (playlist, concatenation, manifest):
        done = subprocess.run(
            [sys.executable, "-m", "rlfn_pipe", "upscale", "-", str(tmp_path / "out.mkv")],
            input=content(str(canary), server.url), capture_output=True, timeout=60, check=False, env=_environment(),
        )  # fmt: skip
        assert done.returncode == 1 and one_sentence(done.stderr.decode())
    assert watch.touched() == [] and server.requests == []


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}


# ---------------------------------------------------------------- files that are written


def test_temporary_files_are_private_and_unpredictable(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with atomic_path(tmp_path / "a.mkv") as temporary:
            names.add(temporary.name)
            assert temporary.parent == tmp_path and temporary.is_absolute()
            assert temporary.stat().st_mode & 0o777 == 0o600
            assert temporary.name.startswith(".") and temporary.name.endswith(TEMPORARY_SUFFIX)
            temporary.write_bytes(b"whole")
    assert len(names) == 20 and not any("a.mkv" in name for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_finished_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, broken)
            with pytest.raises(OSError, match="Input/output"):
                write_atomically(target, b"new")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(FileExistsError), atomic_path(target, overwrite=False):
        pass
    assert target.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_taken_name_is_noticed_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    write_atomically(tmp_path / "a", b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"second", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_link_in_the_place_of_an_output_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    for target in ("there", "dangling"):
        (tmp_path / target).symlink_to(victim if target == "there" else tmp_path / "nowhere")
        with finished_by_rename(tmp_path / target, overwrite=True) as temporary:
            temporary.write_bytes(b"film")
        assert not (tmp_path / target).is_symlink() and (tmp_path / target).read_bytes() == b"film"
    assert victim.read_bytes() == b"dear" and not (tmp_path / "nowhere").exists()


def test_a_name_that_is_too_long_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlfn_pipe.engine.runner import Engine

    source = make(tmp_path / "a.mp4", frames=2)
    monkeypatch.setattr(Engine, "run", lambda *_: pytest.fail("the work began"))
    assert main(["upscale", str(source), str(tmp_path / ("ä" * 130 + ".mkv"))]) == 1
    said = capsys.readouterr().err
    assert (
        "name too long" in said.lower() and len([line for line in said.splitlines() if "error:" in line]) == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 2000 + "b.mp4"])
def test_paths_that_cannot_be_are_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["upscale", name, str(tmp_path / "o.mkv")],
        ["upscale", f"@{name}", str(tmp_path / "o/")],
        ["upscale", f"{name}*", str(tmp_path / "o/")],
        ["upscale", "--preset", f"{name}.toml", "a", "b"],
    ):
        assert main(command) in (1, 2)
        assert one_sentence(capsys.readouterr().err)


# ---------------------------------------------------------------- presets, encoders' options


HARMFUL = [
    ("libx264", "x264-params=dump-yuv=VICTIM"),
    ("libx264", "x264-params=pass=1:stats=VICTIM"),
    ("libx264", "x264-params=keyint=5:DUMP_YUV=VICTIM"),
    ("libx264", "x264-params=dump-yuv\\=VICTIM"),
    ("libx264", "x264-params=cqmfile=VICTIM"),
    ("libx264", "x264-params=cqm=VICTIM"),
    ("libx264", "x264opts=dump-yuv=VICTIM"),
    ("libx264", "passlogfile=VICTIM"),
    ("libx264", "stats=VICTIM"),
    ("libx264", "flags=+pass1"),
    ("libx264", "x264-params=pass=1"),
    ("libx264", "x264-params=opencl-clbin=VICTIM:opencl=1"),
    ("libx265", "x265-params=csv=VICTIM"),
    ("libx265", "x265-params=log-level=error:csv=VICTIM:csv-log-level=2"),
    ("libx265", "x265-params=pass=1:stats=VICTIM"),
    ("libx265", "x265-params=analysis-save=VICTIM"),
    ("libx265", "x265-params=nalu-file=VICTIM"),
    ("libx265", "x265-params=lambda-file=VICTIM"),
    ("libx265", "x265-params=scaling-list=VICTIM"),
    ("libx265", "x265-params=qpfile=VICTIM"),
    ("libx265", "x265-params=copy-pic=0"),
    ("libx265", "x265-params=recon-y4m-exec=VICTIM"),
    ("libsvtav1", "svtav1-params=stats=VICTIM:pass=1"),
    ("libsvtav1", "svtav1-params=fgs-table=VICTIM"),
    ("libvpx-vp9", "anything=VICTIM"),
    ("libvpx-vp9", "flags=+pass1"),
]


def raw_encode(codec: str, options: dict[str, str], folder: Path) -> None:
    """What the encoder would do with such options, in a process of its own."""
    script = (
        "import io, sys, av\n"
        "out = av.open(io.BytesIO(), 'w', format='matroska')\n"
        f"stream = out.add_stream({codec!r}, rate=25, options={options!r})\n"
        "stream.width = stream.height = 64; stream.pix_fmt = 'yuv420p'\n"
        "for i in range(3):\n"
        "    frame = av.VideoFrame(64, 64, 'yuv420p'); frame.pts = i\n"
        "    out.mux(stream.encode(frame))\n"
        "out.mux(stream.encode(None)); out.close()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(("codec", "option"), HARMFUL, ids=lambda value: value[:40])
def test_encoder_options_that_name_files_are_refused(
    codec: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    option = option.replace("VICTIM", str(victim))
    source = make(tmp_path / "a.mp4", frames=2)
    preset = tmp_path / "evil.toml"
    preset.write_text(f"codec = {codec!r}\nencoder-option = [{option!r}]\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    for arguments in (["--codec", codec, "--encoder-option", option], ["--preset", str(preset)]):
        assert main(["upscale", str(source), "out.mkv", *arguments]) == 2
        assert one_sentence(capsys.readouterr().err)
    with pytest.raises(UsageError, match="refused"):
        UpscaleOptions(codec=codec, encoder_option=(option,))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("codec", "option"), [HARMFUL[0], HARMFUL[12]], ids=["x264", "x265"])
def test_the_encoders_would_have_obeyed(codec: str, option: str, tmp_path: Path) -> None:
    """What is refused above does harm: else that test would prove nothing."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    name, _, text = option.replace("VICTIM", str(victim)).partition("=")
    watched = Watch(victim) if CAN_WATCH else None
    raw_encode(codec, {name: text, "preset": "ultrafast"}, tmp_path)
    assert watched is None or watched.touched()


@pytest.mark.parametrize(
    "option",
    [
        "tune=film", "x264-params=keyint=50:deblock=1,1:zones=0,10,q=20/11,20,b=1.5", "profile=high", "b=2M",
        "x265-params=lossless=1:log-level=none", "x265-params=scaling-list=default:pools=1", "flags=+ilme",
        "svtav1-params=tune=0:film-grain=8", "cpu-used=4", "r=24000/1001", "x264-params=cqm=jvt", "lowpass-dct=1",
    ],
)  # fmt: skip
def test_other_encoder_options_pass(option: str) -> None:
    assert UpscaleOptions(encoder_option=(option,)).encoder_option == (tuple(option.split("=", 1)),)


def test_presets_that_ship_pass_the_same_checks() -> None:
    from rlfn_pipe.presets import preset_names

    assert [load_preset(name).name for name in preset_names()] == list(preset_names())


def test_a_preset_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    folder.mkdir()
    (tmp_path / "outside.pth").write_bytes(b"x")
    (folder / "link.pth").symlink_to(tmp_path / "outside.pth")
    preset = folder / "p.toml"
    for model in (
        "/etc/passwd.pth",
        "../outside.pth",
        str(tmp_path / "outside.pth"),
        "link.pth",
        "a/../../b.pth",
    ):
        preset.write_text(f"model = {model!r}\n")
        with pytest.raises(UsageError, match="beside the preset"):
            load_preset(str(preset))
    preset.write_text("model = 'own.safetensors'\n")
    assert resolve({}, str(preset)).model == str(folder / "own.safetensors")
    preset.write_text("model = 'rlfn'\n")
    assert resolve({}, str(preset)).model == "rlfn"


def test_no_option_that_names_a_place_can_stand_in_a_preset() -> None:
    places = {"FILE", "DIR", "PATH", "URL", "HOST:PORT", "dask://HOST:PORT"}
    named = {
        info.key for info in option_infos() if places & set(info.metavar.split("|")) and info.key != "model"
    }
    assert {"log-file", "preset"} <= named
    allowed = {info.key for info in option_infos() if info.in_preset}
    assert not named & allowed, "these must have in_preset=False"


def test_presets_of_any_kind_of_file_are_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "deep.toml").write_text("a = " + "[" * 20_000)
    (tmp_path / "long.toml").write_text("crf = " + "9" * 20_000)
    (tmp_path / "big.toml").write_text("# " + "x" * 100_000)
    (tmp_path / "bytes.toml").write_bytes(bytes(range(256)))
    for name in ("pipe", "folder", "deep", "long", "big", "bytes", "absent"):
        with pytest.raises(UsageError, match="preset"):
            load_preset(str(tmp_path / f"{name}.toml"))


# ---------------------------------------------------------------- terminals and pages


ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.\r\nerror"


def test_nothing_from_a_file_reaches_the_terminal_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """File names, container and stream tags, and file names of attachments."""
    folder = tmp_path / f"in{ESCAPES}"
    folder.mkdir()
    source = make(
        folder / f"a{ESCAPES}.mkv", frames=3, tags={"title": ESCAPES, ESCAPES: "x", "comment": ESCAPES},
        video_tags={"title": ESCAPES, "language": "\x1b[1m"}, sounds=[Sound(tags={"title": ESCAPES})],
        attachment=(f"f{ESCAPES}.ttf", "font/ttf", b"data"), chapters=[(0, 0.04, ESCAPES)],
    )  # fmt: skip
    (folder / f"bad{ESCAPES}.mp4").write_bytes(b"\0" * 100)
    (folder / f"b{ESCAPES}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x1b[31m" * 30)
    log = tmp_path / "log"
    runs = [
        ["probe", str(source)],
        ["probe", str(source), "--json"],
        ["upscale", str(source), str(tmp_path / f"o{ESCAPES}.mp4"), "--dry-run"],
        ["upscale", str(source), str(tmp_path / f"o{ESCAPES}.mp4"), "-v", "--log-file", str(log)],
        ["upscale", str(source), str(tmp_path / f"p{ESCAPES}.mp4"), "--json"],
        ["upscale", str(folder), str(tmp_path / f"out{ESCAPES}"), "-v", "-y"],
        ["upscale", str(source) + "x", str(tmp_path / "x.mp4")],
        ["upscale", str(source), str(tmp_path / "x.mp4"), "--codec", ESCAPES],
        ["upscale", str(source), str(tmp_path / "x.mp4"), "--encoder-option", f"{ESCAPES}=1"],
        ["upscale", str(source), str(tmp_path / f"x.{ESCAPES}")],
        ["upscale", str(source), str(tmp_path / "x.mp4"), "--preset", ESCAPES],
        ["upscale", str(source), str(tmp_path / "x.mp4"), "--model", f"/{ESCAPES}.pth"],
        ["weights", "show", ESCAPES],
        ["presets", "show", ESCAPES],
        [ESCAPES],
        ["upscale", f"--{ESCAPES}"],
        ["evaluate", "--data", str(folder)],
    ]
    for arguments in runs:
        main(arguments)
        out, err = capsys.readouterr()
        for text in (out, err):
            assert not set(text) & set("\x1b\x07\x9b\u202e\r"), (arguments[:1], text)
    text = log.read_text()
    assert text and not set(text) & set("\x1b\x07\x9b\u202e\r")


def test_tables_of_an_evaluation_show_names_as_they_are() -> None:
    from rlfn_pipe.evaluate.report import ImageResult, Report, SetResult, as_markdown, as_table

    name = f"<script>alert(1)</script>|[a](http://b)`![]{ESCAPES}"
    image = ImageResult(name, 8, 8, 30.0, 0.9, 29.0, None, 0.1)
    report = Report(name, 4, (SetResult(name, (image,)),))
    for text in (as_table([report], per_image=True), as_markdown([report], per_image=True)):
        assert not set(text) & set("\x1b\x07\x9b\u202e\r") and len(text.splitlines()) == 4
    shown = as_markdown([report], per_image=True)
    assert "<script" not in shown and "&lt;script&gt;" in shown and "[a](" not in shown


# ---------------------------------------------------------------- closed pipes


@pytest.mark.parametrize(
    ("taken", "arguments"),
    [
        (0, ["probe", "in.mp4", "--json"]),
        (10, ["upscale", "in.mp4", "o.mp4", "--json"]),
        (10, ["upscale", "in.mp4", "-"]),
        (0, ["presets", "list"]),
    ],
)
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, arguments: list[str], taken: int) -> None:
    """`| head`: no traceback, nothing left behind, exit code 1 where something was left unsaid."""
    make(tmp_path / "in.mp4", frames=40, size=(256, 192))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import pytest; from conftest import use_nearest_engine; use_nearest_engine(pytest.MonkeyPatch())\n"
        "from rlfn_pipe.cli.app import main; sys.exit(main(sys.argv[2:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(TESTS), *arguments],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    if taken:
        process.stdout.read(taken)
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    code = process.wait(timeout=60)
    assert code in (0, 1), said
    assert "Traceback" not in said and "error" not in said.lower() and "BrokenPipe" not in said, said
    # The job may have finished its segment, which the next run goes on from.
    assert {path.name for path in tmp_path.iterdir()} <= {"in.mp4", "o.mp4", ".o.mp4.rlfn-part"}


# ---------------------------------------------------------------- what the fuzzer found


@pytest.mark.parametrize(
    "text",
    ["crf = 0x" + "f" * 9000, "crf = " + "9" * 300, "scale = 1e999", "size = [0x" + "f" * 9000 + ", 3]", "frames = nan",
     "encoder-option = [0x" + "f" * 9000 + "]", "encoder-option = {a = 0x" + "f" * 9000 + "}", "tile = 0x" + "f" * 9000],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_numbers_beyond_measure_in_presets(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_preset(str(tmp_path / "p.toml"))
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [("batch = ", "batch = 0x" + "f" * 9000 + " #"), ("batch = ", "batch = " + "9" * 400 + " #"), ("batch = ", "batch = inf #"),
     ("[[stage]]", "[[stage]]\nbetas = ['a', 'b']"), ("[[stage]]", "[[stage]]\nbetas = [nan, 1e400]"),
     ("batch = ", "batch = " + "[" * 9000 + " #"), ("batch = ", "batch = " + "9" * 9000 + " #")],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_numbers_beyond_measure_in_recipes(tmp_path: Path, old: str, new: str) -> None:
    from rlfn_pipe.errors import TrainingError
    from rlfn_pipe.training.recipe import load_recipe

    shipped = sorted((TESTS.parent / "presets" / "training").glob("*.toml"))[0].read_text()
    assert old in shipped
    (tmp_path / "r.toml").write_text(shipped.replace(old, new, 1))
    with pytest.raises(TrainingError) as caught:
        load_recipe(tmp_path / "r.toml")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_a_container_that_breaks_off_gives_what_came_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reader itself gives up, which is not the same as a packet that does not decode."""
    head, frame = b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n", b"FRAME\n" + bytes(64 * 48 * 3 // 2)
    source = tmp_path / "a.y4m"
    source.write_bytes(head + 3 * frame + b"DAMAGE" + 2 * frame)
    assert main(["upscale", str(source), str(tmp_path / "o.mkv"), "-s", "1"]) == 0
    with av.open(str(tmp_path / "o.mkv")) as made:
        assert sum(1 for _ in made.decode(video=0)) == 3
    source.write_bytes(head + b"DAMAGE" + 2 * frame)
    capsys.readouterr()
    assert main(["upscale", str(source), str(tmp_path / "p.mkv"), "-s", "1"]) == 1
    assert one_sentence(capsys.readouterr().err)


def test_pictures_too_small_for_the_deinterlacer_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(
        tmp_path / "a.mkv",
        frames=3,
        size=(2, 2),
        codec="ffv1",
        options={"level": "1", "g": "1"},
        pix_fmt="yuv444p",
    )
    assert (
        main(
            [
                "upscale",
                str(source),
                str(tmp_path / "o.mkv"),
                "-s",
                "1",
                "--deinterlace",
                "on",
                "--codec",
                "ffv1",
            ]
        )
        == 0
    )
    assert "cannot be deinterlaced" in capsys.readouterr().err
