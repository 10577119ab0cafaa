"""What a run would do, and what it did: plain data between jobs and whoever shows it.

No PyAV and no torch here: the command draws these, the Python API returns them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlfn_pipe.types import Failed, Finished, MediaInfo, PictureInfo, Warned


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What becomes of one stream beside the video.

    `action` is "copy", "convert" or "drop"; `reason` says why it is not copied, or to what it
    is converted.
    """

    index: int
    kind: str
    codec: str
    action: str
    reason: str = ""
    language: str | None = None


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What `upscale` would do with an input.

    `kind` is "video" or "images". For several items (`items` > 1) the sizes are those of the
    first one. `source_size` and `output_size` are (width, height) in stored pixels;
    `display_size` is the output after rotation. `native_scale` is the factor that the network
    computes before any Lanczos resize. `codec` is the encoder, `container` the format's name
    (both the image format for images). `frames` is None where the container does not state it. Of a
    pipe that comes in nothing is known: sizes and what follows from them are None or "".
    `estimated_bytes` (of the output) and `work_bytes` (of all that lies on the disk at the end of
    the work) are None where no estimate is possible; `free_bytes` is what the disk has. A video is
    made in `segments`. `warnings` are things that may go
    wrong; `notes` are decisions that the person did not ask for (padding to even sides, colour
    guessed, precision chosen).
    """

    input: str
    output: str | None
    kind: str
    items: int
    model: str
    scale: float | None
    native_scale: int
    source_size: tuple[int, int] | None
    output_size: tuple[int, int] | None
    display_size: tuple[int, int] | None
    codec: str
    container: str
    pix_fmt: str
    frames: int | None = None
    streams: tuple[StreamPlan, ...] = ()
    segments: int = 0
    estimated_bytes: int | None = None
    work_bytes: int | None = None
    free_bytes: int | None = None
    device: str = ""
    precision: str = ""
    tile: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    media: MediaInfo | None = None
    picture: PictureInfo | None = None


def loss_notes(frames: int, concealed: int, damaged: int) -> list[str]:
    """What is to be said of frames that were lost or harmed in the source."""
    notes = []
    if damaged:
        notes.append(f"{damaged} of {frames} frames decoded with damage")
    if concealed:
        notes.append(f"{concealed} of {frames} frames did not decode; a neighbour was repeated")
    return notes


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did. `skipped` names inputs whose output was there already (`--skip-existing`)."""

    finished: tuple[Finished, ...] = ()
    failed: tuple[Failed, ...] = ()
    warned: tuple[Warned, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 when all is done, 1 when an item failed."""
        return 1 if self.failed else 0
