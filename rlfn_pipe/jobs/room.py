"""The engines of one run, built when first needed: one for each native scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rlfn_pipe.models import registry

if TYPE_CHECKING:
    from rlfn_pipe.engine.runner import Engine
    from rlfn_pipe.options import UpscaleOptions
    from rlfn_pipe.types import ModelSpec


class EngineRoom:
    """Chooses the weights for a factor and keeps their engine for all items that need it.

    A file named by `--model` serves every factor; a name serves a factor by its native scale or
    the next larger one, with a Lanczos resize behind it.
    """

    def __init__(self, options: UpscaleOptions, on_warning: Callable[[str], None]) -> None:
        self._options = options
        self._on_warning = on_warning
        self._engines: dict[object, Engine] = {}

    def spec_for(self, factor: float) -> ModelSpec:
        """The weights that will do `factor`, without loading them where their name tells enough.

        Raises:
            UsageError: no such model, or none with a fitting scale.
            WeightsError: the named file is no network that is known here.
        """
        if registry.is_file(self._options.model):
            return self.engine_for(factor).spec
        return registry.find(self._options.model, factor)

    def engine_for(self, factor: float) -> Engine:
        """The engine whose output, resized where need be, gives `factor`."""
        named_file = registry.is_file(self._options.model)
        key: object = "file" if named_file else registry.find(self._options.model, factor).scale
        if key not in self._engines:
            self._engines[key] = self._build(factor)
        return self._engines[key]

    def _build(self, factor: float) -> Engine:
        from rlfn_pipe.engine.runner import Engine
        from rlfn_pipe.models.fuse import InferenceFactory
        from rlfn_pipe.models.weights import load

        options = self._options
        spec, module = load(options.model, factor)
        return Engine(
            InferenceFactory(spec, module),
            spec,
            device=options.device,
            precision=options.precision,
            tile=options.tile,
            overlap=options.overlap,
            batch=options.batch,
            threads=options.threads,
            tta=options.tta,
            on_warning=self._on_warning,
        )
