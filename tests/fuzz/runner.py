"""A child process that runs commands one after another, and is started anew when it dies or hangs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
#: Longer than this (seconds of the wall clock) counts as hanging: the machine may be busy.
PATIENCE = 60.0
#: Memory in bytes beyond that at the start, above which a command is a find.
MOST_MEMORY = 3 << 30


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a command: exit code (None: it died or hung), what it said, and what is wrong with that."""

    code: int | None
    out: str
    err: str
    fault: str


class Runner:
    """Runs `rlfn-pipe` with the engine that repeats pixels. `folder` is its working folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> Ran:
        """Run a command, and judge code, sentences and memory."""
        answer = self._ask({"arguments": arguments})
        if isinstance(answer, str):
            return Ran(None, "", "", f"{' '.join(arguments)}\n{answer}")
        code, out, err = answer["code"], answer["out"], answer["err"]
        said = [line for line in err.splitlines() if "error:" in line]
        fault = ""
        if code not in (0, 1, 2):
            fault = f"exit code {code}"
        elif "Traceback" in err or "internal error" in err:
            fault = "an internal error"
        elif code and len(said) != 1 and "failed:" not in err:
            fault = "not one sentence"
        elif not code and said:
            fault = "an error, and exit code 0"
        elif answer["memory"] > MOST_MEMORY:
            fault = f"{answer['memory'] >> 20} MiB"
        if answer["memory"] > MOST_MEMORY:
            self.close()
        return Ran(code, out, err, f"{fault}: {' '.join(arguments)}\n{err}{answer['trace']}" if fault else "")

    def _ask(self, question: dict[str, object]) -> dict[str, object] | str:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile: told below
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        if not ready:
            self.close()
            return f"no answer within {PATIENCE:g} s"
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._process = None
            log = (self.folder / "child.log").read_text(errors="replace")
            return f"the process died with {code}\n{log[-3000:]}"
        return json.loads(line)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            environment = {
                **os.environ,
                "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
                "OMP_NUM_THREADS": "1",
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fuzz.child"], cwd=self.folder, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(self.folder / "child.log").open("wb"),
            )  # fmt: skip
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
