"""Start-up: what the command imports, and what it must not, measured in modules rather than seconds."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlfn_pipe.cli import early
from rlfn_pipe.cli.signals import stop_on_signals
from rlfn_pipe.jobs import process
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.weights import save
from rlfn_pipe.types import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
BUNNY = ROOT / "tests" / "data" / "bunny.mp4"
PROGRAM = """
import sys
from rlfn_pipe.cli.app import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    print("code", code, "loaded", *(name for name in ("torch",) if name in sys.modules))
"""


def one_frame(
    folder: Path, source: Path, output: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`folder`/program.py, in place of the command, on one frame."""
    command = [sys.executable, str(folder / "program.py"), "upscale", str(source), str(output)]
    return subprocess.run(
        [*command, "-q", "--frames", "1", "--scale", "2", "--threads", "1", *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), **environment},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.parametrize("fits", [True, False])
def test_a_worker_runs_every_form_of_the_network(
    tmp_path: Path, precision: str, native: str, fits: bool
) -> None:
    """With what it loads of PyTorch, and without a compiled part or with a network that has no place in it."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    torch.manual_seed(0)
    channels = 48 if fits else 32
    spec = ModelSpec("own", 2, channels, channels, 2, input_range=255.0)
    save(tmp_path / "own.safetensors", RLFN(spec), spec)
    output = tmp_path / "out.mkv"
    done = one_frame(
        *(tmp_path, BUNNY, output, "--precision", precision, "--model", str(tmp_path / "own.safetensors")),
        RLFN_PIPE_NATIVE=native,
    )
    assert done.returncode == 0 and output.exists(), done.stderr


def test_the_command_leaves_torch_to_its_worker(tmp_path: Path) -> None:
    """Importing it takes most of a second and hundreds of megabytes, so once has to do."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    output = tmp_path / "out.mkv"
    done = one_frame(tmp_path, BUNNY, output)
    assert done.returncode == 0, done.stderr
    assert output.exists()
    words = done.stdout.split()
    assert words[:2] == ["code", "0"] and "torch" not in words


EARLY = """
import importlib.abc, os, sys
from pathlib import Path

def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("typer", "av"):
            print(name, *(os.getpriority(os.PRIO_PROCESS, int(child)) for child in children()))

sys.meta_path.insert(0, Watch())
from rlfn_pipe.__main__ import main
code = main()
print("code", code, "left", len(children()))
"""


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("more", [[], ["--nice", "3"], ["--preset", "web"], ["--dry-run"]], ids=" ".join)
def test_the_worker_begins_before_the_program_is_loaded(
    tmp_path: Path, broken: bool, more: list[str]
) -> None:
    """Before the command line is understood, if it is one that wants a worker; one that nobody wants is ended."""
    (tmp_path / "program.py").write_text(EARLY, encoding="utf-8")
    # A file is refused as the place of several before anybody works.
    source, output = (BUNNY.parent, BUNNY) if broken else (BUNNY, tmp_path / "out.mkv")
    done = one_frame(tmp_path, source, output, *more)
    told = [line.split() for line in done.stdout.splitlines() if line.startswith(("typer", "av", "code"))]
    usual = str(os.getpriority(os.PRIO_PROCESS, 0))
    nice = str(min(int(usual) + 3, 19)) if "--nice" in more else usual
    early = ["typer", usual] if more in ([], ["--preset", "web"]) else ["typer"]
    then = ["av"] if "--dry-run" in more else ["av", nice]
    assert told == [early, then, ["code", "1" if broken else "0", "left", "0"]], done.stderr
    assert output.exists() == (broken or "--dry-run" not in more)


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        ([], None),
        (["probe", "in.mp4"], None),
        (["upscale", "absent.mp4", "out.mp4"], None),
        (["upscale", "in.mp4", "-"], None),
        (["upscale", "in.mp4", "out.mp4", "--dry-run"], None),
        (["upscale", "in.mp4", "out.mp4", "--nice=3"], None),
        (["upscale", "in.mp4", "out.mp4", "-pweb"], process.begin),
        (["upscale", "--help", "in.mp4"], None),
        (["upscale", "in.mp4", "out.mp4", "-s", "2"], process.begin),
        (["upscale", "in.PNG", "out.png"], process.begin_with_pictures),
        (["upscale", "folder", "out"], process.begin_with_pictures),
    ],
)
def test_a_worker_begins_early_where_it_is_plain_that_one_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], begins: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in.mp4", "in.PNG"):
        Path(name).touch()
    Path("folder").mkdir()
    begun: list[Any] = []
    monkeypatch.setattr(early, "WorkerProcess", begun.append)
    monkeypatch.setattr(early, "end_early", lambda: None)
    with early.early_worker(arguments):
        pass
    assert begun == ([] if begins is None else [begins])


def test_a_worker_that_cannot_begin_early_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wants one says why there is none."""

    def refuse(*how: Any) -> None:
        raise OSError("by design")

    monkeypatch.setattr(early, "WorkerProcess", refuse)
    with early.early_worker(["upscale", str(tmp_path), "out"]):
        assert early.taken_early() is None


def test_many_inputs_take_the_worker_that_began_early(tmp_path: Path) -> None:
    """A pattern or a list is no file that is there, though the folder that it goes to may be: one worker, not two."""
    (tmp_path / "program.py").write_text(EARLY, encoding="utf-8")
    large, names = tmp_path / "large", tmp_path / "list.txt"
    large.mkdir()
    names.write_text(f"{BUNNY}\n", encoding="utf-8")
    usual = str(os.getpriority(os.PRIO_PROCESS, 0))
    done = one_frame(tmp_path, Path(f"@{names}"), large)
    told = [line.split() for line in done.stdout.splitlines()]
    assert told == [["typer", usual], ["av", usual], ["code", "0", "left", "0"]], done.stderr
    # Typer reads `-yp` as `-y -p`; a preset's priority is its worker's.
    slow = tmp_path / "slow.toml"
    slow.write_text("nice = 3\n", encoding="utf-8")
    done = one_frame(tmp_path, BUNNY, tmp_path / "out.mkv", "-yp", str(slow))
    told = [line.split() for line in done.stdout.splitlines()]
    nice = str(min(int(usual) + 3, 19))
    assert told == [["typer", usual], ["av", nice], ["code", "0", "left", "0"]], done.stderr


def test_a_folder_that_is_gone_starts_nothing(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    (tmp_path / "program.py").write_text("import os\nos.rmdir(os.getcwd())\n" + EARLY, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), "upscale", str(BUNNY), str(tmp_path / "out.mkv")],
        capture_output=True,
        text=True,
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.stdout.splitlines() == ["typer", "code 1 left 0"] and "called in is gone" in done.stderr


def test_modules_are_looked_for_where_the_parent_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which entries that are no text are none."""
    (tmp_path / "only_here.py").write_text(
        "def tell(connection):\n    connection.send('here')\n", encoding="utf-8"
    )
    monkeypatch.setattr(sys, "path", [tmp_path, str(tmp_path), *sys.path])
    worker = process.WorkerProcess(importlib.import_module("only_here").tell)
    try:
        assert worker.connection.poll(60) and worker.connection.recv() == "here"
    finally:
        worker.kill()


def test_what_starts_a_worker_loads_nothing_else() -> None:
    program = (
        "import rlfn_pipe.jobs.process, sys; print(*{'av', 'cv2', 'numpy', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == []


def watched(folder: Path, *modules: str) -> str:
    """PYTHONPATH with which `folder`/program.py and its workers tell on standard error that they load one of these."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name in {modules!r}: print(name, file=sys.stderr, flush=True)\n"
        "sys.meta_path.insert(0, Watch())\n",
        encoding="utf-8",
    )
    return os.pathsep.join([str(folder), str(ROOT)])


def test_a_film_waits_for_nothing_that_pictures_or_downloads_need(tmp_path: Path) -> None:
    """OpenCV, Pillow and the network's libraries: in the command and in its worker."""
    if not process._only_compiled():
        pytest.skip("no compiled part, or a GPU is here: PyTorch loads some of them")
    path = watched(tmp_path, "cv2", "PIL", "ssl", "numpy.ma", "av")
    done = one_frame(tmp_path, BUNNY, tmp_path / "out.mkv", PYTHONPATH=path)
    assert done.returncode == 0 and done.stderr.split() == ["av", "av"]
    picture = BUNNY.parent / "bunny" / "face.png"
    done = one_frame(tmp_path, picture, tmp_path / "out.png", PYTHONPATH=path)
    assert done.returncode == 0 and {"cv2", "PIL"} <= set(done.stderr.split())


def test_nothing_of_pytorch_is_loaded_where_the_compiled_part_does_it_all(tmp_path: Path) -> None:
    """It would take longer than a picture. What has no compiled form loads it."""
    if not process._only_compiled():
        pytest.skip("no compiled part, or a GPU is here")
    path = watched(tmp_path, "torch._C")
    picture = BUNNY.parent / "bunny" / "face.png"
    clear = tmp_path / "clear.png"
    with Image.open(picture) as opened:
        opened.putalpha(
            Image.linear_gradient("L").resize(opened.size).point(lambda value: max(0, value - 128))
        )
        opened.save(clear)
    for source, suffix in ((BUNNY, "mkv"), (picture, "png"), (clear, "png")):
        for more, loaded in (
            ([], False),
            (["--model", "rlfn", "--tta", "--scale", "4"], False),
            (["--scale", "2.5"], False),
            (["--precision", "fp16"], True),
        ):
            output = tmp_path / f"{source.stem}-{len(more)}-{loaded}.{suffix}"
            done = one_frame(tmp_path, source, output, *more, PYTHONPATH=path)
            assert done.returncode == 0 and output.exists(), done.stderr
            assert ("torch" in done.stderr) == loaded, (source, more, done.stderr)


SIGNALLED = """
import importlib.abc, os, signal, sys

# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
module, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]

class Signal(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Signal())
from rlfn_pipe.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["typer", "rlfn_pipe.options", "rlfn_pipe.jobs.run"])
def test_signals_before_the_work_are_one_sentence(
    tmp_path: Path, module: str, signum: signal.Signals
) -> None:
    """They arrive while the command itself is being loaded."""
    output = tmp_path / "out.mkv"
    clip = ROOT / "tests" / "data" / "bunny.mp4"
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, module, str(int(signum)), "upscale", str(clip), str(output)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 128 + signum
    *before, said = done.stderr.splitlines()
    assert said.startswith("rlfn-pipe: error: ") and not any(before)
    assert not list(tmp_path.iterdir())


BESIDE_THE_WORK = """
import atexit, os, signal, sys
import rlfn_pipe.cli.app

signal.signal(signal.SIGINT, signal.default_int_handler)
moment, number = sys.argv[1], int(sys.argv[2])

def stop():
    os.kill(os.getpid(), number)

def command():
    if moment == "before":
        stop()
    return 0

if moment == "after":
    atexit.register(stop)
rlfn_pipe.cli.app.main = command
from rlfn_pipe.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_signals_just_before_and_after_the_work_make_no_traceback(
    moment: str, signum: signal.Signals
) -> None:
    """Where the command itself catches nothing: as it is called, and when it has returned."""
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_THE_WORK, moment, str(int(signum))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    if moment == "before":
        assert (done.returncode, done.stderr) == (128 + signum, "rlfn-pipe: error: stopped before the end\n")
    else:
        assert (done.returncode, done.stderr) == (-signum, "")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path: Path, signum: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, "typer", str(int(signum)), "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
        preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN),
    )
    assert done.returncode == 0 and done.stdout.startswith("rlfn-pipe ")


def test_a_terminal_that_is_closed_asks_once() -> None:
    # Who was asked to stop hears none of them any more: other tests' commands would have that from this process.
    before = {signum: signal.getsignal(signum) for signum in process.STOPPING}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.is_set() and stop.signum == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
