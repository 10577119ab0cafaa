"""Fixtures that several areas share. Media are made by PyAV; `../shared/data` adds to them when present."""

from __future__ import annotations

import signal
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import settings

# Speed is measured by benchmarks, on machines that are quiet; tests run on any.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
SKIPPED_REASON = "../shared/data is absent"


@pytest.fixture(scope="session", autouse=True)
def hang_up() -> None:
    """Processes that are started hear SIGHUP, also where the suite was begun with nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real media beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(SKIPPED_REASON)
    return SHARED


def children_of(pid: int) -> set[int]:
    """Process numbers of a process' children; of one that is gone there are none."""
    found: set[int] = set()
    with suppress(OSError):
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            found |= {int(child) for child in listed.read_text(encoding="ascii").split()}
    return found


def use_nearest_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `nearest_engine`; for subprocesses."""
    from nearest import nearest_factory, nearest_spec

    from rlfn_pipe.cli import upscale
    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.jobs import run
    from rlfn_pipe.jobs.room import EngineRoom
    from rlfn_pipe.jobs.workers import Inline

    def native(factor: float) -> int:
        return next((scale for scale in (1, 2, 3, 4) if scale >= factor), 4)

    def engine_for(self: EngineRoom, factor: float) -> Engine:
        scale = native(factor)
        if scale not in self._engines:
            self._engines[scale] = Engine(
                nearest_factory(scale),
                nearest_spec(scale),
                device="cpu",
                precision="fp32",
                tile=self._options.tile,
                overlap=self._options.overlap,
                threads=1,
                on_step=self._on_step,
            )
        return self._engines[scale]

    monkeypatch.setattr(EngineRoom, "engine_for", engine_for)
    monkeypatch.setattr(EngineRoom, "spec_for", lambda self, factor: nearest_spec(native(factor)))
    # A patched class does not reach other processes.
    monkeypatch.setattr(run, "workers_for", lambda options, on_warning, **how: Inline(options, on_warning))
    monkeypatch.setattr(upscale, "_first_worker", lambda input, output, nice: nullcontext())


@pytest.fixture
def nearest_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs upscale by repeating pixels: no weights are read, flat fields and bars stay what they are."""
    use_nearest_engine(monkeypatch)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests did not run for want of the real media."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(SKIPPED_REASON in str(report.longrepr) for report in skipped)
    where = "present" if SHARED.is_dir() else "absent"
    terminalreporter.write_line(
        f"real media in ../shared/data: {where}; {count} tests skipped for want of it"
    )
