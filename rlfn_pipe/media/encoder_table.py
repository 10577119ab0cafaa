"""What is known of containers and encoders: one entry for each that `--codec` and an output's name can mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Output file extension to libavformat's muxer.
MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
    ".nut": "nut",
}

#: Containers that hold a display matrix that players honour.
ROTATING_MUXERS = frozenset({"mp4", "mov", "matroska"})


#: SVT-AV1 waits for itself for ever where a picture is several superblocks long and less than four blocks of 8 high.
LONG = 64


@dataclass(frozen=True, slots=True)
class Encoder:
    """What is known of one encoder.

    `muxers`: containers it goes into; `quality`: name of its constant-quality option ("" for
    none) and `crf`: our default for it; `best`, `worst`: range of that option; `even`: sides
    must be even where chroma is subsampled; `minimum`: least side, and `minimum_long` where the other one is
    above `LONG` pixels; `maximum`: greatest side (0: any); `preset`: name of its preset
    option and `presets` its values; `options`: what is set unless asked otherwise; `refuses`: pixel formats that it claims
    and does not take; `packed`: formats that it takes in the place of planar ones; `parameters`: its option
    that holds parameters of its own, which the person's are added to; `tags_colour`, `tags_range`: whether its bitstream
    can say matrix and range; `limited`: its decoders take every picture for limited range; `alpha_beside`: alpha lies
    beside its pictures, where only Matroska and WebM keep it.
    """

    name: str
    muxers: frozenset[str]
    quality: str = ""
    crf: float = 0
    best: float = 0
    worst: float = 63
    even: bool = True
    minimum: int = 2
    minimum_long: int = 0
    maximum: int = 0
    preset: str = ""
    presets: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    packed: frozenset[str] = frozenset()
    parameters: str = ""
    tags_colour: bool = True
    tags_range: bool = True
    limited: bool = False
    alpha_beside: bool = False

    def least_side(self, picture: tuple[int, int]) -> int:
        """The least side that a picture (width, height) must have, by its longer one."""
        return max(self.minimum, self.minimum_long if max(picture) > LONG else 0)

    def takes(self, picture: tuple[int, int]) -> bool:
        """Whether it takes a picture of this (width, height)."""
        return min(picture) >= self.least_side(picture) and max(picture) <= (self.maximum or max(picture))


def _in(*muxers: str) -> frozenset[str]:
    return frozenset(muxers)


_MAIN = ("mp4", "mov", "matroska", "nut")
_OPEN = ("mp4", "matroska", "nut", "webm")  # QuickTime knows no VP9 and no AV1

_X26X = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)

#: The encoders that `--codec` accepts, by name. Hardware ones exist where the driver does.
ENCODERS: dict[str, Encoder] = {
    encoder.name: encoder
    for encoder in (
        Encoder(
            "libx264", _in(*_MAIN, "mpegts", "avi"), "crf", 18, 0, 51, minimum=1, maximum=16384, preset="preset",
            presets=_X26X, parameters="x264-params",
        ),
        # Below 64 pixels libx265 4.1 writes beyond its buffers and takes the process with it.
        Encoder(
            "libx265", _in(*_MAIN, "mpegts"), "crf", 20, 0, 51, minimum=64, preset="preset", presets=_X26X,
            refuses=frozenset({"yuva420p", "yuva420p10le"}), parameters="x265-params",
        ),
        Encoder(
            "libsvtav1", _in(*_OPEN), "crf", 28, 1, 63, even=False, minimum=4, minimum_long=25, maximum=16384,
            preset="preset", presets=tuple(map(str, range(-1, 14))), options={"preset": "8"}, parameters="svtav1-params",
        ),
        Encoder(
            "libvpx-vp9", _in(*_OPEN), "crf", 30, 0, 63, even=False, minimum=1, alpha_beside=True, preset="deadline",
            presets=("realtime", "good", "best"), options={"b": "0", "row-mt": "1", "cpu-used": "4"},
            refuses=frozenset({"yuva422p", "yuva444p", "gbrap"}),
        ),
        Encoder(
            "ffv1", _in("matroska", "nut", "avi", "mp4"), even=False, minimum=1,
            options={"level": "3", "g": "1", "slicecrc": "1"}, tags_colour=False, tags_range=False,
            packed=frozenset({"bgr0", "bgra"}),
        ),
        Encoder(
            "prores_ks", _in("mov", "matroska"), even=False, minimum=1, tags_range=False, limited=True,
        ),
        Encoder(
            "mpeg4", _in(*_MAIN, "avi", "mpegts"), "qscale", 3, 1, 31, even=False, minimum=1, maximum=8191,
            tags_colour=False, tags_range=False,
        ),
        Encoder(
            "mpeg2video", _in("mpegts", "matroska", "mp4", "mov", "nut"), "qscale", 2, 1, 31, even=False, minimum=1,
            tags_range=False, limited=True, options={"g": "15"},
        ),
        # What NVIDIA's encoders claim is the same for all of them. 10 bit is for HEVC and AV1, all but 4:2:0 not for AV1.
        Encoder(
            "h264_nvenc", _in(*_MAIN, "mpegts", "avi"), "cq", 19, 0, 51, minimum=146, preset="preset",
            refuses=frozenset({"yuv444p16le", "gbrp16le"}),
        ),
        Encoder(
            "hevc_nvenc", _in(*_MAIN, "mpegts"), "cq", 21, 0, 51, minimum=130, preset="preset",
            packed=frozenset({"p010le"}),
        ),
        Encoder(
            "av1_nvenc", _in(*_OPEN), "cq", 28, 0, 63, minimum=192, preset="preset", packed=frozenset({"p010le"}),
            refuses=frozenset({"yuv444p", "yuv444p16le", "gbrp", "gbrp16le"}),
        ),
    )
}  # fmt: skip
