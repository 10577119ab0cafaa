"""Upscale video and images with the Residual Local Feature Network.

::

    from rlfn_pipe import Upscaler, upscale

The names are loaded when first used, so that importing the package stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlfn_pipe.api import Upscaler, upscale

__version__ = "0.1.0"
__all__ = ["Upscaler", "__version__", "upscale"]


def __getattr__(name: str) -> Any:
    if name in ("Upscaler", "upscale"):
        from rlfn_pipe import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
