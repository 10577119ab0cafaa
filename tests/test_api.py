"""The Python API: same kind in and out, the same result by every road."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rlfn_pipe import Upscaler, upscale
from rlfn_pipe.errors import OutputError, UsageError
from rlfn_pipe.types import Finished, Started


@pytest.fixture(scope="module")
def up() -> Upscaler:
    return Upscaler(scale=2, precision="fp32", threads=1)


@pytest.fixture
def image() -> np.ndarray:
    ramp = np.linspace(0, 255, 40 * 28 * 3).reshape(28, 40, 3)
    noise = np.random.default_rng(3).normal(0, 20, ramp.shape)
    return np.clip(ramp + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_array_comes_back_as_it_came(
    up: Upscaler, image: np.ndarray, channels: int | None, dtype: type
) -> None:
    picture = image[:, :, 0] if channels is None else np.dstack([image, image[:, :, :1]])[:, :, :channels]
    picture = picture.astype(dtype) * (257 if dtype is np.uint16 else 1)
    large = up(picture)
    assert large.dtype == dtype
    assert large.shape == (56, 80, *picture.shape[2:])
    assert abs(large.mean() / picture.mean() - 1) < 0.03


def test_tensor_and_array_agree(up: Upscaler, image: np.ndarray) -> None:
    large = up(image)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    one = up(tensor)
    many = up(torch.stack([tensor, tensor.flip(-1)]))
    assert one.shape == (3, 56, 80) and many.shape == (2, 3, 56, 80)
    assert one.dtype == torch.float32
    codes = (one.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    assert np.abs(codes.astype(int) - large).max() <= 1
    assert torch.equal(many[0], one)


def test_frames_keep_their_order_and_are_read_lazily(up: Upscaler, image: np.ndarray) -> None:
    taken = []

    def pictures():  # type: ignore[no-untyped-def]
        for i in range(40):
            taken.append(i)
            yield np.roll(image, i, axis=1)

    stream = up.frames(pictures())
    first = next(stream)
    assert len(taken) < 40
    assert np.array_equal(first, up(image))
    rest = list(stream)
    assert len(rest) == 39
    assert np.array_equal(rest[6], up(np.roll(image, 7, axis=1)))


def test_a_buffer_may_be_given_again_and_again(up: Upscaler) -> None:
    """As a camera's loop does; and what the loop raises comes after what it gave."""
    buffer = np.empty((28, 40, 3), np.uint8)

    def pictures():  # type: ignore[no-untyped-def]
        for value in (10, 100, 200):
            buffer[:] = value
            yield buffer[:, :, 0] if value == 100 else buffer
        raise OSError("the camera is gone")

    found: list[int] = []
    with pytest.raises(OSError, match="camera"):
        found.extend(round(float(each.mean())) for each in up.frames(pictures()))
    assert found == pytest.approx([10, 100, 200], abs=1)
    with pytest.raises(UsageError, match="not list"):
        found.extend(round(float(each.mean())) for each in up.frames([buffer, [1]]))  # type: ignore[type-var]
    assert len(found) == 4


def test_a_result_is_the_callers_to_write_to(up: Upscaler, image: np.ndarray) -> None:
    """Also where the same picture comes again, whose result is kept."""
    for picture in (image, image[:, :, 0]):
        expected = up(picture)
        for large in up.frames([picture, picture, picture]):
            assert np.array_equal(large, expected)
            large[:] = 0


def test_what_holds_no_samples_is_refused(up: Upscaler) -> None:
    with pytest.raises(UsageError, match="no pixels"):
        up(torch.empty(3, 4, 4, device="meta"))
    with pytest.raises(UsageError, match="dense"):
        up(torch.rand(3, 4, 4).to_sparse())
    with pytest.raises(UsageError, match="from 1 to 8"):
        Upscaler(scale=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4), np.float32),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        [1],
    ],
)
def test_other_shapes_and_types_are_refused(up: Upscaler, bad: object) -> None:
    with pytest.raises(UsageError, match="must be"):
        up(bad)  # type: ignore[type-var]


@pytest.mark.skipif(not hasattr(os, "nice"), reason="no priorities of this kind")
def test_the_callers_priority_is_the_callers(tmp_path: Path, image: np.ndarray, nearest_engine: None) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), image)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    report = upscale(tmp_path / "in.png", tmp_path / "out.png", scale=2, nice=3)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert ["nice has no effect" in one.message for one in report.warned] == [True]


def test_upscale_does_what_the_command_does(tmp_path: Path, image: np.ndarray) -> None:
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    cv2.imwrite(str(source), image[:, :, ::-1])
    events: list[object] = []
    report = upscale(source, target, scale=2, precision="fp32", on_event=events.append)
    assert report.exit_code == 0
    assert [type(e) for e in events if isinstance(e, Started | Finished)] == [Started, Finished]
    written = cv2.imread(str(target))[:, :, ::-1]
    assert np.array_equal(written, Upscaler(scale=2, precision="fp32")(image))
    with pytest.raises(OutputError, match="-y"):
        upscale(source, target, scale=2)


def film(seed: int, count: int = 14) -> list[np.ndarray]:
    """A held picture in which a spot moves: layers of each frame are kept for the next."""
    rng = np.random.default_rng(seed)
    held = rng.integers(0, 256, (96, 120, 3), dtype=np.uint8)
    pictures = [held.copy() for _ in range(count)]
    for i, picture in enumerate(pictures):
        picture[20:28, 4 * i : 4 * i + 8] = 255
    return pictures


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_that_share_an_upscaler_get_what_each_would_get_alone(precision: str) -> None:
    shared = Upscaler(scale=2, precision=precision, threads=2)
    films = [film(seed) for seed in range(3)]
    alone = [list(Upscaler(scale=2, precision=precision, threads=2).frames(one)) for one in films]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: list(shared.frames(one)), films))
    for got, wanted in zip(together, alone, strict=True):
        np.testing.assert_array_equal(np.stack(got), np.stack(wanted))


@pytest.mark.parametrize("native", [True, False])
def test_the_callers_threads_are_its_own_between_frames(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setenv("RLFN_PIPE_NATIVE", "off")
    up = Upscaler(scale=2, precision="fp32", threads=1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = []

        def pictures() -> Iterator[np.ndarray]:
            for picture in film(0, 4):
                seen.append(torch.get_num_threads())
                yield picture

        one, other = up.frames(pictures()), up.frames(film(1, 4))
        for _ in zip(one, other, strict=True):
            seen.append(torch.get_num_threads())
        next(up.frames(film(2, 4)))  # and one that is left before its end
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {3}
