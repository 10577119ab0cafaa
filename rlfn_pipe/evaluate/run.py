"""Measure a network, or bicubic interpolation, on benchmark sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor, nn

from rlfn_pipe.engine.tensors import DTYPES
from rlfn_pipe.errors import EngineError, InputError, OutputError, UsageError
from rlfn_pipe.evaluate import metrics
from rlfn_pipe.evaluate.complexity import Complexity, count
from rlfn_pipe.evaluate.datasets import ImagePair, LowSource, find_sets, read_pair
from rlfn_pipe.evaluate.report import ImageResult, Report, SetResult
from rlfn_pipe.evaluate.resize import upscale
from rlfn_pipe.files import atomic_path
from rlfn_pipe.models.exact import exact_fp32
from rlfn_pipe.types import ModelSpec

__all__ = ["BICUBIC", "Measurement", "evaluate", "super_resolve"]

#: Name of the pseudo model that interpolates.
BICUBIC = "bicubic"
#: Multiply-adds are stated for this output, as the field's tables do.
_STATED_WIDTH, _STATED_HEIGHT = 1280, 720
#: Range of scales that bicubic is measured at.
_LARGEST_SCALE = 8

OnImage = Callable[[str, int, int, ImageResult], None]


@dataclass(frozen=True, slots=True)
class _Method:
    """Something that enlarges: uint8 RGB (h, w, 3) -> uint8 RGB (scale*h, scale*w, 3)."""

    name: str
    scale: int
    enlarge: Callable[[np.ndarray], np.ndarray]
    complexity: Complexity | None
    sha256: str


class Measurement:
    """`model`, made ready to be measured on every set in or directly below `data`.

    `model` is a name, a weights file, "bicubic", or a spec with its module (taken over as it is, moved to
    `device` and put into evaluation mode). `scale` is needed for "bicubic" only. Networks run whole pictures
    in `precision` ("fp32", "bf16", "fp16"), channels last; `tta` averages 8 flips and turns. `save` receives
    the pictures as `<model>_x<scale>/<set>/<name>.png`. `name` is what the model is called, where its own or
    its file's is not wanted.

    Raises UsageError for an impossible wish, WeightsError from loading, InputError for data that is missing,
    OutputError when `save` holds pictures already (unless `overwrite`) or cannot be written.
    """

    def __init__(
        self,
        model: str | Path | tuple[ModelSpec, nn.Module],
        data: Path,
        *,
        scale: int | None = None,
        low_source: LowSource = "auto",
        device: str = "auto",
        precision: str = "fp32",
        tta: bool = False,
        save: Path | None = None,
        overwrite: bool = False,
        name: str | None = None,
    ) -> None:
        self._device, self._precision, self._tta = _resolved_device(device), precision, tta
        method = _method(model, scale, self._device, precision, tta)
        self._method = replace(method, name=name or method.name)
        self._sets = find_sets(data, method.scale, low_source)
        self._targets = {
            each.name: _save_folder(save, self._method, each.name, overwrite) for each in self._sets
        }

    def run(self, *, lpips: bool = False, on_image: OnImage | None = None) -> Report:
        """PSNR, SSIM and cost; `on_image(set, done, total, result)` follows.

        Raises InputError for pictures that are damaged or do not fit, OutputError when one cannot be written,
        EngineError when the device runs out of memory, UsageError when `lpips` is not installed.
        """
        method = self._method
        distance = metrics.load_lpips(self._device) if lpips else None
        results = []
        for each in self._sets:
            images: list[ImageResult] = []
            for pair in each.pairs:
                enlarged, result = _measure(method, pair, distance)
                folder = self._targets[each.name]
                if folder is not None:
                    _write(enlarged, folder / f"{pair.name}.png")
                images.append(result)
                if on_image is not None:
                    on_image(each.name, len(images), len(each.pairs), result)
            results.append(SetResult(each.name, tuple(images), low_is_read=each.low_is_read))
        return Report(
            model=method.name,
            scale=method.scale,
            sets=tuple(results),
            complexity=method.complexity,
            sha256=method.sha256,
            device=self._device if method.complexity else "cpu",
            precision=self._precision if method.complexity else "",
            tta=self._tta,
        )


def evaluate(
    model: str | Path | tuple[ModelSpec, nn.Module],
    data: Path,
    *,
    lpips: bool = False,
    on_image: OnImage | None = None,
    **wish: Any,
) -> Report:
    """Measure one model; arguments and errors as those of `Measurement` and its `run`."""
    return Measurement(model, data, **wish).run(lpips=lpips, on_image=on_image)


def super_resolve(
    module: nn.Module, image: np.ndarray, spec: ModelSpec, device: str = "cpu", tta: bool = False
) -> np.ndarray:
    """Run `module` on one picture: uint8 RGB (h, w, 3) -> uint8 RGB, `spec.scale` times larger.

    Pictures smaller than the network's least side are reflected at the right and bottom and cropped again.
    `tta` averages the outputs over the 8 flips and quarter turns before rounding.
    """
    parameter = next(module.parameters(), torch.empty(0))
    planes = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None]
    x = planes.to(parameter.dtype) * (spec.input_range / 255.0)
    height, width = image.shape[:2]
    x = _padded(x, spec.minimum_side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), exact_fp32():
        y = _self_ensemble(module, x) if tta else module(x)
    y = y[0, :, : height * spec.scale, : width * spec.scale].float() * (255.0 / spec.input_range)
    if not bool(torch.isfinite(y).all()):
        raise EngineError(f"{spec.name} gave values that are not numbers; use --precision fp32")
    return np.ascontiguousarray(y.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _self_ensemble(module: nn.Module, x: Tensor) -> Tensor:
    total: Tensor | None = None
    for turns in range(4):
        for mirrored in (False, True):
            view = torch.rot90(x.flip(3) if mirrored else x, turns, (2, 3))
            y = module(view.contiguous(memory_format=torch.channels_last)).float()
            y = torch.rot90(y, -turns, (2, 3))
            y = y.flip(3) if mirrored else y
            total = y if total is None else total + y
    assert total is not None
    return total / 8


def _padded(x: Tensor, minimum: int) -> Tensor:
    """Reflect at the right and bottom until both sides are at least `minimum`; one-pixel sides repeat."""
    for axis in (2, 3):
        while x.shape[axis] < minimum:
            side = x.shape[axis]
            more = min(minimum - side, max(side - 1, 1))
            pads = (0, more, 0, 0) if axis == 3 else (0, 0, 0, more)
            x = functional.pad(x, pads, mode="reflect" if side > 1 else "replicate")
    return x


def _method(
    model: str | Path | tuple[ModelSpec, nn.Module],
    scale: int | None,
    device: str,
    precision: str,
    tta: bool,
) -> _Method:
    if precision not in DTYPES:
        raise UsageError(f"unknown precision {precision!r}; choose one of {', '.join(DTYPES)}")
    if model == BICUBIC:
        if scale is None:
            raise UsageError("bicubic has no scale of its own; give --scale, for instance --scale 4")
        if not 2 <= scale <= _LARGEST_SCALE:
            raise UsageError(f"bicubic is measured at scales from 2 to {_LARGEST_SCALE}, not {scale}")
        if tta:
            raise UsageError("--tta needs a network; leave it out for bicubic")
        return _Method(BICUBIC, scale, lambda image: upscale(image, scale), None, "")
    if isinstance(model, tuple):
        spec, module = model
        name = spec.name
    else:
        from rlfn_pipe.models.weights import load

        spec, module = load(model, scale)
        # A file goes by its own name, so that files of one architecture can be compared.
        name = Path(model).stem if Path(model).suffix in (".pth", ".pt", ".safetensors") else spec.name
    if scale is not None and scale != spec.scale:
        raise UsageError(
            f"{spec.name} enlarges {spec.scale} times, not {scale}; give --scale {spec.scale} or leave it out"
        )
    module = module.to(device=device, dtype=DTYPES[precision]).eval()
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    complexity = count(module, -(-_STATED_HEIGHT // spec.scale), -(-_STATED_WIDTH // spec.scale))

    def enlarge(image: np.ndarray) -> np.ndarray:
        return super_resolve(module, image, spec, device, tta)

    return _Method(name, spec.scale, enlarge, complexity, spec.sha256)


def _measure(
    method: _Method, pair: ImagePair, distance: Callable[[np.ndarray, np.ndarray], float] | None
) -> tuple[np.ndarray, ImageResult]:
    low, high = read_pair(pair, method.scale)
    height, width = high.shape[:2]
    smallest = 2 * method.scale + metrics.SSIM_WINDOW
    if min(height, width) < smallest:
        raise InputError(
            f"{pair.high} is {width}x{height}, too small to be measured at scale {method.scale} "
            f"({smallest} pixels a side at least); take it out of the set"
        )
    begun = time.perf_counter()
    try:
        enlarged = method.enlarge(low)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{pair.high} ({width}x{height}) does not fit the device's memory whole; use --device cpu or "
            "--precision bf16"
        ) from error
    seconds = time.perf_counter() - begun
    luma, reference = (metrics.crop_border(metrics.luma(each), method.scale) for each in (enlarged, high))
    result = ImageResult(
        name=pair.name,
        width=width,
        height=height,
        psnr_y=metrics.psnr(luma, reference),
        ssim_y=metrics.ssim(luma, reference),
        psnr_rgb=metrics.psnr_rgb(enlarged, high, method.scale),
        lpips=None if distance is None else distance(enlarged, high),
        seconds=seconds,
    )
    return enlarged, result


def _resolved_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch raises AssertionError for a backend that this build does not have.
        raise UsageError(f"the device {device!r} cannot be used here; give --device cpu or auto") from error
    return device


def _save_folder(save: Path | None, method: _Method, set_name: str, overwrite: bool) -> Path | None:
    """Make the folder for one set's pictures before anything is computed."""
    if save is None:
        return None
    suffix = f"x{method.scale}"
    folder = save / (method.name if method.name.endswith(suffix) else f"{method.name}_{suffix}") / set_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise OutputError(
            f"pictures cannot be saved in {folder} ({error.strerror}); give --save another folder"
        ) from error
    if occupied and not overwrite:
        raise OutputError(
            f"{folder} holds files already; give -y to write over them or --save another folder"
        )
    return folder


def _write(image: np.ndarray, path: Path) -> None:
    try:
        with atomic_path(path) as partial:
            Image.fromarray(image).save(partial, format="PNG")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); free space or give --save another folder"
        ) from error
