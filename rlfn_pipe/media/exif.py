"""EXIF as the bytes that it came in: TIFF blocks, without the "Exif" prefix that some formats put before them.

A block is patched where it lies, so that byte order, types and offsets stay, on which the notes of a camera's maker depend.
Only a TIFF, as source or as target, has its directories taken apart and written anew.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from mmap import mmap
from typing import Literal, NamedTuple

__all__ = [
    "MAKER_NOTE",
    "Directories",
    "Entry",
    "Order",
    "build",
    "for_tiff",
    "kept",
    "kept_of_tiff",
    "longs",
    "orientation_of",
    "parse",
    "rationals",
    "shorts",
    "sized",
    "tiff_upright",
    "without_orientation",
]

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
MAKER_NOTE = 0x927C
TIFF_IPTC, TIFF_XMP, TIFF_ICC = 0x83BB, 0x02BC, 0x8773

_WIDTH_TAGS, _HEIGHT_TAGS = (0x0100, 0xA002), (0x0101, 0xA003)
_X_RESOLUTION, _Y_RESOLUTION = 0x011A, 0x011B
_THUMBNAIL, _THUMBNAIL_LENGTH = 0x0201, 0x0202

#: Tags of the first directory that describe how the old file stored its pixels, not the picture.
_STORAGE = frozenset(
    {0x00FE, 0x00FF, 0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C, 0x013D}
    | {0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014A, 0x014C, 0x0151, 0x0152, 0x0153, 0x015B}
    | {0x0211, 0x0212, 0x0213}
    | set(range(0x0200, 0x020A))
    | {TIFF_XMP, TIFF_IPTC, TIFF_ICC, 0x8649}
)
#: In TIFF the size and resolution are storage, too; the writer sets its own.
_TIFF_ONLY = frozenset({0x0100, 0x0101, 0x011A, 0x011B, 0x0128})

#: Numbers in pixels of the picture: where its subject is; a map's pixel size, fixed points, and matrix (GeoTIFF).
_SUBJECT_AREA = 0x9214
_MAP_PIXEL, _MAP_POINTS, _MAP_MATRIX, _MAP_KEYS = 0x830E, 0x8482, 0x85D8, 0x87AF
_IN_PIXELS = frozenset({_SUBJECT_AREA, _MAP_PIXEL, _MAP_POINTS, _MAP_MATRIX})
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2

_SHORT, _LONG, _RATIONAL, _DOUBLE = 3, 4, 5, 12
#: Bytes of one value of each type.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


class Entry(NamedTuple):
    """One tag: its TIFF type, how many values, and these in the byte order of their block."""

    kind: int
    values: int
    value: bytes


Directory = dict[int, Entry]
#: Byte order, as `struct` calls it.
Order = Literal["<", ">"]


@dataclass(frozen=True, slots=True)
class Directories:
    """A block taken apart; pointers from one directory to another are left out. `order` is "<" or ">"."""

    order: Order
    first: Directory
    inner: Directory = field(default_factory=dict)
    place: Directory = field(default_factory=dict)
    interop: Directory = field(default_factory=dict)


class _Place(NamedTuple):
    """Where an entry lies (`at`) and where its values do."""

    at: int
    tag: int
    kind: int
    values: int
    value: int


# --------------------------------------------------------------------- reading


def parse(block: bytes | mmap) -> Directories:
    """Take a block, or a TIFF's first picture, apart. ValueError where it is damaged."""
    try:
        order, big, at = _header(block)
        first = _directory(block, order, at, big)

        def behind(directory: Directory, tag: int) -> Directory:
            pointer = directory.pop(tag, None)
            if pointer is None:
                return {}
            width = len(pointer.value)
            if width not in (4, 8):
                raise ValueError("a directory lies nowhere")
            return _directory(block, order, int.from_bytes(pointer.value, _name(order)), big)

        inner = behind(first, EXIF_IFD)
        return Directories(order, first, inner, behind(first, GPS_IFD), behind(inner, INTEROP_IFD))
    except struct.error:
        raise ValueError("it is cut short") from None


def orientation_of(found: Directories) -> int:
    """1..8; 1 where it makes no sense, 0 where there is none."""
    entry = found.first.get(ORIENTATION)
    if entry is None:
        return 0
    value = int.from_bytes(entry.value, _name(found.order)) if entry.kind == _SHORT else 1
    return value if 1 <= value <= 8 else 1


def _name(order: Order) -> Literal["little", "big"]:
    return "little" if order == "<" else "big"


def _header(block: bytes | mmap) -> tuple[Order, bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory lies."""
    orders: dict[bytes, Order] = {b"II": "<", b"MM": ">"}
    order = orders.get(bytes(block[:2]))
    if order is None:
        raise ValueError("it has no byte order")
    big = struct.unpack_from(f"{order}H", block, 2)[0] == 43
    (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", block, 8 if big else 4)
    return order, big, at


def _places(block: bytes | bytearray | mmap, order: Order, at: int, big: bool = False) -> Iterator[_Place]:
    count, number, offset, inline = ("Q", "Q", "Q", 8) if big else ("H", "I", "I", 4)
    (entries,) = struct.unpack_from(order + count, block, at)
    at += struct.calcsize(f"={count}")
    for _ in range(entries):
        tag, kind, values = struct.unpack_from(f"{order}HH{number}", block, at)
        value = at + struct.calcsize(f"=HH{number}")
        if _BYTES.get(kind, 1) * values > inline:
            (value,) = struct.unpack_from(order + offset, block, value)
        yield _Place(at, tag, kind, values, value)
        at += 20 if big else 12


def _directory(block: bytes | mmap, order: Order, at: int, big: bool) -> Directory:
    found, total = {}, 0
    for place in _places(block, order, at, big):
        if place.kind in _BYTES:
            size = _BYTES[place.kind] * place.values
            total += size
            if place.value + size > len(block) or total > len(block):
                raise ValueError("a value lies beyond its end")
            found[place.tag] = Entry(place.kind, place.values, bytes(block[place.value : place.value + size]))
        elif big and place.kind in (16, 17, 18) and place.tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD):
            found[place.tag] = Entry(place.kind, 1, bytes(block[place.value : place.value + 8]))
    return found


# -------------------------------------------------------------------- patching


def kept(block: bytes) -> bytes | None:
    """The block with orientation 1, without thumbnail and without what describes the old file; None if that is all.

    Raises:
        ValueError: it is damaged.
    """
    try:
        data = _patched(block)
        if data is not None:
            # What comes later must find its way, too, also where a tag is there twice.
            parse(sized(without_orientation(data), (1, 1), (1, 1)))
    except struct.error:
        raise ValueError("it is cut short") from None
    return data


def _patched(block: bytes) -> bytes | None:
    found = parse(block)
    if not (set(found.first) - _STORAGE - {ORIENTATION} or found.inner or found.place):
        return None
    order, _, at = _header(block)
    data = bytearray(block)
    _cut_thumbnail(data, order, at)
    orientation = orientation_of(found)
    upright = orientation < 2
    _drop(data, order, at, _STORAGE if upright else _STORAGE | _IN_PIXELS)
    for place in _places(data, order, at):
        if place.tag == ORIENTATION:
            _set(data, order, place, 1)
        elif place.tag == EXIF_IFD and not upright:
            _drop(data, order, _pointed(data, order, place), _IN_PIXELS)
    if orientation >= 5:
        x, y = (
            [place.at + 2 for place in _places(data, order, at) if place.tag == tag]
            for tag in (_X_RESOLUTION, _Y_RESOLUTION)
        )
        for one, other in zip(x, y, strict=False):
            data[one : one + 10], data[other : other + 10] = data[other : other + 10], data[one : one + 10]
    return bytes(data)


def kept_of_tiff(found: Directories) -> bytes | None:
    """The same of a TIFF's own tags, as a block."""
    drop = _STORAGE | _TIFF_ONLY | (frozenset() if orientation_of(found) < 2 else _IN_PIXELS)
    first = {tag: entry for tag, entry in found.first.items() if tag not in drop}
    if ORIENTATION in first:
        first[ORIENTATION] = shorts(found.order, 1)
    if not (set(first) - {ORIENTATION} or found.inner or found.place):
        return None
    return build(replace(found, first=first))


def sized(block: bytes, size: tuple[int, int], before: tuple[int, int] | None) -> bytes:
    """The block with its numbers in pixels as a picture of `size` (width, height) has them.

    `before`: the size of the picture that the numbers are about; None: only the size itself is set.
    """
    order, _, at = _header(block)
    data = bytearray(block)
    for directory in (at, *_links(data, order, at, EXIF_IFD)):
        for place in _places(data, order, directory):
            for tags, value in zip((_WIDTH_TAGS, _HEIGHT_TAGS), size, strict=True):
                if place.tag in tags:
                    _set(data, order, place, value)
            if before is not None and place.tag in _IN_PIXELS:
                _scale(data, order, place, size[0] / before[0], size[1] / before[1], at)
    return bytes(data)


def without_orientation(block: bytes) -> bytes:
    """The block without this tag, for a format that has another place for it."""
    order, _, at = _header(block)
    data = bytearray(block)
    _drop(data, order, at, frozenset({ORIENTATION}))
    return bytes(data)


def tiff_upright(tiff: bytes) -> bytes:
    """The TIFF with the orientation in its first directory set to 1."""
    order, big, at = _header(tiff)
    data = bytearray(tiff)
    for place in _places(tiff, order, at, big):
        if place.tag == ORIENTATION:
            _set(data, order, place, 1)
    return bytes(data)


def _links(data: bytearray, order: Order, at: int, tag: int) -> list[int]:
    return [_pointed(data, order, place) for place in _places(data, order, at) if place.tag == tag]


def _pointed(data: bytearray, order: Order, place: _Place) -> int:
    pointer: int = struct.unpack_from(f"{order}I", data, place.value)[0]
    return pointer


def _set(data: bytearray, order: Order, place: _Place, value: int) -> None:
    """A whole number in the place of the one that is there; what is of another type stays as it is."""
    if place.kind not in (_SHORT, _LONG) or place.values != 1:
        return
    kind = _SHORT if place.kind == _SHORT and value < 1 << 16 else _LONG
    struct.pack_into(f"{order}H", data, place.at + 2, kind)
    struct.pack_into(f"{order}I", data, place.value, 0)
    struct.pack_into(f"{order}{'H' if kind == _SHORT else 'I'}", data, place.value, value)


def _drop(data: bytearray, order: Order, at: int, tags: frozenset[int]) -> None:
    """Take entries out of the directory at `at`; all else stays where it is."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    records = [
        bytes(data[place.at : place.at + 12]) for place in _places(data, order, at) if place.tag not in tags
    ]
    end = at + 2 + 12 * count + 4
    following = bytes(data[end - 4 : end])
    packed = struct.pack(f"{order}H", len(records)) + b"".join(records) + following
    data[at:end] = packed.ljust(end - at, b"\0")


def _cut_thumbnail(data: bytearray, order: Order, at: int) -> None:
    """Make the first directory the last, and wipe the small picture that the second one points to."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    pointer = at + 2 + 12 * count
    (second,) = struct.unpack_from(f"{order}I", data, pointer)
    struct.pack_into(f"{order}I", data, pointer, 0)
    if not second:
        return
    try:
        found = {place.tag: place for place in _places(data, order, second)}
        begin, length = (
            struct.unpack_from(f"{order}I", data, found[tag].value)[0]
            for tag in (_THUMBNAIL, _THUMBNAIL_LENGTH)
        )
    except (struct.error, KeyError):
        return
    if data[begin : begin + 2] != b"\xff\xd8" or begin + length > len(data):
        return
    if begin + length == len(data):
        del data[begin:]
    else:
        data[begin : begin + length] = bytes(length)


def _scale(data: bytearray, order: Order, place: _Place, x: float, y: float, first: int) -> None:
    """Numbers in pixels, where `x` and `y` times as many lie side by side; `first`: where a map's keys are."""
    if place.tag == _SUBJECT_AREA and place.kind == _SHORT and 2 <= place.values <= 4:
        factors = (x, y) if place.values == 2 else (x, y, x) if place.values == 3 else (x, y, x, y)
        _map(data, f"{order}{place.values}H", place, lambda i, value: min(round(value * factors[i]), 65_535))
    elif place.kind != _DOUBLE:
        return
    elif place.tag == _MAP_PIXEL and place.values == 3:
        _map(data, f"{order}3d", place, lambda i, value: value / (x, y, 1.0)[i])
    elif place.tag == _MAP_MATRIX and place.values == 16:
        _map(data, f"{order}16d", place, lambda i, value: value / (x, y, 1.0, 1.0)[i % 4])
    elif place.tag == _MAP_POINTS and place.values % 6 == 0:
        half = 0.5 if _points_are_centres(data, order, first) else 0.0
        factors = (x, y)
        _map(
            data, f"{order}{place.values}d", place,
            lambda i, value: (value + half) * factors[i % 6] - half if i % 6 < 2 else value,
        )  # fmt: skip


def _map(data: bytearray, layout: str, place: _Place, change: Callable[[int, float], float]) -> None:
    values = struct.unpack_from(layout, data, place.value)
    struct.pack_into(layout, data, place.value, *(change(i, value) for i, value in enumerate(values)))


def _points_are_centres(data: bytearray, order: Order, first: int) -> bool:
    """Whether a map's coordinates are of pixels' centres, not of their corners."""
    for place in _places(data, order, first):
        if place.tag == _MAP_KEYS and place.kind == _SHORT:
            keys = struct.unpack_from(f"{order}{place.values}H", data, place.value)
            rows = (keys[i : i + 4] for i in range(4, len(keys) - 3, 4))
            return any(row[0] == _RASTER_TYPE and row[3] == _PIXEL_IS_POINT for row in rows)
    return False


# --------------------------------------------------------------------- writing


def shorts(order: Order, *values: int) -> Entry:
    return Entry(_SHORT, len(values), struct.pack(f"{order}{len(values)}H", *values))


def longs(order: Order, *values: int) -> Entry:
    return Entry(_LONG, len(values), struct.pack(f"{order}{len(values)}I", *values))


def rationals(order: Order, *values: float) -> Entry:
    """Numbers by fractions with at most 10 000 below the line."""
    pairs = [number for value in values for number in _fraction(value)]
    return Entry(_RATIONAL, len(values), struct.pack(f"{order}{len(pairs)}I", *pairs))


def _fraction(value: float) -> tuple[int, int]:

    return Fraction(value).limit_denominator(10_000).as_integer_ratio()


def for_tiff(block: bytes) -> Directories:
    """What of a block belongs into the directories of a TIFF, which then has its byte order: texts can depend on that."""
    found = parse(block)
    drop = _STORAGE | _TIFF_ONLY | {ORIENTATION}
    return replace(found, first={tag: entry for tag, entry in found.first.items() if tag not in drop})


def build(found: Directories) -> bytes:
    """A block, or the beginning of a TIFF, of these directories; its length depends on theirs alone."""
    order = found.order
    link = Entry(_LONG, 1, bytes(4))
    first, inner, place = dict(found.first), dict(found.inner), dict(found.place)
    if found.interop:
        inner[INTEROP_IFD] = link
    if inner:
        first[EXIF_IFD] = link
    if place:
        first[GPS_IFD] = link
    directories = [first, inner, place, found.interop]
    starts = list(accumulate(map(_length, directories), initial=8))
    for holder, tag, start in ((first, EXIF_IFD, 1), (first, GPS_IFD, 2), (inner, INTEROP_IFD, 3)):
        if tag in holder:
            holder[tag] = Entry(_LONG, 1, struct.pack(f"{order}I", starts[start]))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + b"".join(
        _serialised(directory, order, start) for directory, start in zip(directories, starts, strict=False)
    )


def _length(directory: Directory) -> int:
    if not directory:
        return 0
    apart = (len(entry.value) for entry in directory.values() if len(entry.value) > 4)
    return 2 + 12 * len(directory) + 4 + sum(size + size % 2 for size in apart)


def _serialised(directory: Directory, order: Order, at: int) -> bytes:
    if not directory:
        return b""
    records, apart = [struct.pack(f"{order}H", len(directory))], bytearray()
    behind = at + 2 + 12 * len(directory) + 4
    for tag in sorted(directory):
        kind, values, value = directory[tag]
        where = value.ljust(4, b"\0")
        if len(value) > 4:
            where = struct.pack(f"{order}I", behind + len(apart))
            apart += value + bytes(len(value) % 2)
        records.append(struct.pack(f"{order}HHI", tag, kind, values) + where)
    return b"".join([*records, bytes(4), bytes(apart)])
