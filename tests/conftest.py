"""Fixtures that several areas share. Media are made by PyAV; `../shared/data` adds to them when present."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
SKIPPED_REASON = "../shared/data is absent"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real media beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(SKIPPED_REASON)
    return SHARED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests did not run for want of the real media."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(SKIPPED_REASON in str(report.longrepr) for report in skipped)
    where = "present" if SHARED.is_dir() else "absent"
    terminalreporter.write_line(f"real media in ../shared/data: {where}; {count} tests skipped for want of it")
