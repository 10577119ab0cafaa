"""Small real clips of every kind, made by PyAV, and plain ways to read files back.

Nothing here uses the project's own readers or writers: what a test compares with is libav's word.
Frames carry their number as eight vertical bars, so that a decoded frame can say which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet

from rlfn_pipe.jobs.run import run
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import Event, Finished, Warned

Planes = tuple[np.ndarray, ...]
WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Sound:
    """An audio track: `start` moves all its packets, in seconds."""

    codec: str = "aac"
    start: Fraction = Fraction(0)
    seconds: float = 1.0
    rate: int = 48_000
    layout: str = "mono"
    tags: Mapping[str, str] = field(default_factory=dict)
    disposition: int = 0


@dataclass(frozen=True)
class Clip:
    """What a clip is made of.

    `times`: presentation times of the frames in `time_base` ticks (default: 0, 1, ... of 1/25 s).
    `picture(i)`: the planes of frame i. `options`: the encoder's. `colour`: H.273 codes (matrix,
    transfer, primaries, range), 2/0 for unspecified. `last`: ticks that the last frame lasts.
    """

    frames: int = 10
    size: tuple[int, int] = (WIDTH, HEIGHT)
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    time_base: Fraction = Fraction(1, 25)
    times: Sequence[int] | None = None
    last: int | None = None
    picture: Callable[[int], Planes] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    colour: tuple[int, int, int, int] = (2, 2, 2, 0)
    matrix: tuple[int, ...] | None = None
    ratio: Fraction | None = None
    sounds: Sequence[Sound] = ()
    muxer_options: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    video_tags: Mapping[str, str] = field(default_factory=dict)
    subtitles: Sequence[tuple[str, float, float, str]] = ()
    chapters: Sequence[tuple[float, float, str]] = ()
    attachment: tuple[str, str, bytes] | None = None
    interlaced: bool = False


_DEFAULTS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "qp": "0", "bf": "0", "refs": "1"},
    "libx265": {"preset": "ultrafast", "x265-params": "lossless=1:log-level=none:pools=1:frame-threads=1"},
    "libvpx-vp9": {"lossless": "1", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"},
    "libsvtav1": {"preset": "12", "crf": "10"},
    "mpeg4": {"qmin": "1", "qmax": "2", "bf": "0"},
    "mpeg2video": {"qmin": "1", "qmax": "2", "bf": "0"},
}
#: x264 options that give B-frames (lossless x264 has none).
B_FRAMES = {
    "preset": "ultrafast",
    "qp": "4",
    "bf": "3",
    "b_strategy": "0",
    "b-pyramid": "normal",
    "refs": "4",
}


def bars(index: int, pix_fmt: str = "yuv420p", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Planes:
    """A picture whose eight vertical bars spell `index` (the highest bit on the left)."""
    fmt = av.VideoFormat(pix_fmt, *size)
    depth = fmt.components[0].bits
    dtype = np.uint8 if depth == 8 else np.uint16
    bits = [(index >> (7 - b)) & 1 for b in range(8)]
    edges = np.linspace(0, size[0], 9).astype(int)
    row = np.concatenate([np.full(b - a, bit) for a, b, bit in zip(edges, edges[1:], bits, strict=False)])
    luma = (np.where(row, 200, 50) << (depth - 8)).astype(dtype)
    planes = [np.broadcast_to(luma, (size[1], size[0]))]
    for component in fmt.components[1:]:
        shape = (component.height, component.width)
        planes.append(np.full(shape, 128 << (depth - 8), dtype))
    return tuple(planes)


def flat(values: Sequence[int], pix_fmt: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Planes:
    """A picture of one colour, given as code values in the format's order of planes."""
    fmt = av.VideoFormat(pix_fmt, *size)
    dtype = np.uint8 if fmt.components[0].bits == 8 else np.uint16
    shapes = [(c.height, c.width) for c in fmt.components]
    return tuple(np.full(shape, v, dtype) for shape, v in zip(shapes, values, strict=True))


def noise(index: int, pix_fmt: str = "yuv420p", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Planes:
    """A random picture of large blocks inside the RGB cube, another for each index."""
    rng = np.random.default_rng(index)
    fmt = av.VideoFormat(pix_fmt, *size)
    unit = 1 << (fmt.components[0].bits - 8)
    dtype = np.uint8 if unit == 1 else np.uint16
    planes = []
    for c in fmt.components:
        low, high = (60, 190) if c.is_luma or fmt.is_rgb else (116, 140)
        small = rng.integers(low, high, (c.height // 8 + 1, c.width // 8 + 1))
        planes.append((np.kron(small, np.ones((8, 8), int))[: c.height, : c.width] * unit).astype(dtype))
    return tuple(planes)


def to_frame(planes: Planes, pix_fmt: str) -> av.VideoFrame:
    """A libav frame with a copy of the planes."""
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for target, samples in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(target, samples.dtype).reshape(target.height, -1)
        rows[:, : target.width] = samples
    return frame


def turned(angle: int, width: int, height: int, *, mirrored: bool = False) -> tuple[int, ...]:
    """The display matrix that turns the stored picture by `angle` degrees clockwise.

    `mirrored`: the stored picture is flipped left to right first. Translations bring the shown
    picture back to the origin, as cameras write them.
    """
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[angle]
    if mirrored:
        a, b = -a, -b
    corners = [(a * p + c * q, b * p + d * q) for p in (0, width) for q in (0, height)]
    x, y = -min(p for p, _ in corners), -min(q for _, q in corners)
    one = 1 << 16
    return (a * one, b * one, 0, c * one, d * one, 0, x * one, y * one, 1 << 30)


def shown(picture: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """The picture as a player shows it, point by point from the matrix' definition."""
    one = 1 << 16
    a, b, c, d = (round(matrix[i] / one) for i in (0, 1, 3, 4))
    height, width = picture.shape
    place = {}
    for q in range(height):
        for p in range(width):
            place[(a * p + c * q, b * p + d * q)] = picture[q, p]
    left, top = min(x for x, _ in place), min(y for _, y in place)
    out = np.zeros((height, width) if a or d else (width, height), picture.dtype)
    for (x, y), value in place.items():
        out[y - top, x - left] = value
    return out


# ------------------------------------------------------------------------ writing


def make(path: Path, clip: Clip | None = None, **more: Any) -> Path:
    """Write a clip; the container follows from the name."""
    clip = clip or Clip(**more)
    muxer = {".mkv": "matroska", ".ts": "mpegts"}.get(path.suffix, path.suffix[1:])
    options = {"video_track_timescale": str(clip.time_base.denominator)} if muxer in ("mp4", "mov") else {}
    output = av.open(str(path), "w", format=muxer, container_options={**options, **clip.muxer_options})
    output.metadata.update(clip.tags)
    video = _add_video(output, clip)
    encoders = [_add_sound(output, sound) for sound in clip.sounds]
    texts = [(_add_text(output, codec), start, end, text) for codec, start, end, text in clip.subtitles]
    if clip.attachment:
        output.add_attachment(*clip.attachment)
    if clip.chapters:
        output.set_chapters([
            {"id": i, "start": round(a * 1000), "end": round(b * 1000), "time_base": Fraction(1, 1000),
             "metadata": {"title": title}}
            for i, (a, b, title) in enumerate(clip.chapters, 1)
        ])  # fmt: skip
    output.start_encoding()
    packets = _video_packets(video, clip)
    for stream, sound in encoders:
        packets += _sound_packets(stream, sound)
    for stream, start, end, text in texts:
        packet = Packet(text.encode())
        packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
        packet.pts = packet.dts = round(start * 1000)
        packet.duration = round((end - start) * 1000)
        packets.append(packet)
    for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
        output.mux(packet)
    output.close()
    return path


def packed(source: Path, target: Path) -> Path:
    """MPEG-4 with B-frames as DivX packs it into AVI: the first behind its reference, others follow, then an empty one."""
    begin, empty = b"\0\0\1\xb6", b"\0\0\1\xb6\x54\0\x7f"
    with av.open(str(source)) as a, av.open(str(target), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        found = [(bytes(p), p.is_keyframe) for p in a.demux(video=0) if p.size]
        frames: list[tuple[bytes, bool]] = []
        packing = False
        for data, key in found:
            between = data[data.find(begin) + 4] >> 6 == 2
            if between and frames[-1][0] == empty and packing:
                frames.insert(-1, (data, False))
            elif between:
                frames[-1:] = [(frames[-1][0] + data, frames[-1][1]), (empty, False)]
            else:
                frames.append((data, key))
            packing = between
        for i, (data, key) in enumerate(frames):
            packet = Packet(data.replace(begin, b"\0\0\1\xb2DivX503b1393p" + begin, 1) if key else data)
            packet.pts = packet.dts = i
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 25), key, stream
            b.mux(packet)
    return target


def _add_video(output: Any, clip: Clip) -> Any:
    options = {**_DEFAULTS.get(clip.codec, {}), **clip.options}
    if clip.interlaced:
        options["flags"] = "+ildct"
    video = output.add_stream(clip.codec, rate=25, options=options)
    context = video.codec_context
    context.width, context.height = clip.size
    context.pix_fmt = clip.pix_fmt
    context.thread_count = 1
    matrix, transfer, primaries, colour_range = clip.colour
    context.colorspace, context.color_trc = matrix, transfer
    context.color_primaries, context.color_range = primaries, colour_range
    if clip.ratio:
        context.sample_aspect_ratio = clip.ratio
    if clip.matrix is not None:
        video.set_display_matrix(clip.matrix)
    if clip.codec == "libx265" and output.format.name in ("mp4", "mov"):
        context.codec_tag = "hvc1"
    video.metadata.update(clip.video_tags)
    video.time_base = clip.time_base
    return video


def _video_packets(video: Any, clip: Clip) -> list[Packet]:
    """Encode by frame number, then put the real times on."""
    times = list(clip.times) if clip.times is not None else list(range(clip.frames))
    step = round(Fraction(1, 25) / clip.time_base) or 1
    last = clip.last or (times[-1] - times[-2] if len(times) > 1 else step)
    ends = [*times[1:], times[-1] + last]
    packets: list[Packet] = []
    picture = clip.picture or (lambda i: bars(i, clip.pix_fmt, clip.size))
    for i in range(len(times)):
        frame = to_frame(picture(i), clip.pix_fmt)
        frame.pts, frame.time_base = i, Fraction(1, 25)
        matrix, transfer, primaries, colour_range = clip.colour
        frame.colorspace, frame.color_trc = matrix, transfer
        frame.color_primaries, frame.color_range = primaries, colour_range
        packets += video.encode(frame)
    packets += video.encode(None)
    lead = times[1] - times[0] if len(times) > 1 else step
    for packet in packets:
        base = packet.time_base or video.codec_context.time_base
        i = round(packet.pts * base * 25)
        k = i if packet.dts is None else round(packet.dts * base * 25)
        dts = times[k] if k >= 0 else times[0] + k * lead
        packet.pts, packet.dts, packet.duration = times[i], min(dts, times[i]), ends[i] - times[i]
        packet.time_base = clip.time_base
    return packets


def _add_sound(output: Any, sound: Sound) -> tuple[Any, Sound]:
    stream = output.add_stream(sound.codec, rate=sound.rate)
    stream.layout = sound.layout
    stream.metadata.update(sound.tags)
    stream.disposition = sound.disposition
    return stream, sound


def _sound_packets(stream: Any, sound: Sound) -> list[Packet]:
    count = round(sound.seconds * sound.rate)
    t = np.arange(count) / sound.rate
    channels = stream.layout.nb_channels
    wave = np.stack([0.2 * np.sin(2 * np.pi * (440 + 37 * c) * t) for c in range(channels)]).astype(
        np.float32
    )
    resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=sound.rate)
    packets: list[Packet] = []
    for at in range(0, count, 1024):
        part = np.ascontiguousarray(wave[:, at : at + 1024])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, at, Fraction(1, sound.rate)
        packets += [p for f in resampler.resample(frame) for p in stream.encode(f)]
    packets += stream.encode(None)
    for packet in packets:
        shift = round(sound.start / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    return packets


def _add_text(output: Any, codec: str) -> Any:
    stream = output.add_stream(codec)
    stream.codec_context.subtitle_header = b"[Script Info]\r\n\r\n[V4+ Styles]\r\nFormat: Name\r\nStyle: Default\r\n\r\n[Events]\r\nFormat: Text\r\n"
    stream.time_base = Fraction(1, 1000)
    return stream


# ------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Shown:
    """A frame as libav's plain decoder gives it: time in seconds, number in its bars, planes."""

    time: Fraction
    number: int
    planes: Planes


def read_planes(frame: av.VideoFrame) -> Planes:
    """A frame's planes in libav's order, copied."""
    dtype = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    return tuple(np.frombuffer(p, dtype).reshape(p.height, -1)[:, : p.width].copy() for p in frame.planes)


def read_number(luma: np.ndarray, depth: int = 8) -> int:
    """The number that the bars of a picture spell."""
    width = luma.shape[1]
    columns = luma[luma.shape[0] // 2].astype(int) >> (depth - 8)
    bits = [int(columns[int((b + 0.5) * width / 8)] > 125) for b in range(8)]
    return int("".join(map(str, bits)), 2)


def decoded(path: Path, stream: int = 0) -> list[Shown]:
    """All frames of a video as a plain player would get them."""
    found = []
    with av.open(str(path)) as container:
        video = container.streams.video[stream]
        for frame in container.decode(video):
            planes = read_planes(frame)
            assert frame.pts is not None
            found.append(
                Shown(
                    frame.pts * frame.time_base,
                    read_number(planes[0], frame.format.components[0].bits),
                    planes,
                )
            )
    return found


def times_of(path: Path) -> list[Fraction]:
    """Presentation times in seconds of a video's frames, as decoded."""
    return [frame.time for frame in decoded(path)]


def packets_of(path: Path, kind: str, index: int = 0) -> list[tuple[Fraction, Fraction, bytes]]:
    """(time, duration, payload) of the packets of the n-th stream of a kind, in file order."""
    with av.open(str(path)) as container:
        stream = [s for s in container.streams if s.type == kind][index]
        return [
            (p.pts * p.time_base, (p.duration or 0) * p.time_base, bytes(p))
            for p in container.demux(stream)
            if p.size and p.pts is not None
        ]


def payloads(path: Path, index: int = 0, kind: str = "audio") -> list[bytes]:
    """The packets' bytes of the n-th stream of a kind."""
    return [payload for _, _, payload in packets_of(path, kind, index)]


# ------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Done:
    """What a run gave: the output, its event, and what was said on the way."""

    path: Path
    finished: Finished
    events: tuple[Event, ...]

    @property
    def warned(self) -> list[str]:
        """The warnings, each as often as it came."""
        return [e.message for e in self.events if isinstance(e, Warned)]

    @property
    def said(self) -> str:
        """All warnings and notes as one text."""
        return "\n".join([*self.warned, *self.finished.notes])


def upscale(source: Path, output: Path, **options: Any) -> Done:
    """Run the real job (the engine is whatever the room builds)."""
    events: list[Event] = []
    options.setdefault("scale", 2)
    options.setdefault("threads", 1)
    if "encoder_preset" not in options and options.get("codec", "auto") in ("auto", "libx264", "libx265"):
        codec = options.get("codec", "auto")
        if codec != "auto" or output.suffix in (".mp4", ".mov", ".mkv", ".ts", ".nut"):
            options["encoder_preset"] = "ultrafast"
    report = run(str(source), str(output), UpscaleOptions(**options), on_event=events.append)
    return Done(output, report.finished[0], tuple(events))
