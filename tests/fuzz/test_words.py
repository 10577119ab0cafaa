"""Options in any combination, and garbled presets, recipes, indexes, lists and journals."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_maker import Clip, Sound, make
from PIL import Image

from fuzz.finds import Finds
from fuzz.mutate import damaged, garbled, steps, word_steps
from fuzz.runner import Runner
from fuzz.test_files import judged, many
from rlfn_pipe.errors import RlfnPipeError
from rlfn_pipe.options import option_infos

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).resolve().parents[2]

#: Values worth trying for any option, sensible and not.
_VALUES = [
    "0", "1", "2", "3.5", "4", "8", "16", "64", "256", "4096", "-1", "1e9", "nan", "inf", "", " ", "auto", "on", "off", "copy",
    "none", "keep", "bake", "fail", "conceal", "exact", "near", "same", "png", "jpg", "webp", "tiff", "avif", "libx264", "ffv1",
    "libx265", "libvpx-vp9", "libsvtav1", "mpeg4", "prores_ks", "mpeg2video", "ultrafast", "12", "yuv420p", "yuv444p10le",
    "yuv422p", "rgb24", "gbrp", "gray", "monob", "g=1", "bf=2", "crf=30", "x264-params=keyint=5", "qmin=200", "b=1", "=", "a=b=c",
    "1920x1080", "2x2", "99999x99999", "16x16", "0:00.1", "00:00:00.04", "0.1", "1/25", "-0.1", "99:99", "fp32", "bf16", "cpu",
    "cuda", "rlfn", "no-such", "archive", "web", "é", "\x1b[1m",
]  # fmt: skip
#: Not for a fuzzer: these take other machines, devices, long times or places.
_LEFT_OUT = {
    "model",
    "tta",
    "compile",
    "device",
    "nice",
    "cluster",
    "watch",
    "log_file",
    "jobs",
    "threads",
    "work_dir",
}


def test_any_options(runner: Runner, finds: Finds, going: Callable[[], bool], tmp_path: Path) -> None:
    make(
        tmp_path / "v.mkv",
        Clip(frames=5, sounds=[Sound("flac", seconds=0.2)], subtitles=[("subrip", 0.0, 0.1, "hi")]),
    )
    make(tmp_path / "w.mp4", Clip(frames=4, size=(33, 17), codec="libx264", pix_fmt="yuv444p"))
    Image.linear_gradient("L").resize((20, 30)).convert("RGB").save(tmp_path / "p.png")
    infos = [info for info in option_infos() if info.name not in _LEFT_OUT]
    one = st.sampled_from(infos).flatmap(
        lambda info: (
            st.just([info.long]) if info.flag else st.sampled_from(_VALUES).map(lambda v: [info.long, v])
        )
    )
    outputs = st.sampled_from(
        ["o.mkv", "o.mp4", "o.mov", "o.avi", "o.webm", "o.ts", "o.nut", "o.png", "o.jpg", "o.m2ts"]
    )

    @many
    @given(st.sampled_from(["v.mkv", "w.mp4", "p.png", "."]), outputs, st.lists(one, max_size=5))
    def attempt(name: str, target: str, options: list[list[str]]) -> None:
        if not going():
            return
        folder = runner.folder / "try"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        output = folder / ("out/" if name == "." else target)
        flat = [part for option in options for part in option]
        finds.tried += 1
        sizes = {"--height", "--width", "--size", "--scale"} & set(flat)
        more = [] if sizes else ["-s", "1"]
        ran = runner.run("upscale", str(tmp_path / name), str(output), "--threads", "1", *more, *flat)
        fault = ran.fault
        if not fault and name != "." and "--dry-run" not in flat:
            fault = judged(ran, folder, output, set())
        if fault:
            finds.add(fault, " ".join(flat).encode("utf-8", "surrogateescape"))

    while going():
        attempt()


def test_garbled_texts(finds: Finds, going: Callable[[], bool], tmp_path: Path) -> None:
    """What is read by our own code only, in this process: an error of ours, or none."""
    from rlfn_pipe.jobs.inputs import expand
    from rlfn_pipe.models import registry
    from rlfn_pipe.presets import load_preset
    from rlfn_pipe.training.recipe import load_recipe

    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.mkv", "sub/c.jpg"):
        (folder / name).write_bytes(b"")
    readers: dict[str, Callable[[Path], object]] = {
        "preset.toml": lambda path: load_preset(str(path)),
        "recipe.toml": load_recipe,
        "index.toml": lambda path: [
            registry.details(spec, path.parent) for spec in registry.models(path.parent)
        ],
        "list.txt": lambda path: _inside(expand(f"@{path}", f"{tmp_path}/out").items, tmp_path / "out"),
    }
    texts = [(path.read_text(), "preset.toml") for path in sorted((ROOT / "presets").glob("*.toml"))]
    texts += [
        (path.read_text(), "recipe.toml") for path in sorted((ROOT / "presets" / "training").glob("*.toml"))
    ]
    texts += [((ROOT / "weights" / "index.toml").read_text(), "index.toml")]
    texts += [
        ("# list\na.png\nb.mkv\r\n sub/c.jpg\n../in/a.png\n" + str(folder / "a.png") + "\n", "list.txt")
    ] * 4
    with contextlib.suppress(ImportError):
        from rlfn_pipe.jobs.journal import Done, Header, Journal, JournalDamaged

        journal = Journal.create(tmp_path / "j", Header({"input": {"size": 3}}, {"tile": 64}, [0, 10, 20]))
        journal.append(Done(0, 1000, "ab", list(range(10)), notes=["a"]))
        journal.append(Done(1, 2000, "cd", list(range(10, 20))))
        texts += [((tmp_path / "j").read_text(), "journal")] * 4

        def load_journal(path: Path) -> None:
            with contextlib.suppress(JournalDamaged):
                Journal.load(path)

        readers["journal"] = load_journal

    @many
    @given(st.sampled_from(texts), word_steps, steps, st.booleans())
    def attempt(source: tuple[str, str], words: list, wanted: list, by_bytes: bool) -> None:
        if not going():
            return
        text, name = source
        data = text.encode()
        data = damaged(data, wanted) if by_bytes else garbled(text, words).encode("utf-8", "surrogatepass")
        path = folder / name
        path.write_bytes(data)
        finds.tried += 1
        try:
            readers[name](path)
        except RlfnPipeError as error:
            if len(str(error)) > 3000:
                finds.add(f"a long sentence: {error}", data, name)
        except Exception as error:
            import traceback

            finds.add("".join(traceback.format_exception(error)[-6:]), data, name)

    while going():
        attempt()


def _inside(items: tuple, folder: Path) -> None:
    for item in items:
        assert item.output.is_relative_to(folder) and ".." not in item.output.parts
