"""Display size, cropping and codec delay in a Matroska or WebM header; where a file says that it ends.

libavformat writes them from fields of the stream that PyAV does not let one set, so anamorphic
video would lose its aspect in all codecs whose bitstream cannot say it, and sound that an mp4
trims by an edit list would begin early. The muxer leaves an empty (Void) element behind its
SeekHead; the few bytes come from there, and nothing behind the track list moves. Element ids and
CRC rule: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rlfn_pipe.errors import OutputError

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT, _SEEK_HEAD, _INFO, _TRACKS = 0x18538067, 0x114D9B74, 0x1549A966, 0x1654AE6B
_VOID, _CRC32, _SEEK, _SEEK_ID, _SEEK_POSITION = 0xEC, 0xBF, 0x4DBB, 0x53AB, 0x53AC
_TRACK_ENTRY, _VIDEO, _CODEC_DELAY = 0xAE, 0xE0, 0x56AA
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
_TRACK_TYPE, _VIDEO_TRACK = 0x83, b"\x01"
#: PixelCropLeft, -Top, -Right and -Bottom.
_CROPS = (0x54CC, 0x54BB, 0x54DD, 0x54AA)

#: Pixels of the stored picture that players cut off: left, top, right, bottom.
Crop = tuple[int, int, int, int]

#: The header lies in here, attachments excepted, which come behind the tracks.
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Element:
    """One EBML element: its id, where it starts, where its data lie, and the data.

    `stated_end`: where it says that it ends, beyond clipped data; None where it leaves its length open.
    """

    id: int
    start: int
    data_start: int
    data: bytes
    stated_end: int | None

    @property
    def end(self) -> int:
        return self.data_start + len(self.data)


@dataclass(frozen=True, slots=True)
class TrackChange:
    """What to write into a track's entry: display size in pixels, cropping beside it, codec delay in seconds."""

    display_size: tuple[int, int] | None = None
    crop: Crop | None = None
    codec_delay: Fraction | None = None


def amend_tracks(path: Path, name: str, changes: Mapping[int, TrackChange]) -> None:
    """Change the entries of tracks, counted from 0, in place. `name` is how messages call the file.

    Raises:
        OutputError: the header is not laid out as libavformat lays it out.
    """
    with path.open("r+b") as file:
        head = file.read(_HEAD_BYTES)
        try:
            start, changed = _rewritten(head, changes)
        except (ValueError, IndexError) as error:
            raise OutputError(f"{name}: its track header cannot be amended ({error})") from None
        file.seek(start)
        file.write(changed)


def segment_end(head: bytes) -> int | None:
    """Where a file that begins so says that its Segment ends; None where it does not say."""
    try:
        elements = _elements(head, 0, len(head), clipped=True)
        return next((element.stated_end for element in elements if element.id == _SEGMENT), None)
    except IndexError:
        return None


def pixel_crop(path: Path, number: int) -> Crop | None:
    """How players crop a Matroska or WebM file's video track, counted from 0; None for nothing, and other files.

    libav tells it in a way that PyAV does not show. Raises OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.startswith(_EBML):
        return None
    try:
        tracks = _child(_child(head, _SEGMENT), _TRACKS)
        entries = [e.data for e in _elements(tracks, 0, len(tracks), clipped=True) if e.id == _TRACK_ENTRY]
        videos = [data for data in entries if _child(data, _TRACK_TYPE) == _VIDEO_TRACK]
        video = _child(videos[number], _VIDEO)
        left, top, right, bottom = (int.from_bytes(_child(video, key), "big") for key in _CROPS)
    except (ValueError, IndexError):
        return None
    crop = left, top, right, bottom
    return crop if any(crop) else None


def _child(data: bytes, identity: int) -> bytes:
    """The data of the first element of a kind, nothing where there is none."""
    found = (e.data for e in _elements(data, 0, len(data), clipped=True) if e.id == identity)
    return next(found, b"")


def _rewritten(head: bytes, changes: Mapping[int, TrackChange]) -> tuple[int, bytes]:
    """Offset and new bytes of the stretch from SeekHead to the end of the track list."""
    segment = next(e for e in _elements(head, 0, len(head), clipped=True) if e.id == _SEGMENT)
    found: dict[int, _Element] = {}
    order = []
    for element in _elements(head, segment.data_start, len(head), clipped=True):
        found.setdefault(element.id, element)
        order.append(element.id)
        if element.id == _TRACKS:
            break
    if order[:4] != [_SEEK_HEAD, _VOID, _INFO, _TRACKS]:
        raise ValueError("its parts stand in another order")
    seek_head, void, info, tracks = (found[key] for key in order[:4])
    new_tracks = _top_level(tracks, _changed_tracks(tracks.data, changes))
    growth = len(new_tracks) - (tracks.end - tracks.start)
    room = void.end - void.start - growth
    if room < 9:
        raise ValueError("no room is left in it")
    moved = {_INFO: -growth, _TRACKS: -growth}
    new_seek_head = _top_level(seek_head, _moved_entries(seek_head.data, moved))
    if len(new_seek_head) != seek_head.end - seek_head.start:
        raise ValueError("its index changed its length")
    filler = b"\xec" + _size(room - 9, 8) + bytes(room - 9)
    return seek_head.start, new_seek_head + filler + head[info.start : info.end] + new_tracks


def _changed_tracks(data: bytes, changes: Mapping[int, TrackChange]) -> bytes:
    parts, number = [], 0
    for element in _elements(data, 0, len(data)):
        if element.id == _CRC32:
            continue
        raw = data[element.start : element.end]
        if element.id == _TRACK_ENTRY:
            parts.append(_changed_entry(element.data, changes[number]) if number in changes else raw)
            number += 1
        else:
            parts.append(raw)
    if max(changes, default=0) >= number:
        raise ValueError(f"it has {number} tracks")
    return b"".join(parts)


def _changed_entry(data: bytes, change: TrackChange) -> bytes:
    parts = []
    for element in _elements(data, 0, len(data)):
        if element.id == _VIDEO and change.display_size is not None:
            parts.append(_changed_video(element.data, *change.display_size, change.crop or ()))
        elif element.id != _CODEC_DELAY or change.codec_delay is None:
            parts.append(data[element.start : element.end])
    if change.codec_delay is not None:
        parts.append(_element(_CODEC_DELAY, _uint(round(change.codec_delay * 1_000_000_000))))
    return _element(_TRACK_ENTRY, b"".join(parts))


def _changed_video(data: bytes, width: int, height: int, crop: tuple[int, ...]) -> bytes:
    kept = [
        data[element.start : element.end]
        for element in _elements(data, 0, len(data))
        if element.id not in (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT)
    ]
    sizes = [_element(_DISPLAY_WIDTH, _uint(width)), _element(_DISPLAY_HEIGHT, _uint(height))]
    crops = [_element(key, _uint(value)) for key, value in zip(_CROPS, crop, strict=False) if value]
    return _element(_VIDEO, b"".join([*kept, *sizes, *crops]))


def _moved_entries(data: bytes, moved: dict[int, int]) -> bytes:
    """The SeekHead's entries with positions corrected; position fields keep their length."""
    parts = []
    for element in _elements(data, 0, len(data)):
        if element.id == _CRC32:
            continue
        fields = {e.id: e.data for e in _elements(element.data, 0, len(element.data))}
        target = int.from_bytes(fields[_SEEK_ID], "big")
        position = int.from_bytes(fields[_SEEK_POSITION], "big") + moved.get(target, 0)
        where = position.to_bytes(len(fields[_SEEK_POSITION]), "big")
        parts.append(_element(_SEEK, _element(_SEEK_ID, fields[_SEEK_ID]) + _element(_SEEK_POSITION, where)))
    return b"".join(parts)


# ------------------------------------------------------------------------- EBML


def _elements(data: bytes, start: int, end: int, *, clipped: bool = False) -> Iterator[_Element]:
    """Elements one after another. `clipped`: the last one may reach beyond `data`."""
    at = start
    while at < end:
        id_length = 9 - data[at].bit_length()
        size_at = at + id_length
        size_length = 9 - data[size_at].bit_length()
        size = int.from_bytes(data[size_at : size_at + size_length], "big") & ((1 << 7 * size_length) - 1)
        data_at = size_at + size_length
        if data_at + size > end and not clipped:
            raise ValueError("an element reaches beyond its parent")
        identity = int.from_bytes(data[at:size_at], "big")
        left_open = size == (1 << 7 * size_length) - 1
        stated = None if left_open else data_at + size
        yield _Element(identity, at, data_at, data[data_at : data_at + size], stated)
        at = data_at + size


def _size(value: int, length: int = 0) -> bytes:
    """A size as EBML writes it, in the least number of bytes or in `length`."""
    length = length or max(1, -(-(value + 2).bit_length() // 7))
    return (value | 1 << 7 * length).to_bytes(length, "big")


def _element(identity: int, data: bytes) -> bytes:
    return _uint(identity) + _size(len(data)) + data


def _uint(value: int) -> bytes:
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")


def _top_level(old: _Element, data: bytes) -> bytes:
    """The element with new children; its first child is their CRC-32 where the old one had it (not in WebM)."""
    if next(iter(_elements(old.data, 0, len(old.data)))).id == _CRC32:
        data = _element(_CRC32, zlib.crc32(data).to_bytes(4, "little")) + data
    return _element(old.id, data)
