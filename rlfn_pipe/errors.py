"""The error tree. Every error a user can meet is one of these.

::

    RlfnPipeError                 exit 1
    ├── UsageError                exit 2   wrong option, preset, model name or size
    ├── InputError                exit 1   input missing, unreadable or without pictures
    ├── HardwareFailed                     a GPU's decoder cannot go on; software takes over
    ├── OutputError               exit 1   output exists, cannot be written, or fails its end check
    │   └── Taken                          another process has made it meanwhile, or is making it
    ├── WeightsError              exit 1   a weights file that is damaged or of another kind
    ├── EngineError               exit 1   device or network failure that no smaller tile mends
    ├── TrainingError             exit 1   data or state that training cannot go on with
    └── Interrupted               exit 130 (SIGINT), 143 (SIGTERM) or 129 (SIGHUP)

A message is one sentence for the person at the shell: what, where, what to do.
Exit codes are read from these classes in one place only (`rlfn_pipe.cli.app`).
"""

from __future__ import annotations

import errno
import signal

#: What helps when the disk, or the user's share of it, is full.
MORE_ROOM = "free some space and run the same command again"


class RlfnPipeError(Exception):
    """Base of all errors that are reported as one sentence without a traceback."""

    exit_code = 1
    #: Whether a reader of `--json` has been told.
    in_json = False


class UsageError(RlfnPipeError):
    """The command was called wrongly: option, preset key, model name, impossible size."""

    exit_code = 2


class InputError(RlfnPipeError):
    """The input is missing, unreadable, or holds nothing to upscale."""


class HardwareFailed(RlfnPipeError):
    """A GPU's decoder cannot go on, for the given `reason`; whoever asked for it begins again in software."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"--hwaccel cuda is not followed, the video is decoded in software: {reason}")


class OutputError(RlfnPipeError):
    """The output exists, cannot be written, or did not pass the end check."""


class Taken(OutputError):
    """Another process has made the output meanwhile, or is making it."""

    @property
    def passed_over(self) -> str:
        """What to say where that is no failure: the message without its advice."""
        return f"passed over: {str(self).partition(';')[0]}"


class WeightsError(RlfnPipeError):
    """A weights file is damaged, of an unknown architecture, or fails its checksum."""


class EngineError(RlfnPipeError):
    """The device or the network failed in a way that smaller tiles do not mend.

    `frame` is the index of the frame that it is about, None where it is about all of them.
    """

    frame: int | None = None


class SlowerThanMeant(RuntimeWarning):
    """A faster way should work here and does not: the result is the same."""


class TrainingError(RlfnPipeError):
    """Training or evaluation data, recipe or checkpoint cannot be used."""


class Interrupted(RlfnPipeError):
    """The user or the system asked the program to stop.

    `signum` is the signal that arrived; the exit code is 128 + signum as shells expect.
    """

    def __init__(
        self,
        signum: int = signal.SIGINT,
        message: str = "stopped before the end; the unfinished output was removed",
    ) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


def reason_of(error: OSError) -> str:
    """The system's reason in a few small words, for a sentence that names the file."""
    return (error.strerror or str(error)).lower()


def is_full(error: BaseException) -> bool:
    """Whether the system says that the disk, or the user's share of it, is full (PyAV's errors included)."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def advice_for(error: BaseException, otherwise: str) -> str:
    """What to do about a failed write: `MORE_ROOM` on a full disk, else what is given."""
    return MORE_ROOM if is_full(error) else otherwise
