"""What a run begins with: its options, the state to go on from, the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as distributed
from filelock import FileLock, Timeout

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.training import checkpoint
from rlfn_pipe.training.cache import build_cache
from rlfn_pipe.training.checkpoint import State
from rlfn_pipe.training.data import Pairs
from rlfn_pipe.training.device import Compute, is_leading
from rlfn_pipe.training.log import Log
from rlfn_pipe.training.recipe import Recipe
from rlfn_pipe.types import ModelSpec

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.pth"
LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where a run reads and writes, and how long it may take.

    `cache`: folder for decoded images (default: `cache` beside the run's folder). `until`: stop
    cleanly after so many seconds. `resume`: go on from the checkpoint in `out` (a new run where
    there is none). `threads`: of torch, on the CPU.
    """

    data: Path
    out: Path
    cache: Path | None = None
    until: float | None = None
    resume: bool = False
    device: str = "auto"
    threads: int | None = None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run's folder, made when missing. TrainingError where another process trains in it."""
    if not is_leading():
        yield  # the leading process of several holds it
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise TrainingError(
            f"{out}: another process trains in it; wait for that one or choose another folder"
        ) from None
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (out / ".lock").unlink()
        lock.release()


def check_files(recipe: Recipe, state: State) -> None:
    """TrainingError for a file that a stage which is still to come would look for in vain."""
    for number, stage in enumerate(recipe.stages, 1):
        begun = number <= state.stage or (number == state.stage + 1 and bool(state.model))
        from_file = stage.init not in ("scratch", "previous") and not begun
        named = {"init": stage.init if from_file else "", "vgg": stage.vgg if number > state.stage else ""}
        for key, path in named.items():
            if path and not Path(path).is_file():
                raise TrainingError(
                    f"stage {number} ({stage.name}): {key} names {path}, and there is no such file"
                )


def check_batches(recipe: Recipe, state: State, world: int) -> None:
    """TrainingError for a stage still to go through whose batch `world` processes cannot share evenly.

    Gradients are averaged over the processes as if their shares were of one size.
    """
    for number, stage in enumerate(recipe.stages[state.stage :], state.stage + 1):
        if stage.batch % world:
            raise TrainingError(
                f"stage {number} ({stage.name}): {world} processes cannot share a batch of {stage.batch} evenly;"
                f" set batch to a multiple of {world}, or start another number of processes"
            )


def first_state(
    recipe: Recipe, spec: ModelSpec, options: RunOptions, leader: bool, note: Callable[[str], None]
) -> State:
    """The checkpoint's state, or that of a fresh run; refuses to overwrite a run unasked.

    The leader also cuts the log back to that state. Raises TrainingError for a checkpoint of
    another network and for a folder that cannot be written.
    """
    path, log = options.out / CHECKPOINT, Log(options.out / LOG)
    ours = checkpoint.describe_architecture(spec)
    if path.exists():
        if not options.resume:
            raise TrainingError(f"{options.out}: already holds a run; add --resume or choose another folder")
        state = checkpoint.load(path)
        if state.architecture != ours:
            raise TrainingError(
                f"{path}: is a checkpoint of {state.architecture.get('name')}"
                f" x{state.architecture.get('scale')}, but the recipe trains {spec.name} x{spec.scale};"
                " use the recipe that it was made with"
            )
        if state.stage >= len(recipe.stages):
            raise TrainingError(
                f"{path}: stands in stage {state.stage + 1}, but the recipe has only {len(recipe.stages)};"
                " use the recipe that it was made with"
            )
        if state.recipe != recipe.text:
            note("the recipe has changed since the checkpoint; going on with the new one")
            if leader:
                _write_recipe(options.out, recipe)
        if leader:
            log.cut(state.stage, state.step)
        return state
    if leader:
        _write_recipe(options.out, recipe)
        log.cut(-1, -1)
    return State(model={}, architecture=ours, recipe=recipe.text, recipe_name=recipe.name)


def _write_recipe(out: Path, recipe: Recipe) -> None:
    try:
        (out / "recipe.toml").write_text(recipe.text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error.strerror or error})") from error


def load_pairs(recipe: Recipe, options: RunOptions, compute: Compute, note: Callable[[str], None]) -> Pairs:
    """All image pairs out of the cache; the leading process builds it while the others wait."""
    root = options.cache or options.out.parent / "cache"
    choice, scale = recipe.data, recipe.model.scale

    def build() -> Pairs:
        cache = build_cache(options.data, root, (scale,), on_note=note)
        names = tuple(image.name for image in cache.images)
        lr: list[tuple[np.ndarray, ...]] = [(image,) for image in cache.open(scale)]
        if choice.degradation == "video":
            from rlfn_pipe.training.degrade import degraded_versions

            lr = degraded_versions(cache, scale, choice.variants, recipe.seed, note)
        return Pairs(names, tuple(cache.open(1)), tuple(lr), scale)

    pairs = build() if compute.rank == 0 else None
    if compute.world > 1:
        distributed.barrier()
    return pairs or build()
