"""The training loop: stages of a recipe, resumable at any moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.training import checkpoint
from rlfn_pipe.training.cache import build_cache
from rlfn_pipe.training.checkpoint import State
from rlfn_pipe.training.data import Batch, Pairs, Sampler, prefetch, split
from rlfn_pipe.training.device import Compute, choose_compute
from rlfn_pipe.training.events import Note, Outcome, TrainEvent, TrainProgress, Validated
from rlfn_pipe.training.initial import read_weights, take_fitting
from rlfn_pipe.training.log import Log
from rlfn_pipe.training.losses import StageLoss
from rlfn_pipe.training.optimisers import Optimisers
from rlfn_pipe.training.recipe import Recipe, Stage
from rlfn_pipe.training.schedules import learning_rate
from rlfn_pipe.training.validate import Validation

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.pth"
LOG = "log.jsonl"
#: A run that meets NaN this often in one stage is given up.
MOST_ROLLBACKS = 8


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


def train(
    recipe: Recipe,
    options: RunOptions,
    on_event: Callable[[TrainEvent], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run `recipe` to its end, to the budget, or until `should_stop()`; returns how it ended.

    The run's folder gets `checkpoint.pt` (to go on), `weights.pth` (state dict of the network,
    moving average if there is one), `log.jsonl` and `recipe.toml`. Raises TrainingError with one
    sentence for wrong data, recipe or checkpoint; what was saved before stays.
    """
    return _Run(recipe, options, on_event, should_stop).go()


class _Run:
    """One call of `train`: the network, its state and its surroundings."""

    def __init__(
        self,
        recipe: Recipe,
        options: RunOptions,
        on_event: Callable[[TrainEvent], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.began = time.monotonic()
        self.recipe, self.options, self.should_stop = recipe, options, should_stop
        if options.threads:
            torch.set_num_threads(options.threads)
        self.compute = choose_compute(options.device, recipe.precision)
        self.leader = self.compute.rank == 0
        self.on_event = on_event if self.leader else (lambda _: None)
        self.spec = architecture(recipe.model.name, recipe.model.scale)
        self.path = options.out / CHECKPOINT
        self.log = Log(options.out / LOG)
        self.state = self._first_state()
        self.training_pairs, held_back = self._load_pairs()
        self.validation = Validation(
            held_back, recipe.run.validation_images, recipe.run.validation_crop, self.compute.device
        )
        self.model = self._new_model()
        self.average: RLFN | None = None
        self.scaler = torch.amp.GradScaler(self.compute.device.type, enabled=self.compute.dtype == torch.float16)
        self.saved = time.monotonic()
        self.psnr = 0.0
        self.validated = (-1, -1)

    # ------------------------------------------------------------------ set-up

    def _first_state(self) -> State:
        """The checkpoint's state, or that of a fresh run; refuses to overwrite a run unasked."""
        if self.path.exists():
            if not self.options.resume:
                raise TrainingError(f"{self.options.out}: already holds a run; add --resume or choose another folder")
            state = checkpoint.load(self.path)
            ours = checkpoint.describe_architecture(self.spec)
            if state.architecture != ours:
                raise TrainingError(
                    f"{self.path}: is a checkpoint of {state.architecture.get('name')}"
                    f" x{state.architecture.get('scale')}, but the recipe trains {self.spec.name}"
                    f" x{self.spec.scale}; use the recipe that it was made with"
                )
            if state.recipe != self.recipe.text:
                self.on_event(Note("the recipe has changed since the checkpoint; going on with the new one"))
            if self.leader:
                self.log.cut(state.stage, state.step)
            return state
        try:
            self.options.out.mkdir(parents=True, exist_ok=True)
            if self.leader:
                (self.options.out / "recipe.toml").write_text(self.recipe.text, encoding="utf-8")
                self.log.cut(-1, -1)
        except OSError as error:
            raise TrainingError(f"{self.options.out}: cannot be written ({error.strerror or error})") from error
        return State(
            model={},
            architecture=checkpoint.describe_architecture(self.spec),
            recipe=self.recipe.text,
            recipe_name=self.recipe.name,
        )

    def _load_pairs(self) -> tuple[Pairs, Pairs]:
        """Training and validation pairs out of the cache (the leader builds it)."""
        root = self.options.cache or self.options.out.parent / "cache"
        choice, scale = self.recipe.data, self.spec.scale

        def note(message: str) -> None:
            self.on_event(Note(message))

        def build() -> Pairs:
            cache = build_cache(self.options.data, root, (scale,), on_note=note)
            names = tuple(image.name for image in cache.images)
            lr: list[tuple[Tensor, ...]] = [(image,) for image in cache.open(scale)]
            if choice.degradation == "video":
                from rlfn_pipe.training.degrade import degraded_versions

                lr = degraded_versions(cache, scale, choice.variants, self.recipe.seed, note)
            return Pairs(names, tuple(cache.open(1)), tuple(lr), scale)

        pairs = build() if self.leader else None
        if self.compute.world > 1:
            distributed.barrier()
        return split(pairs or build(), choice.held_back)

    def _new_model(self) -> RLFN:
        """A network with random values that follow from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        model = RLFN(self.spec).to(self.compute.device)
        return model.to(memory_format=torch.channels_last) if self.recipe.channels_last else model

    def _initialise(self, stage: Stage) -> None:
        """Weights with which a stage starts."""
        if stage.init == "scratch":
            self.model = self._new_model()
        elif stage.init == "previous":
            if self.average is not None:
                self.model.load_state_dict(self.average.state_dict())
        else:
            path = Path(stage.init)
            left = take_fitting(self.model, read_weights(path), str(path))
            self.on_event(Note(f"stage {stage.name}: weights of {path}, new layers: {', '.join(left) or 'none'}"))

    # ------------------------------------------------------------------ stages

    def go(self) -> Outcome:
        """All stages from where the state stands."""
        try:
            resumed = bool(self.state.model)
            if resumed:
                self.model.load_state_dict(self.state.model)
            carried: Optimisers | None = None
            while self.state.stage < len(self.recipe.stages):
                stage = self.recipe.stages[self.state.stage]
                optimisers = self._begin(stage, resumed, carried)
                resumed = False
                if not self._run_stage(stage, optimisers):
                    self._save(optimisers)
                    return self._outcome(finished=False)
                self.state.finished = self.state.stage + 1 == len(self.recipe.stages)
                if self.state.finished:
                    self._save(optimisers)
                    break
                carried = optimisers
                self.state.stage, self.state.step, self.state.elapsed = self.state.stage + 1, 0, 0.0
            return self._outcome(finished=True)
        finally:
            if self.compute.world > 1:
                distributed.destroy_process_group()

    def _begin(self, stage: Stage, resumed: bool, carried: Optimisers | None) -> Optimisers:
        """Model, average and optimiser at the start, or at the resumed place, of a stage."""
        if not resumed:
            self._initialise(stage)
        optimisers = Optimisers(stage, self.model)
        self.average = None
        if stage.ema:
            self.average = RLFN(self.spec).to(self.compute.device).requires_grad_(False)
            self.average.load_state_dict(self.model.state_dict())
        if resumed:
            self._restore(self.state, optimisers)
        else:
            if stage.carry_optimiser and carried is not None:
                optimisers.load_state_dict(carried.state_dict())
            self._save(optimisers)
        return optimisers

    def _restore(self, state: State, optimisers: Optimisers) -> None:
        """Take up weights, average, optimiser and generators of `state`."""
        self.model.load_state_dict(state.model)
        if self.average is not None and state.ema is not None:
            self.average.load_state_dict(state.ema)
        if state.optimiser is not None:
            try:
                optimisers.load_state_dict(state.optimiser)
            except (ValueError, KeyError) as error:
                raise TrainingError(
                    f"{self.path}: its optimiser does not fit the recipe's stage {state.stage + 1}; resume with"
                    " the recipe that made it"
                ) from error
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        checkpoint.restore_random_states(state.random)

    def _run_stage(self, stage: Stage, optimisers: Optimisers) -> bool:
        """Updates until the stage is done (True) or has to pause (False)."""
        state, run, compute = self.state, self.recipe.run, self.compute
        loss_of = StageLoss(stage, self.recipe.seed).to(compute.device)
        sampler = Sampler(
            self.training_pairs,
            stage.patch,
            stage.batch,
            (self.recipe.seed, state.stage),
            compute.rank,
            compute.world,
        )
        network = self._wrapped()
        batches = prefetch(sampler, state.step)
        total = torch.zeros((), device=compute.device)
        counted, mark, images = 0, time.monotonic(), 0
        try:
            while True:
                progress = self._progress(stage)
                if progress >= 1:
                    if self.validated != (state.stage, state.step):
                        self._validate()
                    return True
                if self._must_stop():
                    return False
                started = time.monotonic()
                rate = learning_rate(stage, state.step, progress) * state.rate_factor
                optimisers.set_rate(rate)
                loss = self._update(network, loss_of, optimisers, next(batches))
                self._follow(stage)
                total += loss
                counted, images = counted + 1, images + stage.batch
                state.step, state.images = state.step + 1, state.images + stage.batch
                passed = time.monotonic() - started
                state.elapsed, state.seconds = state.elapsed + passed, state.seconds + passed
                if state.step % run.log_every == 0 or self._progress(stage) >= 1:
                    mean = self._mean(total) / counted
                    if not math.isfinite(mean):
                        self._roll_back(optimisers)
                        batches.close()
                        batches = prefetch(sampler, state.step)
                    else:
                        state.recent_loss = mean
                        speed = images / max(time.monotonic() - mark, 1e-9)
                        self._tell(self._progress_event(stage, mean, rate, speed))
                    total.zero_()
                    counted, mark, images = 0, time.monotonic(), 0
                    if math.isfinite(mean):
                        self._look_up(stage, optimisers)
                        mark = time.monotonic()
        finally:
            batches.close()

    def _wrapped(self) -> nn.Module:
        """The network as the steps call it: compiled, distributed."""
        network: nn.Module = self.model
        if self.compute.world > 1:
            ids = [self.compute.device.index] if self.compute.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        wish = self.recipe.compile
        if wish == "on" or (wish == "auto" and self.compute.device.type == "cuda"):
            network = torch.compile(network)  # type: ignore[assignment]
        return network

    def _update(self, network: nn.Module, loss_of: StageLoss, optimisers: Optimisers, batch: Batch) -> Tensor:
        """One step; returns the (detached) loss, still on the device."""
        lr, hr = (self._to_device(part) for part in batch)
        with self.compute.autocast():
            sr = network(lr)
        loss = loss_of(sr.float(), hr, lr)
        optimisers.zero_grad()
        if self.scaler.is_enabled():
            self.scaler.scale(loss).backward()
            for optimiser in optimisers.parts:
                self.scaler.step(optimiser)
            self.scaler.update()
        else:
            loss.backward()
            optimisers.step()
        return loss.detach()

    def _to_device(self, patches: torch.Tensor | object) -> Tensor:
        """uint8 (N, h, w, 3) array -> float (N, 3, h, w) in 0..1 on the device, channels last."""
        tensor = torch.from_numpy(patches).permute(0, 3, 1, 2)  # type: ignore[arg-type]
        if self.compute.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.compute.device, non_blocking=True)
        return tensor.float().div_(255)

    @torch.no_grad()
    def _follow(self, stage: Stage) -> None:
        """Move the average of the weights towards the weights."""
        if self.average is None:
            return
        # A short memory at first, so that the random start is soon forgotten.
        decay = min(stage.ema, (1 + self.state.step) / (10 + self.state.step))
        ours = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), ours, 1 - decay)

    # ------------------------------------------------- looking up, saving, ending

    def _progress(self, stage: Stage) -> float:
        """Share of the stage that is done; the leader's clock counts in a distributed run."""
        if stage.length:
            return self.state.step / stage.length
        share = self.state.elapsed / (60 * stage.minutes)
        return self._leaders(share) if self.compute.world > 1 else share

    def _must_stop(self) -> bool:
        over = self.options.until is not None and time.monotonic() - self.began >= self.options.until
        stop = over or self.should_stop()
        return bool(self._leaders(float(stop))) if self.compute.world > 1 else stop

    def _leaders(self, value: float) -> float:
        """The value that the leading process has."""
        tensor = torch.tensor([value], dtype=torch.float64, device=self.compute.device)
        distributed.broadcast(tensor, 0)
        return float(tensor.item())

    def _mean(self, total: Tensor) -> float:
        """A sum of losses, averaged over the processes."""
        if self.compute.world > 1:
            distributed.all_reduce(total)
            total /= self.compute.world
        return float(total.item())

    def _look_up(self, stage: Stage, optimisers: Optimisers) -> None:
        """Validate and save when it is time to; only ever on a step whose loss is finite."""
        if self.state.step % self.recipe.run.validate_every < self.recipe.run.log_every:
            self._validate()
        if time.monotonic() - self.saved >= self.recipe.run.save_seconds:
            self._save(optimisers)

    def _validate(self) -> None:
        state = self.state
        self.validated = (state.stage, state.step)
        if not self.leader:
            return
        self.psnr = self.validation.psnr(self.average or self.model)
        state.best_psnr = max(state.best_psnr, self.psnr)
        self._tell(Validated(state.stage, state.step, state.images, state.seconds, self.psnr))

    def _save(self, optimisers: Optimisers) -> None:
        """Write the checkpoint and the weights."""
        self.saved = time.monotonic()
        if not self.leader:
            return
        state = self.state
        state.model = {key: value.cpu().clone() for key, value in self.model.state_dict().items()}
        state.ema = None
        if self.average is not None:
            state.ema = {key: value.cpu().clone() for key, value in self.average.state_dict().items()}
        state.optimiser = optimisers.state_dict()
        state.scaler = self.scaler.state_dict()
        state.random = checkpoint.random_states()
        state.recipe, state.recipe_name = self.recipe.text, self.recipe.name
        state.version, state.device = _code_version(), self.compute.describe()
        checkpoint.save(self.path, state)
        checkpoint.save_tensors(self.options.out / WEIGHTS, state.ema or state.model)

    def _roll_back(self, optimisers: Optimisers) -> None:
        """Return to the last good checkpoint with half the rate."""
        good = checkpoint.load(self.path)
        good.rollbacks = self.state.rollbacks + 1
        good.rate_factor = self.state.rate_factor / 2
        if good.rollbacks > MOST_ROLLBACKS:
            raise TrainingError(
                f"{self.path}: the loss was not finite {good.rollbacks} times even at lower rates;"
                " the checkpoint is the last good state, lower the recipe's rate and resume"
            )
        self.on_event(
            Note(
                f"the loss is not finite before step {self.state.step}: back to step {good.step},"
                f" rate times {good.rate_factor:g}"
            )
        )
        for key in ("model", "ema", "optimiser", "step", "elapsed", "images", "seconds", "rollbacks", "rate_factor"):
            setattr(self.state, key, getattr(good, key))
        self._restore(good, optimisers)
        if self.leader:
            self.log.cut(self.state.stage, self.state.step)

    def _progress_event(self, stage: Stage, loss: float, rate: float, speed: float) -> TrainProgress:
        state, progress = self.state, self._progress(stage)
        left = state.elapsed / progress * (1 - progress) if progress > 0 else None
        return TrainProgress(
            state.stage,
            stage.name,
            state.step,
            stage.length,
            progress,
            state.images,
            state.seconds,
            loss,
            rate,
            speed,
            left,
        )

    def _tell(self, event: TrainProgress | Validated) -> None:
        if self.leader:
            self.log.add(event)
            self.on_event(event)

    def _outcome(self, finished: bool) -> Outcome:
        state = self.state
        return Outcome(finished, state.stage, state.step, state.images, state.seconds, self.psnr)


def _code_version() -> str:
    try:
        return version("rlfn-pipe")
    except PackageNotFoundError:
        return "checkout"
