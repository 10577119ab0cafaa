"""Every option of `upscale`, once: name, default, range, help.

Command-line parameters, preset keys, the Python API and the docs are made from the fields of
`UpscaleOptions`. A value may come as text (command line), as a TOML value (preset) or as the
Python value itself (API); `parse_option` turns all three into the same typed value or raises
`UsageError` with one sentence that names the allowed range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from rlfn_pipe import values
from rlfn_pipe.errors import UsageError
from rlfn_pipe.values import MAXIMUM_SIDE, Parser

#: Upscaling factor when neither `scale` nor a size is asked for.
DEFAULT_SCALE = 4.0
MINIMUM_SCALE, MAXIMUM_SCALE = 1.0, 8.0
MINIMUM_TILE, MAXIMUM_TILE = 32, 4096


def _key(name: str) -> str:
    return name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """What is known of one option besides its type and default.

    `name` is the field's name, `key` the same with hyphens (preset key, and after `--` the long
    option), `short` a one-letter option or "", `negative` the name of a flag's opposite or "".
    `default_text` is how the default reads in the help. `in_preset` says whether preset files may
    hold it. `repeat` options are given many times. `flag` options take no value. `shorthands` are
    flags of the command line (with hyphens) that stand for one value each. `about` is what alone the option
    has an effect on ("": on everything), `VIDEOS` or `QUALITY_IMAGES`.
    """

    name: str
    default: Any
    help: str
    panel: str
    parse: Parser
    metavar: str = ""
    short: str = ""
    negative: str = ""
    default_text: str = ""
    flag: bool = False
    repeat: bool = False
    in_preset: bool = True
    about: str = ""
    shorthands: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return _key(self.name)

    @property
    def long(self) -> str:
        return f"--{self.key}"


def _option(default: Any, help: str, panel: str, parse: Parser, **more: Any) -> Any:
    """A dataclass field whose metadata becomes an `OptionInfo`."""
    return field(default=default, metadata={"option": {"help": help, "panel": panel, "parse": parse, **more}})


VIDEOS, QUALITY_IMAGES = "videos", "jpg, webp or avif"
SIZE, MODEL, COMPUTE = "Size", "Model", "Compute"
OUTPUT, SELECTION, STREAMS, JOBS, MESSAGES = "Output", "Selection", "Streams", "Jobs", "Messages"
#: Sections of the help, in their order.
PANELS = (SIZE, MODEL, COMPUTE, OUTPUT, SELECTION, STREAMS, JOBS, MESSAGES)


#: Pairs of options that cannot be given together.
EXCLUSIVE = (
    ("scale", "height"),
    ("scale", "width"),
    ("scale", "size"),
    ("height", "size"),
    ("width", "size"),
    ("sample", "start"),
    ("sample", "end"),
    ("sample", "frames"),
    ("quiet", "verbose"),
    ("overwrite", "skip_existing"),
)


@dataclass(frozen=True)
class UpscaleOptions:
    """All options of one run of `upscale`, checked.

    Constructing it accepts text as well as typed values for every field and raises `UsageError`
    for a value outside its range or for options that exclude one another. None stands for "auto"
    (`tile`, `overlap`, `batch`, `crf`, `quality`, `threads`, `jobs`) or "not asked for".
    """

    scale: float | None = _option(
        None,
        "How many times larger: 2, 3 and 4 are native, anything from 1 to 8 works.",
        SIZE,
        values.number(MINIMUM_SCALE, MAXIMUM_SCALE),
        short="s",
        metavar="FACTOR",
        default_text="4",
    )
    height: int | None = _option(
        None,
        "Output height in pixels, after rotation; the width follows from the aspect.",
        SIZE,
        values.integer(1, MAXIMUM_SIDE),
        metavar="N",
    )
    width: int | None = _option(
        None,
        "Output width in pixels, after rotation; the height follows from the aspect.",
        SIZE,
        values.integer(1, MAXIMUM_SIDE),
        metavar="N",
    )
    size: tuple[int, int] | None = _option(
        None,
        "Output width and height exactly, such as 1920x1080; pixels keep their aspect.",
        SIZE,
        values.size,
        metavar="WxH",
    )

    model: str = _option(
        "rlfn-s",
        "Network: a name from `rlfn-pipe weights list`, or a .safetensors or .pth file.",
        MODEL,
        values.matching(r"[^\0]+", "the name of a network or of a weights file", lower=False),
        short="m",
        metavar="NAME|FILE",
    )
    tta: bool = _option(
        False,
        "Average over 8 flips and turns: a little better, 8 times slower.",
        MODEL,
        values.flag,
        flag=True,
    )

    device: str = _option(
        "auto",
        "Where to compute: auto, cpu, mps, cuda, cuda:N, or cuda:N,cuda:M for workers on several.",
        COMPUTE,
        values.device,
        metavar="DEVICE",
    )
    precision: str = _option(
        "auto",
        "Number format of the network: auto, fp32, bf16 or fp16.",
        COMPUTE,
        values.choice("auto", "fp32", "bf16", "fp16"),
        metavar="FORMAT",
    )
    tile: int | None = _option(
        None,
        f"Tile side in input pixels: auto, 0 for whole frames, or {MINIMUM_TILE} to {MAXIMUM_TILE}.",
        COMPUTE,
        values.integer(MINIMUM_TILE, MAXIMUM_TILE, auto="auto", extra={0: "whole frames"}),
        metavar="N",
        default_text="auto",
    )
    overlap: int | None = _option(
        None,
        "Input pixels that neighbouring tiles share: auto or 0 to 512.",
        COMPUTE,
        values.integer(0, 512, auto="auto"),
        metavar="N",
        default_text="auto",
    )
    batch: int | None = _option(
        None,
        "Tiles computed at once: auto or 1 to 1024.",
        COMPUTE,
        values.integer(1, 1024, auto="auto"),
        metavar="N",
        default_text="auto",
    )
    compile: str = _option(
        "auto",
        "Compile the network first: auto, on or off.",
        COMPUTE,
        values.choice("auto", "on", "off"),
        metavar="auto|on|off",
    )
    reuse: str = _option(
        "exact",
        "Keep results of unchanged parts: exact, near (held drawings with coding noise) or off.",
        COMPUTE,
        values.choice("exact", "near", "off"),
        metavar="exact|near|off",
        shorthands={"no-reuse": "off"},
    )
    reuse_tolerance: float = _option(
        2.0,
        "What `--reuse near` takes for unchanged: code values of 8 bit, 0 to 16.",
        COMPUTE,
        values.number(0, 16),
        metavar="N",
    )
    hwaccel: str = _option(
        "none",
        "Decode on a GPU (with --reuse off frames stay there, results for its encoders do): none or cuda; unmeasured.",
        COMPUTE,
        values.choice("none", "cuda"),
        metavar="none|cuda",
        about=VIDEOS,
    )
    threads: int | None = _option(
        None,
        "CPU threads in all: auto (every core) or 1 to 1024.",
        COMPUTE,
        values.integer(1, 1024, auto="auto"),
        metavar="N",
        default_text="auto",
    )
    nice: int = _option(
        0,
        "Lower the priority by 0 to 19, so that other work comes first.",
        COMPUTE,
        values.integer(0, 19),
        metavar="N",
    )

    codec: str = _option(
        "auto",
        "Video encoder: auto, libx264, libx265, libsvtav1, libvpx-vp9, ffv1, prores_ks ...",
        OUTPUT,
        values.matching(r"[a-z0-9_-]+", "auto or the name of an encoder, such as libx264"),
        metavar="NAME",
        about=VIDEOS,
    )
    crf: float | None = _option(
        None,
        "Constant quality, lower is better: auto (per codec) or 0 to 63.",
        OUTPUT,
        values.number(0, 63, auto="auto"),
        metavar="N",
        default_text="auto",
        about=VIDEOS,
    )
    encoder_preset: str | None = _option(
        None,
        "The encoder's own preset, such as slow, or 6 for libsvtav1.",
        OUTPUT,
        values.matching(r"[a-z0-9_-]+", "the name or number of an encoder's preset"),
        metavar="NAME",
        about=VIDEOS,
    )
    pix_fmt: str = _option(
        "auto",
        "Pixel format of the output video, such as yuv420p10le; auto keeps the input's.",
        OUTPUT,
        values.matching(r"[a-z0-9_]+", "auto or the name of a pixel format, such as yuv420p10le"),
        metavar="NAME",
        about=VIDEOS,
    )
    encoder_option: tuple[tuple[str, str], ...] = _option(
        (),
        "An option handed to the encoder as it is; may be given many times.",
        OUTPUT,
        values.encoder_pairs,
        metavar="K=V",
        repeat=True,
        about=VIDEOS,
    )
    format: str = _option(
        "same",
        "Image format in folders: png, jpg, webp, tiff, bmp, avif or same.",
        OUTPUT,
        values.choice("same", "png", "jpg", "webp", "tiff", "bmp", "avif"),
        metavar="NAME",
    )
    quality: int | None = _option(
        None,
        "Quality of jpg, webp and avif: auto (per format) or 1 to 100.",
        OUTPUT,
        values.integer(1, 100, auto="auto"),
        metavar="N",
        default_text="auto",
        about=QUALITY_IMAGES,
    )

    start: Fraction | None = _option(
        None,
        "Begin here: seconds or HH:MM:SS.mmm.",
        SELECTION,
        values.time(),
        metavar="TIME",
        about=VIDEOS,
    )
    end: Fraction | None = _option(
        None,
        "Stop before this time: seconds or HH:MM:SS.mmm.",
        SELECTION,
        values.time(positive=True),
        metavar="TIME",
        about=VIDEOS,
    )
    frames: int | None = _option(
        None,
        "Stop after this many frames.",
        SELECTION,
        values.integer(1, 10**9),
        metavar="N",
        about=VIDEOS,
    )
    sample: Fraction | None = _option(
        None,
        "Only a piece of this many seconds from the middle, to try settings.",
        SELECTION,
        values.time(positive=True),
        metavar="SECONDS",
        about=VIDEOS,
    )

    audio: str = _option(
        "copy",
        "Audio tracks: copy or none.",
        STREAMS,
        values.choice("copy", "none"),
        metavar="copy|none",
        about=VIDEOS,
    )
    subtitles: str = _option(
        "copy",
        "Subtitle tracks: copy or none.",
        STREAMS,
        values.choice("copy", "none"),
        metavar="copy|none",
        about=VIDEOS,
    )
    deinterlace: str = _option(
        "auto",
        "Deinterlace first: auto (when the video says it is interlaced), on or off.",
        STREAMS,
        values.choice("auto", "on", "off"),
        metavar="auto|on|off",
        about=VIDEOS,
    )
    rotate: str = _option(
        "keep",
        "Rotation: keep it as a tag where the container can, or bake it into the pixels.",
        STREAMS,
        values.choice("keep", "bake"),
        metavar="keep|bake",
    )

    preset: str | None = _option(
        None,
        "A named set of options from `rlfn-pipe presets list`, or a .toml file.",
        JOBS,
        values.matching(r"[^\0]+", "the name of a preset or of a preset file", lower=False),
        short="p",
        metavar="NAME|FILE",
        in_preset=False,
    )
    jobs: int | None = _option(
        None,
        "Worker processes for video, threads that read and write images: auto or 1 to 256.",
        JOBS,
        values.integer(1, 256, auto="auto"),
        short="j",
        metavar="N",
        default_text="auto",
    )
    recursive: bool = _option(
        True,
        "Take the folders inside a folder as well.",
        JOBS,
        values.flag,
        flag=True,
        negative="no-recursive",
    )
    skip_existing: bool = _option(
        False, "Pass over inputs whose output is there already.", JOBS, values.flag, flag=True
    )
    overwrite: bool = _option(
        False, "Replace outputs that are there already.", JOBS, values.flag, flag=True, short="y"
    )
    resume: bool = _option(
        True,
        "Keep finished segments of an interrupted video and go on from them next time.",
        JOBS,
        values.flag,
        flag=True,
        negative="no-resume",
    )
    segment: Fraction | None = _option(
        None,
        "Seconds of video in a segment, the unit that is kept or retried: auto or more than 0.",
        JOBS,
        values.time(positive=True, auto="auto"),
        metavar="SECONDS",
        default_text="auto",
        about=VIDEOS,
    )
    work_dir: Path | None = _option(
        None,
        "Folder for unfinished work instead of the one of the output.",
        JOBS,
        values.path,
        metavar="DIR",
        in_preset=False,
    )
    stall_timeout: float = _option(
        600.0,
        "Seconds without progress after which a worker is replaced: 1 to 86400.",
        JOBS,
        values.number(1, 86_400),
        metavar="SECONDS",
    )
    on_error: str = _option(
        "conceal",
        "A frame that cannot be decoded: conceal it by its neighbour, or fail.",
        JOBS,
        values.choice("conceal", "fail"),
        metavar="conceal|fail",
    )
    dry_run: bool = _option(False, "Say what would be done, and do nothing.", JOBS, values.flag, flag=True)

    json: bool = _option(
        False, "Print one JSON object a line on standard output.", MESSAGES, values.flag, flag=True
    )
    quiet: bool = _option(False, "Say errors only.", MESSAGES, values.flag, flag=True, short="q")
    verbose: bool = _option(False, "Say more.", MESSAGES, values.flag, flag=True, short="v")
    log_file: Path | None = _option(
        None,
        "Write messages with their times to this file, too.",
        MESSAGES,
        values.path,
        metavar="FILE",
        in_preset=False,
    )

    def __post_init__(self) -> None:
        for info in option_infos():
            value = getattr(self, info.name)
            object.__setattr__(self, info.name, parse_option(info, value))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse options that contradict one another."""
        for one, other in EXCLUSIVE:
            if getattr(self, one) not in (None, False) and getattr(self, other) not in (None, False):
                raise UsageError(f"--{_key(one)} and --{_key(other)} exclude one another; give one of them")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise UsageError(f"--end {float(self.end):g} must lie after --start {float(self.start):g}")
        if self.tile and self.overlap is not None and self.tile <= 2 * self.overlap:
            raise UsageError(
                f"--overlap {self.overlap} leaves nothing of a tile of {self.tile}; "
                f"it must be less than half of --tile, at most {(self.tile - 1) // 2}"
            )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that `device` names, one or several, in its order."""
        return tuple(self.device.split(","))

    @property
    def asks_size(self) -> bool:
        """True when the output size is given in pixels rather than as a factor."""
        return self.height is not None or self.width is not None or self.size is not None

    @property
    def factor(self) -> float | None:
        """The upscaling factor: `scale`, 4 when nothing is asked, None when a size in pixels is."""
        if self.asks_size:
            return None
        return DEFAULT_SCALE if self.scale is None else self.scale

    @property
    def encoder_options(self) -> dict[str, str]:
        """`encoder_option` as a dictionary."""
        return dict(self.encoder_option)

    def to_dict(self) -> dict[str, Any]:
        """All options as plain JSON values; `UpscaleOptions(**d)` gives an equal object."""
        return {name: _plain(getattr(self, name)) for name in option_names()}


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        # Terminating decimals read better, but only the ratio is exact for all.
        return str(value) if value.denominator != 1 else int(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


# -------------------------------------------------------------- the registry


def _collect() -> dict[str, OptionInfo]:
    return {
        f.name: OptionInfo(name=f.name, default=f.default, **cast(dict[str, Any], f.metadata["option"]))
        for f in fields(UpscaleOptions)
    }


_INFOS: Mapping[str, OptionInfo] = _collect()


def option_infos() -> tuple[OptionInfo, ...]:
    """All options in the order in which the help shows them."""
    return tuple(_INFOS.values())


def option_names() -> tuple[str, ...]:
    return tuple(_INFOS)


def option_info(name: str) -> OptionInfo:
    """The option of that name or key (`pix_fmt` or `pix-fmt`); KeyError when there is none."""
    return _INFOS[name.replace("-", "_")]


def parse_option(option: str | OptionInfo, value: Any, where: str = "") -> Any:
    """The typed value of an option from text, TOML or Python.

    None passes where the option's default is None. `where` names the source (a preset file) in
    the message; without it the message speaks of the long option. Raises `UsageError`.
    """
    info = option_info(option) if isinstance(option, str) else option
    if value is None and info.default is None:
        return None
    try:
        return info.parse(value)
    except values.Invalid as error:
        name = f"{where}: {info.key}" if where else info.long
        shown = _shown(value if error.item is None else error.item)
        raise UsageError(f"{name} must be {error}, not {shown}") from None


def _shown(value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # Python refuses to write out numbers of thousands of digits
        return "a number of that size"
    text = text if len(text) <= 60 else text[:57] + "..."
    return repr(text) if not text.strip() or not text.isprintable() else text
