"""NVIDIA's decoders, and frames that stay in a GPU's memory from them and to its encoders. No torch here.

Nobody has run this on a GPU yet: it is off unless `--hwaccel cuda` asks for it. What FFmpeg does with the driver was
tried with a stand-in for it (tests/test_hardware.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import av.error
import numpy as np
from av.codec.codec import Codec
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.video.frame import CudaContext, VideoFrame

from rlfn_pipe.media.opening import describe_av_error

__all__ = [
    "EXACT",
    "NVIDIA_DEVICES",
    "SEMI_PLANAR",
    "Hardware",
    "Surfaces",
    "by_hardware",
    "samples_of",
    "why_not",
]

#: Where NVIDIA's driver is reached, on Linux itself and inside Windows.
NVIDIA_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
#: What NVIDIA's decoders give and its encoders take, by the planar format of the same samples: chroma interleaved, the
#: samples of 10 bit in the high bits of 16.
SEMI_PLANAR = {"yuv420p": "nv12", "yuv420p10le": "p010le"}
#: libav's decoders that hand over to a GPU's, of formats whose samples are the same whoever decodes them. (PyAV takes
#: another one for AV1.)
EXACT = ("h264", "hevc", "vp8", "vp9")
#: Semi-planar formats and the GPU's own, of which software decoders give none.
_OF_HARDWARE = frozenset({"cuda", "nv12", "p010le", "p012le", "p016le", "nv16", "p210le", "p216le"})
#: In the context that PyTorch has made current. Asked for as "the primary one" it is refused, since PyTorch has made
#: it with other flags.
_IN_THIS_CONTEXT = {"primary_ctx": "0", "current_ctx": "1"}

#: Within, the GPU is PyTorch's current one and its context the calling thread's.
Inside = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Hardware:
    """A decoder on NVIDIA's GPU with the number `device`.

    `planes` makes the planes of a `Frame` from a surface's (which have ``__dlpack__``; luma (h, w), chroma
    (h / 2, w / 2, 2)) and its bit depth, in the GPU's memory; None: pictures are brought to the host. With it the decoder is
    opened `inside` the context that its planes belong to.

    A GPU does not tell that the data of a picture are harmed.
    """

    device: int = 0
    planes: Callable[[Sequence[Any], int], tuple[np.ndarray, ...]] | None = None
    inside: Inside = nullcontext

    def accel(self, *, stays: bool) -> HWAccel:
        """What PyAV opens a file with; streams that the GPU does not decode are decoded in software.

        `stays`: pictures are to stay in the GPU's memory.
        """
        if not stays:
            # In a context of libav's own, whose copies do not wait for what PyTorch has in hand.
            return HWAccel("cuda", device=str(self.device), allow_software_fallback=True)
        return HWAccel(
            "cuda",
            device=str(self.device),
            allow_software_fallback=True,
            options=dict(_IN_THIS_CONTEXT),
            is_hw_owned=True,
        )


@cache
def why_not(device: int) -> str | None:
    """Why the decoders of a GPU cannot be had, in a few words; None where they can be tried. Asked once a process."""
    if "cuda" not in hwdevices_available():
        return "this build of PyAV has no CUDA"
    try:
        Hardware(device).accel(stays=False).create(Codec("h264", "r"))
    except (av.error.FFmpegError, NotImplementedError) as error:
        if any(map(os.path.exists, NVIDIA_DEVICES)):
            return f"NVIDIA's driver refuses it ({describe_av_error(error)})"
        return "this machine shows no NVIDIA GPU"
    return None


def samples_of(frame: VideoFrame) -> str:
    """The pixel format of a picture's samples, wherever they lie."""
    kept = frame.sw_format
    return frame.format.name if kept is None else kept.name


def by_hardware(frame: VideoFrame) -> bool:
    """Whether a picture has come from a GPU's decoder."""
    return frame.format.name in _OF_HARDWARE


class Surfaces:
    """Pictures for an encoder on the GPU with the number `device`, made of planes that lie there already.

    The encoder is opened with the first of them, whose memory tells it where it is to work. Planes that lie on the host
    make pictures of the same layout there.
    """

    def __init__(self, device: int | None, inside: Inside = nullcontext) -> None:
        self._device, self._inside = device, inside
        self._context: CudaContext | None = None

    def format_for(self, pix_fmt: str) -> tuple[str, str | None]:
        """An encoder's pixel format for surfaces of a planar one, and that of their samples where it is another."""
        samples = SEMI_PLANAR[pix_fmt]
        return (samples, None) if self._device is None else ("cuda", samples)

    def picture(self, planes: Sequence[Any], pix_fmt: str) -> VideoFrame:
        """A picture of two planes (h, w) and (h / 2, w), without a copy; they are kept as long as it is."""
        samples = SEMI_PLANAR[pix_fmt]
        if self._device is None:
            return VideoFrame.from_dlpack(tuple(planes), format=samples)
        if self._context is None:
            self._context = CudaContext(self._device, primary_ctx=False, current_ctx=True)
        # PyTorch hands out what lies on its current GPU only, and libav takes the context of that.
        with self._inside():
            return VideoFrame.from_dlpack(tuple(planes), format=samples, cuda_context=self._context)
