"""The time that a target has, the child that runs the commands, and nothing of this without `-m fuzz`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuzz.finds import Finds
from fuzz.runner import Runner

SECONDS = float(os.environ.get("RLFN_FUZZ_SECONDS", "600"))
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fuzz targets run only when asked for by name, also where `-m` asks for something else."""
    if "fuzz" in config.option.markexpr.replace("not fuzz", ""):
        return
    mine = [item for item in items if HERE in item.path.parents]
    items[:] = [item for item in items if item not in mine]
    config.hook.pytest_deselected(items=mine)


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    made = Runner(tmp_path_factory.mktemp("runner"))
    yield made
    made.close()


@pytest.fixture
def going(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether the target's share of the time is not over."""
    targets = [item for item in request.session.items if HERE in item.path.parents]
    end = time.monotonic() + SECONDS / max(1, len(targets))
    return lambda: time.monotonic() < end


@pytest.fixture
def finds(request: pytest.FixtureRequest) -> Iterator[Finds]:
    """Collects what went wrong; the target fails at its end when there is anything."""
    collected = Finds(request.config.rootpath / ".hypothesis" / "finds", request.node.name)
    yield collected
    print(f"{collected.tried} tries")
    assert not collected.texts, collected.report()
