"""The training loop: stages of a recipe, resumable at any moment."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
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
from rlfn_pipe.training.checkpoint import State
from rlfn_pipe.training.data import Sampler, split
from rlfn_pipe.training.device import choose_compute, to_channels_last
from rlfn_pipe.training.events import Note, Outcome, Progress, TrainEvent, Validated
from rlfn_pipe.training.initial import read_weights, take
from rlfn_pipe.training.log import Log
from rlfn_pipe.training.losses import StageLoss
from rlfn_pipe.training.optimisers import Optimisers
from rlfn_pipe.training.recipe import Recipe, Stage
from rlfn_pipe.training.resident import patches, where_it_fits
from rlfn_pipe.training.schedules import learning_rate
from rlfn_pipe.training.start import (
    CHECKPOINT,
    LOG,
    WEIGHTS,
    RunOptions,
    check_batches,
    check_files,
    first_state,
    load_pairs,
    locked,
)
from rlfn_pipe.training.validate import Validation

#: A run that meets NaN this often in one stage is given up.
MOST_ROLLBACKS = 8


def train(
    recipe: Recipe,
    options: RunOptions,
    on_event: Callable[[TrainEvent], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run `recipe` to its end, to the budget, or until `should_stop()`; returns how it ended.

    The run's folder gets `checkpoint.pt` (to go on), `weights.pth` (state dict of the network,
    moving average if there is one), `log.jsonl` and `recipe.toml`. Raises TrainingError with one
    sentence for wrong data, recipe or checkpoint, WeightsError for a wrong file that a stage begins with;
    what was saved before stays.
    """
    compute = choose_compute(options.device, recipe.precision)  # what cannot be had leaves no folder behind
    with locked(options.out), compute.exact_fp32():
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
        self.state = first_state(recipe, self.spec, options, self.leader, self._note)
        check_files(recipe, self.state)
        check_batches(recipe, self.state, self.compute.world)
        pairs = load_pairs(recipe, options, self.compute, self._note)
        self.training_pairs, held_back = split(pairs, recipe.data.held_back)
        device = self.compute.device
        self.resident = where_it_fits(self.training_pairs, device)
        self.validation = Validation(
            held_back, recipe.run.validation_images, recipe.run.validation_crop, device
        )
        self._compare_images(pairs.names)
        self.model = self._new_model()
        self.average: RLFN | None = None
        self.scaler = torch.amp.GradScaler(
            self.compute.device.type, enabled=self.compute.dtype == torch.float16
        )
        self.saved = time.monotonic()

    def _note(self, message: str) -> None:
        self.on_event(Note(message))

    def _compare_images(self, names: tuple[str, ...]) -> None:
        """Say so where a run goes on with other images than it began with."""
        found = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        if self.state.images_of not in ("", found):
            self._note(
                "the images are others than before: some that were trained on may be among those held back now"
            )
        self.state.images_of = found

    # ------------------------------------------------------------------ set-up

    def _new_model(self) -> RLFN:
        """A network with random values that follow from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        model = RLFN(self.spec).to(self.compute.device)
        return to_channels_last(model) if self.recipe.channels_last else model

    def _initialise(self, stage: Stage) -> None:
        """Weights with which a stage starts."""
        if stage.init == "scratch":
            self.model = self._new_model()
        elif stage.init == "previous":
            if self.average is not None:
                self.model.load_state_dict(self.average.state_dict())
        else:
            path = Path(stage.init)
            weights = read_weights(path, self.spec.input_range)
            self.model = self._new_model()  # what the file does not fill is random, not the stage before's
            left = take(self.model, weights, stage.init_fit, str(path))
            self.on_event(
                Note(f"stage {stage.name}: weights of {path}, new layers: {', '.join(left) or 'none'}")
            )

    # ------------------------------------------------------------------ stages

    def go(self) -> Outcome:
        """All stages from where the state stands."""
        try:
            resumed = bool(self.state.model)
            if resumed and self.state.finished and self.state.stage + 1 == len(self.recipe.stages):
                self._note("the run is finished already; give the recipe more stages to go on")
                return self._outcome(finished=True)
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
                self.state.next_stage()
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
        if self.average is not None:
            # A recipe that asks for an average from now on has it begin with what is there.
            self.average.load_state_dict(state.ema or state.model)
        if state.optimiser is not None:
            try:
                optimisers.load_state_dict(state.optimiser)
            except (ValueError, KeyError) as error:
                raise TrainingError(
                    f"{self.path}: its optimiser does not fit the recipe's stage {state.stage + 1};"
                    " resume with the recipe that made it"
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
        batches = patches(sampler, self.resident, state.step, compute)
        total = torch.full((), state.loss_sum, device=compute.device)
        counted, mark, images = state.loss_count, time.monotonic(), 0
        try:
            while True:
                progress = self._progress(stage)
                if progress >= 1:
                    if state.validated_step != state.step:
                        self._validate()
                    if self._is_sound():
                        return True
                    self._roll_back(optimisers)
                    batches.close()
                    batches = patches(sampler, self.resident, state.step, compute)
                    continue
                if self._must_stop():
                    state.loss_sum, state.loss_count = self._mean(total), counted
                    if not (math.isfinite(state.loss_sum) and self._is_sound()):
                        self._roll_back(optimisers)
                        state.loss_sum, state.loss_count = 0.0, 0
                    return False
                started = time.monotonic()
                rate = learning_rate(stage, state.step, progress) * state.rate_factor
                optimisers.set_rate(rate)
                loss = self._update(network, loss_of, optimisers, *next(batches))
                self._follow(stage)
                total += loss
                counted, images = counted + 1, images + stage.batch
                state.step, state.images = state.step + 1, state.images + stage.batch
                passed = time.monotonic() - started
                state.elapsed, state.seconds = state.elapsed + passed, state.seconds + passed
                if state.step % run.log_every == 0 or self._progress(stage) >= 1:
                    started = time.monotonic()
                    mean = self._mean(total) / counted
                    # Steps that a GPU had still in hand end here.
                    passed = time.monotonic() - started
                    state.elapsed, state.seconds = state.elapsed + passed, state.seconds + passed
                    good = math.isfinite(mean)
                    if good:
                        speed = images / max(time.monotonic() - mark, 1e-9)
                        self._tell(self._progress_event(stage, mean, rate, speed))
                    total.zero_()
                    counted, images = 0, 0
                    state.loss_sum, state.loss_count = 0.0, 0
                    if not (good and self._look_up(optimisers)):
                        self._roll_back(optimisers)
                        batches.close()
                        batches = patches(sampler, self.resident, state.step, compute)
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

    def _update(
        self, network: nn.Module, loss_of: StageLoss, optimisers: Optimisers, lr: Tensor, hr: Tensor
    ) -> Tensor:
        """One step; returns the (detached) loss, still on the device."""
        with self.compute.autocast():
            sr = network(lr)
        loss = loss_of(sr.float(), hr, lr)
        optimisers.zero_grad()
        if self.scaler.is_enabled():
            torch.autograd.backward(self.scaler.scale(loss))
            for optimiser in optimisers.parts:
                self.scaler.step(optimiser)
            self.scaler.update()
        else:
            torch.autograd.backward(loss)
            optimisers.step()
        return loss.detach()

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
        return self._leaders(self.state.elapsed / (60 * stage.minutes))

    def _must_stop(self) -> bool:
        over = self.options.until is not None and time.monotonic() - self.began >= self.options.until
        return bool(self._leaders(over or self.should_stop()))

    def _leaders(self, value: float) -> float:
        """The value that the leading process has."""
        if self.compute.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.compute.device)
        distributed.broadcast(tensor, 0)
        return float(tensor.item())

    def _mean(self, total: Tensor) -> float:
        """A sum of losses, averaged over the processes."""
        if self.compute.world > 1:
            distributed.all_reduce(total)
            total /= self.compute.world
        return float(total.item())

    def _look_up(self, optimisers: Optimisers) -> bool:
        """Validate and save when it is time to; False where the network has gone wrong, and nothing is saved then."""
        run = self.recipe.run
        validating = self.state.step % run.validate_every < run.log_every
        saving = bool(self._leaders(time.monotonic() - self.saved >= run.save_seconds))
        if validating:
            self._validate()
        if (validating or saving) and not self._is_sound():
            return False
        if saving:
            self._save(optimisers)
        return True

    def _is_sound(self) -> bool:
        """Whether weights, average and what they make of a picture are numbers: a loss is older than its update."""
        sound = True
        if self.leader:
            networks = [self.model] if self.average is None else [self.model, self.average]
            values = [value for network in networks for value in network.state_dict().values()]
            sound = bool(torch.stack([value.isfinite().all() for value in values]).all())
            sound = sound and all(self.validation.is_finite(network) for network in networks)
            sound = sound and not math.isnan(self.state.psnr)
        return bool(self._leaders(sound))

    def _validate(self) -> None:
        state = self.state
        state.validated_step = state.step
        if self.leader:
            state.psnr = self.validation.psnr(self.average or self.model)
            if not math.isnan(state.psnr):
                state.best_psnr = max(state.best_psnr, state.psnr)
                self._tell(Validated(state.stage, state.step, state.images, state.seconds, state.psnr))

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
        # The spec beside the tensors says that values are 0..1; foreign files are taken for 0..255.
        weights = {"params": state.ema or state.model, "spec": state.architecture}
        checkpoint.save_tensors(self.options.out / WEIGHTS, weights)

    def _roll_back(self, optimisers: Optimisers) -> None:
        """Return to the last good checkpoint with half the rate."""
        good = checkpoint.load(self.path)
        good.rollbacks = self.state.rollbacks + 1
        good.rate_factor = self.state.rate_factor / 2
        if good.rollbacks > MOST_ROLLBACKS:
            raise TrainingError(
                f"{self.path}: loss or network was not finite {good.rollbacks} times even at lower rates;"
                " the checkpoint is the last good state, lower the recipe's rate and resume"
            )
        self.on_event(
            Note(
                f"loss or network is not finite at step {self.state.step}: back to step {good.step},"
                f" rate times {good.rate_factor:g}"
            )
        )
        for key in (
            "model",
            "ema",
            "optimiser",
            "step",
            "elapsed",
            "images",
            "seconds",
            "psnr",
            "best_psnr",
            "validated_step",
            "rollbacks",
            "rate_factor",
        ):
            setattr(self.state, key, getattr(good, key))
        self._restore(good, optimisers)
        if self.leader:
            self.log.cut(self.state.stage, self.state.step)

    def _progress_event(self, stage: Stage, loss: float, rate: float, speed: float) -> Progress:
        state, progress = self.state, self._progress(stage)
        left = state.elapsed / progress * (1 - progress) if progress > 0 else None
        return Progress(
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

    def _tell(self, event: Progress | Validated) -> None:
        if self.leader:
            self.log.add(event)
            self.on_event(event)

    def _outcome(self, finished: bool) -> Outcome:
        state = self.state
        return Outcome(finished, state.stage, state.step, state.images, state.seconds, state.psnr)


def _code_version() -> str:
    try:
        return version("rlfn-pipe")
    except PackageNotFoundError:
        return "checkout"
