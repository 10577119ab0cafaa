"""The Python API: arrays and tensors through the engine, and the command's work as a function.

::

    from rlfn_pipe import Upscaler, upscale

    up = Upscaler(model="rlfn-s", scale=4)
    large = up(image)                      # one picture
    for large in up.frames(pictures):      # a stream of them, batched inside
        ...
    report = upscale("in.mp4", "out.mp4", scale=4, preset="web", on_event=print)
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rlfn_pipe.errors import UsageError
from rlfn_pipe.jobs.room import EngineRoom
from rlfn_pipe.jobs.run import run
from rlfn_pipe.jobs.summary import Report
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.presets import resolve
from rlfn_pipe.types import MATRIX_BT709, MATRIX_RGB, RANGE_FULL, ColourInfo, Event, Frame, Target

if TYPE_CHECKING:
    import torch

    Image = TypeVar("Image", np.ndarray, torch.Tensor)

#: Samples of float tensors pass through the engine as 16-bit code values.
_FLOAT_DEPTH = 16


def upscale(
    input: str | Path,
    output: str | Path,
    *,
    preset: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> Report:
    """Do what `rlfn-pipe upscale INPUT OUTPUT` does.

    Args:
        preset: name or file of a preset; `options` win over it, it wins over the defaults.
        on_event: called with each event (`rlfn_pipe.types.Event`), from several threads, one at a time.
        stop: set it from elsewhere to end the run early; finished segments are kept for the next
            call with the same arguments (`resume=False`: nothing is).
        options: fields of `rlfn_pipe.options.UpscaleOptions`, as text or typed; not `dry_run`, nor what
            is about the terminal. `nice` has no effect: the work is done in the calling process, whose
            priority is the caller's.

    Returns:
        What was done; with several items the failed ones are in `Report.failed`.

    Raises:
        RlfnPipeError: the only item failed, options are wrong, or nothing could begin.
    """
    chosen = resolve(options, preset)
    if chosen.dry_run:
        raise UsageError(
            "dry_run is the command's; rlfn_pipe.jobs.plan.describe(input, output, options) tells what would be done"
        )
    return run(str(input), str(output), chosen, on_event=on_event, stop=stop)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a picture came, so that its result goes back the same way."""

    array: bool
    depth: int
    channels: int | None
    batch: int | None
    dtype: Any
    device: Any = None


class Upscaler:
    """Keeps one network on its device and upscales pictures with it. On the CPU several threads may call it at once.

    Args: as the command's options of the same names. `tile` and `batch` take "auto" or numbers
    (`tile=0`: whole pictures).

    Raises:
        UsageError: unknown model, impossible scale or setting.
        WeightsError: the weights file cannot be used.
    """

    def __init__(
        self,
        model: str = "rlfn-s",
        scale: float = 4,
        *,
        device: str = "auto",
        precision: str = "auto",
        tile: int | str = "auto",
        overlap: int | None = None,
        batch: int | str = "auto",
        threads: int | None = None,
        tta: bool = False,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        options = UpscaleOptions(
            model=model,
            scale=scale,
            device=device,
            precision=precision,
            tile=tile,  # type: ignore[arg-type]  # parsed by the options
            overlap=overlap,
            batch=batch,  # type: ignore[arg-type]
            threads=threads,
            tta=tta,
        )
        if options.scale is None:
            raise UsageError("scale None is no factor; give a number from 1 to 8")
        self.scale = options.scale
        self._engine = EngineRoom(options, on_warning or (lambda text: None)).engine_for(self.scale)

    def __call__(self, image: Image) -> Image:
        """Upscale one picture, or a batch in one tensor.

        Args:
            image: array H x W or H x W x {1, 3, 4}, uint8 or uint16, RGB order, alpha last; or a
                float tensor C x H x W or N x C x H x W with C in {1, 3, 4}, values 0..1.

        Returns:
            The same kind, `scale` times larger (sides rounded). Tensors come back in their dtype
            and on their device; they are computed from 16-bit samples, values outside 0..1 clamped.

        Raises:
            UsageError: another shape or dtype.
        """
        return next(self.frames([image]))

    def frames(self, images: Iterable[Image]) -> Iterator[Image]:
        """Upscale a stream of pictures (see `__call__`), order kept, batched inside.

        Reads a bounded number of pictures ahead; each is copied, so that `images` may give one buffer again and
        again. What `images` raises, or an unusable picture, comes after the results of all pictures before it.
        """
        kinds: deque[_Kind] = deque()
        failures: list[Exception] = []

        def work() -> Iterator[tuple[Frame, Target]]:
            try:
                for image in images:
                    kind, frames = _taken_apart(image)
                    kinds.append(kind)
                    for frame in frames:
                        width, height = round(frame.width * self.scale), round(frame.height * self.scale)
                        yield frame, Target(max(1, width), max(1, height), frame.colour)
            except Exception as error:
                failures.append(error)

        results: Iterator[Frame] = self._engine.run(work())
        first: Frame
        for first in results:
            kind: _Kind = kinds.popleft()
            group = [first, *(next(results) for _ in range((kind.batch or 1) - 1))]
            yield _put_together(kind, group)
        if failures:
            raise failures[0]


def _taken_apart(image: Any) -> tuple[_Kind, list[Frame]]:
    if isinstance(image, np.ndarray):
        return _from_array(image)
    # A tensor can only come from where PyTorch has been loaded.
    if "torch" in sys.modules:
        import torch

        if isinstance(image, torch.Tensor):
            return _from_tensor(image)
    raise UsageError(f"a picture must be a numpy array or a torch tensor, not {type(image).__name__}")


def _colour(channels: int, depth: int) -> ColourInfo:
    grey = channels == 1
    return ColourInfo(
        matrix=MATRIX_BT709 if grey else MATRIX_RGB,
        range=RANGE_FULL,
        bit_depth=depth,
        subsampling="grey" if grey else "rgb",
        alpha=channels == 4,
    )


def _from_array(image: np.ndarray) -> tuple[_Kind, list[Frame]]:
    channels = image.shape[2] if image.ndim == 3 else None
    if (
        image.ndim not in (2, 3)
        or channels not in (None, 1, 3, 4)
        or image.dtype not in (np.uint8, np.uint16)
    ):
        raise UsageError(
            "an array must be H x W or H x W x 1, 3 or 4 in uint8 or uint16, "
            f"not {image.shape} in {image.dtype}"
        )
    if not image.size:
        raise UsageError(f"an array of {image.shape} holds no pixels")
    depth = 8 * image.dtype.itemsize
    # The caller may write to it before it is computed.
    planes = tuple(image[:, :, c].copy() for c in range(channels)) if channels else (image.copy(),)
    return _Kind(True, depth, channels, None, image.dtype), [Frame(planes, _colour(channels or 1, depth))]


def _from_tensor(image: torch.Tensor) -> tuple[_Kind, list[Frame]]:
    import torch

    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3, 4) or not image.is_floating_point():
        raise UsageError(
            "a tensor must be C x H x W or N x C x H x W with 1, 3 or 4 channels in a float dtype, "
            f"not {tuple(image.shape)} in {image.dtype}"
        )
    if not image.numel() or image.is_meta:
        raise UsageError(f"a tensor of {tuple(image.shape)} holds no pixels")
    if image.layout != torch.strided:
        raise UsageError(f"a tensor must be dense, not {image.layout}; call to_dense()")
    batch = image.shape[0] if image.ndim == 4 else None
    channels, white = image.shape[-3], (1 << _FLOAT_DEPTH) - 1
    codes = image.detach().to("cpu", torch.float32).clamp(0, 1).mul(white).round().to(torch.int32).numpy()
    stack = codes.astype(np.uint16).reshape(-1, *codes.shape[-3:])
    colour = _colour(channels, _FLOAT_DEPTH)
    kind = _Kind(False, _FLOAT_DEPTH, channels, batch, image.dtype, image.device)
    return kind, [Frame(tuple(picture), colour) for picture in stack]


def _put_together(kind: _Kind, frames: list[Frame]) -> Any:
    if kind.array:
        planes = frames[0].planes
        # A copy, also of a single plane: the engine keeps its results for frames that come again.
        return planes[0].copy() if kind.channels is None else np.stack(planes, axis=2)
    import torch

    white = (1 << _FLOAT_DEPTH) - 1
    stack = np.stack([np.stack(frame.planes) for frame in frames]).astype(np.float32) / white
    tensor = torch.from_numpy(stack).to(kind.device, kind.dtype)
    return tensor if kind.batch is not None else tensor[0]
