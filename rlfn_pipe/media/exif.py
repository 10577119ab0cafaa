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
    "Kept",
    "Order",
    "build",
    "fitting",
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
TIFF_IPTC, TIFF_XMP, TIFF_ICC, PHOTOSHOP = 0x83BB, 0x02BC, 0x8773, 0x8649

_WIDTH_TAGS, _HEIGHT_TAGS = (0x0100, 0xA002), (0x0101, 0xA003)
_X_RESOLUTION, _Y_RESOLUTION = 0x011A, 0x011B
_THUMBNAIL, _THUMBNAIL_LENGTH = 0x0201, 0x0202

#: Tags of the first directory that describe how the old file stored its pixels, not the picture.
_STORAGE = frozenset(
    {0x00FE, 0x00FF, 0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C, 0x013D}
    | {0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014A, 0x014C, 0x0151, 0x0152, 0x0153, 0x015B}
    | {0x0211, 0x0212, 0x0213}
    | set(range(0x0200, 0x020A))
    | {TIFF_XMP, TIFF_IPTC, TIFF_ICC, PHOTOSHOP, 0x935C}
)
#: In TIFF the size and resolution are storage, too; the writer sets its own.
_TIFF_ONLY = frozenset({0x0100, 0x0101, 0x011A, 0x011B, 0x0128})

#: Numbers in pixels of the picture: where its subject is; a map's pixel size, fixed points, and matrix (GeoTIFF).
_SUBJECT_AREA, _SUBJECT_LOCATION = 0x9214, 0xA214
_MAP_PIXEL, _MAP_POINTS, _MAP_MATRIX, _MAP_KEYS = 0x830E, 0x8482, 0x85D8, 0x87AF
_SUBJECT = frozenset({_SUBJECT_AREA, _SUBJECT_LOCATION})
_MAP = frozenset({_MAP_PIXEL, _MAP_POINTS, _MAP_MATRIX})
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2

_SHORT, _LONG, _RATIONAL, _DOUBLE, _IFD = 3, 4, 5, 12, 13
_POINTERS = (_LONG, _IFD)
#: Types of BigTIFF, 8 bytes each.
_BIG_KINDS = (16, 17, 18)
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
    """A block taken apart; pointers from one directory to another are left out. `order` is "<" or ">".

    `damaged`: something in it leads nowhere, and is left out.
    """

    order: Order
    first: Directory
    inner: Directory = field(default_factory=dict)
    place: Directory = field(default_factory=dict)
    interop: Directory = field(default_factory=dict)
    damaged: bool = False


class _Place(NamedTuple):
    """Where an entry lies (`at`) and where its values do."""

    at: int
    tag: int
    kind: int
    values: int
    value: int


# --------------------------------------------------------------------- reading


def parse(block: bytes | mmap) -> Directories:
    """Take a block, or a TIFF's first picture, apart. ValueError where it is none."""
    order, big, at = _header(block)
    first, lost = _directory(block, order, at, big)
    found = [first]
    for holder, tag in ((0, EXIF_IFD), (0, GPS_IFD), (1, INTEROP_IFD)):
        pointer = found[holder].pop(tag, None)
        there, bad = _directory(block, order, _pointed(pointer, order), big) if pointer else ({}, False)
        found.append(there)
        lost |= bad or (pointer is not None and not _span(block, order, _pointed(pointer, order), big)[0])
    first, inner, place, interop = found
    return Directories(order, first, inner, place, interop, lost)


def orientation_of(found: Directories) -> int:
    """1..8; 1 where it makes no sense, 0 where there is none."""
    entry = found.first.get(ORIENTATION)
    if entry is None:
        return 0
    value = int.from_bytes(entry.value, _name(found.order)) if entry.kind in (_SHORT, _LONG) else 1
    return value if 1 <= value <= 8 else 1


def _name(order: Order) -> Literal["little", "big"]:
    return "little" if order == "<" else "big"


def _header(block: bytes | bytearray | mmap) -> tuple[Order, bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory lies. ValueError where it is none."""
    orders: dict[bytes, Order] = {b"II": "<", b"MM": ">"}
    order = orders.get(bytes(block[:2]))
    try:
        if order is not None:
            (magic,) = struct.unpack_from(f"{order}H", block, 2)
            if magic in (42, 43):
                big = magic == 43
                return (
                    order,
                    big,
                    struct.unpack_from(f"{order}Q" if big else f"{order}I", block, 8 if big else 4)[0],
                )
    except struct.error:
        pass
    raise ValueError("it has no header")


def _places(
    block: bytes | bytearray | mmap, order: Order, at: int, big: bool = False, bad: list[int] | None = None
) -> Iterator[_Place]:
    """The sound entries of the directory at `at`; those that lead nowhere are noted in `bad` by their place."""
    number, inline, step = ("Q", 8, 20) if big else ("I", 4, 12)
    begin, entries = _span(block, order, at, big)
    for record in range(begin, begin + step * entries, step):
        tag, kind, values = struct.unpack_from(f"{order}HH{number}", block, record)
        value = record + step - inline
        one = 8 if big and kind in _BIG_KINDS else _BYTES.get(kind)
        if one is not None and one * values > inline:
            (value,) = struct.unpack_from(order + number, block, value)
        if one is not None and value + one * values <= len(block):
            yield _Place(record, tag, kind, values, value)
        elif bad is not None:
            bad.append(record)


def _span(block: bytes | bytearray | mmap, order: Order, at: int, big: bool = False) -> tuple[int, int]:
    """Where the entries of the directory at `at` begin, and how many are there; none where it lies nowhere."""
    width, step = (8, 20) if big else (2, 12)
    if at < 8 or at + width > len(block):
        return 0, 0
    (entries,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", block, at)
    return at + width, min(entries, (len(block) - at - width) // step)


def _directory(block: bytes | mmap, order: Order, at: int, big: bool) -> tuple[Directory, bool]:
    """A directory, and whether something of it is lost. All values together are no longer than the block."""
    found: Directory = {}
    bad: list[int] = []
    left = len(block)
    for place in _places(block, order, at, big, bad):
        size = _BYTES.get(place.kind, 8) * place.values
        if place.kind in _BIG_KINDS and place.tag not in (EXIF_IFD, GPS_IFD, INTEROP_IFD):
            continue
        left -= size
        if left < 0:
            return found, True
        found[place.tag] = Entry(place.kind, place.values, bytes(block[place.value : place.value + size]))
    return found, bool(bad)


def _pointed(entry: Entry, order: Order) -> int:
    """Where a pointer leads; 0 is nowhere."""
    sound = entry.kind in (*_POINTERS, *_BIG_KINDS) and entry.values == 1
    return int.from_bytes(entry.value, _name(order)) if sound else 0


# -------------------------------------------------------------------- patching


class Kept(NamedTuple):
    """What is kept of a block, None where that is nothing; and what is to be said of it."""

    block: bytes | None
    notes: tuple[str, ...] = ()


def kept(block: bytes, size: tuple[int, int]) -> Kept:
    """The block of a picture of `size` (width, height) as stored, of which the upright one is what counts from now on.

    With orientation 1, without thumbnail, without what describes the old file, and without what leads nowhere.

    Raises:
        ValueError: it is none.
    """
    order, big, at = _header(block)
    if big:
        raise ValueError("it is a BigTIFF")
    found = parse(block)
    orientation, notes = orientation_of(found), _notes(found)
    if not (set(found.first) - _STORAGE - {ORIENTATION} or found.inner or found.place):
        return Kept(None, notes)
    data = bytearray(block)
    directories = _sound(data, order, at)
    _cut_thumbnail(data, order, at, directories)
    drop = _STORAGE | _overlapping(data, order, directories) | (_MAP if orientation > 1 else frozenset())
    for begin in directories:
        _drop(data, order, begin, drop if begin == at else drop - _STORAGE)
    for begin in directories[:2]:
        for place in _places(data, order, begin):
            if place.tag == ORIENTATION:
                _set(data, order, place, 1)
            elif orientation > 1 and place.tag in _SUBJECT:
                _turn(data, order, place, orientation, size)
    if orientation >= 5:
        _exchange(data, order, at)
    return Kept(bytes(data), notes)


def kept_of_tiff(found: Directories) -> Kept:
    """The same of a TIFF's own tags, as a block."""
    orientation, notes = orientation_of(found), _notes(found)
    drop = _STORAGE | _TIFF_ONLY | (frozenset() if orientation < 2 else _MAP)
    first = {tag: entry for tag, entry in found.first.items() if tag not in drop and entry.kind in _BYTES}
    if ORIENTATION in first:
        first[ORIENTATION] = shorts(found.order, 1)
    if not (set(first) - {ORIENTATION} or found.inner or found.place):
        return Kept(None, notes)
    inner = {tag: entry for tag, entry in found.inner.items() if orientation < 2 or tag not in _SUBJECT}
    return Kept(build(replace(found, first=first, inner=inner)), notes)


def _notes(found: Directories) -> tuple[str, ...]:
    notes = ["damaged entries of the EXIF data are not kept"] if found.damaged else []
    if orientation_of(found) > 1 and _MAP & found.first.keys():
        notes.append("the place on the map is not kept, since the picture is turned")
    return tuple(notes)


def _sound(data: bytearray, order: Order, at: int) -> list[int]:
    """Where directories lie that share no byte with another one: the first, EXIF's, GPS', interoperability's.

    Pointers to others are taken out.
    """
    kept_ones = [at]

    def follow(holder: int, tag: int) -> int | None:
        for place in _places(data, order, holder):
            if place.tag != tag:
                continue
            value = bytes(data[place.value : place.value + 4])
            target = _pointed(Entry(place.kind, place.values, value), order)
            begin, entries = _span(data, order, target)
            spans = [_span(data, order, other) for other in kept_ones]
            apart = all(begin + 12 * entries <= b - 2 or target >= b + 12 * n + 4 for b, n in spans)
            if entries and apart:
                kept_ones.append(target)
                return target
        _drop(data, order, holder, frozenset({tag}))
        return None

    inner = follow(at, EXIF_IFD)
    follow(at, GPS_IFD)
    if inner is not None:
        follow(inner, INTEROP_IFD)
    return kept_ones


def _overlapping(data: bytearray, order: Order, directories: list[int]) -> frozenset[int]:
    """Tags whose values will be written to, and which something else shares: they cannot stay."""
    places = [place for begin in directories for place in _places(data, order, begin)]
    spans = [_span(data, order, begin) for begin in directories]
    taken = [(0, 8, -1), *((begin - 2, begin + 12 * entries + 4, -1) for begin, entries in spans)]
    taken += [(p.value, p.value + _BYTES[p.kind] * p.values, p.at) for p in places if p.value != p.at + 8]
    return frozenset(
        place.tag
        for place in places
        if place.tag in _SUBJECT | _MAP and place.value != place.at + 8
        for begin, end, owner in taken
        if owner != place.at and begin < place.value + _BYTES[place.kind] * place.values and place.value < end
    )


def sized(block: bytes, size: tuple[int, int], before: tuple[int, int] | None) -> bytes:
    """What `kept` gave, with its numbers in pixels as a picture of `size` (width, height) has them.

    `before`: the size of the picture that the numbers are about; None: only the size itself is set.
    """
    order, _, at = _header(block)
    data = bytearray(block)
    for directory in (at, *_links(data, order, at, EXIF_IFD)):
        for place in _places(data, order, directory):
            for tags, value in zip((_WIDTH_TAGS, _HEIGHT_TAGS), size, strict=True):
                if place.tag in tags:
                    _set(data, order, place, value)
            if before is not None and place.tag in _SUBJECT | _MAP:
                _scale(data, order, place, size[0] / before[0], size[1] / before[1], at)
    return bytes(data)


def without_orientation(block: bytes) -> bytes:
    """The block without this tag, for a format that has another place for it."""
    order, _, at = _header(block)
    data = bytearray(block)
    _drop(data, order, at, frozenset({ORIENTATION}))
    return bytes(data)


def fitting(block: bytes, most: int) -> bytes | None:
    """The block in at most so many bytes, without gaps where need be; None where it is longer all the same."""
    if len(block) <= most:
        return block
    shorter = build(parse(block))
    return shorter if len(shorter) <= most else None


def tiff_upright(tiff: bytes) -> bytes:
    """The TIFF with the orientation in its first directory set to 1."""
    order, big, at = _header(tiff)
    data = bytearray(tiff)
    for place in _places(tiff, order, at, big):
        if place.tag == ORIENTATION:
            _set(data, order, place, 1)
    return bytes(data)


def _links(data: bytearray, order: Order, at: int, tag: int) -> list[int]:
    return [
        _pointed(Entry(place.kind, place.values, bytes(data[place.value : place.value + 4])), order)
        for place in _places(data, order, at)
        if place.tag == tag
    ]


def _set(data: bytearray, order: Order, place: _Place, value: int) -> None:
    """A whole number in the place of the one that is there; what is of another type stays as it is."""
    if place.kind not in (_SHORT, _LONG) or place.values != 1:
        return
    kind = _SHORT if place.kind == _SHORT and value < 1 << 16 else _LONG
    struct.pack_into(f"{order}H", data, place.at + 2, kind)
    struct.pack_into(f"{order}I", data, place.value, 0)
    struct.pack_into(f"{order}{'H' if kind == _SHORT else 'I'}", data, place.value, value)


def _drop(data: bytearray, order: Order, at: int, tags: frozenset[int]) -> None:
    """Take entries, and such as lead nowhere, out of the directory at `at`; all else stays where it is."""
    begin, entries = _span(data, order, at)
    if not begin:
        return
    records = [bytes(data[p.at : p.at + 12]) for p in _places(data, order, at) if p.tag not in tags]
    end = begin + 12 * entries
    following = bytes(data[end : end + 4])
    packed = struct.pack(f"{order}H", len(records)) + b"".join(records) + following
    data[at : end + len(following)] = packed.ljust(end + len(following) - at, b"\0")


def _cut_thumbnail(data: bytearray, order: Order, at: int, directories: list[int]) -> None:
    """Make the first directory the last, and wipe the small picture that the second one points to, if nothing shares it."""
    begin, entries = _span(data, order, at)
    pointer = begin + 12 * entries
    if pointer + 4 > len(data):
        return
    (second,) = struct.unpack_from(f"{order}I", data, pointer)
    struct.pack_into(f"{order}I", data, pointer, 0)
    found = {place.tag: place for place in _places(data, order, second)}
    if not {_THUMBNAIL, _THUMBNAIL_LENGTH} <= found.keys():
        return
    first, length = (
        int.from_bytes(data[found[tag].value : found[tag].value + 4], _name(order))
        for tag in (_THUMBNAIL, _THUMBNAIL_LENGTH)
    )
    last = first + length
    if data[first : first + 2] != b"\xff\xd8" or last > len(data):
        return
    for other in directories:
        begin, entries = _span(data, order, other)
        spans = [(begin - 2, begin + 12 * entries + 4)]
        spans += [(p.value, p.value + _BYTES[p.kind] * p.values) for p in _places(data, order, other)]
        if any(begin < last and first < end for begin, end in spans):
            return
    if last == len(data):
        del data[first:]
    else:
        data[first:last] = bytes(length)


def _exchange(data: bytearray, order: Order, at: int) -> None:
    """Resolution across and down, of a picture that was turned on its side."""
    x, y = (
        [place.at + 2 for place in _places(data, order, at) if place.tag == tag]
        for tag in (_X_RESOLUTION, _Y_RESOLUTION)
    )
    for one, other in zip(x, y, strict=False):
        data[one : one + 10], data[other : other + 10] = data[other : other + 10], data[one : one + 10]


def _turn(data: bytearray, order: Order, place: _Place, orientation: int, size: tuple[int, int]) -> None:
    """A place in a picture of `size`, as `image_metadata.orient` turns it."""
    if place.kind != _SHORT or not 2 <= place.values <= 4:
        return
    x, y, *extent = struct.unpack_from(f"{order}{place.values}H", data, place.value)
    width, height = size
    if orientation >= 5:
        x, y, width, height, extent = y, x, height, width, extent[::-1]
    if orientation in (2, 3, 6, 7):
        x = max(width - 1 - x, 0)
    if orientation in (3, 4, 7, 8):
        y = max(height - 1 - y, 0)
    struct.pack_into(f"{order}{place.values}H", data, place.value, min(x, 65_535), min(y, 65_535), *extent)


def _scale(data: bytearray, order: Order, place: _Place, x: float, y: float, first: int) -> None:
    """Numbers in pixels, where `x` and `y` times as many lie side by side; `first`: where a map's keys are."""
    if place.tag in _SUBJECT and place.kind == _SHORT and 2 <= place.values <= 4:
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
