"""Draws the plots of the bench from rows that `plots.py` measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

#: One colour for each road in all plots.
COLOURS = {"ours": "#0b6e4f", "official": "#b3541e", "compile": "#4a6fa5", "openvino": "#7d5ba6"}
NAMES = {
    "official": "plain module, fp32 eager",
    "compile": "plain module, torch.compile",
    "openvino": "plain module, OpenVINO",
}


def draw(files: Sequence[Path], folder: Path) -> None:
    """All plots for which the files hold rows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    by_plot: dict[str, Rows] = {}
    for each in rows:
        by_plot.setdefault(each["plot"], []).append(each)
    for name, function in (
        ("size", _draw_size),
        ("tile", _draw_tile),
        ("batch", _draw_batch),
        ("roofline", _draw_roofline),
    ):
        if name in by_plot:
            figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
            function(axes, by_plot)
            axes.grid(alpha=0.25, linewidth=0.6)
            figure.tight_layout()
            figure.savefig(folder / f"bench-{name}.png", dpi=110)
            pyplot.close(figure)


def _draw_size(axes: Any, plots: dict[str, Rows]) -> None:
    rows = sorted(plots["size"], key=lambda each: each["width"] * each["height"])
    pixels = [each["width"] * each["height"] for each in rows]
    for name in ("official", "compile", "openvino"):
        found = [
            (p, each[f"{name}_ms"]) for p, each in zip(pixels, rows, strict=True) if f"{name}_ms" in each
        ]
        if found:
            precision = next(each[f"{name}_precision"] for each in rows if f"{name}_ms" in each)
            values = [ms / p * 1e6 for p, ms in found]
            axes.plot(
                [p for p, _ in found],
                values,
                "o--",
                color=COLOURS[name],
                lw=1.2,
                ms=4,
                label=f"{NAMES[name]} ({precision})",
            )
    ours = [each["engine_ms"] / p * 1e6 for p, each in zip(pixels, rows, strict=True)]
    axes.plot(
        pixels,
        ours,
        "o-",
        color=COLOURS["ours"],
        lw=2,
        label=f"engine ({rows[0]['precision']}), conversion included",
    )
    bare = [
        each["gflop"] / each["convolution_tflops"] / p * 1e6 for p, each in zip(pixels, rows, strict=True)
    ]
    axes.plot(
        pixels, bare, ":", color="black", lw=1.2, label="its operations at the rate of bare convolutions"
    )
    axes.set_xscale("log")
    axes.set_xticks(pixels, [f"{each['width']}\n×{each['height']}" for each in rows], fontsize=7)
    axes.minorticks_off()
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
    axes.set_xlabel("frame")
    axes.set_ylabel("ms for a million input pixels")
    axes.set_title(
        f"{rows[0]['model']} x{rows[0]['scale']}, {rows[0]['threads']} threads: time against frame size"
    )
    axes.legend(fontsize=8, loc="upper right", ncols=2)


def _draw_tile(axes: Any, plots: dict[str, Rows]) -> None:
    rows = plots["tile"]
    whole = next(each["ms"] for each in rows if each["tile"] == 0)
    for overlap, label in ((True, "no overlap"), (False, "default overlap")):
        found = sorted(
            (each["tile"], each["ms"]) for each in rows if ("overlap" in each) is overlap and each["tile"]
        )
        style = "o-" if overlap else "o--"
        axes.plot(
            [tile for tile, _ in found],
            [ms for _, ms in found],
            style,
            color=COLOURS["ours" if overlap else "compile"],
            ms=4,
            label=label,
        )
    axes.axhline(whole, color="black", lw=1, ls=":", label="whole frame")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tile side, input pixels")
    axes.set_ylabel("ms a frame")
    axes.set_title(f"{rows[0]['width']}x{rows[0]['height']}, {rows[0]['threads']} threads: time against tile")
    axes.legend(fontsize=8)


def _draw_batch(axes: Any, plots: dict[str, Rows]) -> None:
    rows = plots["batch"]
    shades = ("#0b6e4f", "#4a6fa5", "#b3541e")
    for tile, colour in zip(sorted({each["tile"] for each in rows}), shades, strict=False):
        found = sorted((each["batch"], each["ms"] / tile**2 * 1e6) for each in rows if each["tile"] == tile)
        axes.plot(
            [batch for batch, _ in found],
            [ms for _, ms in found],
            "o-",
            color=colour,
            ms=4,
            label=f"{tile}x{tile}",
        )
    axes.set_xscale("log", base=2)
    batches = sorted({each["batch"] for each in rows})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tiles in a batch")
    axes.set_ylabel("ms for a million input pixels")
    axes.set_title(f"Time against batch, {rows[0]['threads']} threads")
    axes.legend(fontsize=8, title="tile")


def _draw_roofline(axes: Any, plots: dict[str, Rows]) -> None:
    speed = plots["roofline"][-1]
    top = max(speed["convolution_tflops"], speed["matrix_tflops"])
    grid = [2.0 ** (n / 8) for n in range(-24, 73)]
    for key, label, style in (("copy_gb_s", "memory", "-"), ("cache_copy_gb_s", "cache", "--")):
        axes.plot(
            grid,
            [min(top, each * speed[key] * 1e-3) for each in grid],
            style,
            color="black",
            lw=1,
            label=f"copy in {label}, {speed[key]:.0f} GB/s",
        )
    axes.axhline(
        speed["convolution_tflops"],
        color=COLOURS["ours"],
        lw=1,
        ls=":",
        label=f"bare 3x3 convolutions, {speed['convolution_tflops']:.2f} TFLOP/s",
    )
    axes.axhline(
        speed["matrix_tflops"],
        color=COLOURS["compile"],
        lw=1,
        ls=":",
        label=f"matrix product, {speed['matrix_tflops']:.2f} TFLOP/s",
    )
    for number, each in enumerate(plots.get("layer", ())):
        left = 1 < each["intensity"] < 20
        axes.plot(each["intensity"], each["tflops"], "o", color="#999999", ms=4)
        axes.annotate(
            each["name"],
            (each["intensity"], each["tflops"]),
            fontsize=6.5,
            xytext=(-6 if left else 6, -8 if number % 2 else 3),
            textcoords="offset points",
            ha="right" if left else "left",
        )
    for name, tflops, label in (
        ("ours", speed["tflops"], f"engine, {speed['precision']}"),
        ("official", speed["gflop"] / speed["official_ms"], "plain module, fp32 eager"),
    ):
        axes.plot(speed[f"{name}_intensity"], tflops, "D", color=COLOURS[name], ms=7, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("operations a byte (each layer's input, weights and output once)")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(
        f"Roofline, {speed['model']} x{speed['scale']}, {speed['width']}x{speed['height']}, {speed['threads']} threads"
    )
    axes.legend(fontsize=7, loc="lower right")
