"""Opening media that nobody vouches for.

A playlist or an edit description can make a demuxer open other files and hosts. So the one
file the user named is opened here and handed over as a stream, every further open is refused,
and only demuxers of single-file media are allowed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import av
import av.error
import av.logging
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from rlfn_pipe.errors import HardwareFailed, InputError, reason_of

#: libavformat demuxers that read one file and never open another (names as in `ffmpeg -demuxers`).
ALLOWED_DEMUXERS = (
    "mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpegtsraw", "mpeg", "mpegvideo", "flv", "live_flv",
    "asf", "ogg", "nut", "ivf", "mxf", "mxf_opatom", "gxf", "h264", "hevc", "vvc", "av1", "obu", "m4v", "h261",
    "h263", "vc1", "vc1test", "mjpeg", "mjpeg_2000", "yuv4mpegpipe", "dv", "gif", "apng", "rm", "wtv", "nsv", "swf",
    "smk", "bink", "avs", "avs2", "avs3", "cavsvideo", "dirac", "dnxhd", "evc", "r3d", "nc", "roq", "film_cpk", "4xm",
    "flic", "filmstrip", "rpl", "mv", "mvi", "cine", "ingenient", "gdv", "idcin", "ea", "thp", "vmd", "vivo", "lvf",
    "wav", "mp3", "flac", "aac", "ac3", "eac3", "dts", "amr", "aiff", "au", "caf", "srt", "ass", "webvtt",
)  # fmt: skip

_TRANSPORT_STREAMS = frozenset({".ts", ".m2ts", ".mts"})
_READ_BUFFER = 1 << 20

# libav writes warnings to standard error of its own accord; errors reach us as exceptions.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)


def _refuse_nested(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    """Refuse whatever a demuxer wants to open beside the file itself."""
    raise PermissionError(f"nested open of {url!r} refused")


def library_versions() -> dict[str, str]:
    """Versions of PyAV and of the codec library behind it."""
    codecs = av.library_versions["libavcodec"]
    return {"av": av.__version__, "libavcodec": ".".join(str(number) for number in codecs)}


def describe_av_error(error: BaseException) -> str:
    """The reason of a libav error in a few words, without numbers and file names."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".").lower()


@contextmanager
def open_media(
    path: Path, demuxer: str | None = None, *, hwaccel: HWAccel | None = None
) -> Iterator[InputContainer]:
    """Open a media file for reading, with nested opens refused.

    `demuxer` is its format where that is known; else it is told from the content. `hwaccel`: what its streams are
    decoded by, where that can.

    Raises:
        InputError: the file is missing, empty, unreadable or not media of a known kind.
        HardwareFailed: it cannot be opened with `hwaccel`.
    """
    file = _open_file(path)
    try:
        container = _open_container(path, file, demuxer, hwaccel)
        try:
            yield container
        finally:
            container.close()
    finally:
        file.close()


def readable_packets(container: InputContainer, *streams: Stream) -> Iterator[Packet[Any]]:
    """The packets up to the end, or to where the container is too damaged to be read on.

    For looking ahead: who decodes or copies comes to the same place, and tells of it. Raises InputError where the file
    itself cannot be read: that may pass, and a film must not end there.
    """
    try:
        yield from container.demux(*streams)
    except (av.error.FFmpegError, OSError):  # damage leads to places that are none, too
        return


class _File(io.FileIO):
    """A file whose drive may fail: PyAV hands on what is raised while it reads, an InputError instead of OSError."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(-1 if size is None else size)
        except OSError as error:
            name = os.fsdecode(self.name)
            raise InputError(
                f"{name}: cannot be read on ({reason_of(error)}); check its drive and run again"
            ) from error


def _open_file(path: Path) -> IO[bytes]:
    try:
        file = _File(path)  # closed by open_media
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name and the folder") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a media file") from None
    except OSError as error:
        reason = reason_of(error)
        raise InputError(f"{path}: cannot be read ({reason}); check its permissions") from None
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise InputError(f"{path}: is empty (0 bytes); copy or download it again")
    return file


def _open_container(
    path: Path, file: IO[bytes], demuxer: str | None, hwaccel: HWAccel | None
) -> InputContainer:
    if hwaccel is not None:
        try:
            return _demux(file, demuxer, hwaccel)
        except (av.error.FFmpegError, ValueError, OSError) as error:
            # Where it is the file's fault, that is told when it is opened without.
            raise HardwareFailed(f"its decoder cannot be had ({describe_av_error(error)})") from error
    try:
        return _demux(file, demuxer)
    except PermissionError:
        raise InputError(
            f"{path}: refers to other files, which is refused; give the media file itself"
        ) from None
    except (av.error.FFmpegError, ValueError, OSError) as error:
        reason = describe_av_error(error)
    if demuxer is None and path.suffix.lower() in _TRANSPORT_STREAMS:
        # A few packets are too little to be told from the content alone.
        file.seek(0)
        with suppress(av.error.FFmpegError, ValueError, OSError):
            return _demux(file, "mpegts")
    raise InputError(
        f"{path}: is not media that can be opened ({reason}); check that the file is whole and really a video"
    )


def _demux(file: IO[bytes], demuxer: str | None, hwaccel: HWAccel | None = None) -> InputContainer:
    return av.open(
        file,
        "r",
        format=demuxer,
        container_options={"format_whitelist": ",".join(ALLOWED_DEMUXERS), "protocol_whitelist": "file"},
        metadata_errors="replace",
        buffer_size=_READ_BUFFER,
        io_open=_refuse_nested,
        hwaccel=hwaccel,
    )
