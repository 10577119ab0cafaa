"""Recipes: what to train, in which stages, as plain data read from TOML."""

from __future__ import annotations

import difflib
import reprlib
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.models.architectures import ARCHITECTURES, SCALES

SCHEDULES = ("constant", "halving", "cosine", "cyclic")
OPTIMISERS = ("adam", "muon")
LOSSES = ("l1", "l2", "charbonnier", "contrastive", "contrastive_vgg")
FITS = ("equal", "widen", "narrow")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training: from which weights, how long, at which rate, towards what.

    Length is exactly one of `steps`, `epochs` (an epoch: as many steps as `epoch_steps`, default
    1000 as in the field's code) or `minutes` (of training time, counted over interruptions; the
    schedule then follows the clock). `patch` is the side of the HR crop in pixels.
    """

    name: str
    #: "scratch", "previous" (the stage before), or the path of a weights file; layers that do
    #: not fit (another scale's upsampler) start from their random values.
    init: str = "previous"
    #: How a file in `init` of a network of another size is fitted: "equal" (only tensors of equal
    #: shape are taken), "widen" (a narrower or shallower network, its function kept), "narrow"
    #: (the strongest channels and blocks of a larger one).
    init_fit: str = "equal"
    steps: int = 0
    epochs: int = 0
    epoch_steps: int = 1000
    minutes: float = 0.0
    batch: int = 64
    patch: int = 256
    optimiser: str = "adam"
    #: Whether the optimiser's state comes along from the stage before (the ablation `clr`).
    carry_optimiser: bool = False
    rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    schedule: str = "halving"
    #: Steps after which "halving" halves the rate, or the period of "cyclic".
    halve_every: int = 200_000
    cycle: int = 0
    #: Steps over which the rate rises from 0 at the start.
    warmup: int = 0
    #: The rate at the end of "cosine", as a fraction of `rate`.
    floor: float = 0.0
    #: Decay of the moving average of the weights (0: none).
    ema: float = 0.0
    losses: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    #: Weights file of VGG-19 for "contrastive_vgg".
    vgg: str = ""

    @property
    def length(self) -> int:
        """Steps of the stage; 0 when it goes by the clock."""
        return self.steps or self.epochs * self.epoch_steps


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The network: a name of the family and a native scale."""

    name: str = "rlfn-s"
    scale: int = 4


@dataclass(frozen=True, slots=True)
class DataChoice:
    """What is made of the folder of images.

    `held_back`: share of the images kept for validation. `degradation`: "bicubic" (the paper's)
    or "video" (blur, noise, chroma subsampling and real video codecs; needs PyAV once, when the
    cache is made); `variants`: how many degraded versions of each image.
    """

    held_back: float = 0.1
    degradation: str = "bicubic"
    variants: int = 2


@dataclass(frozen=True, slots=True)
class RunChoice:
    """How often a run looks up: steps between validations and log lines, seconds between saves."""

    validate_every: int = 1000
    log_every: int = 50
    save_seconds: float = 60.0
    validation_images: int = 16
    #: Side of the central HR crop of a validation image.
    validation_crop: int = 384


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training plan. `text` is the TOML that it was read from."""

    name: str
    model: ModelChoice
    stages: tuple[Stage, ...]
    data: DataChoice = DataChoice()
    run: RunChoice = RunChoice()
    seed: int = 0
    precision: str = "auto"
    channels_last: bool = True
    #: torch.compile: "auto" (on CUDA), "on", "off".
    compile: str = "auto"
    description: str = ""
    text: str = ""


#: Beyond this no rate, size or count makes sense; it keeps infinities out, too.
_LARGEST_NUMBER = 1e15


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; TrainingError with one sentence when anything in it is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: the recipe cannot be read ({error})") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Parse a recipe's TOML text; `where` names it in messages."""
    try:
        table = tomllib.loads(text)
    # A plain ValueError: a number of thousands of digits; RecursionError: brackets in brackets.
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{where}: is not valid TOML ({error}); correct it") from error
    stages = table.pop("stage", [])
    if not isinstance(stages, list) or not stages:
        raise TrainingError(f"{where}: has no [[stage]]; add at least one")
    parts: dict[str, Any] = {
        "model": _build(ModelChoice, table.pop("model", {}), where, "model"),
        "data": _build(DataChoice, table.pop("data", {}), where, "data"),
        "run": _build(RunChoice, table.pop("run", {}), where, "run"),
        "stages": tuple(_build(Stage, row, where, f"stage {n}") for n, row in enumerate(stages, 1)),
        "text": text,
    }
    table.setdefault("name", Path(where).stem)
    recipe: Recipe = _build(Recipe, table, where, "the top level", parts)
    _check(recipe, where)
    return recipe


def _build(kind: type, table: Any, where: str, section: str, extra: dict[str, Any] | None = None) -> Any:
    """Make a dataclass from a TOML table; unknown keys and wrong types are errors."""
    if not isinstance(table, dict):
        raise TrainingError(f"{where}: {section} must be a table of keys; correct it")
    extra = extra or {}
    known = {f.name: f for f in fields(kind) if f.name not in extra}
    values = dict(extra)
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}" if near else f"known keys are {', '.join(known)}"
            raise TrainingError(f"{where}: unknown key {key!r} in {section}; {hint}")
        values[key] = _typed(value, str(known[key].type), f"{where}: {key!r} in {section}")
    try:
        return kind(**values)
    except TypeError as error:
        missing = ", ".join(key for key in known if f"'{key}'" in str(error)) or str(error)
        raise TrainingError(f"{where}: {section} lacks the key {missing}; add it") from error


def _typed(value: Any, kind: str, what: str) -> Any:
    """Check a TOML value against the annotation of its field, and convert numbers and lists."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER
    if kind == "float" and number:
        return float(value)
    if kind == "int" and number and float(value).is_integer():
        return int(value)
    if (kind == "str" and isinstance(value, str)) or (kind == "bool" and isinstance(value, bool)):
        return value
    if kind.startswith("tuple[float") and isinstance(value, list) and len(value) == 2:
        return tuple(_typed(v, "float", what) for v in value)
    if kind.startswith("dict") and isinstance(value, dict):
        return {key: _typed(weight, "float", f"{what}, {key!r}") for key, weight in value.items()}
    # Python refuses to write out whole numbers of thousands of digits.
    huge = isinstance(value, int) and abs(value) > _LARGEST_NUMBER
    shown = "a number of that size" if huge else reprlib.repr(value)
    raise TrainingError(f"{what} must be of type {kind}, not {shown}")


def _check(recipe: Recipe, where: str) -> None:
    """Values that cannot work, each with its own sentence."""
    _one_of(recipe.model.name, tuple(ARCHITECTURES), f"{where}: model name")
    _one_of(recipe.precision, PRECISIONS, f"{where}: precision")
    _one_of(recipe.compile, ("auto", "on", "off"), f"{where}: compile")
    _one_of(recipe.data.degradation, ("bicubic", "video"), f"{where}: degradation")
    if recipe.model.scale not in SCALES:
        raise TrainingError(f"{where}: scale must be 2, 3 or 4, not {recipe.model.scale}")
    if not 0 < recipe.data.held_back < 1:
        raise TrainingError(f"{where}: held_back is a share between 0 and 1, not {recipe.data.held_back}")
    if recipe.run.validation_crop // recipe.model.scale < 15 or recipe.run.validation_images < 1:
        raise TrainingError(
            f"{where}: validation needs an image or more and a crop of"
            f" {15 * recipe.model.scale} pixels or more"
        )
    if recipe.run.log_every < 1 or recipe.run.validate_every < 1:
        raise TrainingError(f"{where}: log_every and validate_every are numbers of steps, 1 or more")
    if recipe.data.variants < 1 or not 0 <= recipe.seed < 1 << 63 or recipe.run.save_seconds < 0:
        raise TrainingError(f"{where}: variants is 1 or more, seed and save_seconds are 0 or more")
    for number, stage in enumerate(recipe.stages, 1):
        what = f"{where}: stage {number} ({stage.name})"
        for meant, works in _ranges(stage).items():
            if not works:
                raise TrainingError(f"{what}: {meant}")
        _one_of(stage.schedule, SCHEDULES, f"{what}: schedule")
        _one_of(stage.optimiser, OPTIMISERS, f"{what}: optimiser")
        _one_of(stage.init_fit, FITS, f"{what}: init_fit")
        for loss in stage.losses:
            _one_of(loss, LOSSES, f"{what}: loss")
        if (stage.steps > 0) + (stage.epochs > 0) + (stage.minutes > 0) != 1:
            raise TrainingError(f"{what} needs exactly one of steps, epochs or minutes, above 0")
        if stage.batch < 1 or stage.rate <= 0 or not stage.losses:
            raise TrainingError(f"{what} needs a batch of at least 1, a rate above 0 and a loss")
        if stage.patch % recipe.model.scale or stage.patch // recipe.model.scale < 15:
            raise TrainingError(
                f"{what}: patch {stage.patch} must be a multiple of the scale {recipe.model.scale}"
                f" and at least {15 * recipe.model.scale}"
            )
        if number == 1 and (stage.init == "previous" or stage.carry_optimiser):
            raise TrainingError(f'{what} is the first, so nothing comes before it; set init = "scratch"')
        if stage.init_fit != "equal" and stage.init in ("scratch", "previous"):
            raise TrainingError(f"{what}: init_fit fits a file's weights; name the file in init")
        if stage.schedule == "cyclic" and stage.cycle < 1:
            raise TrainingError(f"{what}: a cyclic schedule needs the cycle's length in steps (cycle = N)")
        if "contrastive_vgg" in stage.losses and not stage.vgg:
            raise TrainingError(f'{what}: contrastive_vgg needs the weights of VGG-19 (vgg = "FILE")')


#: More patches a step, or pixels a patch's side, than any machine holds.
_LARGEST_BATCH, _LARGEST_PATCH = 1 << 16, 1 << 14


def _ranges(stage: Stage) -> dict[str, bool]:
    """What holds for a stage's numbers, in words, and whether it does."""
    return {
        "steps, epochs and minutes are not negative": min(stage.steps, stage.epochs, stage.minutes) >= 0,
        "an epoch has 1 step or more (epoch_steps)": stage.epoch_steps >= 1,
        f"batch is at most {_LARGEST_BATCH}, patch at most {_LARGEST_PATCH}": stage.batch <= _LARGEST_BATCH
        and stage.patch <= _LARGEST_PATCH,
        "betas lie between 0 and 1, 1 left out": all(0 <= beta < 1 for beta in stage.betas),
        "epsilon is above 0": stage.epsilon > 0,
        "halve_every is 1 step or more": stage.halve_every >= 1,
        "warmup and cycle are 0 steps or more": stage.warmup >= 0 and stage.cycle >= 0,
        "floor is a share of the rate, from 0 to 1": 0 <= stage.floor <= 1,
        "ema is a decay from 0 to 1, 1 left out": 0 <= stage.ema < 1,
        "losses have weights of 0 or more, one of them above 0": min(stage.losses.values(), default=1.0) >= 0
        and (not stage.losses or max(stage.losses.values()) > 0),
    }


def _one_of(value: str, allowed: tuple[str, ...], what: str) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.0)
        raise TrainingError(f"{what} {value!r} is unknown; did you mean {near[0]!r} of {', '.join(allowed)}")
