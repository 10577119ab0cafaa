"""The import rule: who may know whom, read from the source by AST; and what a start does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "rlfn_pipe"
GROUND = {"types", "errors", "files", "options", "values", "presets", "resources"}
GROUND |= {"allocator", "allowance", "memory", "threads"}
#: Layer -> what it may import of the package besides the ground and itself.
ALLOWED: dict[str, set[str]] = {
    "media": set(),
    "models": set(),
    "engine": set(),
    "pipeline": {"media", "models", "engine"},
    "jobs": {"media", "models", "engine", "pipeline"},
    "evaluate": {"models", "engine"},
    "training": {"models", "evaluate"},
    "api": {"media", "models", "engine", "pipeline", "jobs"},
    "bench": {"media", "models", "engine", "pipeline", "jobs", "evaluate", "api"},
    "cli": {"bench", "media", "models", "engine", "pipeline", "jobs", "evaluate", "training", "api"},
    "__init__": {"api"},
    "__main__": {"cli"},
}
#: Libraries that only one part may touch.
ONLY_IN = {
    "rich": {"cli.views"},
    "typer": {"cli"},
    "click": set(),
    "av": {"media", "cli.doctor", "evaluate", "training"},
    "joblib": {"jobs", "pipeline", "media", "evaluate", "training"},
}
HEAVY = ("torch", "av", "cv2", "numpy", "PIL", "rich", "joblib", "safetensors")


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(name: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a module imports, anywhere in it, with their lines."""
    package = ["rlfn_pipe", *name.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def violations(name: str, tree: ast.AST) -> Iterator[str]:
    layer = name.split(".")[0]
    allowed = GROUND | {layer} | ALLOWED.get(layer, set())
    for imported, line in imports(name, tree):
        first, _, rest = imported.partition(".")
        part = rest.split(".")[0]
        is_part = bool(part) and ((PACKAGE / f"{part}.py").is_file() or (PACKAGE / part).is_dir())
        if first == "rlfn_pipe" and is_part and part not in allowed:
            yield f"{name}:{line} imports {imported}"
        if first in ONLY_IN and not any(name == at or name.startswith(f"{at}.") for at in ONLY_IN[first]):
            yield f"{name}:{line} imports {imported}"


def test_import_rule() -> None:
    assert [line for name, tree in modules() for line in violations(name, tree)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("media.x", "from rlfn_pipe.engine import tiling"),
        ("media.x", "from ..engine.tiling import plan"),
        ("engine.x", "from rlfn_pipe import media"),
        ("options", "from rlfn_pipe.media import probe"),
        ("jobs.x", "import rlfn_pipe.cli.app"),
        ("cli.app", "def f():\n    import rich.console"),
        ("models.x", "import typer"),
        ("cli.x", "import click"),
    ],
)
def test_import_rule_can_fail(name: str, source: str) -> None:
    assert list(violations(name, ast.parse(source)))


def test_every_layer_is_known() -> None:
    layers = {name.split(".")[0] for name, _ in modules()}
    assert layers <= GROUND | set(ALLOWED)


def _is_a_program(tree: ast.Module) -> bool:
    """Ends in `if __name__ == "__main__"`: it talks to the person itself."""
    last = tree.body[-1] if tree.body else None
    return isinstance(last, ast.If) and "__name__" in ast.dump(last.test)


def test_the_library_never_prints() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        if not name.startswith("cli.") and not _is_a_program(tree)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


def test_no_swallowed_errors() -> None:
    """No `except: pass` around anything broad."""
    found = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id.endswith("Exception")))
        and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
    ]
    assert found == []


def test_public_modules_say_what_they_are() -> None:
    # The package's folders need no text of their own; every module with code does.
    bare = [name for name, tree in modules() if tree.body and not ast.get_docstring(tree)]
    assert bare == []


@pytest.mark.parametrize("arguments", [["--help"], ["upscale", "--help"], ["--version"], ["presets", "list"]])
def test_a_start_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from rlfn_pipe.cli.app import main\n"
        f"code = main({arguments!r})\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.rstrip().endswith("loaded: []"), done.stdout


def test_training_needs_only_torch_numpy_and_pillow() -> None:
    blocked = ("av", "cv2", "rich", "typer", "joblib", "safetensors", "natsort")
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import rlfn_pipe.training.__main__\n"
        "print('ready')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "ready", done.stderr
