"""What a run tells while it goes: plain frozen data, drawn by whoever listens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the person who trains."""

    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Averages since the last one of these. `progress`: share of the stage that is done, 0..1.

    `eta_seconds` is for the stage; `images_per_second` counts patches.
    """

    stage: int
    stage_name: str
    step: int
    steps: int
    progress: float
    images: int
    seconds: float
    loss: float
    rate: float
    images_per_second: float
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class Validated:
    """PSNR-Y in dB on the held-back images."""

    stage: int
    step: int
    images: int
    seconds: float
    psnr: float


TrainEvent = Note | Progress | Validated


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `finished`, or paused at a budget or a signal. `psnr`: the last validation."""

    finished: bool
    stage: int
    step: int
    images: int
    seconds: float
    psnr: float
