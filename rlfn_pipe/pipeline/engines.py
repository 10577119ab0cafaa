"""The engine as everything here runs it: with the fast conversions between samples and RGB."""

from __future__ import annotations

from typing import Any

from rlfn_pipe.engine.network import NetworkFactory
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.pipeline.planes import from_rgb, to_rgb
from rlfn_pipe.types import ModelSpec

__all__ = ["fast_engine"]


def fast_engine(factory: NetworkFactory, spec: ModelSpec, **settings: Any) -> Engine:
    """`Engine` of the same arguments, which converts by the compiled part or by kernels where it can.

    Raises UsageError as `Engine`.
    """
    return Engine(factory, spec, to_rgb=to_rgb, to_planes=from_rgb, **settings)
