"""How far tiled output is from the whole frame's, by tile and overlap: naive tiles beside ours.

    python benchmarks/tiling.py --data ../shared/data --plot docs/tiling.png

Runs in fp32 on the low-resolution photographs `lr/*.png` under --data with the weights files given (by
default the published RLFN x4 and RLFN-S x4 there). Prints one JSON object a line: per setting the lowest
PSNR and the largest difference in code values (after clamping to 0..255) over all pictures. `--check` only
measures the default overlap, on more pictures. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rlfn_pipe.engine.colour import add_excess
from rlfn_pipe.engine.picture import Picture
from rlfn_pipe.engine.sizes import DEFAULT_OVERLAP
from rlfn_pipe.engine.tensors import Tensors
from rlfn_pipe.engine.tiling import Tile, border_mask, stretch_matrix
from rlfn_pipe.models.fuse import InferenceNet, build_inference
from rlfn_pipe.models.weights import load_file

MODES = {
    "naive": "each tile as a picture of its own",
    "grid": "ESA on the frame's grid, zeros beyond the tile",
    "ours": "ESA on the frame's grid, its map continued",
}
TILES = (128, 192)
OVERLAPS = (0, 12, 24, 36, 48, 60)


def tiled(net: InferenceNet, rgb: torch.Tensor, tile: int, overlap: int, mode: str) -> torch.Tensor:
    """The picture (3, h, w) upscaled in tiles; (3, s h, s w)."""
    picture = Picture(rgb, net.scale, 15, 8, Tensors(rgb.device))
    for piece in picture.cut(tile, overlap):
        picture.place(
            piece, net(picture.pixels_of(piece)[None], None if mode == "naive" else grid(piece, mode))[0]
        )
    return add_excess(*picture.result())


def grid(tile: Tile, mode: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ESA's place in the frame; mode `grid` pads zeros at inner borders too."""
    border = np.outer(border_mask(tile.y), border_mask(tile.x))
    if mode == "grid":
        border = np.pad(border[1:-1, 1:-1], 1)
    rows, columns, mask = (
        torch.from_numpy(a)[None] for a in (stretch_matrix(tile.y), stretch_matrix(tile.x), border)
    )
    return rows, columns, mask[None]


def compare(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """(PSNR in dB, largest difference) of two pictures, clamped to 0..255."""
    error = (a.clamp(0, 255) - b.clamp(0, 255)).double()
    return float(10 * torch.log10(255.0**2 / error.square().mean())), float(error.abs().max())


def load(path: Path) -> torch.Tensor:
    """An 8-bit picture as (3, h, w) float32, 0..255."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def measure(
    weights: Path, pictures: list[Path], settings: list[tuple[str, int, int]]
) -> list[dict[str, object]]:
    """Lowest PSNR and largest difference of each (mode, tile, overlap) over the pictures."""
    spec, module = load_file(weights)
    net = build_inference(spec, module)
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = {setting: [] for setting in settings}
    for path in pictures:
        rgb = load(path)
        whole = net(rgb[None])[0]
        for mode, tile, overlap in settings:
            found[mode, tile, overlap].append(compare(tiled(net, rgb, tile, overlap, mode), whole))
    return [
        {
            "weights": weights.stem,
            "mode": mode,
            "tile": tile,
            "overlap": overlap,
            "pictures": len(results),
            "lowest_psnr": round(min(psnr for psnr, _ in results), 2),
            "largest_difference": round(max(largest for _, largest in results), 2),
        }
        for (mode, tile, overlap), results in found.items()
    ]


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """PSNR and largest difference over the overlap, one panel for each weights file and tile."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels = sorted({(str(row["weights"]), int(str(row["tile"]))) for row in rows})
    figure, axes = plt.subplots(2, len(panels), figsize=(3.4 * len(panels), 6), sharey="row", squeeze=False)
    for column, (weights, tile) in enumerate(panels):
        for mode, label in MODES.items():
            mine = [r for r in rows if (r["weights"], r["tile"], r["mode"]) == (weights, tile, mode)]
            overlaps = [r["overlap"] for r in mine]
            axes[0][column].plot(overlaps, [r["lowest_psnr"] for r in mine], marker="o", label=label)
            axes[1][column].semilogy(overlaps, [r["largest_difference"] for r in mine], marker="o")
        axes[0][column].set_title(f"{weights}, tile {tile}")
        axes[0][column].axhline(65, color="grey", linestyle=":")
        axes[1][column].axhline(6, color="grey", linestyle=":")
        axes[1][column].set_xlabel("overlap (low-resolution pixels)")
    axes[0][0].set_ylabel("lowest PSNR to the whole frame (dB)")
    axes[1][0].set_ylabel("largest difference (code values)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=3)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=90)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--weights", type=Path, nargs="*", help="weights files (default: the published x4 ones)"
    )
    parser.add_argument("--pictures", nargs="*", default=["0935", "0981"], help="names of photographs in lr/")
    parser.add_argument(
        "--check", action="store_true", help="only the default overlap, all photographs and Set14"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = options.weights or [
        options.data / "weights" / f"{name}.pth" for name in ("rlfn_x4", "rlfn_s_x4")
    ]
    pictures = sorted((options.data / "lr").glob("*.png"))
    if options.check:
        pictures += sorted((options.data / "test" / "Set14" / "LRx4").glob("*.png"))
        settings = [("ours", TILES[-1], DEFAULT_OVERLAP)]
    else:
        pictures = [path for path in pictures if path.stem in options.pictures]
        settings = [(mode, tile, overlap) for tile in TILES for overlap in OVERLAPS for mode in MODES]
    if not pictures:
        print(f"no photographs under {options.data / 'lr'}; give --data", file=sys.stderr)
        return 1
    rows: list[dict[str, object]] = []
    for path in weights:
        for row in measure(path, pictures, settings):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
