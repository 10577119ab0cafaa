"""The child's side of `fuzz.runner`: one JSON line in, a command, one JSON line out."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import resource
import sys
import traceback

import pytest
import torch
from conftest import use_nearest_engine


def main() -> None:
    faulthandler.enable()
    # The protocol has standard output for itself, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    use_nearest_engine(pytest.MonkeyPatch())
    import rlfn_pipe.jobs.run
    from rlfn_pipe.cli import app

    traces: list[str] = []
    # The command hides where an internal error came from; here it is wanted.
    app._say = lambda message, say=app._say: (traces.append(traceback.format_exc()), say(message))
    assert rlfn_pipe.jobs.run
    for line in sys.stdin:
        out, err = io.StringIO(), io.StringIO()
        traces.clear()
        before = _memory()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = app.main(json.loads(line)["arguments"])
        answer = {
            "code": code, "out": out.getvalue()[-100_000:], "err": err.getvalue()[-20_000:],
            "trace": "".join(traces)[-3000:] if "internal error" in err.getvalue() else "",
            "memory": _memory() - before,
        }  # fmt: skip
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _memory() -> int:
    """The most memory that the process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
