"""Training images, decoded once: memory-mapped uint8 HR and whole-image LR of every scale."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from rlfn_pipe.allowance import cores
from rlfn_pipe.errors import TrainingError
from rlfn_pipe.evaluate.pictures import rgb8
from rlfn_pipe.evaluate.resize import downscale
from rlfn_pipe.files import atomic_path, write_atomically
from rlfn_pipe.training.hashes import find_test_image, load_test_hashes, orientation_hashes

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
#: Pillow's plug-ins that may see the files (it would hand PostScript of any name to Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")
#: HR sides are cropped to a multiple of this, so that one HR image serves x2, x3 and x4.
MULTIPLE = 12
#: Images with a shorter side than this (pixels) are left out: no patch fits.
SMALLEST_SIDE = 96
_FORMAT = 3
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class CachedImage:
    """Place of one image in the cache. `offset` counts HR pixels before it; sizes in HR pixels."""

    name: str
    height: int
    width: int
    offset: int


@dataclass(frozen=True, slots=True)
class ImageCache:
    """The decoded images of a folder; `pixels(...)` gives views into memory-mapped files."""

    folder: Path
    images: tuple[CachedImage, ...]

    def open(self, scale: int) -> list[np.ndarray]:
        """All images at 1/scale of their size (1: HR) as uint8 (h, w, 3) read-only views."""
        return self.views("hr.u8" if scale == 1 else f"lr{scale}.u8", scale)

    def views(self, file: str, scale: int) -> list[np.ndarray]:
        """The images in one of the cache's files, whose sizes are 1/scale of the HR ones."""
        data = np.memmap(self.folder / file, np.uint8, "r")
        views = []
        for image in self.images:
            height, width = image.height // scale, image.width // scale
            start = 3 * image.offset // scale**2
            views.append(data[start : start + 3 * height * width].reshape(height, width, 3))
        return views

    def is_built(self, scale: int) -> bool:
        """Whether the file for `scale` is there."""
        return (self.folder / ("hr.u8" if scale == 1 else f"lr{scale}.u8")).is_file()


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder` in a fixed order; TrainingError when there are none."""
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder of training images; give one with --data")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise TrainingError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))}) to train on")
    return found


def fingerprint(folder: Path, files: list[Path]) -> str:
    """Twelve hex digits that change when a file's name, size or time does."""
    digest = hashlib.sha256(f"cache {_FORMAT}\n".encode())
    for path in files:
        info = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}\t{info.st_size}\t{info.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _read(path: Path) -> tuple[np.ndarray, list[bytes]]:
    """Decode one image to RGB uint8, cropped to the multiple, and hash it before the crop."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            image = rgb8(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TrainingError(f"{path}: cannot be read as an image ({error}); repair or remove it") from error
    height, width = (side // MULTIPLE * MULTIPLE for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width]), orientation_hashes(image)


def _ordered(
    pool: concurrent.futures.Executor, function: Callable[[Item], Made], items: list[Item], ahead: int
) -> Iterator[Made]:
    """Like `pool.map`, but never more than `ahead` results wait in memory."""
    waiting: list[concurrent.futures.Future[Made]] = []
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    yield from (future.result() for future in waiting)


def _downscale_into(task: tuple[np.ndarray, int]) -> np.ndarray:
    return downscale(*task)


def build_cache(
    folder: Path,
    root: Path,
    scales: tuple[int, ...],
    workers: int | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> ImageCache:
    """Decode the images below `folder` once and return the cache with LR images for `scales`.

    The cache lies in `root/images-<fingerprint>` and is reused while the files are unchanged.
    Every file in it appears by rename, so that an interrupted build leaves nothing half done.
    Raises TrainingError for unreadable images, a picture of a benchmark set, or a full disk.
    """
    files = list_images(folder)
    cache = root / f"images-{fingerprint(folder, files)}"
    workers = workers or cores()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not (cache / "index.json").is_file():
            on_note(f"decoding {len(files)} images into {cache}")
            _build_hr(folder, files, cache, workers)
        built = load_cache(cache)
        for scale in scales:
            if scale > 1 and not built.is_built(scale):
                on_note(f"making x{scale} LR images")
                _build_lr(built, scale, workers)
    except OSError as error:
        raise TrainingError(
            f"{cache}: the image cache cannot be written ({error.strerror or error})"
        ) from error
    return built


def load_cache(cache: Path) -> ImageCache:
    """Open a cache folder that `build_cache` made."""
    rows = json.loads((cache / "index.json").read_text(encoding="utf-8"))
    return ImageCache(cache, tuple(CachedImage(**row) for row in rows))


def _build_hr(folder: Path, files: list[Path], cache: Path, workers: int) -> None:
    known = load_test_hashes()
    rows: list[dict[str, object]] = []
    offset = 0
    # Pillow and numpy let go of the interpreter lock in their long loops, so threads do.
    with (
        atomic_path(cache / "hr.u8") as partial,
        partial.open("wb") as out,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        for path, (image, hashes) in zip(files, _ordered(pool, _read, files, 2 * workers), strict=True):
            name = path.relative_to(folder).as_posix()
            repeated = find_test_image(hashes, known)
            if repeated:
                raise TrainingError(
                    f"{path}: is the test image {repeated[0]} ({repeated[1]} of 256 hash bits differ);"
                    " training on it would spoil every benchmark figure, so remove it from the folder"
                )
            if min(image.shape[:2]) < SMALLEST_SIDE:
                continue
            image.tofile(out)
            rows.append({"name": name, "height": image.shape[0], "width": image.shape[1], "offset": offset})
            offset += image.shape[0] * image.shape[1]
        if not rows:
            raise TrainingError(
                f"{folder}: every image is smaller than {SMALLEST_SIDE} pixels; none can be used"
            )
    write_atomically(cache / "index.json", json.dumps(rows, indent=0).encode("utf-8"))


def _build_lr(cache: ImageCache, scale: int, workers: int) -> None:
    target = cache.folder / f"lr{scale}.u8"
    with (
        atomic_path(target) as partial,
        partial.open("wb") as out,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        tasks = [(image, scale) for image in cache.open(1)]
        for small in _ordered(pool, _downscale_into, tasks, 2 * workers):
            small.tofile(out)
