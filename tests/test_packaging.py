"""What ships: the wheel's contents, the README's commands and file map, CI, the generated docs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import rlfn_pipe
from rlfn_pipe import resources

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as hatchling builds it from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_presets_and_weights_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("presets", "weights"):
        for path in (ROOT / kind).rglob("*"):
            inside = path.relative_to(ROOT)
            if path.is_file() and "checkpoints" not in inside.parts:
                assert f"rlfn_pipe/_data/{inside.as_posix()}" in names
    assert not [name for name in names if "checkpoints" in name or name.startswith(("tests/", "docs/"))]
    assert {name.split("/")[0] for name in names} == {
        "rlfn_pipe",
        f"rlfn_pipe-{rlfn_pipe.__version__}.dist-info",
    }
    for path in (ROOT / "rlfn_pipe").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names


def test_wheel_has_command_licence_and_readme(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    folder = f"rlfn_pipe-{rlfn_pipe.__version__}.dist-info"
    assert "rlfn-pipe = rlfn_pipe.__main__:main" in archive.read(f"{folder}/entry_points.txt").decode()
    assert "Apache License" in archive.read(f"{folder}/licenses/LICENSE").decode()
    assert "# rlfn-pipe" in archive.read(f"{folder}/METADATA").decode()


def test_data_is_found_in_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    """The installed copy wins over a checkout: run from elsewhere, with nothing but the wheel's files."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        "from rlfn_pipe.resources import data_path; from rlfn_pipe.presets import preset_names\n"
        "print(data_path('presets'), data_path('weights').is_dir(), *preset_names())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = tmp_path / "rlfn_pipe" / "_data" / "presets"
    assert done.stdout.split() == [str(expected), "True", "archive", "fast", "quality", "web"]


def test_data_is_found_in_a_checkout() -> None:
    for kind in ("presets", "weights"):
        found = resources.data_path(kind)  # type: ignore[arg-type]
        assert found in (ROOT / kind, Path(rlfn_pipe.__file__).parent / "_data" / kind)


@pytest.mark.slow
def test_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Installed from the wheel, run from another folder, on the clip that ships with the checkout.

    The libraries are taken from the running environment, for they take minutes to install.
    """
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "env" / "lib" / version / "site-packages"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    # A second folder of libraries behind the environment's own, without this checkout's editable entry.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")
    command = [str(python.with_name("rlfn-pipe")), "upscale", str(ROOT / "tests/data/bunny.mp4"), "out.mp4"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [*command, "-s", "4", "--frames", "2", "--tile", "0"],
        cwd=elsewhere,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in elsewhere.iterdir()] == ["out.mp4"]


def test_version_is_said_once() -> None:
    assert PROJECT["version"] == rlfn_pipe.__version__


def test_constraints_pin_every_dependency_without_build_tags() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert not [version for version in pins.values() if "+" in version]
    wanted = [
        *PROJECT["dependencies"],
        *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
    ]
    for requirement in wanted:
        name = re.split(r"[<>=!~\[]", requirement)[0]
        assert name in pins, f"{name} is not pinned"


def test_readme_has_the_two_commands_and_ci_runs_the_second() -> None:
    blocks = [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S)]
    run, test = blocks[:2]
    assert "\n" not in run and "\n" not in test
    assert run.startswith("python3 -m venv .venv && ") and "rlfn-pipe upscale tests/data/bunny.mp4" in run
    assert (ROOT / "tests/data/bunny.mp4").stat().st_size < 150_000
    shown = subprocess.run(
        [str(ROOT / ".ci" / "run"), "--show"], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == test


def test_readme_recipes_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that a recipe names exists, and every command."""
    from rlfn_pipe.cli.app import COMMANDS
    from rlfn_pipe.options import option_infos

    known = {info.long for info in option_infos()} | {
        f"-{info.short}" for info in option_infos() if info.short
    }
    recipes = re.findall(
        r"rlfn-pipe (\w+) ([^#|\n]*)", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    )
    assert len(recipes) >= 10
    for command, rest in recipes:
        assert command in COMMANDS
        assert {word for word in rest.split() if re.fullmatch(r"--?[a-z][a-z-]*", word)} <= known


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets and [target for target in targets if not (ROOT / target).exists()] == []


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_docs_are_current(make: ModuleType) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == make.command_page(), "make it anew: python docs/make.py"


def test_readme_maps_every_file(make: ModuleType) -> None:
    assert "| `rlfn_pipe/cli/app.py` |" in make.file_map()
    assert make.readme(README) == README, "make it anew: python docs/make.py"
    assert not re.search(r"^\| `[^`]+` \|  *\|$", README, re.M), "a module says nothing of itself"
