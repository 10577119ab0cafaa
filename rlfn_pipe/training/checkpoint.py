"""Checkpoints: all that a run needs to go on, written so that the old one survives any failure."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.files import atomic_path
from rlfn_pipe.models.pickles import Unreadable, load_plain

_FORMAT = 1


@dataclass
class State:
    """Where a run stands. Tensors are on the CPU in a state that was loaded.

    `step` counts the updates of stage `stage` (index from 0); `elapsed` is its training time in
    seconds over all interruptions; `images` and `seconds` count over the whole run.
    `rate_factor` is below 1 after a roll-back, and `rollbacks` counts them, in this stage. `position`
    needs no more than stage and step: batches are a function of them.
    """

    model: dict[str, Tensor]
    architecture: dict[str, Any]
    recipe: str
    recipe_name: str
    ema: dict[str, Tensor] | None = None
    optimiser: list[dict[str, Any]] | None = None
    stage: int = 0
    step: int = 0
    elapsed: float = 0.0
    images: int = 0
    seconds: float = 0.0
    rate_factor: float = 1.0
    rollbacks: int = 0
    #: Sum and number of the losses since the last line of the log.
    loss_sum: float = 0.0
    loss_count: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    psnr: float = 0.0
    best_psnr: float = 0.0
    validated_step: int = -1
    finished: bool = False
    version: str = ""
    device: str = ""
    #: Which images the run was made of: a digest of their names.
    images_of: str = ""
    format: int = _FORMAT

    def next_stage(self) -> None:
        """Stand at the beginning of the stage after this one."""
        self.stage, self.step, self.elapsed, self.validated_step = self.stage + 1, 0, 0.0, -1
        self.loss_sum, self.loss_count, self.finished = 0.0, 0, False
        self.rate_factor, self.rollbacks = 1.0, 0


def save(path: Path, state: State) -> None:
    """Write `state` to `path` by way of a temporary file beside it.

    Raises TrainingError when the disk is full or the place cannot be written; the checkpoint
    that was there before is then untouched.
    """
    save_tensors(path, {f.name: getattr(state, f.name) for f in fields(State)})


def save_tensors(path: Path, data: dict[str, Any]) -> None:
    """Write tensors and plain data to `path` by way of a temporary file; raises as `save` does."""
    try:
        with atomic_path(path) as partial, partial.open("wb") as out:
            torch.save(data, out)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        # PyTorch's writer does not say why it failed.
        with suppress(OSError):
            if shutil.disk_usage(path.parent).free < 1 << 20:
                reason = "the disk is full"
        raise TrainingError(
            f"{path}: the checkpoint cannot be saved ({reason}); the one before it is kept,"
            " make room and start the same command with --resume"
        ) from error


def load(path: Path) -> State:
    """Read a checkpoint; TrainingError with one sentence when it is not one."""
    try:
        found = load_plain(path)
    except Unreadable as error:
        raise TrainingError(f"{path}: cannot be read as a checkpoint: it {error}; use another") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not _is_whole(found):
        raise TrainingError(
            f"{path}: is not a checkpoint of rlfn-pipe's training (format {_FORMAT}); use another"
        )
    return State(**{f.name: found[f.name] for f in fields(State) if f.name in found})


def _is_whole(found: dict[Any, Any]) -> bool:
    """Whether the fields without default are there and plain fields hold values of their kind."""
    kinds: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "bool": bool, "str": str}
    if not all(isinstance(found.get(name), dict) for name in ("model", "architecture")):
        return False
    if not all(isinstance(found.get(name), str) for name in ("recipe", "recipe_name")):
        return False
    tensors = [*found["model"].values(), *(found.get("ema") or {}).values()]
    if not all(isinstance(value, Tensor) for value in tensors):
        return False
    return all(
        isinstance(found.get(f.name, f.default), kinds.get(str(f.type), object)) for f in fields(State)
    )


def random_states() -> dict[str, Any]:
    """The generators' states as tensors (CPU, and each CUDA device's)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators back where `random_states` saw them."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if states.get("cuda") and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def describe_architecture(spec: Any) -> dict[str, Any]:
    """What must agree between a checkpoint and a recipe."""
    keys = ("name", "scale", "channels", "mid_channels", "blocks", "esa_channels", "input_range")
    return {key: value for key, value in asdict(spec).items() if key in keys}
