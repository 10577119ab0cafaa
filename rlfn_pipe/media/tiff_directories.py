"""Directories of a TIFF, or of a block of EXIF data, which is one: taken apart, and written anew."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from mmap import mmap
from typing import Literal, NamedTuple

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005

SHORT, LONG, _RATIONAL, DOUBLE, _IFD = 3, 4, 5, 12, 13
_POINTERS = (LONG, _IFD)
#: Types of BigTIFF, 8 bytes each.
_BIG_KINDS = (16, 17, 18)
#: Bytes of one value of each type.
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


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

    `damaged`: something in it leads nowhere or comes again, and is left out.
    """

    order: Order
    first: Directory
    inner: Directory = field(default_factory=dict)
    place: Directory = field(default_factory=dict)
    interop: Directory = field(default_factory=dict)
    damaged: bool = False


class Place(NamedTuple):
    """Where an entry lies (`at`) and where its values do."""

    at: int
    tag: int
    kind: int
    values: int
    value: int


# --------------------------------------------------------------------- reading


def parse(block: bytes | mmap) -> Directories:
    """Take a block, or a TIFF's first picture, apart. ValueError where it is none."""
    order, big, at = header(block)
    first, lost = _directory(block, order, at, big)
    found = [first]
    for holder, tag in ((0, EXIF_IFD), (0, GPS_IFD), (1, INTEROP_IFD)):
        pointer = found[holder].pop(tag, None)
        there, bad = _directory(block, order, pointed(pointer, order), big) if pointer else ({}, False)
        found.append(there)
        lost |= bad or (pointer is not None and not span(block, order, pointed(pointer, order), big)[0])
    first, inner, place, interop = found
    return Directories(order, first, inner, place, interop, lost)


def order_name(order: Order) -> Literal["little", "big"]:
    return "little" if order == "<" else "big"


def header(block: bytes | bytearray | mmap) -> tuple[Order, bool, int]:
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


def places(
    block: bytes | bytearray | mmap, order: Order, at: int, big: bool = False, bad: list[int] | None = None
) -> Iterator[Place]:
    """The sound entries of the directory at `at`, of each tag the first; all others are noted in `bad` by their place."""
    seen: set[int] = set()
    number, inline, step = ("Q", 8, 20) if big else ("I", 4, 12)
    begin, entries = span(block, order, at, big)
    for record in range(begin, begin + step * entries, step):
        tag, kind, values = struct.unpack_from(f"{order}HH{number}", block, record)
        value = record + step - inline
        one = 8 if big and kind in _BIG_KINDS else BYTES.get(kind)
        if one is not None and one * values > inline:
            (value,) = struct.unpack_from(order + number, block, value)
        if one is not None and value + one * values <= len(block) and tag not in seen:
            seen.add(tag)
            yield Place(record, tag, kind, values, value)
        elif bad is not None:
            bad.append(record)


def span(block: bytes | bytearray | mmap, order: Order, at: int, big: bool = False) -> tuple[int, int]:
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
    for place in places(block, order, at, big, bad):
        size = BYTES.get(place.kind, 8) * place.values
        if place.kind in _BIG_KINDS and place.tag not in (EXIF_IFD, GPS_IFD, INTEROP_IFD):
            continue
        left -= size
        if left < 0:
            return found, True
        found[place.tag] = Entry(place.kind, place.values, bytes(block[place.value : place.value + size]))
    return found, bool(bad)


def pointed(entry: Entry, order: Order) -> int:
    """Where a pointer leads; 0 is nowhere."""
    sound = entry.kind in (*_POINTERS, *_BIG_KINDS) and entry.values == 1
    return int.from_bytes(entry.value, order_name(order)) if sound else 0


# --------------------------------------------------------------------- writing


def shorts(order: Order, *values: int) -> Entry:
    return Entry(SHORT, len(values), struct.pack(f"{order}{len(values)}H", *values))


def longs(order: Order, *values: int) -> Entry:
    return Entry(LONG, len(values), struct.pack(f"{order}{len(values)}I", *values))


def rationals(order: Order, *values: float) -> Entry:
    """Numbers by fractions with at most 10 000 below the line."""
    pairs = [number for value in values for number in _fraction(value)]
    return Entry(_RATIONAL, len(values), struct.pack(f"{order}{len(pairs)}I", *pairs))


def _fraction(value: float) -> tuple[int, int]:

    return Fraction(value).limit_denominator(10_000).as_integer_ratio()


def build(found: Directories) -> bytes:
    """A block, or the beginning of a TIFF, of these directories; its length depends on theirs alone."""
    order = found.order
    link = Entry(LONG, 1, bytes(4))
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
            holder[tag] = Entry(LONG, 1, struct.pack(f"{order}I", starts[start]))
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
