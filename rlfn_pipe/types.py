"""Plain, frozen data that the stages hand to one another. No torch, no PyAV here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

Subsampling = Literal["420", "422", "444", "440", "grey", "rgb"]
ChromaLocation = Literal["left", "centre", "topleft"]

#: ITU-T H.273 matrix codes that the conversions know.
MATRIX_RGB, MATRIX_BT709, MATRIX_UNSPECIFIED = 0, 1, 2
MATRIX_FCC, MATRIX_BT470BG, MATRIX_SMPTE170M, MATRIX_SMPTE240M = 4, 5, 6, 7
MATRIX_BT2020_NCL = 9
#: Those of YUV and grey.
SUPPORTED_MATRICES = frozenset(
    {
        MATRIX_BT709,
        MATRIX_FCC,
        MATRIX_BT470BG,
        MATRIX_SMPTE170M,
        MATRIX_SMPTE240M,
        MATRIX_BT2020_NCL,
    }
)

#: What people call the H.273 codes that files in the wild carry; the others are shown as numbers.
MATRIX_NAMES = {0: "RGB", 1: "BT.709", 4: "FCC", 5: "BT.470BG", 6: "BT.601", 7: "SMPTE 240M", 8: "YCgCo"}
MATRIX_NAMES |= {9: "BT.2020", 10: "BT.2020 constant luminance", 12: "derived", 14: "ICtCp"}
TRANSFER_NAMES = {1: "BT.709", 4: "gamma 2.2", 5: "gamma 2.8", 6: "BT.601", 7: "SMPTE 240M", 8: "linear"}
TRANSFER_NAMES |= {13: "sRGB", 14: "BT.2020 10 bit", 15: "BT.2020 12 bit", 16: "PQ", 18: "HLG"}
PRIMARIES_NAMES = {1: "BT.709", 4: "BT.470M", 5: "BT.470BG", 6: "SMPTE 170M", 7: "SMPTE 240M", 8: "film"}
PRIMARIES_NAMES |= {9: "BT.2020", 10: "XYZ", 11: "DCI-P3", 12: "Display P3"}

RANGE_UNSPECIFIED, RANGE_LIMITED, RANGE_FULL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class ColourInfo:
    """How code values are to be read as colour.

    `matrix`, `transfer`, `primaries` are ITU-T H.273 codes (2: unspecified); `range` is
    0 unspecified, 1 limited, 2 full; `bit_depth` counts significant bits of a sample
    (8: uint8 planes, 9..16: uint16 planes); `alpha` says that the last plane is alpha
    (always full range).
    """

    matrix: int = MATRIX_UNSPECIFIED
    transfer: int = 2
    primaries: int = 2
    range: int = RANGE_UNSPECIFIED
    chroma_location: ChromaLocation = "left"
    bit_depth: int = 8
    subsampling: Subsampling = "420"
    alpha: bool = False

    def resolved(self, height: int) -> ColourInfo:
        """Fill in what is unspecified by the rule that players use.

        BT.601 below 720 lines of the (stored) picture, else BT.709; limited range for YUV
        and grey, full range for RGB. `height` is the number of lines the rule is applied to.
        """
        if self.subsampling == "rgb":
            return replace(self, matrix=MATRIX_RGB, range=self.range or RANGE_FULL)
        matrix = self.matrix
        if matrix in (MATRIX_UNSPECIFIED, MATRIX_RGB, 3):
            matrix = MATRIX_SMPTE170M if height < 720 else MATRIX_BT709
        return replace(self, matrix=matrix, range=self.range or RANGE_LIMITED)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture as planes, and when it is shown.

    `planes` are 2-D arrays, uint8 for 8 bit, else uint16 (values 0 .. 2**bit_depth - 1):
    (Y, U, V), (R, G, B) or (Y,), then A where `colour.alpha`. Chroma planes have the size
    that the subsampling gives, odd sizes rounded up. Planes may be strided views. Where `--hwaccel` keeps
    frames in a GPU's memory they are tensors there (above 8 bit the bits of uint16 as int16), and semi-planar ones
    where a `Target` asks for those.
    `colour` is resolved (nothing unspecified in matrix and range). `pts` counts in
    `time_base` seconds; both None for still images. `index` counts shown frames from 0.
    `concealed` marks a frame that did not decode and repeats a neighbour.
    """

    planes: tuple[np.ndarray, ...]
    colour: ColourInfo
    index: int = 0
    pts: int | None = None
    time_base: Fraction | None = None
    concealed: bool = False

    @property
    def width(self) -> int:
        return self.planes[0].shape[1]

    @property
    def height(self) -> int:
        return self.planes[0].shape[0]


@dataclass(frozen=True, slots=True)
class Target:
    """What a frame is to become: size in pixels and (resolved) colour layout.

    `surface`: its planes are to stay where the engine has them, as an encoder there takes them: Y, then U and V in
    turns (h / 2, w), rows apart by a multiple of 256 bytes, all in one piece of memory; samples above 8 bit in the high
    bits of uint16. Only of 4:2:0 without alpha, with even sides.
    """

    width: int
    height: int
    colour: ColourInfo
    surface: bool = False


class AnyDevice(Protocol):
    """A `torch.device`, or `rlfn_pipe.engine.device.Device`, which stands for one where PyTorch is not loaded."""

    @property
    def type(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of a network, read from its state dict and the weights index.

    `input_range` is the value that full white has at the network's input and output
    (1.0 or 255.0). `mid_channels` is the width inside a block. `sha256` is of the file.
    """

    name: str
    scale: int
    channels: int
    mid_channels: int
    blocks: int
    esa_channels: int = 16
    input_range: float = 1.0
    architecture: str = "rlfn"
    parameters: int = 0
    sha256: str = ""
    licence: str = ""
    path: Path | None = None
    psnr: dict[str, float] = field(default_factory=dict)

    #: Smallest side that ESA's strided convolution and pooling accept.
    minimum_side: int = 15


# ---------------------------------------------------------------------- media


@dataclass(frozen=True, slots=True)
class VideoStreamInfo:
    """The video stream that will be upscaled, as its container and codec describe it.

    `colour` holds the tags as found (unspecified stays unspecified). `rotation` is the
    display matrix' angle in degrees, counter-clockwise, a multiple of 90 where it is
    applied. `frames` counts the packets that are shown. `average_rate` is the nominal frame
    rate; `constant_rate` says that every frame keeps to it.
    """

    index: int
    codec: str
    width: int
    height: int
    pix_fmt: str
    time_base: Fraction
    average_rate: Fraction | None
    duration: Fraction | None
    frames: int
    sample_aspect_ratio: Fraction | None
    colour: ColourInfo
    rotation: int = 0
    interlaced: bool = False
    profile: str | None = None
    constant_rate: bool = True


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """Any other stream: audio, subtitle, attachment, data, further video."""

    index: int
    kind: str
    codec: str
    language: str | None = None
    title: str | None = None
    dispositions: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What is in a media file. `duration` in seconds; `start` of the earliest stream in seconds."""

    path: Path
    container: str
    duration: Fraction | None
    start: Fraction | None
    size_bytes: int
    video: VideoStreamInfo | None
    streams: tuple[StreamInfo, ...] = ()
    chapters: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """What is in an image file. `beside`: metadata by name ("EXIF", ...); `icc`: what its profile is for."""

    path: Path
    format: str
    width: int
    height: int
    size_bytes: int
    colour: ColourInfo
    icc: str | None = None
    resolution: tuple[float, float] | None = None
    beside: tuple[str, ...] = ()


# --------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Started:
    """An item begins. `frames` is the expected number of frames (None: unknown)."""

    input: str
    output: str
    frames: int | None
    description: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Work on an item goes on. `limit` names the stage that limits: decode, compute or encode.

    `fps` counts output frames per second of wall time; `bytes_written` is the output so far.
    """

    input: str
    frames_done: int
    frames_total: int | None
    fps: float
    eta_seconds: float | None
    bytes_written: int
    limit: str | None
    items_done: int = 0
    items_total: int = 1


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know; the work goes on. `input`: the item that it is about, or INPUT as a whole."""

    input: str
    message: str


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds that the stages of a pipeline took; two of them add up.

    `decode`, `compute`, `encode`: wall seconds that each was busy; `..._cpu`: CPU seconds of its own
    thread (threads of libraries not counted); `waited_in`, `waited_out`: seconds that compute waited
    for frames to come and for room to put them.
    """

    decode: float = 0.0
    compute: float = 0.0
    encode: float = 0.0
    decode_cpu: float = 0.0
    compute_cpu: float = 0.0
    encode_cpu: float = 0.0
    waited_in: float = 0.0
    waited_out: float = 0.0

    def __add__(self, other: StageTimes) -> StageTimes:
        return StageTimes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def busy(self) -> dict[str, float]:
        """Busy seconds by stage."""
        return {"decode": self.decode, "compute": self.compute, "encode": self.encode}

    @property
    def limit(self) -> str | None:
        """The stage that limits the whole: the one that compute waits for, else compute; None without any work."""
        total = self.compute + self.waited_in + self.waited_out
        if total <= 0:
            return None
        if max(self.waited_in, self.waited_out) < 0.1 * total:
            return "compute"
        return "decode" if self.waited_in >= self.waited_out else "encode"


@dataclass(frozen=True, slots=True)
class Finished:
    """An item is whole and renamed into place. `stages`: what its pipeline spent its time on.

    `reuse`: the engine's counts of what was computed and what was not (`engine.reuse.Statistics`, by
    field); empty where they were not taken.
    """

    input: str
    output: str
    frames: int
    concealed: int
    seconds: float
    bytes_written: int
    width: int
    height: int
    notes: tuple[str, ...] = ()
    stages: StageTimes | None = None
    reuse: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """An item failed; nothing was left under its output name."""

    input: str
    message: str


Event = Started | Progress | Warned | Finished | Failed
