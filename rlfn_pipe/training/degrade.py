"""LR images as real video has them: blur, other resizers, noise, chroma subsampling, real codecs.

Made once per image and variant and kept in the image cache, so that training itself needs no
PyAV. Each result is a function of the seed, the image's name and the variant.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image, ImageFilter

from rlfn_pipe.allowance import cores
from rlfn_pipe.errors import TrainingError
from rlfn_pipe.evaluate.resize import downscale
from rlfn_pipe.files import atomic_path
from rlfn_pipe.training.cache import ImageCache

#: Frames of the clip through which an image goes: enough for predicted frames.
FRAMES = 4
_RESIZERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Degradation:
    """What happens to one image. `blur`: sigma in HR pixels; `noise`: sigma in code values of the
    LR image; `motion`: HR pixels a frame; `quality`: CRF of x264 and x265, quantiser of MPEG-2."""

    blur: float
    resizer: str
    noise: float
    motion: tuple[int, int]
    codec: str
    quality: int
    pix_fmt: str


def draw(generator: np.random.Generator, scale: int) -> Degradation:
    """A random degradation, mild far more often than strong."""
    codec = str(generator.choice(["libx264", "libx265", "mpeg2video", "none"], p=[0.45, 0.2, 0.2, 0.15]))
    quality = int(generator.integers(2, 9) if codec == "mpeg2video" else generator.integers(16, 33))
    subsampled = codec == "mpeg2video" or generator.random() < 0.85
    dx, dy = generator.integers(-2 * scale, 2 * scale + 1, 2)
    return Degradation(
        blur=float(generator.random() ** 2 * 0.5 * scale) if generator.random() < 0.5 else 0.0,
        resizer=str(generator.choice(["matlab", *_RESIZERS])),
        noise=float(generator.random() ** 2 * 6.0) if generator.random() < 0.5 else 0.0,
        motion=(int(dx), int(dy)),
        codec=codec,
        quality=quality,
        pix_fmt="yuv420p" if subsampled else "yuv444p",
    )


def degrade(hr: np.ndarray, scale: int, how: Degradation, generator: np.random.Generator) -> np.ndarray:
    """uint8 HR (H, W, 3), sides multiples of `scale` -> degraded uint8 LR (H/scale, W/scale, 3).

    The image is panned into place over a few frames, so that the codec predicts as in a film;
    the last frame, in which it stands where the HR image does, is the result.
    """
    count = 1 if how.codec == "none" else FRAMES
    clip = []
    for left in range(count - 1, -1, -1):
        moved = np.roll(hr, (left * how.motion[1], left * how.motion[0]), axis=(0, 1))
        small = _shrink(moved, scale, how)
        if how.noise:
            small = small + generator.normal(0.0, how.noise, small.shape)
        clip.append(np.clip(np.rint(small), 0, 255).astype(np.uint8))
    return clip[-1] if how.codec == "none" else through_codec(clip, how.codec, how.quality, how.pix_fmt)


def _shrink(image: np.ndarray, scale: int, how: Degradation) -> np.ndarray:
    picture = Image.fromarray(image)
    if how.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(how.blur))
    if how.resizer == "matlab":
        return downscale(np.asarray(picture), scale)
    size = (picture.width // scale, picture.height // scale)
    return np.asarray(picture.resize(size, _RESIZERS[how.resizer]))


def through_codec(clip: list[np.ndarray], codec: str, quality: int, pix_fmt: str) -> np.ndarray:
    """Encode uint8 RGB frames (h, w, 3) with a real codec and return the last one decoded."""
    try:
        import av
    except ImportError as error:
        raise TrainingError(
            'the video degradation needs PyAV to make its cache; install av, or set degradation = "bicubic"'
        ) from error
    height, width = clip[0].shape[:2]
    # Subsampled chroma wants even sides; the repeated edge is cut off again.
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=Fraction(25))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, pix_fmt
        stream.thread_count = 1
        if codec == "mpeg2video":
            stream.codec_context.qmin = stream.codec_context.qmax = quality
            stream.bit_rate = 100_000_000
        else:
            quiet = {"x265-params": "log-level=error:pools=1:frame-threads=1"} if codec == "libx265" else {}
            stream.options = {"crf": str(quality), "preset": "veryfast", **quiet}
        for image in clip:
            frame = av.VideoFrame.from_ndarray(np.pad(image, padding, mode="edge"), format="rgb24")
            out.mux(stream.encode(frame.reformat(format=pix_fmt, threads=1)))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as opened:
        *_, last = opened.decode(video=0)
        return np.ascontiguousarray(last.to_ndarray(format="rgb24")[:height, :width])


def degraded_versions(
    cache: ImageCache,
    scale: int,
    variants: int,
    seed: int,
    on_note: Callable[[str], None] = lambda _: None,
    workers: int | None = None,
) -> list[tuple[np.ndarray, ...]]:
    """`variants` degraded LR versions of every image, from the cache or made now.

    Returns, per image, uint8 (h, w, 3) read-only views. Raises TrainingError without PyAV or
    when the cache cannot be written.
    """
    per_variant = []
    for variant in range(variants):
        path = cache.folder / f"lr{scale}-video-{seed}-{variant}.u8"
        if not path.is_file():
            on_note(f"making degraded x{scale} LR images ({variant + 1} of {variants})")
            _make(cache, scale, seed, variant, workers or cores(), path.name)
        per_variant.append(cache.views(path.name, scale))
    return list(zip(*per_variant, strict=True))


def _make(cache: ImageCache, scale: int, seed: int, variant: int, workers: int, name: str) -> None:
    images = cache.open(1)

    def one(number: int) -> np.ndarray:
        words = hashlib.sha256(cache.images[number].name.encode("utf-8")).digest()[:8]
        generator = np.random.default_rng([seed, variant, int.from_bytes(words)])
        return degrade(images[number], scale, draw(generator, scale), generator)

    target = cache.folder / name
    try:
        with (
            atomic_path(target) as partial,
            partial.open("wb") as out,
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
        ):
            for small in pool.map(one, range(len(images))):
                small.tofile(out)
    except OSError as error:
        raise TrainingError(f"{target}: cannot be written ({error.strerror or error}); make room") from error
