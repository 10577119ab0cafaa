"""The end check: what was written is read back and compared with what was meant."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from rlfn_pipe.errors import InputError, OutputError
from rlfn_pipe.media.opening import open_media
from rlfn_pipe.media.timing import scan


def verify_video(
    path: Path,
    name: str,
    stream_index: int,
    expected: np.ndarray,
    tick: Fraction,
    *,
    shifted: bool,
    muxer: str | None = None,
) -> None:
    """Compare frame count and presentation times of a finished file with the plan.

    Args:
        path: the file to read; `name` is how messages call it.
        expected: presentation times in ticks of `tick` seconds.
        shifted: the container may move all times by the same amount (MPEG-TS, AVI).
        muxer: the file's format; else it is told from the content, which takes more than a few frames.

    Raises:
        OutputError: the file cannot be read back, or a frame is missing or at another time.
    """
    try:
        with open_media(path, muxer) as container:
            timeline = scan(container, container.streams[stream_index])  # type: ignore[arg-type]
    except InputError as error:
        raise OutputError(f"{name}: the finished file cannot be read back ({error})") from None
    if timeline.frames != len(expected):
        raise OutputError(
            f"{name}: {len(expected)} frames were written and {timeline.frames} are in the file"
        )
    found = timeline.pts
    factor = timeline.time_base / tick
    ticks = found * factor.numerator
    wanted = expected * factor.denominator
    shift = 0
    if shifted and len(found):
        # What most frames are moved by, so that the frame that is really off is the one named.
        moves, counts = np.unique(ticks - wanted, return_counts=True)
        shift = int(moves[np.argmax(counts)])
        ticks = ticks - shift
    # A container that rounds (its ticks are not ours) may be off by half of one of its ticks.
    off = np.abs(ticks - wanted) > (factor.numerator if factor.denominator == 1 and factor != 1 else 0)
    if off.any():
        first = int(np.argmax(off))
        raise OutputError(
            f"{name}: the end check failed, frame {first} is shown at "
            f"{float(Fraction(int(ticks[first]), factor.denominator) * tick):.6f} s "
            f"instead of {float(expected[first] * tick):.6f} s; write another container"
        )
