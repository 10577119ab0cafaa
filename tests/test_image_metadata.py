"""What lies beside a picture's pixels: EXIF byte for byte, XMP, IPTC and colour from one format to another."""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, IptcImagePlugin
from PIL.PngImagePlugin import PngInfo

from rlfn_pipe.cli.app import main
from rlfn_pipe.media import exif, png_chunks
from rlfn_pipe.media.exif import Directories, Entry, longs, rationals, shorts
from rlfn_pipe.media.image_metadata import clean_xmp, orient
from rlfn_pipe.media.images import ImageMeta, conversion_notes, read_image, write_image
from rlfn_pipe.types import ColourInfo, Frame

IPTC = b"\x1c\x02\x78\0\x05Title"
Order = Literal["<", ">"]
UNDEFINED, ASCII, DOUBLE, SRATIONAL = 7, 2, 12, 10


def picture(width: int = 32, height: int = 20) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows * 8, columns * 7, rows + columns]).astype(np.uint8)


def block(order: Order = ">", orientation: int = 1, **more: Entry) -> bytes:
    """What cameras write, with a maker's notes that point into the block."""
    inner = {
        0x9201: Entry(SRATIONAL, 1, struct.pack(f"{order}ii", -3, 2)),
        0x9101: Entry(UNDEFINED, 4, b"\1\2\3\0"),
        0x9286: Entry(UNDEFINED, 12, b"UNICODE\0\0\xfc\0e"),
        0x9214: shorts(order, 8, 6, 4, 2),
        0xA002: shorts(order, 32),
        0xA003: shorts(order, 20),
        exif.MAKER_NOTE: Entry(UNDEFINED, 40, bytes(range(40))),
    }
    first = {
        0x0103: shorts(order, 6),
        0x010F: Entry(ASCII, 6, b"Maker\0"),
        exif.ORIENTATION: shorts(order, orientation),
        0x011A: rationals(order, 300.0),
        0x011B: rationals(order, 150.0),
    }
    interop = {1: Entry(ASCII, 4, b"R98\0")}
    place = {1: Entry(ASCII, 2, b"N\0")}
    return exif.build(
        Directories(order, first | {int(k[1:], 16): v for k, v in more.items()}, inner, place, interop)
    )


def saved(path: Path, data: bytes, array: np.ndarray | None = None) -> Path:
    Image.fromarray(picture() if array is None else array).save(path, exif=b"Exif\0\0" + data)
    return path


def block_in(path: Path) -> bytes:
    """The block as it lies in a file, by Pillow."""
    with Image.open(path) as opened:
        opened.load()
        found = opened.info["exif"]
    assert isinstance(found, bytes)
    return found.removeprefix(b"Exif\0\0")


def enlarged(frame: Frame, depth: int = 8) -> Frame:
    planes = tuple(np.kron(plane, np.ones((2, 2), plane.dtype)) for plane in frame.planes)
    if depth == 16:
        planes = tuple(plane.astype(np.uint16) * 257 for plane in planes)
    return Frame(planes, replace(frame.colour, bit_depth=depth))


# ------------------------------------------------------------------------ EXIF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("target", ["jpg", "png", "webp", "avif"])
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "avif"])
def test_exif_lies_as_it_lay(tmp_path: Path, source: str, target: str, order: Order) -> None:
    given = exif.without_orientation(block(order)) if source == "avif" else block(order)
    frame, meta = read_image(saved(tmp_path / f"a.{source}", given))
    write_image(tmp_path / f"b.{target}", enlarged(frame), meta, format=target)
    found = block_in(tmp_path / f"b.{target}")
    assert found.find(bytes(range(40))) == given.find(bytes(range(40))) > 0, (
        "the maker's notes stay at their place"
    )
    before, after = exif.parse(given), exif.parse(found)
    assert after.order == order and after.place == before.place and after.interop == before.interop
    changed = {0x9214: shorts(order, 16, 12, 8, 4), 0xA002: shorts(order, 64), 0xA003: shorts(order, 40)}
    assert after.inner == before.inner | changed
    first = {tag: entry for tag, entry in before.first.items() if tag != 0x0103}
    if target == "avif":
        first.pop(exif.ORIENTATION, None)
    assert after.first == first
    assert conversion_notes(frame, meta, target) == ()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_has_the_types_and_the_byte_order_of_the_exif_data(
    tmp_path: Path, order: Order, depth: int
) -> None:
    frame, meta = read_image(saved(tmp_path / "a.jpg", block(order)))
    larger = enlarged(frame, depth)
    write_image(tmp_path / "b.tif", larger, meta, format="tiff")
    found, given = exif.parse((tmp_path / "b.tif").read_bytes()), exif.parse(block(order))
    assert found.order == order and found.interop == given.interop
    assert {tag: entry.kind for tag, entry in found.inner.items()} == {
        t: e.kind for t, e in given.inner.items()
    }
    assert found.inner[0x9286] == given.inner[0x9286] and found.first[0x010F] == given.first[0x010F]
    again, back = read_image(tmp_path / "b.tif")
    assert all(np.array_equal(p, q) for p, q in zip(again.planes, larger.planes, strict=True))
    assert back.exif is not None and exif.parse(back.exif).inner.keys() == given.inner.keys()
    assert any("maker's notes" in note for note in conversion_notes(frame, meta, "tiff"))
    write_image(tmp_path / "c.jpg", enlarged(frame), back, format="jpg")
    assert exif.parse(block_in(tmp_path / "c.jpg")).inner[0x9101] == given.inner[0x9101]


def test_a_thumbnail_is_wiped_out(tmp_path: Path) -> None:
    small = b"\xff\xd8" + b"thumbnail" * 30
    for at_the_end in (True, False):
        data = bytearray(block("<"))
        second = len(data) + len(data) % 2
        data += bytes(len(data) % 2)
        begin = second + 2 + 24 + 4 + (0 if at_the_end else 16)
        entries = struct.pack("<HHII", 0x0201, 4, 1, begin) + struct.pack("<HHII", 0x0202, 4, 1, len(small))
        data += (
            struct.pack("<H", 2)
            + entries
            + bytes(4)
            + (bytes(0) if at_the_end else b"something else..")
            + small
        )
        data += b"" if at_the_end else b"behind"
        count = struct.unpack_from("<H", data, 8)[0]
        struct.pack_into("<I", data, 8 + 2 + 12 * count, second)
        kept = exif.kept(bytes(data), (32, 20)).block
        assert kept is not None and b"thumbnail" not in kept
        assert len(kept) == (len(data) - len(small) if at_the_end else len(data))
        assert at_the_end or kept.endswith(b"behind")
        assert struct.unpack_from("<I", kept, 8 + 2 + 12 * struct.unpack_from("<H", kept, 8)[0])[0] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_depends_on_the_way_up(orientation: int) -> None:
    """The resolution, and where the subject is: a spot in a picture that is turned as pixels are."""
    given = exif.parse(block(">", orientation))
    location = {0xA214: shorts(">", 8, 6)}
    kept = exif.kept(exif.build(replace(given, inner=given.inner | location)), (32, 20)).block
    assert kept is not None
    found = exif.parse(kept)
    assert exif.orientation_of(found) == 1
    resolutions = [300.0, 150.0] if orientation < 5 else [150.0, 300.0]
    assert [found.first[tag] for tag in (0x011A, 0x011B)] == [rationals(">", value) for value in resolutions]
    spot = np.zeros((20, 32), np.uint8)
    spot[6, 8] = 1
    (y,), (x,) = np.nonzero(orient(spot, orientation))
    extent = (4, 2) if orientation < 5 else (2, 4)
    assert found.inner[0x9214] == shorts(">", int(x), int(y), *extent)
    assert found.inner[0xA214] == shorts(">", int(x), int(y))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("point", [False, True])
def test_a_map_stays_where_it_is(tmp_path: Path, order: Order, point: bool) -> None:
    def doubles(*values: float) -> Entry:
        return Entry(DOUBLE, len(values), struct.pack(f"{order}{len(values)}d", *values))

    data = block(
        order,
        t830E=doubles(10.0, 20.0, 0.0),
        t8482=doubles(4.0, 6.0, 0.0, 5e5, 5e6, 0.0),
        t85D8=doubles(*range(16)),
        t87AF=shorts(order, 1, 1, 0, 1, 1025, 0, 1, 2 if point else 1),
    )
    frame, meta = read_image(saved(tmp_path / "a.jpg", data))
    write_image(tmp_path / "b.tif", enlarged(frame), meta, format="tiff")
    found = exif.parse((tmp_path / "b.tif").read_bytes()).first
    assert found[0x830E] == doubles(5.0, 10.0, 0.0)
    corner = (8.5, 12.5) if point else (8.0, 12.0)
    assert found[0x8482] == doubles(*corner, 0.0, 5e5, 5e6, 0.0)
    assert found[0x85D8] == doubles(*(v / 2 if v % 4 < 2 else v for v in range(16)))


def test_a_side_beyond_16_bits_takes_32(tmp_path: Path) -> None:
    found = exif.parse(exif.sized(block(), (70_000, 40), None)).inner
    assert (found[0xA002], found[0xA003]) == (longs(">", 70_000), shorts(">", 40))


def test_damaged_blocks_cost_what_is_damaged() -> None:
    """Whatever a block holds, it can be kept, sized, and taken apart, in no more memory than it is long."""
    rng, given, whole = random.Random(8), block("<", 6, t830E=Entry(DOUBLE, 3, bytes(24))), 0
    cases = [given[:length] for length in range(8, len(given))]
    for _ in range(4000):
        data = bytearray(given)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(8, len(data))] = rng.choice((0, 255, rng.randrange(256)))
        cases.append(bytes(data))
    for case in cases:
        kept = exif.kept(case, (32, 20)).block
        if kept is not None:
            again = exif.without_orientation(exif.sized(kept, (640, 400), (32, 20)))
            whole += not exif.parse(again).damaged
            exif.build(exif.for_tiff(again))
    assert whole > 3000
    many = b"II*\0" + struct.pack("<IH", 8, 5000)
    many += b"".join(struct.pack("<HHII", 0xB000 + i, 7, 50_000, 8) for i in range(5000)) + bytes(4)
    assert len(exif.parse(many).first) < 3 and exif.parse(many).damaged
    for header in (b"", b"II", b"XX*\0\10\0\0\0", b"II\x2c\0\10\0\0\0", b"II+\0" + bytes(20)):
        with pytest.raises(ValueError, match=r"header|BigTIFF"):
            exif.kept(header, (1, 1))


def pointing(given: bytes, tag: int, value: bytes) -> bytes:
    """`given`, little-endian, with other values, or another place of them, in one entry of its first two directories."""
    data, found = bytearray(given), False
    for begin in (8, int.from_bytes(exif_pointer(given), "little")):
        (count,) = struct.unpack_from("<H", data, begin)
        for at in range(begin + 2, begin + 2 + 12 * count, 12):
            if struct.unpack_from("<H", data, at)[0] == tag:
                data[at + 12 - len(value) : at + 12] = value
                found = True
    assert found
    return bytes(data)


def exif_pointer(given: bytes) -> bytes:
    (count,) = struct.unpack_from("<H", given, 8)
    entries = [given[at : at + 12] for at in range(10, 10 + 12 * count, 12)]
    return next(entry[8:] for entry in entries if entry[:2] == b"\x69\x87")


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (exif.MAKER_NOTE, struct.pack("<II", 1 << 30, 100)),
        (exif.MAKER_NOTE, struct.pack("<I", 0xFFFFFFF0)),
        (exif.GPS_IFD, bytes(4)),
        (exif.GPS_IFD, struct.pack("<I", 8)),
        (exif.EXIF_IFD, struct.pack("<HII", 5, 1, 0xFFFFFFFF)),
        (0x010F, struct.pack("<II", 6, 0xFFFF)),
    ],
)
def test_one_bad_value_costs_neither_the_others_nor_the_way_up(
    tmp_path: Path, tag: int, value: bytes
) -> None:
    given = pointing(block("<", 6), tag, value)
    frame, meta = read_image(saved(tmp_path / "a.jpg", given))
    assert (frame.width, frame.height) == (20, 32) and meta.exif is not None
    found = exif.parse(meta.exif)
    assert not found.damaged and 0x011A in found.first
    if value != struct.pack("<I", 8):
        assert meta.notes == ("damaged entries of the EXIF data are not kept",)
    for format in ("jpg", "png", "webp", "avif", "tiff"):
        write_image(tmp_path / f"b.{format}", enlarged(frame), meta, format=format)
        assert (read_image(tmp_path / f"b.{format}")[0].width, conversion_notes(frame, meta, "jpg")) == (
            40,
            (),
        )


@pytest.mark.parametrize("header", [True, False])
def test_a_value_that_lies_on_a_directory_is_not_written_to(tmp_path: Path, header: bool) -> None:
    """Scaling it would make nonsense of the entries that it shares bytes with."""
    given = block("<")
    shared = 4 if header else int.from_bytes(exif_pointer(given), "little") + 2
    given = pointing(given, 0x9214, struct.pack("<I", shared))
    frame, meta = read_image(saved(tmp_path / "a.jpg", given))
    assert meta.exif is not None and 0x9214 not in exif.parse(meta.exif).inner
    for format in ("jpg", "png", "webp", "avif", "tiff"):
        write_image(tmp_path / f"b.{format}", enlarged(frame), meta, format=format)


def repeated(count: int) -> bytes:
    """A block with so many entries of a subject's area, whose values lie one behind another, and of a map's points."""
    entries, behind = [struct.pack("<HHI4s", 0x010F, ASCII, 4, b"abc")], 8 + 2 + 12 * (2 * count + 1) + 4
    entries += [struct.pack("<HHII", 0x9214, 3, 3, behind + 6 * number) for number in range(count)]
    entries += count * [struct.pack("<HHII", 0x8482, DOUBLE, 0, 0)]
    areas = b"".join(struct.pack("<3H", number, 1, 1) for number in range(count))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4) + areas


def lines_run(action: Callable[..., object], *arguments: object) -> int:
    """How many lines of Python that takes."""
    before, count = sys.gettrace(), 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        action(*arguments)
    finally:
        sys.settrace(before)
    return count


def test_of_entries_that_come_again_the_first_stays_and_work_is_in_proportion() -> None:
    kept = exif.kept(repeated(9), (32, 20))
    assert kept.block is not None and kept.notes == ("damaged entries of the EXIF data are not kept",)
    assert struct.unpack_from("<H", kept.block, 8)[0] == 3
    assert exif.parse(kept.block).first[0x9214] == shorts("<", 0, 1, 1)
    for action, *sizes in ((exif.kept, (32, 20)), (exif.sized, (64, 40), (32, 20))):
        few, many = (lines_run(action, repeated(count), *sizes) for count in (50, 200))
        assert many < 5 * few


def test_exif_with_gaps_is_drawn_together_where_a_jpeg_has_no_room(tmp_path: Path) -> None:
    given = block("<") + bytes(66_000)
    frame, meta = read_image(saved(tmp_path / "a.png", given))
    write_image(tmp_path / "b.jpg", enlarged(frame), meta, format="jpg")
    assert exif.parse(block_in(tmp_path / "b.jpg")).inner[0x9101] == Entry(UNDEFINED, 4, b"\1\2\3\0")
    assert (
        "maker's notes" in conversion_notes(frame, meta, "jpg")[0]
        and conversion_notes(frame, meta, "png") == ()
    )
    long = block("<", t9C9B=Entry(1, 66_000, bytes(66_000)))
    assert exif.fitting(long, 65_527) is None and exif.fitting(given[:600], 65_527) == given[:600]


def test_a_map_that_is_turned_loses_its_place_and_says_so(tmp_path: Path) -> None:
    pixel = Entry(DOUBLE, 3, struct.pack("<3d", 10, 10, 0))
    _, meta = read_image(saved(tmp_path / "a.jpg", block("<", 6, t830E=pixel)))
    assert meta.exif is not None and 0x830E not in exif.parse(meta.exif).first
    assert meta.notes == ("the place on the map is not kept, since the picture is turned",)


# ------------------------------------------------------------------- XMP, IPTC


def test_what_else_a_file_holds_is_named_and_no_longer_spoken_of(tmp_path: Path) -> None:
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description hdrgm:Version="1.0" GCamera:MotionPhoto="1"'
        b' GCamera:MotionPhotoPresentationTimestampUs=\'5\' xmpNote:HasExtendedXMP="0123" tiff:Orientation="1">'
        b'<Container:Directory><rdf:Seq><rdf:li><Container:Item Item:Semantic="Primary"/></rdf:li>'
        b'<rdf:li><Container:Item Item:Semantic="GainMap" Item:Length="908"/></rdf:li></rdf:Seq></Container:Directory>'
        b"<dc:title>T</dc:title></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    Image.fromarray(picture()).save(tmp_path / "a.jpg", xmp=xmp)
    _, meta = read_image(tmp_path / "a.jpg")
    assert meta.notes == (
        "what else is in the file is not kept: its gain map (HDR), its short film, the XMP data beyond 64 kB",
    )
    assert (
        meta.xmp is not None and b"<dc:title>T</dc:title>" in meta.xmp and b'tiff:Orientation="1"' in meta.xmp
    )
    assert not any(word in meta.xmp for word in (b"GainMap", b"hdrgm", b"Motion", b"HasExtended"))
    segment = b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0"
    marker = b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment
    Image.fromarray(picture()).save(tmp_path / "b.jpg", extra=marker)
    assert "gain map" in read_image(tmp_path / "b.jpg")[1].notes[0]
    Image.fromarray(picture()).save(tmp_path / "c.jpg", xmp=xmp[:40] + b"</x:xmpmeta>")
    plain = b"<x hdrgm:Version='1'><hdrgm:A/><hdrgm:B>1</hdrgm:B><q:Directory>z</q:Directory>T<hdrgm:C>"
    assert clean_xmp(plain)[0] == b"<x>T<hdrgm:C>"
    began = time.process_time()
    for unclosed in (b"<a:Directory ", b"<a:Directory>", b"<hdrgm:a>", b'<x hdrgm:a="'):
        clean_xmp(b"hdrgm:Version" + unclosed * 40_000)
    clean_xmp(b"hdrgm:Version" + b"".join(b"<a%d:Directory>" % i for i in range(40_000)))
    assert time.process_time() - began < 20, "it took minutes"
    assert read_image(tmp_path / "c.jpg")[1].notes == ()


def test_sizes_in_xmp_grow_with_the_picture(tmp_path: Path) -> None:
    xmp = b'<a GPano:FullPanoWidthPixels="320" GPano:CroppedAreaTopPixels="7"><tiff:ImageWidth>32</tiff:ImageWidth></a>'
    Image.fromarray(picture()).save(tmp_path / "a.jpg", xmp=xmp)
    frame, meta = read_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", enlarged(frame), meta, format="jpg")
    after = xmp.replace(b'"320"', b'"640"').replace(b'"7"', b'"14"').replace(b">32<", b">64<")
    assert read_image(tmp_path / "b.jpg")[1].xmp == after


def test_texts_behind_the_end_of_a_png_are_nobodys(tmp_path: Path) -> None:
    """There Pillow bounds nothing: each of these takes a thousand times its size."""
    path = png_with(tmp_path / "a.png")
    bomb = raw_profile("xmp", bytes(5_000_000), True)
    path.write_bytes(path.read_bytes() + png_chunks.pack(*bomb) + png_chunks.pack(b"tEXt", b"Title\0other"))
    assert png_chunks.raw_profiles(path) == {} and read_image(path)[1].texts == ()
    path = png_with(tmp_path / "b.png", raw_profile("other", b"1", False), raw_profile("xmp", b"<a/>", False))
    assert png_chunks.raw_profiles(path) == {"xmp": b"<a/>"}


def raw_profile(name: str, body: bytes, packed: bool) -> tuple[bytes, bytes]:
    """As ImageMagick writes it."""
    digits = body.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = f"\n{name}\n{len(body):8}\n{lines}\n".encode()
    key = b"Raw profile type " + name.encode() + b"\0"
    return (b"zTXt", key + b"\0" + zlib.compress(text)) if packed else (b"tEXt", key + text)


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_in_the_texts_of_a_png(tmp_path: Path, packed: bool) -> None:
    resource = b"8BIM\x04\x25\0\0\0\0\0\x02xx" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
    segment = b"http://ns.adobe.com/xap/1.0/\0<x>T</x>"
    profiles = [("exif", b"Exif\0\0" + block(">", 6)), ("8bim", resource), ("APP1", segment), ("xmp!", b"")]
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format="PNG")
    chunks = [raw_profile(name, body, packed) for name, body in profiles]
    chunks += [(b"tEXt", b"Raw profile type icc\0\nicc\n 4\nzz"), (b"zTXt", b"Raw profile type icm\0\0zz")]
    (tmp_path / "a.png").write_bytes(png_chunks.insert(buffer.getvalue(), chunks))
    frame, meta = read_image(tmp_path / "a.png")
    assert (frame.width, frame.height) == (20, 32) and meta.iptc == IPTC and meta.xmp == b"<x>T</x>"
    assert meta.exif is not None and meta.texts == () and meta.icc is None
    for suffix in ("png", "jpg", "tif"):
        format = {"tif": "tiff"}.get(suffix, suffix)
        write_image(tmp_path / f"b.{suffix}", frame, meta, format=format)
        _, again = read_image(tmp_path / f"b.{suffix}")
        assert again.iptc is not None and again.iptc.rstrip(b"\0") == IPTC and again.xmp == meta.xmp
        assert again.exif is not None and exif.parse(again.exif).first[0x010F] == Entry(ASCII, 6, b"Maker\0")
        assert not [note for note in conversion_notes(frame, meta, format) if "IPTC" in note or "XMP" in note]
    with Image.open(tmp_path / "b.jpg") as opened:
        assert IptcImagePlugin.getiptcinfo(opened) == {(2, 120): b"Title"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 4, 7])
def test_iptc_in_a_tiff_of_any_type(
    tmp_path: Path, order: Order, kind: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """ExifTool writes it as 32-bit numbers, whatever the byte order."""
    data = IPTC + bytes(-len(IPTC) % 4)
    value = (
        data if kind != 4 or order == ">" else b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))
    )
    meta = ImageMeta(exif=exif.build(Directories(order, {0x010F: Entry(ASCII, 2, b"M\0")})))
    plain = Frame(tuple(picture()[..., i] for i in range(3)), ColourInfo(0, range=2, subsampling="rgb"))
    write_image(tmp_path / "a.tif", plain, meta, format="tiff")
    tiff = (tmp_path / "a.tif").read_bytes()
    tags = exif.parse(tiff).first
    tags[exif.TIFF_IPTC] = Entry(kind, len(data) // (4 if kind == 4 else 1), value)
    begin = len(exif.build(Directories(order, tags)))
    (old,) = struct.unpack(f"{order}I", tags[273].value)
    tags[273] = longs(order, begin)
    (tmp_path / "a.tif").write_bytes(exif.build(Directories(order, tags)) + tiff[old:])
    frame, meta = read_image(tmp_path / "a.tif")
    assert np.array_equal(frame.planes[0], plain.planes[0])
    assert meta.iptc is not None and meta.iptc.rstrip(b"\0") == IPTC
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------- colour


def png_with(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format="PNG")
    path.write_bytes(png_chunks.insert(buffer.getvalue(), chunks))
    return path


P3 = (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
ODD = (b"cHRM", struct.pack(">8I", 31270, 32900, 70000, 30000, 20000, 70000, 15000, 6000))
SRGB_PRIMARIES = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
LINEAR, PLAIN, STEEP = ((b"gAMA", struct.pack(">I", value)) for value in (100_000, 45_455, 70_000))


@pytest.mark.parametrize(
    ("chunks", "codes", "avif", "jpg"),
    [
        ([(b"cICP", bytes((9, 16, 0, 1)))], (9, 16), "", "transfer curve and colour primaries"),
        ([(b"cICP", bytes((12, 13, 0, 1)))], (12, 13), "", "colour primaries"),
        ([P3], (12, 2), "", "colour primaries"),
        ([P3, (b"sRGB", b"\0")], (2, 2), "", ""),
        ([LINEAR], (2, 8), "", "transfer curve"),
        ([LINEAR, SRGB_PRIMARIES], (1, 8), "", "transfer curve"),
        ([PLAIN, SRGB_PRIMARIES], (2, 2), "", ""),
        ([STEEP, ODD], (2, 2), "transfer curve and colour primaries", "transfer curve and colour primaries"),
    ],
)
def test_the_colour_of_a_png(
    tmp_path: Path, chunks: list[tuple[bytes, bytes]], codes: tuple[int, int], avif: str, jpg: str
) -> None:
    frame, meta = read_image(png_with(tmp_path / "a.png", *chunks))
    assert (frame.colour.primaries, frame.colour.transfer) == codes
    assert meta.png_chunks == tuple(chunks) and conversion_notes(frame, meta, "png") == ()
    for format, lost in (("avif", avif), ("jpg", jpg), ("webp", jpg), ("tiff", jpg)):
        notes = conversion_notes(frame, meta, format)
        wanted = f"{format} cannot carry the source's {lost}: colours may look different"
        assert notes == ((wanted,) if lost else ())
    write_image(tmp_path / "b.avif", frame, meta, format="avif")
    found = read_image(tmp_path / "b.avif")[0].colour
    if codes != (2, 2):
        assert (found.primaries, found.transfer) == codes


@pytest.mark.parametrize("chunks", [[P3], [LINEAR], [P3, (b"gAMA", struct.pack(">I", 55_556))]])
def test_a_png_is_not_overruled_by_what_was_made_of_its_own_words(
    tmp_path: Path, chunks: list[tuple[bytes, bytes]]
) -> None:
    frame, meta = read_image(png_with(tmp_path / "a.png", *chunks))
    write_image(tmp_path / "b.png", frame, meta, format="png")
    assert png_chunks.colour_chunks(tmp_path / "b.png") == tuple(chunks)


def test_colour_and_transparency_behind_long_texts(tmp_path: Path) -> None:
    chunks = (P3, LINEAR, (b"tRNS", struct.pack(">3H", *picture()[3, 5])))
    path = png_with(tmp_path / "a.png", (b"tEXt", b"Title\0" + b"x" * 1_200_000), *chunks)
    frame, meta = read_image(path)
    assert (frame.colour.primaries, frame.colour.transfer) == (12, 8) and meta.png_chunks == (P3, LINEAR)
    assert len(frame.planes) == 4 and frame.planes[3][3, 5] == 0 and np.count_nonzero(frame.planes[3]) == 639


def test_of_many_colour_chunks_the_first_counts_and_none_is_long(tmp_path: Path) -> None:
    path = png_with(tmp_path / "a.png", (b"mDCV", bytes(1000)), *[LINEAR] * 50, PLAIN, PLAIN)
    assert png_chunks.colour_chunks(path) == (LINEAR,)


def test_light_levels_stay_with_a_png(tmp_path: Path) -> None:
    levels = (b"cLLI", struct.pack(">II", 10_000_000, 4_000_000))
    frame, meta = read_image(png_with(tmp_path / "a.png", (b"cICP", bytes((9, 16, 0, 1))), levels))
    write_image(tmp_path / "b.png", frame, meta, format="png")
    assert levels in read_image(tmp_path / "b.png")[1].png_chunks


def test_deep_avif_says_what_becomes_of_chroma(tmp_path: Path) -> None:
    deep = Frame(
        tuple(picture()[..., i].astype(np.uint16) * 16 for i in range(3)),
        ColourInfo(0, range=2, bit_depth=12, subsampling="rgb"),
    )
    assert "4:2:0" in conversion_notes(deep, ImageMeta(), "avif")[0]
    assert conversion_notes(deep, ImageMeta(), "avif", 100) == ()
    write_image(tmp_path / "a.avif", deep, ImageMeta(), format="avif", quality=100)
    again, _ = read_image(tmp_path / "a.avif")
    assert all(np.abs(p.astype(int) - q).max() <= 1 for p, q in zip(again.planes, deep.planes, strict=True))


# ---------------------------------------------------------------------- others


@pytest.mark.parametrize("target", ["png", "jpg", "tiff"])
@pytest.mark.parametrize("source", ["png", "jpg", "tiff"])
def test_pixels_that_are_no_squares_stay_so(tmp_path: Path, source: str, target: str) -> None:
    plain = Frame(tuple(picture()[..., i] for i in range(3)), ColourInfo(0, range=2, subsampling="rgb"))
    write_image(tmp_path / "a", plain, ImageMeta(aspect=(2, 1)), format=source)
    frame, meta = read_image(tmp_path / "a")
    assert meta.aspect == (2, 1) and meta.dpi is None
    write_image(tmp_path / "b", frame, meta, format=target)
    assert read_image(tmp_path / "b")[1].aspect == (2, 1)
    assert conversion_notes(frame, meta, target) == ()
    assert "aspect" in conversion_notes(frame, meta, "webp")[0]


def test_sixteen_bits_of_a_bmp_are_five_or_six_a_sample(tmp_path: Path) -> None:
    width, height = 4, 2
    pixels = struct.pack("<8H", *(value * 8000 for value in range(8)))
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 14 + 40 + 12 + len(pixels), 0, 0, 66) + header + masks + pixels
    (tmp_path / "a.bmp").write_bytes(data)
    frame, meta = read_image(tmp_path / "a.bmp")
    assert frame.colour.bit_depth == 8 and meta.notes == ()


def test_texts_are_still_texts(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Title", "Plain")
    Image.fromarray(picture()).save(tmp_path / "a.png", pnginfo=info)
    _, meta = read_image(tmp_path / "a.png")
    assert meta.texts == ((b"tEXt", b"Title\0Plain"),)


def test_probe_says_what_is_in_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "a.jpg", block())
    assert main(["probe", str(tmp_path / "a.jpg"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["media"] is None and told["picture"]["beside"] == ["EXIF"]
    assert (told["picture"]["format"], told["picture"]["width"], told["picture"]["colour"]["bit_depth"]) == (
        "jpg",
        32,
        8,
    )
    assert "picture" not in told["upscale"]
    pq = png_with(tmp_path / "b.png", (b"cICP", bytes((9, 16, 0, 1))))
    assert main(["probe", str(pq)]) == 0
    text = capsys.readouterr().out
    assert "transfer PQ, primaries BT.2020" in text and "32x20" in text and "format  png" in text
