"""Video encoders set up from an `EncodePlan`: the same for a segment's encoder and for a file's header."""

from __future__ import annotations

import os
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, cast

import av.error
from av.codec.context import CodecContext, Flags
from av.format import ContainerFormat
from av.format import Flags as FormatFlags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from rlfn_pipe.errors import UsageError
from rlfn_pipe.media.colour import frame_from_planes, planar_format, reformatted
from rlfn_pipe.media.encoders import EncodePlan
from rlfn_pipe.media.hardware import NVIDIA_DEVICES, Surfaces
from rlfn_pipe.media.opening import describe_av_error
from rlfn_pipe.types import Frame

# SVT-AV1 writes its settings to standard error unless told otherwise before it is loaded.
os.environ.setdefault("SVT_LOG", "1")

_GLOBAL_HEADER: int = cast(Any, FormatFlags.global_header).value


#: x264's AVX-512 code for macroblock trees reads what nobody wrote where rows of macroblocks end
#: within a register (below 256 pixels, and 320 wide, say): the same frames then give other bits each
#: time, and a resumed film would not be the uninterrupted one. Its AVX2 code does not.
_X264_WITHOUT_AVX512 = "asm=avx2,fma3,bmi1,bmi2,lzcnt"


def encoder_options(plan: EncodePlan) -> dict[str, str]:
    """The plan's options for the encoder, with what this machine needs to give equal bits for equal frames."""
    options = dict(plan.options)
    given = options.get("x264-params", "")
    if plan.codec == "libx264" and _has_avx512() and "asm=" not in given:
        options["x264-params"] = ":".join(filter(None, (_X264_WITHOUT_AVX512, given)))
    return options


@cache
def _has_avx512() -> bool:
    """Whether this processor has AVX-512, as far as Linux tells (elsewhere: no)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return {"avx512f", "avx2", "fma", "bmi1", "bmi2", "abm"} <= set(flags)


def encoder_rate(codec: str, rate: Fraction) -> Fraction:
    """The rate as the encoder can hold it (MPEG-4 part 2 counts in 16 bits, MPEG-2 knows a few)."""
    if codec == "mpeg4" and (rate.numerator > 65535 or rate.denominator > 65535):
        return rate.limit_denominator(max(1, 65535 // max(1, round(rate))))
    if codec == "mpeg2video":
        whole = [Fraction(n) for n in (24, 25, 30, 50, 60)]
        known = [*whole, Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)]
        return min(known, key=lambda k: abs(k - rate))
    return rate


def configure(
    context: VideoCodecContext, plan: EncodePlan, rate: Fraction, ratio: Fraction | None, threads: int
) -> None:
    """Set everything but the encoder's options. `rate`: `encoder_rate`'s; `ratio`: of a sample's sides."""
    context.width, context.height, context.pix_fmt = plan.width, plan.height, plan.pix_fmt
    context.time_base = 1 / rate
    context.thread_count = threads
    context.thread_type = "AUTO"
    context.colorspace = plan.tags.matrix
    context.color_trc = plan.tags.transfer
    context.color_primaries = plan.tags.primaries
    context.color_range = plan.tags.range
    if ratio:
        context.sample_aspect_ratio = ratio
    if plan.codec in ("libx265", "hevc_nvenc") and plan.muxer in ("mp4", "mov"):
        context.codec_tag = "hvc1"  # Apple's players want it


def open_encoder(
    plan: EncodePlan,
    rate: Fraction,
    *,
    name: str,
    sample_aspect_ratio: Fraction | None,
    threads: int,
    surfaces: Surfaces | None = None,
) -> VideoCodecContext:
    """An opened encoder that stands alone, its headers where the plan's container wants them.

    With `surfaces` it gets pictures of those, and is opened by the first of them, which knows its memory.

    Raises:
        UsageError: the encoder is not there or refuses its settings.
    """
    rate = encoder_rate(plan.codec, rate)
    try:
        context = CodecContext.create(plan.codec, "w")
    except (av.error.FFmpegError, ValueError) as error:
        raise unusable(plan, name, error) from None
    assert isinstance(context, VideoCodecContext)
    # As an output container of PyAV sets its encoders: libav's own default is 200 kbit/s.
    context.bit_rate, context.bit_rate_tolerance = 0, 128_000
    context.framerate = rate
    if ContainerFormat(plan.muxer, "w").flags & _GLOBAL_HEADER:
        context.flags |= Flags.global_header
    context.options = encoder_options(plan)
    configure(context, plan, rate, sample_aspect_ratio, threads)
    if surfaces is not None:
        context.pix_fmt, samples = surfaces.format_for(planar_format(plan.pix_fmt))
        if samples is not None:
            context.sw_format = samples
        return context
    try:
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        raise refused(plan, name, error) from None
    check_options(context, plan)
    return context


def unusable(plan: EncodePlan, name: str, error: Exception) -> UsageError:
    """The encoder is not there, or not for this container."""
    return UsageError(f"{name}: {plan.codec} cannot be used here ({describe_av_error(error)})")


def refused(plan: EncodePlan, name: str, error: Exception) -> UsageError:
    """The encoder does not open with its settings."""
    if "nvenc" in plan.codec and not any(map(os.path.exists, NVIDIA_DEVICES)):
        return UsageError(
            f"{name}: {plan.codec} needs an NVIDIA GPU and its driver, and this machine shows none; choose another --codec"
        )
    given = " ".join(f"{k}={v}" for k, v in plan.options.items())
    return UsageError(
        f"{name}: {plan.codec} does not accept these settings for {plan.width}x{plan.height} {plan.pix_fmt} "
        f"({given or 'defaults'}: {describe_av_error(error)}); change --codec, --encoder-preset or --encoder-option"
    )


def check_options(context: VideoCodecContext, plan: EncodePlan) -> None:
    """What an opened encoder left over of its options is unknown to it.

    Raises:
        UsageError: it left one over.
    """
    unknown = [key for key in context.options if key in plan.options]
    if unknown:
        raise UsageError(f"--encoder-option {unknown[0]}: {plan.codec} has no such option")


def picture_for(
    frame: Frame, plan: EncodePlan, index: int, time_base: Fraction, surfaces: Surfaces | None = None
) -> VideoFrame:
    """The frame as the encoder takes it, shown at `index` ticks of `time_base`. `surfaces`: as in `open_encoder`."""
    planar = planar_format(plan.pix_fmt)
    if surfaces is not None:
        picture = surfaces.picture(frame.planes, planar)
    else:
        picture = frame_from_planes(frame.planes, planar, plan.width, plan.height)
        if planar != plan.pix_fmt:
            # The same samples, packed.
            picture = reformatted(picture, plan.pix_fmt, plan.width, plan.height)
    picture.colorspace = plan.tags.matrix
    picture.color_range = plan.tags.range
    picture.color_trc = plan.tags.transfer
    picture.color_primaries = plan.tags.primaries
    picture.pts = index
    picture.time_base = time_base
    return picture
