"""The engines of one run, built when first needed: one for each native scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rlfn_pipe.models import registry

if TYPE_CHECKING:
    from rlfn_pipe.engine.device import Device
    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.engine.settings import JSON, Settings
    from rlfn_pipe.options import UpscaleOptions
    from rlfn_pipe.types import ModelSpec


def shortfall(options: UpscaleOptions, spec: ModelSpec) -> list[str]:
    """What to say where `--model` names a file whose network, `spec`, enlarges less than is asked for."""
    factor = options.factor
    if factor is None or spec.scale >= factor or not registry.is_file(options.model):
        return []
    return [
        f"{options.model} enlarges {spec.scale} times, the rest of x{factor:g} is a Lanczos resize; "
        f"-s {spec.scale} gives its own size"
    ]


class EngineRoom:
    """Chooses the weights for a factor and keeps their engine for all items that need it.

    A file named by `--model` serves every factor; a name serves a factor by its native scale or
    the next larger one, with a Lanczos resize behind it. Of several devices the first is taken.
    `resolved` pins the engine's settings to what `resolved()` gave in another process, perhaps on another device of the
    same kind, so that this one computes the same pixels. `workers` processes share the threads: where the pixels do not
    depend on how many there are, each has its share of those that were resolved, else that share is what is resolved.
    `on_step`: see `Engine`.

    Raises:
        UsageError: `resolved` is no such mapping, or its device is not there (when first needed).
    """

    def __init__(
        self,
        options: UpscaleOptions,
        on_warning: Callable[[str], None],
        resolved: Mapping[str, JSON] | None = None,
        *,
        workers: int = 1,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options
        self._workers = workers
        self._on_warning, self._on_step = on_warning, on_step
        self._pinned = resolved
        self._settings: Settings | None = None
        self._engines: dict[object, Engine] = {}

    def spec_for(self, factor: float) -> ModelSpec:
        """The weights that will do `factor`, without loading them where their name tells enough.

        Raises:
            UsageError: no such model, or none with a fitting scale.
            WeightsError: the named file is no network that is known here.
        """
        model = self._options.model
        if not registry.is_file(model):
            return registry.find(model, factor)
        from rlfn_pipe.models.weights import load_weights

        return load_weights(model)[0]

    def resolved(self, factor: float) -> dict[str, JSON]:
        """The settings that `factor`'s pixels depend on besides the weights, as plain JSON values.

        Nothing is loaded but a model that is a file. Where they were pinned, what comes back
        differs from the pinned ones only in the machine's own lines (`device_name`, `torch`,
        `instructions`): equal mappings mean equal pixels. They are the same for every factor, since memory
        is looked at once.

        Raises:
            UsageError: a setting is impossible here.
        """
        return self._resolve(self.spec_for(factor)).to_dict()

    def _resolve(self, spec: ModelSpec) -> Settings:
        """Settled by the first network that is asked for; those of one name have a form in common."""
        if self._settings is None:
            from rlfn_pipe.engine.settings import Settings

            options = self._options
            form, device = self._form_of(spec), options.devices[0]
            if self._pinned is not None:
                self._settings = Settings.pinned(self._pinned, device, form=form)
            else:
                self._settings = Settings.resolve(
                    device=device,
                    precision=options.precision,
                    tile=options.tile,
                    overlap=options.overlap,
                    batch=options.batch,
                    threads=options.threads,
                    tta=options.tta,
                    compile=options.compile,
                    form=form,
                )
                if not self._threads_are_free(self._settings, spec):
                    self._settings = replace(self._settings, threads=self._share(self._settings))
        return self._settings

    def _share(self, settings: Settings) -> int:
        return max(1, settings.threads // self._workers)

    def _form_of(self, spec: ModelSpec) -> Callable[[Device, str], str]:
        """The form of a network on a device in a precision."""
        from rlfn_pipe.models.forms import form_on

        return partial(form_on, spec=spec, compile=self._options.compile == "on")

    def _threads_are_free(self, settings: Settings, spec: ModelSpec) -> bool:
        """Whether pixels are the same with any number of threads: a GPU's, and the compiled network's."""
        device = settings.found
        return device.type == "cuda" or self._form_of(spec)(device, settings.precision).startswith("native")

    def engine_for(self, factor: float) -> Engine:
        """The engine whose output, resized where need be, gives `factor`."""
        named_file = registry.is_file(self._options.model)
        key: object = "file" if named_file else registry.find(self._options.model, factor).scale
        if key not in self._engines:
            self._engines[key] = self._build(factor)
        return self._engines[key]

    def _build(self, factor: float) -> Engine:
        from rlfn_pipe.models.forms import InferenceFactory
        from rlfn_pipe.models.weights import load_weights
        from rlfn_pipe.pipeline.engines import fast_engine

        spec, weights = load_weights(self._options.model, factor)
        settings, options = self._resolve(spec), self._options
        free = self._threads_are_free(settings, spec)
        return fast_engine(
            InferenceFactory(spec, weights, compile=settings.compile == "on"),
            spec,
            device=settings.device,
            precision=settings.precision,
            tile=settings.tile,
            overlap=settings.overlap,
            batch=settings.batch,
            threads=self._share(settings) if free else settings.threads,
            tta=settings.tta,
            budget=settings.budget,
            reuse=options.reuse,
            reuse_tolerance=options.reuse_tolerance,
            on_warning=self._on_warning,
            on_step=self._on_step,
        )
