"""EXIF as the bytes that it came in: TIFF blocks, without the "Exif" prefix that some formats put before them.

A block is patched where it lies, so that byte order, types and offsets stay, on which the notes of a camera's maker depend.
Only a TIFF, as source or as target, has its directories taken apart and written anew.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from rlfn_pipe.media.tiff_directories import (
    BYTES,
    DOUBLE,
    EXIF_IFD,
    GPS_IFD,
    INTEROP_IFD,
    LONG,
    ORIENTATION,
    SHORT,
    Directories,
    Entry,
    Order,
    Place,
    build,
    header,
    longs,
    order_name,
    parse,
    places,
    pointed,
    rationals,
    shorts,
    span,
)

__all__ = [
    "MAKER_NOTE",
    "ORIENTATION",
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


class Kept(NamedTuple):
    """What is kept of a block, None where that is nothing; what is to be said of it; the `orientation_of` that it had."""

    block: bytes | None
    notes: tuple[str, ...] = ()
    orientation: int = 0


def kept(block: bytes, size: tuple[int, int]) -> Kept:
    """The block of a picture of `size` (width, height) as stored, of which the upright one is what counts from now on.

    With orientation 1, without thumbnail, what describes the old file, and what leads nowhere or comes again.

    Raises:
        ValueError: it is none.
    """
    order, big, at = header(block)
    if big:
        raise ValueError("it is a BigTIFF")
    found = parse(block)
    orientation, notes = orientation_of(found), _notes(found)
    if not (set(found.first) - _STORAGE - {ORIENTATION} or found.inner or found.place):
        return Kept(None, notes, orientation)
    data = bytearray(block)
    directories = _sound(data, order, at)
    _cut_thumbnail(data, order, at, directories)
    drop = _STORAGE | _overlapping(data, order, directories) | (_MAP if orientation > 1 else frozenset())
    for begin in directories:
        _drop(data, order, begin, drop if begin == at else drop - _STORAGE)
    for begin in directories[:2]:
        for place in places(data, order, begin):
            if place.tag == ORIENTATION:
                _set(data, order, place, 1)
            elif orientation > 1 and place.tag in _SUBJECT:
                _turn(data, order, place, orientation, size)
    if orientation >= 5:
        _exchange(data, order, at)
    return Kept(bytes(data), notes, orientation)


def kept_of_tiff(found: Directories) -> Kept:
    """The same of a TIFF's own tags, as a block."""
    orientation, notes = orientation_of(found), _notes(found)
    drop = _STORAGE | _TIFF_ONLY | (frozenset() if orientation < 2 else _MAP)
    first = {tag: entry for tag, entry in found.first.items() if tag not in drop and entry.kind in BYTES}
    if ORIENTATION in first:
        first[ORIENTATION] = shorts(found.order, 1)
    if not (set(first) - {ORIENTATION} or found.inner or found.place):
        return Kept(None, notes, orientation)
    inner = {tag: entry for tag, entry in found.inner.items() if orientation < 2 or tag not in _SUBJECT}
    return Kept(build(replace(found, first=first, inner=inner)), notes, orientation)


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
        for target in _links(data, order, holder, tag):
            begin, entries = span(data, order, target)
            spans = [span(data, order, other) for other in kept_ones]
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


def _taken(data: bytearray, order: Order, directories: list[int]) -> list[tuple[int, int, int]]:
    """(begin, end, owner) of the header, the directories, and all values that lie apart; owner: their entry, or -1."""
    taken = [(0, 8, -1)]
    for at in directories:
        begin, entries = span(data, order, at)
        taken.append((at, begin + 12 * entries + 4, -1))
        taken += [
            (place.value, place.value + BYTES[place.kind] * place.values, place.at)
            for place in places(data, order, at)
            if place.value != place.at + 8
        ]
    return taken


def _overlapping(data: bytearray, order: Order, directories: list[int]) -> frozenset[int]:
    """Tags whose values will be written to, and which something else shares: they cannot stay."""
    taken = _taken(data, order, directories)
    return frozenset(
        place.tag
        for at in directories
        for place in places(data, order, at)
        if place.tag in _SUBJECT | _MAP and place.value != place.at + 8
        for begin, end, owner in taken
        if owner != place.at and begin < place.value + BYTES[place.kind] * place.values and place.value < end
    )


def sized(block: bytes, size: tuple[int, int], before: tuple[int, int] | None) -> bytes:
    """What `kept` gave, with its numbers in pixels as a picture of `size` (width, height) has them.

    `before`: the size of the picture that the numbers are about; None: only the size itself is set.
    """
    order, _, at = header(block)
    data = bytearray(block)
    for directory in (at, *_links(data, order, at, EXIF_IFD)):
        for place in places(data, order, directory):
            for tags, value in zip((_WIDTH_TAGS, _HEIGHT_TAGS), size, strict=True):
                if place.tag in tags:
                    _set(data, order, place, value)
            if before is not None and place.tag in _SUBJECT | _MAP:
                _scale(data, order, place, size[0] / before[0], size[1] / before[1], at)
    return bytes(data)


def without_orientation(block: bytes) -> bytes:
    """The block without this tag, for a format that has another place for it."""
    order, _, at = header(block)
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
    order, big, at = header(tiff)
    data = bytearray(tiff)
    for place in places(tiff, order, at, big):
        if place.tag == ORIENTATION:
            _set(data, order, place, 1)
    return bytes(data)


def _links(data: bytearray, order: Order, at: int, tag: int) -> list[int]:
    return [
        pointed(Entry(place.kind, place.values, bytes(data[place.value : place.value + 4])), order)
        for place in places(data, order, at)
        if place.tag == tag
    ]


def _set(data: bytearray, order: Order, place: Place, value: int) -> None:
    """A whole number in the place of the one that is there; what is of another type stays as it is."""
    if place.kind not in (SHORT, LONG) or place.values != 1:
        return
    kind = SHORT if place.kind == SHORT and value < 1 << 16 else LONG
    struct.pack_into(f"{order}H", data, place.at + 2, kind)
    struct.pack_into(f"{order}I", data, place.value, 0)
    struct.pack_into(f"{order}{'H' if kind == SHORT else 'I'}", data, place.value, value)


def _drop(data: bytearray, order: Order, at: int, tags: frozenset[int]) -> None:
    """Take entries, and such as lead nowhere or come again, out of the directory at `at`; all else stays where it is."""
    begin, entries = span(data, order, at)
    if not begin:
        return
    records = [bytes(data[p.at : p.at + 12]) for p in places(data, order, at) if p.tag not in tags]
    end = begin + 12 * entries
    following = bytes(data[end : end + 4])
    packed = struct.pack(f"{order}H", len(records)) + b"".join(records) + following
    data[at : end + len(following)] = packed.ljust(end + len(following) - at, b"\0")


def _cut_thumbnail(data: bytearray, order: Order, at: int, directories: list[int]) -> None:
    """Make the first directory the last, and wipe the small picture that the second one points to, if nothing shares it."""
    begin, entries = span(data, order, at)
    pointer = begin + 12 * entries
    if pointer + 4 > len(data):
        return
    (second,) = struct.unpack_from(f"{order}I", data, pointer)
    struct.pack_into(f"{order}I", data, pointer, 0)
    found = {place.tag: place for place in places(data, order, second)}
    if not {_THUMBNAIL, _THUMBNAIL_LENGTH} <= found.keys():
        return
    first, length = (
        int.from_bytes(data[found[tag].value : found[tag].value + 4], order_name(order))
        for tag in (_THUMBNAIL, _THUMBNAIL_LENGTH)
    )
    last = first + length
    if data[first : first + 2] != b"\xff\xd8" or last > len(data):
        return
    if any(begin < last and first < end for begin, end, _ in _taken(data, order, directories)):
        return
    if last == len(data):
        del data[first:]
    else:
        data[first:last] = bytes(length)


def _exchange(data: bytearray, order: Order, at: int) -> None:
    """Resolution across and down, of a picture that was turned on its side."""
    x, y = (
        [place.at + 2 for place in places(data, order, at) if place.tag == tag]
        for tag in (_X_RESOLUTION, _Y_RESOLUTION)
    )
    for one, other in zip(x, y, strict=False):
        data[one : one + 10], data[other : other + 10] = data[other : other + 10], data[one : one + 10]


def _turn(data: bytearray, order: Order, place: Place, orientation: int, size: tuple[int, int]) -> None:
    """A place in a picture of `size`, as `image_metadata.orient` turns it."""
    if place.kind != SHORT or not 2 <= place.values <= 4:
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


def _scale(data: bytearray, order: Order, place: Place, x: float, y: float, first: int) -> None:
    """Numbers in pixels, where `x` and `y` times as many lie side by side; `first`: where a map's keys are."""
    if place.tag in _SUBJECT and place.kind == SHORT and 2 <= place.values <= 4:
        factors = (x, y) if place.values == 2 else (x, y, x) if place.values == 3 else (x, y, x, y)
        _map(data, f"{order}{place.values}H", place, lambda i, value: min(round(value * factors[i]), 65_535))
    elif place.kind != DOUBLE:
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


def _map(data: bytearray, layout: str, place: Place, change: Callable[[int, float], float]) -> None:
    values = struct.unpack_from(layout, data, place.value)
    struct.pack_into(layout, data, place.value, *(change(i, value) for i, value in enumerate(values)))


def _points_are_centres(data: bytearray, order: Order, first: int) -> bool:
    """Whether a map's coordinates are of pixels' centres, not of their corners."""
    for place in places(data, order, first):
        if place.tag == _MAP_KEYS and place.kind == SHORT:
            keys = struct.unpack_from(f"{order}{place.values}H", data, place.value)
            rows = (keys[i : i + 4] for i in range(4, len(keys) - 3, 4))
            return any(row[0] == _RASTER_TYPE and row[3] == _PIXEL_IS_POINT for row in rows)
    return False


def orientation_of(found: Directories) -> int:
    """1..8; 1 where it makes no sense, 0 where there is none."""
    entry = found.first.get(ORIENTATION)
    if entry is None:
        return 0
    value = int.from_bytes(entry.value, order_name(found.order)) if entry.kind in (SHORT, LONG) else 1
    return value if 1 <= value <= 8 else 1


def for_tiff(block: bytes) -> Directories:
    """What of a block belongs into the directories of a TIFF, which then has its byte order: texts can depend on that."""
    found = parse(block)
    drop = _STORAGE | _TIFF_ONLY | {ORIENTATION}
    return replace(found, first={tag: entry for tag, entry in found.first.items() if tag not in drop})
