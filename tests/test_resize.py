"""`evaluate.resize` against the published LR images, and its fast path against a plain reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlfn_pipe.evaluate.resize import downscale, imresize, upscale


def plain_downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """MATLAB's rule written pixel by pixel, from 1 as MATLAB counts."""
    result = image
    for axis in (0, 1):
        moved = np.moveaxis(result, axis, 0).astype(np.float64)
        length = moved.shape[0]
        rows = []
        for x in range(1, -(-length // factor) + 1):
            centre = x * factor + 0.5 * (1 - factor)
            total = np.zeros(moved.shape[1:])
            weight_sum = 0.0
            for position in range(int(centre) - 3 * factor, int(centre) + 3 * factor + 1):
                d = abs(centre - position) / factor
                weight = 0.0
                if d <= 1:
                    weight = 1.5 * d**3 - 2.5 * d**2 + 1
                elif d <= 2:
                    weight = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
                total += weight * moved[min(max(position, 1), length) - 1]
                weight_sum += weight
            rows.append(np.clip(np.floor(total / weight_sum + 0.5), 0, 255))
        result = np.moveaxis(np.stack(rows), 0, axis).astype(np.uint8)
    return result


@pytest.mark.parametrize(
    ("name", "factor"),
    [("Set5", 2), ("Set5", 3), ("Set5", 4), ("Set14", 2), ("Set14", 3), ("Set14", 4), ("BSD100", 4)],
)
def test_equals_the_published_lr_images(shared_data: Path, name: str, factor: int) -> None:
    folder = shared_data / "test" / name / f"LRx{factor}"
    high_folder = folder.parent / "HR"
    paths = sorted(folder.iterdir())
    assert len(paths) >= 5
    for path in paths:
        low = np.asarray(Image.open(path))
        high = np.asarray(Image.open(next(high_folder.glob(path.stem + ".*"))))
        high = high[: high.shape[0] // factor * factor, : high.shape[1] // factor * factor]
        assert np.array_equal(downscale(high, factor), low), path
        assert np.array_equal(imresize(high, *low.shape[:2]), low), path


@pytest.mark.parametrize("factor", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(24, 48, 3), (25, 31), (7, 50, 4), (1, 1, 3)])
def test_fast_path_equals_plain_reference(factor: int, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(factor).choice(np.array([0, 3, 128, 255], np.uint8), shape)
    expected = plain_downscale(image, factor)
    assert np.array_equal(downscale(image, factor), expected)
    assert np.array_equal(downscale(np.asfortranarray(image), factor), expected)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_general_path_equals_fast_path(factor: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12 * factor, 17 * factor, 3), np.uint8)
    assert np.array_equal(imresize(image, 12, 17), downscale(image, factor))


def test_flat_images_stay_flat_in_every_type() -> None:
    for dtype, value in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 0.25), (np.float64, -3.0)):
        for size in ((5, 40), (40, 5), (19, 23), (3, 3)):
            result = imresize(np.full((19, 23, 2), value, dtype), *size)
            assert result.shape == (*size, 2) and result.dtype == dtype
            np.testing.assert_allclose(result, value, rtol=1e-6)


def test_upscale_keeps_a_ramp_inside() -> None:
    """Cubic convolution reproduces straight lines, at MATLAB's sample positions."""
    ramp = np.tile(np.arange(16.0), (4, 1))
    result = upscale(ramp, 4)
    assert result.shape == (16, 64)
    expected = (np.arange(64) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(result[8, 12:-12], expected[12:-12], atol=1e-12)


def test_float_images_are_neither_rounded_nor_clipped() -> None:
    step = np.repeat([0.0, 1.0], 12)[None].repeat(3, axis=0)
    result = imresize(step, 3, 12)
    assert result.min() < 0 and result.max() > 1


def test_antialias_off_uses_the_narrow_kernel() -> None:
    image = np.zeros((1, 16))
    image[0, 4] = 1.0
    # Output 1 of 4 sits at 5.5: the narrow kernel reads samples 4 to 7, the first with the weight -1/16.
    np.testing.assert_allclose(imresize(image, 1, 4, antialias=False)[0], [0, -0.0625, 0, 0], atol=1e-12)
    assert imresize(image, 1, 4)[0, 1] > 0


def test_mirror_border_differs_only_at_the_edge() -> None:
    image = np.random.default_rng(1).random((8, 64))
    clamped, mirrored = imresize(image, 8, 16), imresize(image, 8, 16, border="mirror")
    assert np.abs(clamped - mirrored)[:, [0, -1]].max() > 1e-3
    np.testing.assert_array_equal(clamped[:, 3:-3], mirrored[:, 3:-3])


def test_result_never_shares_memory() -> None:
    image = np.zeros((4, 4), np.uint8)
    for result in (imresize(image, 4, 4), downscale(image, 1)):
        assert not np.shares_memory(result, image)


def test_wrong_arguments_are_named() -> None:
    image = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="factor"):
        downscale(image, 0)
    with pytest.raises(ValueError, match="uint8"):
        downscale(image.astype(np.float32), 2)
    with pytest.raises(ValueError, match="0x3"):
        imresize(image, 3, 0)
    with pytest.raises(ValueError, match="border"):
        imresize(image, 3, 3, border="wrap")
    with pytest.raises(ValueError, match="height, width"):
        imresize(np.zeros((0, 4), np.uint8), 3, 3)
    with pytest.raises(ValueError, match="int64"):
        imresize(np.zeros((4, 4), np.int64), 3, 3)
