"""Segments: a stretch of the film encoded by an encoder of its own, kept as packets in a file.

No container of libavformat gives packets back as they went in: NUT and Matroska store no decoding
times (which encoders that reorder decide), most lose the side data in which VP9 carries alpha, and
all of them cut or guess durations. So a segment file is plain: a header, one record for every
packet with its check sum, and an end record that makes a file without it an unfinished one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, cast

import av.error
from av.packet import Packet, PacketSideData, packet_sidedata_type_from_literal

from rlfn_pipe.errors import MORE_ROOM, OutputError, is_full, reason_of
from rlfn_pipe.media.encoders import EncodePlan
from rlfn_pipe.media.encoding import (
    check_options,
    encoder_rate,
    open_encoder,
    picture_for,
    refused,
)
from rlfn_pipe.media.hardware import Surfaces
from rlfn_pipe.media.opening import describe_av_error
from rlfn_pipe.types import Frame

_MAGIC = b"RLFNseg1"
_HEADER = struct.Struct(
    "<QQIII"
)  # rate, its denominator, reordering depth, bytes of codec name and of extradata
_PACKET = struct.Struct("<cIqqqBB")  # kind, payload bytes, pts, dts, duration, flags, items of side data
_SIDE = struct.Struct("<BI")  # bytes of its name, bytes
_END = struct.Struct("<cQ")  # kind, packets
_CRC = struct.Struct("<I")
_UNSET = -(1 << 63)
_KEYFRAME = 1
#: Larger payloads are not believed; libav's packets end below 2 GiB as well.
_MOST_BYTES = 1 << 31

#: Statistics of the encoder about itself, of which no muxer here writes anything.
_NOT_KEPT = frozenset({"quality_stats", "cpb_properties"})


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment file says of its encoder.

    `rate`: frames a second by which it counted; `reordering`: frames that it holds back for
    their order; `extradata`: its headers, empty where they stand in the packets.
    """

    codec: str
    rate: Fraction
    reordering: int
    extradata: bytes


class SegmentSink:
    """Encodes the frames of one segment into a file of packets; frame n of the segment has pts n.

    The encoder is opened for this segment alone, so its first frame is an IDR and nothing in it
    refers outside. `write` frames in order, then `close`, which also brings the file to the disk;
    on failure call `abort`. The caller names, renames and removes.

    Args:
        path: the file to write. `name` is how messages call the output.
        plan: the encoder's settings. Headers go where the plan's own container wants them.
        rate: nominal frames a second, for the encoder's rate control.
        threads: the encoder's (0: libav decides).
        surfaces: makes the encoder's pictures, of semi-planar frames (see `Target`); the encoder is opened with the first.

    Raises:
        UsageError: the encoder refuses its settings.
        OutputError: the file cannot be written, or the encoder fails.
    """

    def __init__(
        self,
        path: Path,
        plan: EncodePlan,
        rate: Fraction,
        *,
        name: str,
        sample_aspect_ratio: Fraction | None = None,
        threads: int = 0,
        surfaces: Surfaces | None = None,
    ) -> None:
        self.pts: list[int] = []
        self._plan, self._name, self._surfaces = plan, name, surfaces
        self._packets = 0
        self._context = open_encoder(
            plan, rate, name=name, sample_aspect_ratio=sample_aspect_ratio, threads=threads, surfaces=surfaces
        )
        self._time_base = 1 / encoder_rate(plan.codec, rate)
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            raise self._failed(error) from None
        if self._context.is_open:
            self._begin()

    def _begin(self) -> None:
        """Write what the opened encoder says of itself."""
        try:
            self._put(_header_bytes(self._plan.codec, 1 / self._time_base, self._context))
        except BaseException:
            self.abort()
            raise

    @property
    def frames(self) -> int:
        """Frames written so far."""
        return len(self.pts)

    def write(self, frame: Frame) -> None:
        """Encode one frame. `frame.pts` must exceed that of the frame before."""
        assert frame.pts is not None
        if self.pts and frame.pts <= self.pts[-1]:
            raise ValueError(f"frame {len(self.pts)} has pts {frame.pts} after {self.pts[-1]}")
        try:
            picture = picture_for(frame, self._plan, len(self.pts), self._time_base, self._surfaces)
        except av.error.FFmpegError as error:
            raise self._failed(error) from error
        self.pts.append(frame.pts)
        self._encode(picture)

    def close(self) -> None:
        """Flush the encoder and bring the file to the disk, whole."""
        if self.pts:
            self._encode(None)
        if self._packets != len(self.pts):
            self.abort()
            raise OutputError(
                f"{self._name}: {self._plan.codec} made {self._packets} pictures of {len(self.pts)} frames; "
                "change --codec or --encoder-option"
            )
        end = _END.pack(b"E", self._packets)
        self._put(end + _CRC.pack(zlib.crc32(end)))
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self.abort()
            raise self._failed(error) from error

    def abort(self) -> None:
        """Give up; the file is left as it is for the caller to remove."""
        try:
            self._file.close()
        except OSError:
            return  # what could not be written is being thrown away

    def _encode(self, picture: Any) -> None:
        opens = not self._context.is_open
        try:
            packets = self._context.encode(picture)
        except av.error.FFmpegError as error:
            if not self._context.is_open:
                raise refused(self._plan, self._name, error) from None
            raise self._failed(error) from error
        if opens:
            check_options(self._context, self._plan)
            self._begin()
        for packet in packets:
            if not self._packets and not packet.is_keyframe:
                self.abort()
                raise OutputError(
                    f"{self._name}: {self._plan.codec} did not begin with a keyframe; change --encoder-option"
                )
            pts, dts = self._frame_count(packet, packet.pts), self._frame_count(packet, packet.dts)
            self._put(_packet_bytes(packet, pts, dts))
            self._packets += 1

    def _frame_count(self, packet: Packet[Any], ticks: int | None) -> int | None:
        return None if ticks is None else round(ticks * Fraction(packet.time_base) / self._time_base)

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OutputError:
        reason = describe_av_error(error)
        hint = f"; {MORE_ROOM}" if is_full(error) else ""
        return OutputError(f"{self._name}: writing failed ({reason}){hint}")


def read_header(path: Path, name: str) -> SegmentHeader:
    """What a segment file says of its encoder.

    Raises:
        OutputError: it cannot be read, or is no such file.
    """
    with _Reader(path, name) as reader:
        return reader.header


def read_packets(path: Path, name: str) -> Iterator[Packet[Any]]:
    """The video packets of a segment in decoding order; pts and dts count frames (dts None: not set).

    Raises:
        OutputError: the file cannot be read, is unfinished, or is not what was written.
    """
    with _Reader(path, name) as reader:
        yield from reader.packets()


def count_segment(path: Path, name: str) -> int:
    """Read a segment file through; the number of its frames.

    Raises:
        OutputError: as `read_packets`, or frames do not follow one another from 0.
    """
    with _Reader(path, name) as reader:
        shown = sorted(packet.pts for packet in reader.packets() if packet.pts is not None)
    if shown != list(range(len(shown))):
        raise OutputError(f"{name}: the frames of {path.name} do not follow one another; remove it")
    return len(shown)


# ------------------------------------------------------------------------- the file


def _header_bytes(codec: str, rate: Fraction, context: Any) -> bytes:
    extradata, encoded = context.extradata or b"", codec.encode()
    data = _HEADER.pack(
        rate.numerator, rate.denominator, int(context.reorder_depth), len(encoded), len(extradata)
    )
    data += encoded + extradata
    return _MAGIC + data + _CRC.pack(zlib.crc32(data))


def _packet_bytes(packet: Packet[Any], pts: int | None, dts: int | None) -> bytes:
    side = [
        (item.data_type.encode(), bytes(item))
        for item in packet.iter_sidedata()
        if item.data_type not in _NOT_KEPT
    ]
    flags = _KEYFRAME * packet.is_keyframe
    parts = [
        _PACKET.pack(
            b"P",
            packet.size,
            _UNSET if pts is None else pts,
            _UNSET if dts is None else dts,
            packet.duration or 0,
            flags,
            len(side),
        )
    ]
    for kind, data in side:
        parts += [_SIDE.pack(len(kind), len(data)), kind, data]
    parts.append(bytes(packet))
    record = b"".join(parts)
    return record + _CRC.pack(zlib.crc32(record))


class _Reader:
    """Reads a segment file from its beginning to its end record."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def __enter__(self) -> _Reader:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise self._damaged(reason_of(error)) from None
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_header(self) -> SegmentHeader:
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise self._damaged("it is not one")
        self._sum = 0
        top, bottom, reordering, codec_bytes, extra_bytes = _HEADER.unpack(self._take(_HEADER.size))
        codec, extradata = self._take(codec_bytes), self._take(extra_bytes)
        self._check()
        return SegmentHeader(codec.decode(), Fraction(top, bottom), reordering, extradata)

    def packets(self) -> Iterator[Packet[Any]]:
        """Every packet, once."""
        count, time_base = 0, 1 / self.header.rate
        while True:
            self._sum = 0
            kind = self._take(1)
            if kind == b"E":
                (expected,) = struct.unpack("<Q", self._take(_END.size - 1))
                self._check()
                if expected != count:
                    raise self._damaged(f"it has {count} of {expected} packets")
                return
            if kind != b"P":
                raise self._damaged("its records are broken")
            yield self._packet(time_base)
            count += 1

    def _packet(self, time_base: Fraction) -> Packet[Any]:
        _, size, pts, dts, duration, flags, items = _PACKET.unpack(b"P" + self._take(_PACKET.size - 1))
        side = []
        for _ in range(items):
            name_bytes, data_bytes = _SIDE.unpack(self._take(_SIDE.size))
            side.append((self._take(name_bytes).decode(errors="replace"), self._take(data_bytes)))
        payload = self._take(size)
        self._check()
        packet: Packet[Any] = Packet(payload)
        packet.time_base = time_base
        packet.pts = None if pts == _UNSET else pts
        packet.dts = None if dts == _UNSET else dts
        packet.duration = duration
        packet.is_keyframe = bool(flags & _KEYFRAME)
        for kind, data in side:
            # The type's own name, as it came from PyAV; its stubs know only the literals.
            number = packet_sidedata_type_from_literal(cast(Any, kind))
            item = cast(Any, PacketSideData)(number, len(data))
            item.update(data)
            packet.set_sidedata(item, move=True)
        return packet

    def _take(self, size: int) -> bytes:
        if size >= _MOST_BYTES:
            raise self._damaged("its records are broken")
        try:
            data = self._file.read(size)
        except OSError as error:
            raise self._damaged(reason_of(error)) from None
        if len(data) != size:
            raise self._damaged("it is cut off")
        self._sum = zlib.crc32(data, self._sum)
        return data

    def _check(self) -> None:
        found = self._sum
        (stored,) = _CRC.unpack(self._take(_CRC.size))
        if found != stored:
            raise self._damaged("its check sum does not fit")

    def _damaged(self, why: str) -> OutputError:
        return OutputError(
            f"{self._name}: the segment {self._path.name} cannot be used ({why}); remove it and run the command again"
        )
