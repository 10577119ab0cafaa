"""Puts `fake_driver.c` in the place of NVIDIA's driver, in this process or in others."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

SOURCE = Path(__file__).with_name("fake_driver.c")


def libraries() -> list[Path]:
    """libav's libraries that look for a driver, as PyAV's wheels bring them along."""
    folder = Path(av.__file__).parent.parent / "av.libs"
    return sorted([*folder.glob("libavutil*"), *folder.glob("libavcodec*")])


def build(folder: Path) -> list[Path]:
    """Compile it, with every function that libav asks a driver for; the libraries, to be loaded in this order."""
    text = SOURCE.read_text()
    asked = {
        name
        for path in libraries()
        for name in re.findall(rb"\0(cu[A-Z]\w+|cuvid[A-Z]\w+)(?=\0)", path.read_bytes())
    }
    rest = [name for name in sorted(name.decode() for name in asked) if f"int {name}(" not in text]
    text += "".join(f"int {name}(void) {{ return 0; }}\n" for name in rest)
    first, *others = (folder / name for name in ("libcuda.so.1", "libnvcuvid.so.1", "libnvidia-encode.so.1"))
    _compile(first, text)
    for library in others:
        # They have nothing of their own: what they are asked for is found in the first.
        _compile(library, "", str(first))
    return [first, *others]


def load(folder: Path) -> Any:
    """The stand-in, compiled and loaded: a library whose name is loaded already is what dlopen gives."""
    first, *_ = [ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL) for library in build(folder)]
    return first


def _compile(library: Path, text: str, *more: str) -> None:
    compiler = shutil.which("cc")
    assert compiler, "the stand-in needs a C compiler"
    flags = ["-O1", "-w", "-fPIC", "-shared", "-Wl,--no-as-needed", f"-Wl,-soname,{library.name}"]
    found = subprocess.run(
        [compiler, "-x", "c", *flags, "-", "-x", "none", *more, "-o", str(library)],
        input=text, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


def pictures_of(path: Path, pix_fmt: str) -> tuple[bytes, int, int, int]:
    """What the pictures of a film are by libav's software, as `fake_pictures` takes it: list, count, row and height.

    `pix_fmt`: nv12 or p010le.
    """
    entries = []
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        codec, packets = stream.codec_context.name, {}
        for packet in film.demux(stream):
            if packet.size:
                packets[packet.pts] = bytes(packet)
            for frame in packet.decode():
                sum_ = zlib.adler32(b"".join(_slices(packets[frame.pts], codec)))
                samples = _samples(frame.reformat(format=pix_fmt, threads=1))
                entries.append(struct.pack("<I", sum_) + samples)
        row = stream.width * (1 if pix_fmt == "nv12" else 2)
        return b"".join(entries), len(entries), row, stream.height


def tell(driver: Any, path: Path, pix_fmt: str) -> None:
    """Tell the loaded stand-in what the pictures of a film are."""
    entries, *numbers = pictures_of(path, pix_fmt)
    kept = ctypes.create_string_buffer(entries, len(entries))
    driver.kept = [*getattr(driver, "kept", []), kept]
    driver.fake_pictures(kept, *map(ctypes.c_size_t, numbers))


def environment(folder: Path, film: Path, pix_fmt: str) -> dict[str, str]:
    """What programs are started with that are to find the stand-in, which knows a film's pictures."""
    entries, *numbers = pictures_of(film, pix_fmt)
    told = folder / "pictures"
    told.write_bytes(struct.pack("<QQQ", *numbers) + entries)
    preloaded = ":".join(map(str, build(folder)))
    return {**os.environ, "LD_PRELOAD": preloaded, "FAKE_DRIVER_PICTURES": str(told)}


def _samples(frame: av.VideoFrame) -> bytes:
    """Luma and chroma of a semi-planar frame without gaps."""
    luma, chroma = frame.planes
    row = frame.width * (1 if frame.format.name == "nv12" else 2)
    rows = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, :row] for plane in (luma, chroma)]
    return np.concatenate(rows).tobytes()


def _slices(packet: bytes, codec: str) -> Iterator[bytes]:
    """What libav hands the decoder of a packet whose units have their length before them."""
    at = 0
    while at < len(packet):
        (length,) = struct.unpack_from(">I", packet, at)
        unit = packet[at + 4 : at + 4 + length]
        at += 4 + length
        if 1 <= unit[0] & 31 <= 5 if codec == "h264" else (unit[0] >> 1) & 63 < 32:
            yield b"\0\0\1" + unit


class OnDevice:
    """An array, or what else has ``__dlpack__``, that says it lies in the other memory: on a GPU of `driver`, or the host."""

    def __init__(self, lies: Any, driver: Any = None, gpu: int = 0) -> None:
        self._lies, self._driver, self._gpu = lies, driver, gpu
        self._kind = 1 if driver is None else 2

    def __dlpack__(self, **_: object) -> Any:
        if self._driver is not None and self._driver.fake_device() != self._gpu:
            raise BufferError("as PyTorch, which hands out what lies on its current GPU only")
        capsule = self._lies.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # After the address of the data: the kind of device, then its number.
        place = pointer(capsule, b"dltensor") + 8
        ctypes.c_int32.from_address(place).value = self._kind
        ctypes.c_int32.from_address(place + 4).value = self._gpu
        return capsule


def same(one: Sequence[Any], other: Sequence[np.ndarray]) -> bool:
    """Whether planes, arrays or tensors, hold the same samples."""
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(np.asarray(p).view(q.dtype), q) for p, q in pairs)
