"""Learning rates as pure functions of where a stage stands."""

from __future__ import annotations

import math

from rlfn_pipe.training.recipe import Stage


def learning_rate(stage: Stage, step: int, progress: float) -> float:
    """Rate for the `step`-th update of `stage` (from 0).

    `progress` is the share of the stage that is done (0..1): by steps, or by the clock in a
    stage that has `minutes`. "halving" halves each `halve_every` steps (the paper's), "cyclic"
    starts again each `cycle` steps and halves each `halve_every` within it (the paper's ablation
    `clr`), "cosine" falls from `rate` to `rate * floor`.
    """
    rate = stage.rate
    if stage.schedule == "halving":
        rate *= 0.5 ** (step // stage.halve_every)
    elif stage.schedule == "cyclic":
        rate *= 0.5 ** (step % stage.cycle // stage.halve_every)
    elif stage.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        rate *= stage.floor + (1 - stage.floor) * fall
    return rate * min(1.0, (step + 1) / stage.warmup) if stage.warmup else rate
