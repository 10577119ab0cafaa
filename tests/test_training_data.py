"""Data of training: cache, crops, held-back images, test images refused, degradation."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import picture, write_images

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.evaluate.resize import downscale
from rlfn_pipe.training import cache as caching
from rlfn_pipe.training import hashes
from rlfn_pipe.training.cache import ImageCache, build_cache, fingerprint, list_images
from rlfn_pipe.training.data import Pairs, Sampler, prefetch, split
from rlfn_pipe.training.degrade import Degradation, degrade, degraded_versions, draw, through_codec
from rlfn_pipe.training.device import Compute
from rlfn_pipe.training.resident import Resident, patches, where_it_fits


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def cache(images: Path) -> ImageCache:
    return build_cache(images, images.parent / "cache", (2, 3, 4), workers=2)


def pairs_of(cache: ImageCache, scale: int) -> Pairs:
    names = tuple(image.name for image in cache.images)
    return Pairs(names, tuple(cache.open(1)), tuple((lr,) for lr in cache.open(scale)), scale)


# ---------------------------------------------------------------------- cache


def test_cache_holds_the_decoded_images_and_their_whole_image_lr(images: Path, cache: ImageCache) -> None:
    assert [image.name for image in cache.images] == sorted(path.name for path in images.iterdir())
    for path, hr in zip(sorted(images.iterdir()), cache.open(1), strict=True):
        expected = np.asarray(Image.open(path))
        expected = expected[: expected.shape[0] // 12 * 12, : expected.shape[1] // 12 * 12]
        assert np.array_equal(hr, expected)
        assert isinstance(hr.base, np.memmap) and not hr.flags.writeable
    for scale in (2, 3, 4):
        for hr, lr in zip(cache.open(1), cache.open(scale), strict=True):
            assert np.array_equal(lr, downscale(hr, scale))


def test_cache_is_reused_until_a_file_changes(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 2)
    notes: list[str] = []
    first = build_cache(folder, tmp_path / "cache", (2,), on_note=notes.append)
    assert len(notes) == 2
    assert build_cache(folder, tmp_path / "cache", (2,), on_note=notes.append).folder == first.folder
    assert len(notes) == 2
    build_cache(folder, tmp_path / "cache", (4,), on_note=notes.append)
    assert notes[2:] == ["making x4 LR images"]
    before = fingerprint(folder, list_images(folder))
    picture(9).save(folder / "0.png")
    assert fingerprint(folder, list_images(folder)) != before


def test_unfinished_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "images", 3)
    original = caching._read

    def broken(path: Path) -> object:
        if path.name == "2.png":
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(caching, "_read", broken)
    with pytest.raises(KeyboardInterrupt):
        build_cache(folder, tmp_path / "cache", (2,))
    monkeypatch.undo()
    assert len(build_cache(folder, tmp_path / "cache", (2,)).images) == 3


def test_small_images_are_left_out_and_odd_kinds_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    picture(0).convert("L").save(folder / "grey.png")
    picture(1).convert("RGBA").save(folder / "alpha.webp", lossless=True)
    picture(2).convert("CMYK").save(folder / "cmyk.jpg")
    picture(3, 60, 60).save(folder / "small.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "inner").mkdir()
    picture(4).save(folder / "inner" / "deep.png")
    built = build_cache(folder, tmp_path / "cache", ())
    assert [image.name for image in built.images] == ["alpha.webp", "cmyk.jpg", "grey.png", "inner/deep.png"]


def test_wrong_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such folder"):
        build_cache(tmp_path / "absent", tmp_path / "cache", (2,))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TrainingError, match="holds no images"):
        build_cache(empty, tmp_path / "cache", (2,))
    picture(0, 60, 60).save(empty / "small.png")
    with pytest.raises(TrainingError, match="smaller than 96"):
        build_cache(empty, tmp_path / "cache", (2,))
    (empty / "bad.png").write_bytes((empty / "small.png").read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"bad\.png: cannot be read as an image"):
        build_cache(empty, tmp_path / "cache", (2,))
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="cache cannot be written"):
        build_cache(write_images(tmp_path / "images", 2), tmp_path / "file" / "cache", (2,))


# ---------------------------------------------------------------- test images


@pytest.mark.parametrize("change", ["none", "smaller", "jpeg", "turned", "mirrored", "brighter", "shaved"])
def test_a_test_image_in_the_folder_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = picture(77, 240, 180)
    known = {"Set5/secret": hashes.difference_hash(np.asarray(secret))}
    monkeypatch.setattr(caching, "load_test_hashes", lambda: known)
    changed = {
        "none": secret,
        "smaller": secret.resize((160, 120), Image.Resampling.BICUBIC),
        "jpeg": secret,
        "turned": secret.transpose(Image.Transpose.ROTATE_90),
        "mirrored": secret.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "brighter": secret.point(lambda value: min(255, int(value * 1.1 + 5))),
        "shaved": secret.crop((2, 2, 238, 178)),
    }[change]
    folder = write_images(tmp_path / "images", 2)
    suspect = folder / ("x.jpg" if change == "jpeg" else "x.png")
    changed.save(suspect, **({"quality": 40} if change == "jpeg" else {}))
    with pytest.raises(TrainingError, match="is the test image Set5/secret"):
        build_cache(folder, tmp_path / "cache", (2,))
    suspect.unlink()
    assert len(build_cache(folder, tmp_path / "cache", (2,)).images) == 2


def test_hashes_of_all_benchmark_images_are_known(shared_data: Path) -> None:
    known = hashes.load_test_hashes()
    assert len(known) == 5 + 14 + 100
    for name in ("Set5", "Set14", "BSD100"):
        path = sorted((shared_data / "test" / name / "HR").iterdir())[-1]
        found = hashes.find_test_image(
            hashes.orientation_hashes(np.asarray(Image.open(path).convert("RGB").rotate(90, expand=True))),
            known,
        )
        assert found is not None and found[0] == f"{name}/{path.stem}"


def test_different_images_are_far_apart() -> None:
    first, second = (hashes.difference_hash(np.asarray(picture(seed))) for seed in (1, 2))
    assert hashes.distance(first, second) > 2 * hashes.SAME_BITS


# ---------------------------------------------------------------------- crops


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_are_the_same_place_in_both_images(cache: ImageCache, scale: int) -> None:
    """Every pair is found again by search, in one of the eight orientations."""
    pairs = pairs_of(cache, scale)
    patch = 24
    for step in range(3):
        small, large = Sampler(pairs, patch, 4, (0,)).batch(step)
        assert small.shape == (4, patch // scale, patch // scale, 3) and large.shape == (4, patch, patch, 3)
        for lr_patch, hr_patch in zip(small, large, strict=True):
            assert any(found_together(pairs, lr_patch, hr_patch, index) for index in range(len(pairs.hr)))


def found_together(pairs: Pairs, small: np.ndarray, large: np.ndarray, index: int) -> bool:
    side, scale = small.shape[0], pairs.scale
    lr, hr = pairs.lr[index][0], pairs.hr[index]
    for turns in range(4):
        for mirror in (False, True):
            one, other = np.rot90(small, turns), np.rot90(large, turns)
            if mirror:
                one, other = one[:, ::-1], other[:, ::-1]
            windows = np.lib.stride_tricks.sliding_window_view(lr, (side, side), (0, 1))
            for top, left in np.argwhere((windows == one.transpose(2, 0, 1)).all(axis=(2, 3, 4))):
                y, x = scale * top, scale * left
                if np.array_equal(hr[y : y + scale * side, x : x + scale * side], other):
                    return True
    return False


def test_batches_depend_on_seed_and_step_alone_and_processes_share_them(cache: ImageCache) -> None:
    pairs = pairs_of(cache, 2)
    whole = Sampler(pairs, 32, 6, (1, 0)).batch(5)
    again = Sampler(pairs, 32, 6, (1, 0)).batch(5)
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))
    assert not np.array_equal(whole[1], Sampler(pairs, 32, 6, (1, 0)).batch(6)[1])
    assert not np.array_equal(whole[1], Sampler(pairs, 32, 6, (2, 0)).batch(5)[1])
    shares = [Sampler(pairs, 32, 6, (1, 0), rank, 2).batch(5)[1] for rank in range(2)]
    assert np.array_equal(whole[1][0::2], shares[0]) and np.array_equal(whole[1][1::2], shares[1])


def test_prefetched_batches_come_in_order_from_the_first_asked_for(cache: ImageCache) -> None:
    sampler = Sampler(pairs_of(cache, 2), 32, 2, (0,))
    for workers in (1, 3):
        batches = prefetch(sampler, 7, workers)
        for step in range(7, 12):
            assert np.array_equal(next(batches)[1], sampler.batch(step)[1])
        batches.close()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_gathered_on_the_device_are_those_cut_on_the_host(cache: ImageCache, scale: int) -> None:
    pairs = pairs_of(cache, scale)
    versions = tuple((*lr, np.ascontiguousarray(lr[0][::-1])) for lr in pairs.lr)
    pairs = Pairs(pairs.names, pairs.hr, versions, scale)
    device = torch.device("cpu")
    resident = Resident(pairs, device)
    sampler = Sampler(pairs, 48, 9, (3,), 1, 2)
    orientations = set()
    for step in range(12):
        orientations |= {place.orientation for place in sampler.places(step)}
        for cut, gathered in zip(sampler.batch(step), resident.batch(sampler, step), strict=True):
            assert np.array_equal(cut, gathered.numpy())
    assert len(orientations) == 8
    compute = Compute(device, torch.float32)
    with (
        closing(patches(sampler, resident, 5, compute)) as one,
        closing(patches(sampler, None, 5, compute)) as other,
    ):
        for _ in range(2):
            assert all(
                torch.equal(a, b) and a.stride() == b.stride()
                for a, b in zip(next(one), next(other), strict=True)
            )
    assert where_it_fits(pairs, device) is None


def test_a_failing_reader_is_an_error_not_a_hang(cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(pairs_of(cache, 2), 32, 2, (0,))

    def fail(_step: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Sampler, "batch", lambda _self, step: fail(step))
    with pytest.raises(TrainingError, match="the disk is gone"):
        next(prefetch(sampler, 0))


def test_held_back_images_are_never_trained_on(cache: ImageCache) -> None:
    pairs = pairs_of(cache, 2)
    training, validation = split(pairs, 0.4)
    assert (len(training.names), len(validation.names)) == (3, 2)
    assert set(training.names) | set(validation.names) == set(pairs.names)
    assert split(pairs, 0.001)[1].names, "one at least is held back"
    reverse = pairs.subset(list(range(len(pairs.names)))[::-1])
    assert set(split(reverse, 0.4)[1].names) == set(validation.names), "the order does not matter"
    with pytest.raises(TrainingError, match="two are the least"):
        split(pairs.subset([0]), 0.1)


def test_patches_larger_than_all_images_are_refused(cache: ImageCache) -> None:
    with pytest.raises(TrainingError, match="lower patch"):
        Sampler(pairs_of(cache, 2), 960, 1, (0,))


# ---------------------------------------------------------------- degradation


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_real_codecs_lose_more_at_lower_quality(codec: str) -> None:
    clip = [np.asarray(picture(1, 61, 47))] * 3
    good, bad = (
        through_codec(clip, codec, quality, "yuv420p")
        for quality in ((2, 9) if "mpeg" in codec else (16, 32))
    )
    assert good.shape == clip[0].shape
    errors = [float(np.square(each.astype(float) - clip[0]).mean()) for each in (good, bad)]
    assert 0 < errors[0] < errors[1] < 5000


def test_degradation_without_anything_is_matlabs_bicubic() -> None:
    hr = np.asarray(picture(2, 96, 72))
    nothing = Degradation(0.0, "matlab", 0.0, (0, 0), "none", 0, "yuv444p")
    assert np.array_equal(degrade(hr, 4, nothing, np.random.default_rng(0)), downscale(hr, 4))


def test_degraded_image_stays_in_place_although_the_clip_moves() -> None:
    hr = np.asarray(picture(3, 192, 144))
    moving = Degradation(0.0, "matlab", 0.0, (5, -3), "libx264", 16, "yuv444p")
    found = degrade(hr, 2, moving, np.random.default_rng(0)).astype(float)
    sharp = downscale(hr, 2).astype(float)
    here = np.square(found - sharp).mean()
    assert here < 0.5 * np.square(found[:, 1:] - sharp[:, :-1]).mean()


def test_degraded_versions_are_cached_and_follow_from_the_seed(images: Path, tmp_path: Path) -> None:
    built = build_cache(images, tmp_path / "cache", (2,))
    notes: list[str] = []
    first = degraded_versions(built, 2, 2, 5, notes.append, workers=1)
    assert len(first) == len(built.images) and all(len(versions) == 2 for versions in first)
    copies = [[np.array(version) for version in versions] for versions in first]
    assert not np.array_equal(copies[0][0], copies[0][1])
    degraded_versions(built, 2, 2, 5, notes.append)
    assert len(notes) == 2, "made once"
    for path in built.folder.glob("*video*"):
        path.unlink()
    again = degraded_versions(built, 2, 2, 5, workers=2)
    assert all(
        np.array_equal(a, b) for x, y in zip(copies, again, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_every_kind_of_degradation_is_drawn() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw(generator, 4) for _ in range(200)]
    assert {each.codec for each in drawn} == {"libx264", "libx265", "mpeg2video", "none"}
    assert {each.pix_fmt for each in drawn} == {"yuv420p", "yuv444p"}
    assert {each.resizer for each in drawn} == {"matlab", "box", "bilinear", "bicubic", "lanczos"}
