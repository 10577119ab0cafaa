"""Still pictures: what is read, what is written, what is refused."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, IptcImagePlugin
from PIL.PngImagePlugin import PngImageFile, PngInfo

from rlfn_pipe.errors import InputError, OutputError, UsageError
from rlfn_pipe.media import exif as exif_blocks
from rlfn_pipe.media import image_read, image_write
from rlfn_pipe.media.image_metadata import orient
from rlfn_pipe.media.image_read import _decode_deep
from rlfn_pipe.media.images import (
    ImageMeta,
    check_output_size,
    conversion_notes,
    output_format,
    read_image,
    target_colour,
    write_image,
)
from rlfn_pipe.media.limits import MAX_PIXELS_VARIABLE
from rlfn_pipe.media.png_chunks import insert, pack
from rlfn_pipe.media.signatures import read_head
from rlfn_pipe.types import MATRIX_RGB, RANGE_FULL, ColourInfo, Frame

FORMATS = ("png", "jpg", "webp", "tiff", "bmp", "avif")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_ICC = SRGB[:16] + b"GRAY" + SRGB[20:]


def smooth(height: int = 23, width: int = 31, channels: int = 3, depth: int = 8) -> np.ndarray:
    """A picture without flat parts and without symmetry, HxWxC."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    wave = 0.5 + 0.25 * np.sin(x / 5 + c) + 0.25 * np.cos(y / 4 + x / 9 + 2 * c)
    return np.rint(wave * ((1 << depth) - 1)).astype(np.uint8 if depth == 8 else np.uint16)


def frame_of(array: np.ndarray, depth: int = 8) -> Frame:
    """A full-range frame of an HxWxC array: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
    channels = array.shape[2]
    colour = ColourInfo(
        range=RANGE_FULL,
        bit_depth=depth,
        subsampling="rgb" if channels >= 3 else "grey",
        alpha=channels in (2, 4),
    ).resolved(array.shape[0])
    return Frame(planes=tuple(array[..., i] for i in range(channels)), colour=colour)


def stacked(frame: Frame) -> np.ndarray:
    return np.dstack(frame.planes)


def saved(path: Path, array: np.ndarray, **parameters: object) -> Path:
    Image.fromarray(array.squeeze()).save(path, **parameters)
    return path


# --------------------------------------------------------------------- reading


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "bmp", "avif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_eight_bits_read_as_pillow_reads_them(tmp_path: Path, extension: str, channels: int) -> None:
    if extension in ("jpg", "bmp") and channels in (2, 4):
        pytest.skip("the format has no alpha")
    path = saved(tmp_path / f"a.{extension}", smooth(channels=channels))
    frame, meta = read_image(path, 7)
    with Image.open(path) as picture:
        reference = np.array(picture)
    assert np.array_equal(stacked(frame).squeeze(), reference)
    expected = {"tif": "tiff"}.get(extension, extension)
    assert meta.format == expected and meta.notes == ()
    assert frame.index == 7 and frame.colour.range == RANGE_FULL and frame.colour.bit_depth == 8
    grey = channels == 1 if extension == "avif" else channels <= 2 and extension != "webp"
    assert frame.colour.subsampling == ("grey" if grey else "rgb")
    assert frame.colour.alpha == (channels in (2, 4))
    assert grey or frame.colour.matrix == MATRIX_RGB
    assert all(plane.flags.c_contiguous and plane.flags.writeable for plane in frame.planes)


@pytest.mark.parametrize("extension", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_stay_sixteen(tmp_path: Path, extension: str, channels: int) -> None:
    array = smooth(channels=channels, depth=16)
    bgr = array if channels == 1 else array[..., [2, 1, 0, 3][:channels]]
    path = tmp_path / f"a.{extension}"
    assert cv2.imwrite(str(path), bgr)
    frame, meta = read_image(path)
    assert frame.colour.bit_depth == 16 and frame.planes[0].dtype == np.uint16
    assert np.array_equal(stacked(frame), array)
    assert meta.notes == ()


def test_palette_bilevel_and_transparent_palette(tmp_path: Path) -> None:
    picture = Image.fromarray(smooth()).quantize(16)
    picture.save(tmp_path / "p.png")
    frame, _ = read_image(tmp_path / "p.png")
    assert np.array_equal(stacked(frame), np.array(picture.convert("RGB")))

    picture.save(tmp_path / "t.png", transparency=3)
    frame, _ = read_image(tmp_path / "t.png")
    assert frame.colour.alpha
    assert np.array_equal(frame.planes[3] == 0, np.array(picture) == 3)

    Image.fromarray(smooth(channels=1).squeeze() > 128).save(tmp_path / "b.tif")
    frame, _ = read_image(tmp_path / "b.tif")
    assert frame.colour.subsampling == "grey"
    assert set(np.unique(frame.planes[0])) == {0, 255}


@pytest.mark.parametrize(("bits", "key"), [(1, 1), (2, 2), (4, 7), (8, 200), (16, 40_000)])
def test_transparent_grey_value_of_any_depth(tmp_path: Path, bits: int, key: int) -> None:
    """A PNG's tRNS is in the file's own units, whatever the decoder spreads the samples to."""
    values = np.array([[0, key, (1 << bits) - 1, key]], np.uint16)
    if bits == 16:
        row = values.astype(">u2").tobytes()
    else:
        row = np.packbits([int(d) for v in values[0] for d in f"{v:0{bits}b}"]).tobytes()
    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    body = [(b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(b"\0" + row))]
    path = tmp_path / "g.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pack(*c) for c in [*body, (b"IEND", b"")]))
    frame, _ = read_image(path)
    white = (1 << frame.colour.bit_depth) - 1
    assert frame.colour.bit_depth == (16 if bits == 16 else 8)
    assert np.array_equal(frame.planes[1] == 0, values == key)
    assert np.array_equal(frame.planes[0], values.astype(int) * white // ((1 << bits) - 1))


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour(tmp_path: Path, depth: int) -> None:
    array = smooth(depth=depth)
    array[4:9, 5:12] = array[0, 0]
    cv2.imwrite(str(tmp_path / "a.png"), array[..., ::-1])
    key = struct.pack(">HHH", *(int(v) for v in array[0, 0]))
    (tmp_path / "t.png").write_bytes(insert((tmp_path / "a.png").read_bytes(), [(b"tRNS", key)]))
    frame, _ = read_image(tmp_path / "t.png")
    assert np.array_equal(frame.planes[3] == 0, (array == array[0, 0]).all(-1))
    assert np.array_equal(stacked(frame)[..., :3], array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff", "tiff16"])
def test_orientation_is_applied_once_and_reset(
    tmp_path: Path, extension: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    array = smooth(channels=3)
    if extension == "tiff16":
        path = tmp_path / "a.tiff"
        maker = exif_blocks.Entry(2, 6, b"Maker\0")
        made = exif_blocks.Directories("<", {0x0112: exif_blocks.shorts("<", orientation), 0x010F: maker})
        monkeypatch.setattr(image_write, "for_tiff", lambda block: made)
        described = ImageMeta(exif=exif.tobytes().removeprefix(b"Exif\0\0"))
        write_image(path, frame_of(smooth(depth=16), 16), described, format="tiff")
        array = smooth(depth=16)
    else:
        path = tmp_path / f"a.{extension}"
        Image.fromarray(array).save(path, exif=exif, quality=95)
        with Image.open(path) as picture:
            if extension in ("jpg", "webp"):
                array = np.array(picture)
    frame, meta = read_image(path)
    with Image.fromarray(array.astype(np.uint8)) as plain:
        plain.getexif()[0x0112] = orientation
        shape = np.array(ImageOps.exif_transpose(plain)).shape
    assert stacked(frame).shape == shape
    expected = np.dstack([orient(array[..., i], orientation) for i in range(3)])
    assert np.array_equal(stacked(frame), expected)
    if meta.exif is not None:
        again = Image.Exif()
        again.load(meta.exif)
        assert again.get(0x0112, 1) == 1 and again[0x010F] == "Maker"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orient_is_what_pillow_does(orientation: int) -> None:
    plane = smooth(channels=1).squeeze()
    picture = Image.fromarray(plane)
    picture.getexif()[0x0112] = orientation
    assert np.array_equal(orient(plane, orientation), np.array(ImageOps.exif_transpose(picture)))


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    array = smooth()
    saved(tmp_path / "a.png", array)
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    frame, meta = read_image(tmp_path / "a.jpg")
    assert meta.format == "png" and np.array_equal(stacked(frame), array)


def test_cmyk_with_profile_and_without(tmp_path: Path) -> None:
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=95)
    frame, meta = read_image(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert np.array_equal(stacked(frame), np.array(picture.convert("RGB")))
    assert "plain formula" in meta.notes[0]
    cmyk.save(tmp_path / "b.jpg", icc_profile=SRGB[:16] + b"CMYK" + SRGB[20:])  # a profile that lies
    frame, meta = read_image(tmp_path / "b.jpg")
    assert meta.icc is None and meta.notes and len(frame.planes) == 3


def test_animation_gives_its_first_picture_and_says_so(tmp_path: Path) -> None:
    pictures = [Image.fromarray(smooth()), Image.fromarray(255 - smooth())]
    for name, parameters in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.tiff", {})):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], **parameters)
        frame, meta = read_image(tmp_path / name)
        assert np.array_equal(stacked(frame)[..., :3], smooth()), name
        assert any("first picture" in note for note in meta.notes), name


def test_animation_of_sixteen_bits_gives_its_still_picture(tmp_path: Path) -> None:
    """Damage in later pictures of the animation reaches no decoder."""
    array = smooth(depth=16)
    cv2.imwrite(str(tmp_path / "a.png"), array[..., ::-1])
    size = struct.pack(">IIIIHHBB", 31, 23, 0, 0, 1, 10, 0, 0)
    chunks = [(b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", struct.pack(">I", 0) + size)]
    data = insert((tmp_path / "a.png").read_bytes(), chunks)
    damaged_picture = struct.pack(">I", 2) + zlib.compress(b"\x7f" * (23 * (1 + 31 * 6)))
    later = [(b"fcTL", struct.pack(">I", 1) + size), (b"fdAT", damaged_picture)]
    end = pack(b"IEND", b"")
    (tmp_path / "b.png").write_bytes(data.removesuffix(end) + b"".join(pack(*chunk) for chunk in later) + end)
    frame, meta = read_image(tmp_path / "b.png")
    assert frame.colour.bit_depth == 16 and np.array_equal(stacked(frame), array)
    assert any("first picture" in note for note in meta.notes)


def test_planar_tiff_is_not_scrambled(tmp_path: Path) -> None:
    """OpenCV takes a TIFF of separate 16-bit planes for an interleaved one; then 8 true bits are better."""
    array = smooth(depth=16)
    write_image(tmp_path / "a.tiff", frame_of(array, 16), ImageMeta(), format="tiff")
    with Image.open(tmp_path / "a.tiff") as picture:
        assert np.array_equal(_decode_deep(tmp_path / "a.tiff", picture, "RGB;16N", 16, 1), array)
        other = Image.fromarray(smooth()[::-1].copy())
        assert _decode_deep(tmp_path / "a.tiff", other, "RGB;16N", 16, 1) is None


# -------------------------------------------------------------------- refusals


def damaged(tmp_path: Path) -> dict[str, bytes]:
    array = smooth(90, 120)
    files: dict[str, bytes] = {
        "empty.png": b"",
        "text.png": b"this is a shopping list, not a picture\n" * 9,
        "gif.png": b"GIF89a" + bytes(60),
        "film.jpg": b"\0\0\0\x20ftypisom" + bytes(60),
        "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0heic" + bytes(60),
        "jxl.png": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60),
    }
    for name, parameters in (
        ("a.jpg", {"quality": 90}),
        ("b.jpg", {"progressive": True}),
        ("a.png", {}),
        ("a.webp", {}),
        ("a.tif", {}),
        ("a.bmp", {}),
        ("a.avif", {}),
    ):
        data = saved(tmp_path / name, array, **parameters).read_bytes()
        files[f"half.{name}"] = data[: len(data) // 2]
        files[f"head.{name}"] = data[:40]
    packed = saved(tmp_path / "lzw.tif", array, compression="tiff_lzw").read_bytes()
    files["lzw.tif"] = packed[:1000] + b"\xff" * 1000 + packed[2000:]
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), smooth(60, 60, depth=16))
    files["half.deep.png"] = deep.read_bytes()[:-400]
    flipped = bytearray((tmp_path / "a.png").read_bytes())
    flipped[len(flipped) // 2] ^= 0x55
    files["flipped.png"] = bytes(flipped)
    return files


def test_damaged_files_are_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, data in damaged(tmp_path).items():
        path = tmp_path / "x" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_image(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and message.count("; ") >= 1, message
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_samples_that_are_no_colour_values_are_refused(tmp_path: Path) -> None:
    for name, array in (("f.tif", smooth().astype(np.float32)), ("i.tif", smooth().astype(np.int32))):
        Image.fromarray(array[..., 0]).save(tmp_path / name)
        with pytest.raises(InputError, match="8 or 16 bits"):
            read_image(tmp_path / name)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)


class Failing(io.BytesIO):
    """A file on a drive that has gone."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("opens", [True, False])
def test_a_drive_that_fails_is_one_sentence(
    tmp_path: Path, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", smooth())
    head = read_head(path)
    monkeypatch.setattr(image_read, "read_head", lambda _: head)
    monkeypatch.setattr(Path, "open", lambda *_: Failing() if opens else Failing().read())
    with pytest.raises(InputError, match=r"a\.png cannot be read \(input/output error\); check the drive"):
        read_image(path)


def test_a_place_that_no_file_has_is_damage_not_the_drives(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(struct.pack("<4sHHQ", b"II+\0", 8, 0, 2**63 - 1) + bytes(90))
    with pytest.raises(InputError, match="damaged or cut short"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "bmp", "avif"])
def test_size_is_bounded_before_decoding(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / f"a.{extension}", smooth(20, 30))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "599")
    with pytest.raises(InputError, match=r"30x20 .*RLFN_PIPE_MAX_PIXELS=600"):
        read_image(path)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "600")
    assert read_image(path)[0].width == 30
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "many")
    with pytest.raises(UsageError, match="many"):
        read_image(path)


@pytest.mark.parametrize("extension", ["png", "webp", "tiff"])
def test_pillows_bound_is_neither_ours_nor_changed(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = smooth(20, 30)
    path = saved(tmp_path / f"a.{extension}", array, **({"lossless": True} if extension == "webp" else {}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame, _ = read_image(path)
    assert np.array_equal(stacked(frame), array) and Image.MAX_IMAGE_PIXELS == 100


def test_a_header_of_terapixels_allocates_nothing(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pack(*c) for c in chunks))
    with pytest.raises(InputError, match="1000000x1000000"):
        read_image(path)


# --------------------------------------------------------------------- writing


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", ["png", "tiff"])
def test_lossless_round_trip(tmp_path: Path, format: str, channels: int, depth: int) -> None:
    array = smooth(channels=channels, depth=depth)
    path = tmp_path / f"a.{format}"
    size = write_image(path, frame_of(array, depth), ImageMeta(), format=format)
    assert size == path.stat().st_size
    if format == "tiff" and depth == 16 and channels == 2:
        array = array[..., [0, 0, 0, 1]]  # few programs read grey with alpha at 16 bits
    frame, _ = read_image(path)
    assert frame.colour.bit_depth == depth
    assert frame.colour == frame_of(array, depth).colour
    assert np.array_equal(stacked(frame), array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", ["jpg", "webp", "bmp", "avif"])
def test_lossy_round_trip_is_close(tmp_path: Path, format: str, channels: int) -> None:
    array = smooth(64, 80, channels)
    if channels in (2, 4):
        array[..., -1] = 255
    path = tmp_path / "a"
    write_image(path, frame_of(array), ImageMeta(), format=format)
    frame, _ = read_image(path)
    difference = np.abs(stacked(frame)[..., :1].astype(int) - array[..., :1])
    assert difference.max() <= (0 if format == "bmp" else 20)
    assert difference.mean() < 4


@pytest.mark.parametrize("depth", [10, 12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_deep_avif(tmp_path: Path, channels: int, depth: int) -> None:
    array = smooth(64, 80, channels, depth)
    source = frame_of(array, depth)
    stored = 10 if depth == 10 else 12
    assert target_colour(source, "avif").bit_depth == stored
    write_image(tmp_path / "a.avif", source, ImageMeta(), format="avif", quality=95)
    frame, _ = read_image(tmp_path / "a.avif")
    assert frame.colour.bit_depth == stored
    expected = array[..., 0].astype(float) / ((1 << depth) - 1)
    assert np.abs(frame.planes[0] / ((1 << stored) - 1) - expected).mean() < 0.01


def test_hdr_avif_keeps_its_tags(tmp_path: Path) -> None:
    source = frame_of(smooth(64, 80, 3, 10), 10)
    hdr = Frame(source.planes, target_colour(source, "avif").__class__(
        matrix=0, primaries=9, transfer=16, range=2, bit_depth=10, subsampling="rgb"))  # fmt: skip
    write_image(tmp_path / "a.avif", hdr, ImageMeta(), format="avif")
    frame, meta = read_image(tmp_path / "a.avif")
    assert (frame.colour.primaries, frame.colour.transfer) == (9, 16)
    assert conversion_notes(frame, meta, "jpg")[-1].startswith("jpg cannot carry")
    write_image(tmp_path / "a.png", frame, meta, format="png")
    assert b"cICP" + bytes((9, 16, 0, 1)) in (tmp_path / "a.png").read_bytes()


def test_samples_are_rescaled_where_the_format_is_shallower(tmp_path: Path) -> None:
    array = np.array([[[0], [257 * 77], [65535], [128]]], np.uint16)
    write_image(tmp_path / "a.bmp", frame_of(array, 16), ImageMeta(), format="bmp")
    assert stacked(read_image(tmp_path / "a.bmp")[0]).ravel().tolist() == [0, 77, 255, 0]
    twelve = np.array([[[0], [4095], [2048]]], np.uint16)
    write_image(tmp_path / "a.png", frame_of(twelve, 12), ImageMeta(), format="png")
    assert stacked(read_image(tmp_path / "a.png")[0]).ravel().tolist() == [0, 65535, 32776]


def test_transparency_over_white_where_there_is_none(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, 4:] = (10, 20, 30, 255)
    array[:4, :4] = (200, 0, 0, 0)
    source = frame_of(array)
    write_image(tmp_path / "a.bmp", source, ImageMeta(), format="bmp")
    result = stacked(read_image(tmp_path / "a.bmp")[0])
    assert result.shape[2] == 3
    assert (result[:, :4] == 255).all() and (result[:, 4:] == (10, 20, 30)).all()
    assert "white" in conversion_notes(source, ImageMeta(), "jpg")[0]


def test_lossless_webp(tmp_path: Path) -> None:
    array = smooth(channels=4)
    array[:3, :3, 3] = 0
    saved(tmp_path / "a.webp", array, lossless=True, exact=True)
    frame, meta = read_image(tmp_path / "a.webp")
    assert meta.lossless
    for name, described, quality in (("b", meta, None), ("c", ImageMeta(), 100)):
        write_image(tmp_path / name, frame, described, format="webp", quality=quality)
        assert np.array_equal(stacked(read_image(tmp_path / name)[0]), array), name
    write_image(tmp_path / "d", frame, meta, format="webp", quality=50)
    assert not read_image(tmp_path / "d")[1].lossless


def test_lossless_webp_behind_a_long_profile_and_in_an_animation(tmp_path: Path) -> None:
    length = 1_200_000
    profile = struct.pack(">I", length) + SRGB[4:] + b"VP8L" + bytes(length - len(SRGB) - 4)
    array = smooth(channels=4)
    further = [Image.fromarray(array[::-1])]
    for lossless in (True, False):
        for extra in ({"icc_profile": profile}, {"save_all": True, "append_images": further}):
            saved(tmp_path / "a.webp", array, lossless=lossless, **extra)
            assert read_image(tmp_path / "a.webp")[1].lossless == lossless


def test_quality_changes_the_size(tmp_path: Path) -> None:
    source = frame_of(smooth(200, 200))
    for format in ("jpg", "webp", "avif"):
        low, high = (
            write_image(tmp_path / "a", source, ImageMeta(), format=format, quality=q) for q in (20, 98)
        )
        assert low < high


# -------------------------------------------------------------------- metadata


def photograph(path: Path, **parameters: object) -> Path:
    """A file with ICC, resolution and EXIF: orientation, pixel sizes, GPS."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0132] = "Maker", 6, "2020:01:02 03:04:05"
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0xA002: 31, 0xA003: 23, 0x829A: 0.004}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 1.5)}
    Image.fromarray(smooth()).save(path, exif=exif.tobytes(), icc_profile=SRGB, dpi=(300, 150), **parameters)
    return path


@pytest.mark.parametrize("source_format", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("format", ["jpg", "png", "webp", "tiff", "avif"])
def test_metadata_comes_along(tmp_path: Path, source_format: str, format: str, depth: int) -> None:
    frame, meta = read_image(photograph(tmp_path / f"a.{source_format}"))
    assert meta.icc == SRGB and (frame.width, frame.height) == (23, 31)
    colour = ColourInfo(matrix=0, range=2, bit_depth=depth, subsampling="rgb")
    planes = tuple(plane.astype(np.uint16) * 257 if depth == 16 else plane for plane in frame.planes)
    larger = tuple(np.kron(plane, np.ones((2, 2), plane.dtype)) for plane in planes)
    path = tmp_path / f"out.{format}"
    write_image(path, Frame(larger, colour), meta, format=format)
    with Image.open(path) as picture:
        exif = picture.getexif()
        inner, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
        assert picture.size == (46, 62) and picture.info["icc_profile"] == SRGB
        if format in ("jpg", "png", "tiff") and source_format in ("jpg", "png", "tiff"):
            assert picture.info["dpi"] == pytest.approx((150, 300), rel=1e-3), "turned, too"
    assert exif[0x010F] == "Maker" and exif.get(0x0112, 1) == 1
    assert inner[0x9003] == "2020:01:02 03:04:05" and (inner[0xA002], inner[0xA003]) == (46, 62)
    assert place[1] == "N" and place[2] == (48.0, 8.0, 1.5)
    again, _ = read_image(path)
    assert (again.width, again.height) == (46, 62)
    assert conversion_notes(frame, meta, format) == ()


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"'
    b' xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/">'
    b"<exif:PixelXDimension>31</exif:PixelXDimension><dc:creator>J\xc3\xbcrgen</dc:creator>"
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize("source_format", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("format", ["jpg", "png", "webp", "tiff", "avif", "bmp"])
def test_xmp_comes_along(tmp_path: Path, source_format: str, format: str, depth: int) -> None:
    source = tmp_path / f"a.{source_format}"
    if source_format == "png":
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
        Image.fromarray(smooth()).save(source, pnginfo=chunks)
    elif source_format == "tiff":
        Image.fromarray(smooth()).save(source, tiffinfo={700: XMP})
    else:
        Image.fromarray(smooth()).save(source, xmp=XMP)
    frame, meta = read_image(source)
    colour = ColourInfo(matrix=0, range=2, bit_depth=depth, subsampling="rgb")
    planes = tuple(plane.astype(np.uint16) * 257 if depth == 16 else plane for plane in frame.planes)
    larger = tuple(np.kron(plane, np.ones((2, 2), plane.dtype)) for plane in planes)
    path = tmp_path / f"out.{format}"
    write_image(path, Frame(larger, colour), meta, format=format)
    if format == "bmp":
        assert "bmp has no place for the XMP data" in " ".join(conversion_notes(frame, meta, format))
        return
    with Image.open(path) as picture:
        picture.load()
        found = picture.info["xmp"]
    wide = str(larger[0].shape[1]).encode()
    upright = XMP.replace(b'Orientation="6"', b'Orientation="1"').replace(b">31<", b">%s<" % wide)
    # Pillow takes the orientation of a TIFF out when it turns the pixels.
    assert found.replace(b'tiff:Orientation="1"', b"") == upright.replace(b'tiff:Orientation="1"', b"")
    assert (source_format == "tiff") or b'Orientation="1"' in found
    assert (frame.width, frame.height) == (23, 31), "XMP's orientation counts where there is none in EXIF"
    assert conversion_notes(frame, meta, format) == ()


def test_what_jpg_and_png_hold_besides(tmp_path: Path) -> None:
    """A JPEG's IPTC data and comment, a PNG's texts: kept in the same format, named where they are not."""
    iptc = b"\x1c\x02\x78\0\x05Title"
    block = (
        b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + bytes(len(iptc) % 2)
    )
    marker = b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", comment=b"a comment", extra=marker)
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    texts = PngInfo()
    texts.add_text("Title", "Plain")
    texts.add_text("Copyright", "Squeezed", zip=True)
    texts.add_itxt("Author", "Jürgen", lang="de")
    Image.fromarray(noise).save(tmp_path / "a.png", pnginfo=texts)
    data = (tmp_path / "a.png").read_bytes()
    late = pack(b"tEXt", b"Late\0behind a megabyte of pixels")
    (tmp_path / "a.png").write_bytes(data[:-12] + late + data[-12:])
    assert len(data) > 1 << 20
    for suffix, other, words in (
        (".jpg", "webp", "webp has no place for the IPTC data"),
        (".png", "jpg", "the texts of the png"),
    ):
        frame, meta = read_image(tmp_path / f"a{suffix}")
        write_image(tmp_path / f"out{suffix}", frame, meta, format=suffix[1:])
        assert conversion_notes(frame, meta, suffix[1:]) == ()
        assert words in " ".join(conversion_notes(frame, meta, other))
        write_image(tmp_path / f"out.{other}", frame, meta, format=other)
    with Image.open(tmp_path / "out.jpg") as picture:
        assert picture.info.get("comment") is None, "that of the png's pixels has none"
    frame, meta = read_image(tmp_path / "a.jpg")
    write_image(tmp_path / "out.jpg", frame, meta, format="jpg")
    with Image.open(tmp_path / "out.jpg") as picture:
        assert picture.info["comment"] == b"a comment"
        assert IptcImagePlugin.getiptcinfo(picture) == {(2, 120): b"Title"}
    write_image(tmp_path / "out.tif", frame, meta, format="tiff")
    with Image.open(tmp_path / "out.tif") as picture:
        assert IptcImagePlugin.getiptcinfo(picture) == {(2, 120): b"Title"}
    frame, meta = read_image(tmp_path / "out.tif")
    assert meta.iptc is not None and meta.iptc.startswith(iptc)
    write_image(tmp_path / "out.jpg", frame, meta, format="jpg")
    with Image.open(tmp_path / "out.jpg") as picture:
        assert IptcImagePlugin.getiptcinfo(picture) == {(2, 120): b"Title"}
    frame, meta = read_image(tmp_path / "a.png")
    write_image(tmp_path / "out.png", frame, meta, format="png")
    with Image.open(tmp_path / "out.png") as picture:
        assert isinstance(picture, PngImageFile)
        picture.load()
        text = {"Title": "Plain", "Copyright": "Squeezed", "Author": "Jürgen"}
        assert picture.text == {**text, "Late": "behind a megabyte of pixels"}


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "tiff", "avif"])
def test_exif_text_keeps_its_bytes(tmp_path: Path, format: str) -> None:
    """UTF-8, as cameras and editors write it whatever the standard says."""
    text = {0x8298: "© 2024 Jürgen Müller", 0x013B: "José"}
    inner = {0xA430: "Jürgen", 0xA434: "Objektiv für Köln"}

    def raw(value: str) -> str:
        return value.encode().decode("latin-1")

    exif = Image.Exif()
    for tag, value in text.items():
        exif[tag] = value.encode()
    exif[0x8769] = {tag: "?" * len(value.encode()) for tag, value in inner.items()}
    block = exif.tobytes()
    for value in inner.values():
        block = block.replace(b"?" * len(value.encode()), value.encode(), 1)
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", exif=block)
    frame, meta = read_image(tmp_path / "a.jpg")
    path = tmp_path / f"out.{format}"
    write_image(path, frame, meta, format=format)
    with Image.open(path) as picture:
        found = picture.getexif()
        assert {tag: found[tag] for tag in text} == {tag: raw(value) for tag, value in text.items()}
        nested = found.get_ifd(0x8769)
        assert {tag: nested[tag] for tag in inner} == {tag: raw(value) for tag, value in inner.items()}


def test_profile_that_does_not_fit_is_dropped_and_said(tmp_path: Path) -> None:
    colour, grey = frame_of(smooth()), frame_of(smooth(channels=1))
    for source, icc in ((colour, GREY_ICC), (grey, SRGB)):
        meta = ImageMeta(icc=icc)
        for format in FORMATS:
            write_image(tmp_path / "a", source, meta, format=format)
            kept = read_image(tmp_path / "a")[1].icc
            assert kept == (SRGB if source is grey and format == "webp" else None)  # webp holds colour only
    assert "ICC" in conversion_notes(grey, ImageMeta(icc=SRGB), "png")[0]
    assert conversion_notes(grey, ImageMeta(icc=GREY_ICC), "png") == ()
    assert "ICC" in conversion_notes(colour, ImageMeta(icc=SRGB), "bmp")[0]
    write_image(tmp_path / "g", grey, ImageMeta(icc=GREY_ICC), format="png")
    assert read_image(tmp_path / "g")[1].icc == GREY_ICC


def test_broken_profile_and_broken_exif_do_not_stop_the_picture(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", smooth(), icc_profile=b"no profile" * 20)
    _, meta = read_image(tmp_path / "a.png")
    assert meta.icc is None and "ICC" in meta.notes[0]
    saved(tmp_path / "a.jpg", smooth(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x7f" * 40)
    frame, meta = read_image(tmp_path / "a.jpg")
    assert frame.width == 31 and meta.exif is None


def test_png_gamma_stays_with_png_and_is_named_elsewhere(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, format="PNG")
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    (tmp_path / "a.png").write_bytes(insert(buffer.getvalue(), [gamma]))
    frame, meta = read_image(tmp_path / "a.png")
    assert meta.png_chunks == (gamma,)
    write_image(tmp_path / "b.png", frame, meta, format="png")
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.info["gamma"] == 1.0
    assert conversion_notes(frame, meta, "png") == ()
    assert "curve" in conversion_notes(frame, meta, "jpg")[0]


# --------------------------------------------------------------- files, choices


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "deep" / "a.png"
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="disk is full"):
            write_image(path, frame_of(smooth()), ImageMeta(), format="png")
    assert list(path.parent.iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr(image_write, "_encode", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
        with pytest.raises(OutputError, match="encoder failed"):
            write_image(path, frame_of(smooth()), ImageMeta(), format="avif")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        write_image(tmp_path / "file" / "a.png", frame_of(smooth()), ImageMeta(), format="png")


def test_output_has_usual_permissions_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write_image(path, frame_of(smooth()), ImageMeta(), format="png")
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)
    assert read_image(path)[0].width == 31 and sorted(os.listdir(tmp_path)) == ["a.png", "plain"]


def test_formats_have_largest_sides(tmp_path: Path) -> None:
    check_output_size(tmp_path / "a.webp", 16383, 10, "webp")
    for format, side in (("webp", 16384), ("jpg", 65501), ("avif", 16385)):
        with pytest.raises(OutputError, match="write png or tiff"):
            check_output_size(tmp_path / "a", 10, side, format)


def test_choice_of_format(tmp_path: Path) -> None:
    meta = ImageMeta(format="webp")
    assert output_format(Path("a.JPEG"), meta, "same") == "jpg"
    assert output_format(Path("a"), meta, "same") == "webp"
    assert output_format(Path("a.jpg"), meta, "TIF") == "tiff"
    with pytest.raises(UsageError, match="gif"):
        output_format(Path("a.jpg"), meta, "gif")


@pytest.mark.parametrize("format", FORMATS)
def test_target_colour(format: str) -> None:
    deep = target_colour(frame_of(smooth(channels=4, depth=16), 16), format)
    assert deep.alpha and deep.range == RANGE_FULL and deep.matrix == MATRIX_RGB
    assert deep.bit_depth == {"png": 16, "tiff": 16, "avif": 12}.get(format, 8)
    assert target_colour(frame_of(smooth(channels=1)), format).subsampling == "grey"
    video = Frame((smooth(channels=1)[..., 0],) * 3, ColourInfo(subsampling="420").resolved(480))
    assert target_colour(video, format).subsampling == "rgb"


def test_threads_give_the_same_as_one_after_another(tmp_path: Path) -> None:
    paths = []
    for i in range(24):
        paths.append(saved(tmp_path / f"{i}.{FORMATS[i % 6]}", np.roll(smooth(64, 64), i, 1)))
    alone = [stacked(read_image(path)[0]) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: stacked(read_image(path)[0]), paths))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# --------------------------------------------------------------- real pictures

#: Folder of `../shared/data/images` -> how many of its files are read; the others are refused in a sentence.
READABLE = {
    "png16": 9,
    "rgba": 4,
    "palette": 8,
    "grey": 6,
    "cmyk": 3,
    "exif_rotated": 7,
    "icc": 9,
    "hdr_gainmap": 2,
    "tiff": 16,
    "webp": 5,
    "avif": 7,
    "bombs": 1,
    "truncated_corrupt": 3,
    "tiny": 2,
    "pngsuite": None,
    "corrupt_png_suite": None,
    "corrupt_jpg_suite": 0,
    "jpeg_kinds": None,
    "other_formats": 3,
    "animated": None,
    "derived": None,
    "misnamed": None,
}


def pillow_pixels(path: Path) -> np.ndarray | None:
    """What Pillow alone makes of an upright picture without a transparent colour, HxWxC."""
    with Image.open(path) as picture:
        plain = picture.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in picture.info
        if not plain or picture.getexif().get(0x0112, 1) != 1:
            return None
        return np.atleast_3d(np.array(picture))


@pytest.mark.parametrize("folder", READABLE)
def test_odd_pictures(shared_data: Path, folder: str, tmp_path: Path) -> None:
    """Every file is read, or refused in one sentence; 8-bit pixels are those that Pillow gives."""
    read = 0
    for path in sorted((shared_data / "images" / folder).iterdir()):
        try:
            frame, meta = read_image(path)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            continue
        read += 1
        if folder not in ("tiff", "corrupt_png_suite"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reference = pillow_pixels(path)
            if reference is not None and frame.colour.bit_depth == 8:
                assert np.array_equal(stacked(frame), reference), path
        if frame.width * frame.height < 20_000:
            write_image(tmp_path / "again.png", frame, meta, format="png")
            again, _ = read_image(tmp_path / "again.png")
            if frame.colour.bit_depth in (8, 16):
                assert np.array_equal(stacked(again), stacked(frame)), path
    assert READABLE[folder] in (None, read)


def test_a_tiff_that_no_library_here_decompresses_is_told_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(smooth()).save(tmp_path / "a.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.find(struct.pack("<HHI", 259, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 50_001)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match="WebP compression in a tiff is not read"):
        read_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


def test_more_bits_than_a_sample_can_have_are_refused_as_input(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", frame_of(smooth(channels=1, depth=16), 16), ImageMeta(), format="tiff")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.find(struct.pack("<HHI", 258, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 255)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError):
        read_image(tmp_path / "a.tif")
