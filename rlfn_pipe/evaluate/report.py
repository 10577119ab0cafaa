"""Results of an evaluation, and their forms: aligned table, Markdown, JSON-ready data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlfn_pipe.evaluate.complexity import Complexity

__all__ = ["ImageResult", "Report", "SetResult", "as_data", "as_markdown", "as_table"]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """Figures of one picture of `width` x `height` HR pixels; PSNR in dB, infinite when equal."""

    name: str
    width: int
    height: int
    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    lpips: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class SetResult:
    """Figures of one set: means over its pictures. `low_is_read`: LR came from files."""

    name: str
    images: tuple[ImageResult, ...]
    low_is_read: bool = False

    @property
    def psnr_y(self) -> float:
        return _mean(image.psnr_y for image in self.images)

    @property
    def ssim_y(self) -> float:
        return _mean(image.ssim_y for image in self.images)

    @property
    def psnr_rgb(self) -> float:
        return _mean(image.psnr_rgb for image in self.images)

    @property
    def lpips(self) -> float | None:
        distances = [image.lpips for image in self.images if image.lpips is not None]
        return _mean(distances) if distances else None

    @property
    def seconds(self) -> float:
        """Mean seconds a picture, decoding and metrics left out."""
        return _mean(image.seconds for image in self.images)


@dataclass(frozen=True, slots=True)
class Report:
    """One model on one or more sets. `complexity` is None for interpolation."""

    model: str
    scale: int
    sets: tuple[SetResult, ...]
    complexity: Complexity | None = None
    sha256: str = ""
    device: str = "cpu"
    precision: str = "fp32"
    tta: bool = False


def as_table(reports: Sequence[Report], per_image: bool = False) -> str:
    """Aligned plain text, one line a model and set, or a picture with `per_image`."""
    header, rows = _rows(reports, per_image)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    left = _text_columns(per_image)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_markdown(reports: Sequence[Report], per_image: bool = False) -> str:
    """A Markdown table with the columns of `as_table`."""
    header, rows = _rows(reports, per_image)
    left = _text_columns(per_image)
    rule = ["---" if i in left else "---:" for i in range(len(header))]
    rows = [[_markdown(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def as_data(reports: Sequence[Report], per_image: bool = False) -> dict[str, Any]:
    """Plain data for JSON; an infinite PSNR (equal pictures) becomes null."""
    return {
        "protocol": {
            "low_resolution": "MATLAB bicubic",
            "luma": "BT.601, not rounded",
            "border": "scale pixels",
            "ssim": "11x11, sigma 1.5, valid region",
        },
        "reports": [_report_data(report, per_image) for report in reports],
    }


def _report_data(report: Report, per_image: bool) -> dict[str, Any]:
    cost, runs = report.complexity, _runs(report)
    return {
        "model": report.model,
        "scale": report.scale,
        "sha256": report.sha256 or None,
        "device": report.device,
        "precision": report.precision or None,
        "tta": report.tta,
        "complexity": None
        if cost is None
        else {
            "parameters": cost.parameters,
            "macs": runs * cost.macs,
            "activations": runs * cost.activations,
            "input_width": cost.width,
            "input_height": cost.height,
        },
        "sets": [_set_data(each, per_image) for each in report.sets],
    }


def _set_data(result: SetResult, per_image: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": result.name,
        "images": len(result.images),
        "low_resolution": "read" if result.low_is_read else "made",
        **_figures(result),
    }
    if per_image:
        data["per_image"] = [
            {"name": image.name, "width": image.width, "height": image.height, **_figures(image)}
            for image in result.images
        ]
    return data


def _figures(result: SetResult | ImageResult) -> dict[str, float | None]:
    figures = {
        "psnr_y": result.psnr_y,
        "ssim_y": result.ssim_y,
        "psnr_rgb": result.psnr_rgb,
        "lpips": result.lpips,
        "seconds": result.seconds,
    }
    return {name: value if value is None or math.isfinite(value) else None for name, value in figures.items()}


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _visible(text: str) -> str:
    """Names of files and folders with what a terminal would obey (and line ends) as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def _markdown(text: str) -> str:
    """Text that shows as it is in a Markdown table, HTML and links included."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\|`*_[]!" else c for c in text)


def _text_columns(per_image: bool) -> set[int]:
    return {0, 2, 3} if per_image else {0, 2}


def _rows(reports: Sequence[Report], per_image: bool) -> tuple[list[str], list[list[str]]]:
    lpips = any(each.lpips is not None for report in reports for each in report.sets)
    header = ["model", "scale", "set", "picture" if per_image else "pictures", "PSNR-Y", "SSIM-Y", "PSNR-RGB"]
    header += [*(["LPIPS"] if lpips else []), "ms/picture", "params", "MACs", "activations"]
    rows: list[list[str]] = []
    for report in reports:
        name = report.model + (" + tta" if report.tta else "")
        for each in report.sets:
            lines: list[tuple[str, SetResult | ImageResult]] = []
            if per_image:
                lines += [(image.name, image) for image in each.images]
            lines.append(("(mean)" if per_image else str(len(each.images)), each))
            for label, result in lines:
                texts = [_visible(text) for text in (name, f"x{report.scale}", each.name, label)]
                cells = [*texts, *_quality(result, lpips)]
                rows.append([*cells, f"{1000 * result.seconds:.0f}", *_cost(report)])
    return header, rows


def _quality(result: SetResult | ImageResult, lpips: bool) -> list[str]:
    cells = [f"{result.psnr_y:.2f}", f"{result.ssim_y:.4f}", f"{result.psnr_rgb:.2f}"]
    if lpips:
        cells.append("-" if result.lpips is None else f"{result.lpips:.4f}")
    return cells


def _runs(report: Report) -> int:
    """How often the network runs for a picture: self-ensembling takes eight views."""
    return 8 if report.tta else 1


def _cost(report: Report) -> list[str]:
    """Parameters, MACs and activations."""
    cost, runs = report.complexity, _runs(report)
    if cost is None:
        return ["-", "-", "-"]
    return [
        f"{cost.parameters / 1e3:.0f} K",
        f"{runs * cost.macs / 1e9:.1f} G",
        f"{runs * cost.activations / 1e6:.1f} M",
    ]
