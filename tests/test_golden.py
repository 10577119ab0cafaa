"""The clip that ships, through the real job: figures that must not change unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_maker import decoded, packets_of, payloads, upscale

BUNNY = Path(__file__).parent / "data" / "bunny.mp4"
#: Of the file as it ships: all audio packets in order; the luma of its first ten frames as libav decodes them.
AUDIO = "393c53e65f415cdf7f98198c37af156d91dd3043397d2fa5b8cc15550cba70e9"
LUMA = "3d6f7733b2f68f294a9eb6d9bd8c47fec0e4c61eabcddeda02f45ab4b4005142"


def digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_the_clip_is_the_one_that_was_measured() -> None:
    assert digest(payloads(BUNNY)) == AUDIO
    assert digest(f.planes[0].tobytes() for f in decoded(BUNNY)[:10]) == LUMA


def test_whole_clip_with_repeated_pixels(tmp_path: Path, nearest_engine: None) -> None:
    """Everything but the network: each pixel four times, each time, each audio byte."""
    done = upscale(BUNNY, tmp_path / "out.mp4", codec="libx264", encoder_option=("qp=0",))
    before, after = decoded(BUNNY), decoded(done.path)
    assert [f.time for f in after] == [f.time for f in before] == [Fraction(i, 25) for i in range(50)]
    for a, b in zip(after, before, strict=True):
        difference = a.planes[0][::2, ::2].astype(int) - b.planes[0].astype(int)
        assert np.abs(difference).max() <= 4 and (np.abs(difference) > 1).mean() < 1e-4
    assert digest(payloads(done.path)) == AUDIO
    assert [(t, d) for t, d, _ in packets_of(done.path, "audio")] == [
        (t, d) for t, d, _ in packets_of(BUNNY, "audio")
    ]
    with av.open(str(done.path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (640, 360, 25)
        assert video.duration * video.time_base == 2
        assert sound.codec_context.sample_rate and sound.codec_context.layout.name == "stereo"
        frame = next(container.decode(video))
        assert [int(frame.colorspace), int(frame.color_trc), int(frame.color_primaries)] == [1, 1, 1]
    assert (done.finished.frames, done.finished.concealed) == (50, 0)
    assert done.said == ""


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shipped_weights_keep_the_picture(tmp_path: Path, factor: int) -> None:
    """The upscaled picture, averaged back to the source's size, is the source; and it is sharper than a blur."""
    done = upscale(BUNNY, tmp_path / "out.mkv", scale=factor, frames=2, codec="ffv1", precision="fp32")
    found, before = decoded(done.path), decoded(BUNNY)
    assert [f.time for f in found] == [0, Fraction(1, 25)]
    for a, b in zip(found, before, strict=False):
        height, width = b.planes[0].shape
        large = a.planes[0].reshape(height, factor, width, factor).astype(float)
        assert psnr(large.mean(axis=(1, 3)), b.planes[0]) > 36
        assert large.var(axis=(1, 3)).mean() > 1  # detail inside a source pixel
        for plane, other in zip(a.planes[1:], b.planes[1:], strict=True):
            assert abs(float(plane.mean()) - float(other.mean())) < 0.5


def test_same_run_same_bytes(tmp_path: Path, nearest_engine: None) -> None:
    first = upscale(BUNNY, tmp_path / "a.mp4", frames=12).path.read_bytes()
    second = upscale(BUNNY, tmp_path / "b.mp4", frames=12).path.read_bytes()
    assert first == second
