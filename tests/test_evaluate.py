"""Metrics, benchmark sets, costs and the command; the official weights give the field's figures."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rlfn_pipe.errors import EngineError, InputError, OutputError, RlfnPipeError, UsageError
from rlfn_pipe.evaluate import metrics
from rlfn_pipe.evaluate.complexity import count
from rlfn_pipe.evaluate.datasets import ImagePair, find_sets, read_image, read_pair
from rlfn_pipe.evaluate.report import ImageResult, Report, SetResult, as_data, as_markdown, as_table
from rlfn_pipe.evaluate.resize import downscale, upscale
from rlfn_pipe.evaluate.run import evaluate, super_resolve
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.resources import data_path
from rlfn_pipe.types import ModelSpec

Figures = tuple[float, float]

#: PSNR-Y and SSIM-Y of the official files on Set5, as the field's tables have them.
SET5: dict[str, Figures] = {
    "rlfn_x4": (32.24, 0.8953),
    "rlfn_s_x4": (32.24, 0.8954),
    "rlfn_ntire_x4": (32.10, 0.8939),
    "rlfn_x2": (38.07, 0.9607),
    "rlfn_s_x2": (38.05, 0.9607),
}
BICUBIC_SET5 = {2: 33.67, 4: 28.43}
#: name -> channels, channels inside a block, blocks, parameters at x4, G MACs for 320x180 at x4
NETWORKS = {
    "rlfn": (52, 52, 6, 543_740, 29.8),
    "rlfn-s": (48, 48, 6, 470_208, 25.6),
    "rlfn-ntire": (46, 48, 4, 317_218, 17.3),
}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture, uint8 RGB."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return upscale(small, 4)[:height, :width]


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


class Nearest(nn.Module):
    """A network that repeats pixels; `shift` moves it away from exactness, and it records its inputs."""

    def __init__(self, scale: int, shift: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift
        self.weight = nn.Parameter(torch.zeros(1))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3) + self.shift


def spec(scale: int = 2, input_range: float = 1.0) -> ModelSpec:
    return ModelSpec("nearest", scale, 8, 8, 1, input_range=input_range)


# -------------------------------------------------------------------- metrics


def test_luma_of_known_colours() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(metrics.luma(colours)[0], [16, 235, 81.481, 144.553, 40.966], atol=1e-9)
    grey = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_allclose(metrics.luma(grey), metrics.luma(np.repeat(grey[..., None], 3, 2)), atol=1e-9)


def test_psnr_of_a_known_error() -> None:
    image = np.zeros((8, 8), np.uint8)
    assert metrics.psnr(image, image + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert metrics.psnr(image, image) == math.inf
    # uint8 differences must not wrap around.
    assert metrics.psnr(image, image + 255) == metrics.psnr(image + 255, image) == 0.0


def test_border_is_left_out() -> None:
    first, second = noise(20, 24), noise(20, 24)
    second[:3], second[-3:], second[:, :3], second[:, -3:] = 0, 0, 0, 0
    assert metrics.psnr_rgb(first, second, 3) == math.inf
    assert metrics.psnr_y(first, second, 2) < 40
    assert metrics.crop_border(first, 0).shape == first.shape
    with pytest.raises(ValueError, match="border of 10"):
        metrics.crop_border(first, 10)


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM window by window."""
    y, x = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_ssim_equals_the_plain_reference() -> None:
    a, b = metrics.luma(noise(24, 31, 1)), metrics.luma(noise(24, 31, 2))
    assert metrics.ssim(a, b) == pytest.approx(plain_ssim(a, b), abs=1e-10)
    assert metrics.ssim(a, a * 0.8 + 20) == pytest.approx(plain_ssim(a, a * 0.8 + 20), abs=1e-10)
    assert metrics.ssim(a, a) == pytest.approx(1.0)


def test_metrics_refuse_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(np.zeros((10, 40)), np.zeros((10, 40)))
    with pytest.raises(ValueError, match="picture"):
        metrics.luma(np.zeros((4, 4, 4)))


def test_lpips_absent_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UsageError, match=r"pip install"):
        metrics.load_lpips()


def test_lpips_gets_pictures_in_minus_one_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's place is taken by one that shows what it is given."""
    seen: list[torch.Tensor] = []

    class Distance(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            seen.extend((first, second))
            return (first - second).abs().mean().view(1, 1, 1, 1)

    class Package:
        @staticmethod
        def LPIPS(net: str, verbose: bool) -> nn.Module:
            assert net == "alex"
            return Distance()

    monkeypatch.setitem(sys.modules, "lpips", Package)  # type: ignore[arg-type]
    distance = metrics.load_lpips()
    black, white = np.zeros((64, 70, 3), np.uint8), np.full((64, 70, 3), 255, np.uint8)
    assert distance(black, white) == 2.0
    assert seen[0].shape == (1, 3, 64, 70) and seen[0].min() == -1 and seen[1].max() == 1
    with pytest.raises(InputError, match="64x64"):
        distance(black[:63], white[:63])


# ------------------------------------------------------------------- datasets


def test_a_folder_of_pictures_is_a_set_in_natural_order(tmp_path: Path) -> None:
    for name in ("img10.png", "img9.webp", "img2.JPG", ".hidden.png"):
        write(tmp_path / "mine" / name, noise(16, 16))
    (tmp_path / "mine" / "notes.txt").write_text("no picture")
    (only,) = find_sets(tmp_path / "mine", 2)
    assert only.name == "mine" and not only.low_is_read
    assert [pair.name for pair in only.pairs] == ["img2", "img9", "img10"]


def test_sets_below_a_folder_and_where_lr_comes_from(tmp_path: Path) -> None:
    high = noise(33, 30)
    for name in ("Set14", "Set5"):
        write(tmp_path / name / "HR" / "a.webp", high)
    write(tmp_path / "Set5" / "LRx2" / "a.png", downscale(high[:32], 2))
    write(tmp_path / "Set14" / "LR_bicubic" / "X2" / "ax2.png", downscale(high[:32], 2))
    write(tmp_path / "LRx2" / "a.png", high)  # LR files without HR are no set
    sets = find_sets(tmp_path, 2)
    assert [each.name for each in sets] == ["Set5", "Set14"]
    assert all(each.low_is_read for each in sets)
    low, cropped = read_pair(sets[1].pairs[0], 2)
    assert low.shape == (16, 15, 3) and cropped.shape == (32, 30, 3)
    assert not any(each.low_is_read for each in find_sets(tmp_path, 2, "make"))
    assert not find_sets(tmp_path / "Set5", 3)[0].low_is_read
    with pytest.raises(InputError, match=r"no LRx3/ folder"):
        find_sets(tmp_path, 3, "read")
    assert find_sets(tmp_path / "Set5" / "HR", 2)[0].name == "Set5"


def test_made_lr_is_matlabs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", noise(31, 41))
    low, high = read_pair(ImagePair("a", path, None), 3)
    assert high.shape == (30, 39, 3) and np.array_equal(low, downscale(noise(31, 41)[:30, :39], 3))


def test_missing_and_wrong_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_sets(tmp_path / "nowhere", 4)
    with pytest.raises(InputError, match="is a file"):
        find_sets(write(tmp_path / "f" / "a.png", noise(8, 8)), 4)
    (tmp_path / "empty" / "HR").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no pictures in .*HR"):
        find_sets(tmp_path / "empty", 4)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"no pictures in .*bare"):
        find_sets(tmp_path / "bare", 4)
    write(tmp_path / "twice" / "a.png", noise(8, 8))
    write(tmp_path / "twice" / "a.bmp", noise(8, 8))
    with pytest.raises(InputError, match="share one name"):
        find_sets(tmp_path / "twice", 4)


def test_hr_without_lr_partner_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "HR" / f"{name}.png", noise(16, 16))
    write(tmp_path / "LRx4" / "a.png", noise(4, 4))
    with pytest.raises(InputError, match=r'1 of 2 .*"b"'):
        find_sets(tmp_path, 4)


def test_size_mismatch_names_both_and_the_wanted_size(tmp_path: Path) -> None:
    high = write(tmp_path / "HR" / "a.png", noise(35, 33))
    low = write(tmp_path / "LRx4" / "a.png", noise(9, 8))
    with pytest.raises(InputError, match=r"8x9.*HR.*scale 4 needs 8x8"):
        read_pair(ImagePair("a", high, low), 4)
    tiny = write(tmp_path / "tiny.png", noise(3, 40))
    with pytest.raises(InputError, match="too small for scale 4"):
        read_pair(ImagePair("tiny", tiny, None), 4)


def test_pictures_of_every_kind_become_rgb(tmp_path: Path) -> None:
    colour = noise(12, 20)
    grey = colour[..., 0]
    assert np.array_equal(read_image(write(tmp_path / "c.png", colour)), colour)
    assert np.array_equal(read_image(write(tmp_path / "g.png", grey)), np.repeat(grey[..., None], 3, 2))
    with_alpha = np.dstack([colour, np.full(grey.shape, 7, np.uint8)])
    assert np.array_equal(read_image(write(tmp_path / "a.png", with_alpha)), colour)
    deep = write(tmp_path / "16.png", grey.astype(np.uint16) * 257)
    assert np.array_equal(read_image(deep), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(colour).quantize(4).save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").shape == colour.shape
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(colour).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(colour, -1))


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = write(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("text.png", "cut.png", "empty.jpg", "absent.png"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="32 bit"):
        read_image(write(tmp_path / "float.tif", np.zeros((4, 4), np.float32)))


# ----------------------------------------------------------------- complexity


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_are_the_published_ones(name: str) -> None:
    channels, mid, blocks, parameters, giga_macs = NETWORKS[name]
    module = RLFN(ModelSpec(name, 4, channels, mid, blocks))
    cost = count(module, 180, 320)
    assert cost.parameters == parameters
    assert round(cost.macs / 1e9, 1) == giga_macs
    assert not any(layer._forward_hooks for layer in module.modules())


def test_costs_of_the_challenge_network() -> None:
    channels, mid, blocks = NETWORKS["rlfn-ntire"][:3]
    cost = count(RLFN(ModelSpec("rlfn-ntire", 4, channels, mid, blocks)), 256, 256)
    assert round(cost.activations / 1e6, 2) == 80.05
    # The challenge's counter adds one operation a LeakyReLU sample.
    activation_functions = blocks * (mid + mid + channels) * 256 * 256
    assert round((cost.macs + activation_functions) / 1e9, 2) == 19.70


def test_costs_of_other_layers() -> None:
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Linear(10, 3),
    )
    cost = count(layers, 10, 10, channels=4)
    assert cost.macs == 8 * 25 * (2 * 9) + 8 * 25 * (6 * 4) + 6 * 10 * 10 * 3
    assert cost.activations == 8 * 25 + 6 * 100


# ------------------------------------------------------------------------ run


@pytest.mark.parametrize("input_range", [1.0, 255.0])
def test_super_resolve_keeps_values_and_places(input_range: float) -> None:
    image = noise(17, 21)
    expected = image.repeat(2, 0).repeat(2, 1)
    for tta in (False, True):
        network = Nearest(2)
        assert np.array_equal(super_resolve(network, image, spec(2, input_range), tta=tta), expected)
        assert len(network.shapes) == (8 if tta else 1)
    clamped = super_resolve(Nearest(2, shift=2 * input_range), image, spec(2, input_range))
    assert clamped.min() == 255


def test_tta_averages_the_eight_views() -> None:
    """A network that marks its first column: the mean over flips and turns marks all four edges alike."""

    class Marking(Nearest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            mark = torch.zeros_like(y)
            mark[..., 0] = 0.8
            return y + mark

    result = super_resolve(Marking(2), np.zeros((16, 18, 3), np.uint8), spec(2), tta=True)[..., 0]
    assert result[5, 0] == result[5, -1] == result[0, 5] == result[-1, 5] == 51
    assert result[0, 0] == 102 and result[5, 5] == 0


def test_small_pictures_are_padded_to_the_least_side() -> None:
    for height, width in ((1, 1), (2, 40), (14, 3)):
        network = Nearest(3)
        image = noise(height, width)
        result = super_resolve(network, image, spec(3))
        assert network.shapes == [(1, 3, max(height, 15), max(width, 15))]
        assert np.array_equal(result, image.repeat(3, 0).repeat(3, 1))


def test_not_a_number_is_an_error() -> None:
    with pytest.raises(EngineError, match="fp32"):
        super_resolve(Nearest(2, shift=math.nan), noise(16, 16), spec(2))


def test_evaluate_measures_and_saves(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / "data" / "Tiny" / "HR" / f"{name}.png", noise(41, 48, seed=ord(name)))
    progress: list[tuple[str, int, int, str]] = []
    report = evaluate(
        (spec(2), Nearest(2)),
        tmp_path / "data",
        save=tmp_path / "out",
        on_image=lambda name, done, total, image: progress.append((name, done, total, image.name)),
    )
    assert progress == [("Tiny", 1, 2, "a"), ("Tiny", 2, 2, "b")]
    (tiny,) = report.sets
    high = noise(41, 48, seed=ord("a"))[:40]
    expected = downscale(high, 2).repeat(2, 0).repeat(2, 1)
    saved = tmp_path / "out" / "nearest_x2" / "Tiny"
    assert sorted(path.name for path in saved.iterdir()) == ["a.png", "b.png"]
    assert np.array_equal(read_image(saved / "a.png"), expected)
    first = tiny.images[0]
    assert (first.name, first.width, first.height) == ("a", 48, 40)
    assert first.psnr_y == pytest.approx(metrics.psnr_y(expected, high, 2))
    assert first.psnr_rgb == pytest.approx(metrics.psnr_rgb(expected, high, 2))
    assert first.ssim_y == pytest.approx(metrics.ssim_y(expected, high, 2))
    assert tiny.psnr_y == pytest.approx((first.psnr_y + tiny.images[1].psnr_y) / 2)
    with pytest.raises(OutputError, match="holds files already"):
        evaluate((spec(2), Nearest(2)), tmp_path / "data", save=tmp_path / "out")
    evaluate((spec(2), Nearest(2, shift=0.1)), tmp_path / "data", save=tmp_path / "out", overwrite=True)
    assert not np.array_equal(read_image(saved / "a.png"), expected)


def test_wishes_that_cannot_be_met(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.png", noise(40, 40))
    data = tmp_path / "data"
    with pytest.raises(UsageError, match="give --scale"):
        evaluate("bicubic", data)
    with pytest.raises(UsageError, match="2 to 8, not 9"):
        evaluate("bicubic", data, scale=9)
    with pytest.raises(UsageError, match="2 times, not 4"):
        evaluate((spec(2), Nearest(2)), data, scale=4)
    with pytest.raises(UsageError, match="precision"):
        evaluate((spec(2), Nearest(2)), data, precision="int3")
    with pytest.raises(UsageError, match="tta"):
        evaluate("bicubic", data, scale=2, tta=True)
    with pytest.raises(UsageError, match="device 'abacus'"):
        evaluate("bicubic", data, scale=2, device="abacus")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="another folder"):
        evaluate("bicubic", data, scale=2, save=tmp_path / "file")
    write(tmp_path / "small" / "a.png", noise(14, 40))
    with pytest.raises(InputError, match="too small to be measured"):
        evaluate("bicubic", tmp_path / "small", scale=2)
    with pytest.raises(RlfnPipeError, match="no-such-model"):
        evaluate("no-such-model", data, scale=4)


# --------------------------------------------------------------------- report


def sample() -> Report:
    images = tuple(
        ImageResult(name, 48, 40, psnr, 0.9, 30.0, None, 0.1)
        for name, psnr in (("a", 30.0), ("b|c", math.inf))
    )
    cost = count(nn.Conv2d(3, 4, 3), 20, 20)
    return Report("net", 4, (SetResult("Set", images),), cost, sha256="ab")


def test_report_forms_agree() -> None:
    table, markdown = as_table([sample()], per_image=True), as_markdown([sample()], per_image=True)
    lines = table.splitlines()
    assert len(lines) == 5 and lines[2].split()[:7] == ["net", "x4", "Set", "a", "30.00", "0.9000", "30.00"]
    assert "inf" in lines[3] and "(mean)" in lines[4]
    rows = markdown.splitlines()
    assert len(rows) == 5 and "b\\|c" in rows[3]
    assert {row.replace("\\|", "").count("|") for row in rows} == {12}
    assert len(as_table([sample()]).splitlines()) == 3


def test_report_as_json_has_no_infinities() -> None:
    data = json.loads(json.dumps(as_data([sample()], per_image=True), allow_nan=False))
    (result,) = data["reports"][0]["sets"]
    assert result["psnr_y"] is None and result["per_image"][0]["psnr_y"] == 30.0
    assert data["reports"][0]["complexity"]["macs"] == 4 * 18 * 18 * 27
    assert "per_image" not in as_data([sample()])["reports"][0]["sets"][0]


def test_self_ensembling_costs_eight_runs_in_every_form() -> None:
    report = replace(sample(), complexity=count(nn.Conv2d(3, 4, 3), 2000, 2000), tta=True)
    cost = as_data([report])["reports"][0]["complexity"]
    assert cost["parameters"] == 112
    assert (cost["macs"], cost["activations"]) == (8 * 4 * 1998 * 1998 * 27, 8 * 4 * 1998 * 1998)
    in_table = as_table([report]).splitlines()[2].split()[-4:]
    assert in_table == [f"{cost['macs'] / 1e9:.1f}", "G", f"{cost['activations'] / 1e6:.1f}", "M"]


# -------------------------------------------------------------------- command


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    from rlfn_pipe.cli.app import main

    code = main(["evaluate", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_prints_table_markdown_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "mine" / "a.png", noise(40, 40))
    common = ["--data", str(tmp_path / "mine"), "-m", "bicubic", "-s", "2"]
    code, out, err = run_command(capsys, *common)
    assert code == 0 and out.splitlines()[2].split()[:4] == ["bicubic", "x2", "mine", "1"]
    assert "mine 1/1 a" in err
    code, out, err = run_command(capsys, *common, "--markdown", "-q")
    assert code == 0 and out.startswith("| model") and err == ""
    code, out, _ = run_command(capsys, *common, "--json", "--per-image", "-m", "bicubic")
    data: dict[str, Any] = json.loads(out)
    assert code == 0 and len(data["reports"]) == 2
    assert data["reports"][0]["sets"][0]["per_image"][0]["name"] == "a"


def test_files_of_one_name_are_told_apart_and_what_cannot_be_had_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set" / "a.png", noise(40, 40))
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files += [
            "-m",
            shutil.copy(data_path("weights") / "rlfn-s-x2.safetensors", tmp_path / folder / "w.safetensors"),
        ]
    common = ["--data", str(tmp_path / "set"), "-q", *map(str, files)]
    code, out, _ = run_command(capsys, *common, "--json", "--save", str(tmp_path / "out"))
    assert code == 0 and [row["model"] for row in json.loads(out)["reports"]] == ["one-w", "two-w"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one-w_x2", "two-w_x2"}
    code, out, err = run_command(capsys, *common, "-m", str(tmp_path / "none.pth"))
    assert code == 1 and out == "" and "none.pth" in err
    write(tmp_path / "set" / "b.png", noise(40, 40))
    (tmp_path / "set" / "b.png").write_bytes((tmp_path / "set" / "a.png").read_bytes()[:600])
    code, out, err = run_command(capsys, *common)
    assert code == 1 and "b.png" in err


def test_what_was_measured_before_a_failure_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlfn_pipe.evaluate import run

    write(tmp_path / "set" / "a.png", noise(40, 40))

    def fails(*_: Any) -> torch.Tensor:
        raise EngineError("memory ended")

    monkeypatch.setattr(run, "super_resolve", fails)
    code, out, err = run_command(
        capsys, "--data", str(tmp_path / "set"), "-m", "bicubic", "-m", "rlfn-s", "-s", "2", "-q"
    )
    assert code == 1 and "bicubic" in out and "memory ended" in err


def test_command_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_command(capsys, "--data", str(tmp_path / "nowhere"), "-m", "bicubic", "-s", "4")
    assert code == 1 and out == "" and "does not exist" in err and err.count("\n") == 1
    code, _, err = run_command(capsys, "--data", str(tmp_path), "-m", "bicubic")
    assert code == 2 and "--scale" in err
    code, _, err = run_command(capsys, "--data", str(tmp_path), "--json", "--markdown")
    assert code == 2 and "exclude" in err
    code, _, err = run_command(capsys)
    assert code == 2 and "--data" in err


# ----------------------------------------------------------------- acceptance


@pytest.mark.parametrize("name", SET5)
def test_official_weights_give_the_tables_figures(shared_data: Path, name: str) -> None:
    report = evaluate(shared_data / "weights" / f"{name}.pth", shared_data / "test" / "Set5")
    (set5,) = report.sets
    psnr, ssim = SET5[name]
    assert (
        report.model == name and len(set5.images) == 5 and set5.low_is_read and report.scale == int(name[-1])
    )
    assert set5.psnr_y == pytest.approx(psnr, abs=0.0075)
    assert set5.ssim_y == pytest.approx(ssim, abs=0.0002)


def test_made_lr_gives_the_figures_of_read_lr(shared_data: Path, tmp_path: Path) -> None:
    """Three pictures of Set14, a grey one (bridge) among them."""
    folder = shared_data / "test" / "Set14"
    for name in ("bridge", "face", "foreman"):
        (tmp_path / "HR").mkdir(exist_ok=True)
        (tmp_path / "HR" / f"{name}.png").write_bytes((folder / "HR" / f"{name}.png").read_bytes())
        (tmp_path / "LRx4").mkdir(exist_ok=True)
        (tmp_path / "LRx4" / f"{name}.png").write_bytes((folder / "LRx4" / f"{name}.png").read_bytes())
    weights = shared_data / "weights" / "rlfn_ntire_x4.pth"
    (read,) = evaluate(weights, tmp_path, low_source="read").sets
    (made,) = evaluate(weights, tmp_path, low_source="make", save=tmp_path / "out").sets
    assert (tmp_path / "out" / "rlfn_ntire_x4" / tmp_path.name / "bridge.png").is_file()
    assert read.low_is_read and not made.low_is_read
    assert [image.psnr_y for image in read.images] == [image.psnr_y for image in made.images]


@pytest.mark.parametrize("scale", BICUBIC_SET5)
def test_bicubic_gives_the_tables_figures(shared_data: Path, scale: int) -> None:
    (set5,) = evaluate("bicubic", shared_data / "test" / "Set5", scale=scale).sets
    assert set5.psnr_y == pytest.approx(BICUBIC_SET5[scale], abs=0.0075)
