"""Other streams: copied byte for byte, converted in time, tags and chapters kept, losses named."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.stream import Disposition

from rlfn_pipe.media.clock import Clock
from rlfn_pipe.media.matroska import TrackChange, amend_tracks
from rlfn_pipe.media.streams import Carrier, StreamPlan, earliest, plan_streams

RATE = 48_000
ASS_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\nPlayResX: 384\r\nPlayResY: 288\r\n\r\n[V4+ Styles]\r\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, "
    b"Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, "
    b"Alignment, MarginL, MarginR, MarginV, Encoding\r\n"
    b"Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1\r\n\r\n"
    b"[Events]\r\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n"
)


# ------------------------------------------------------------------- making media


@dataclass
class Recipe:
    """A small file: 64x64 video, audio tracks, subtitles and what belongs to the container."""

    muxer: str = "mp4"
    seconds: float = 2.0
    audio: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    subtitles: list[tuple[str, list[tuple[float, float, str]]]] = field(default_factory=list)
    chapters: list[tuple[float, float, str]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    attachment: tuple[str, str, bytes] | None = None
    cover: bytes | None = None
    delay: Fraction = Fraction(0)
    silence: tuple[float, float] | None = None
    layout: str = "stereo"


def tone(start: float, seconds: float, channels: int = 2) -> np.ndarray:
    """Silence with a 1 kHz burst from 0.8 s to 1.0 s of each file, float32 (channels, samples)."""
    t = start + np.arange(round(seconds * RATE)) / RATE
    wave = 0.5 * np.sin(2 * np.pi * 1000 * t) * ((t >= 0.8) & (t < 1.0))
    return np.stack([wave.astype(np.float32)] * channels)


def make(path: Path, recipe: Recipe) -> Path:
    """Write the file of a recipe."""
    output = av.open(str(path), "w", format=recipe.muxer)
    video = output.add_stream(
        "libvpx-vp9" if recipe.muxer == "webm" else "mpeg4", rate=25, width=64, height=64
    )
    video.pix_fmt = "yuv420p"
    output.metadata.update(recipe.tags)
    encoders = []
    for codec, tags, disposition in recipe.audio:
        stream = output.add_stream(codec, rate=RATE)
        stream.layout = recipe.layout
        stream.metadata.update(tags)
        stream.disposition = disposition
        encoders.append(stream)
    texts = []
    for codec, cues in recipe.subtitles:
        stream = output.add_stream(codec)
        stream.codec_context.subtitle_header = ASS_HEADER
        stream.time_base = Fraction(1, 1000)
        stream.metadata["language"] = "deu"
        texts.append((stream, codec, cues))
    if recipe.attachment:
        output.add_attachment(*recipe.attachment)
    cover = None
    if recipe.cover:
        cover = output.add_mux_stream("mjpeg", width=16, height=16)
        cover.disposition = Disposition.attached_pic
    if recipe.chapters:
        output.set_chapters(
            [
                {"id": i, "start": round(a * 1000), "end": round(b * 1000), "time_base": Fraction(1, 1000),
                 "metadata": {"title": title}}
                for i, (a, b, title) in enumerate(recipe.chapters, 1)
            ]
        )  # fmt: skip
    output.start_encoding()
    packets: list[Any] = []
    for i in range(round(recipe.seconds * 25)):
        frame = av.VideoFrame.from_ndarray(np.full((96, 64), (i * 7) % 250, np.uint8), format="yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, 25)
        packets += video.encode(frame)
    packets += video.encode(None)
    for stream in encoders:
        channels = stream.layout.nb_channels
        resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=RATE)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(tone(0, recipe.seconds, channels)), format="fltp", layout=recipe.layout
        )
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        encoded = [p for f in resampler.resample(frame) for p in stream.encode(f)] + list(stream.encode(None))
        if recipe.silence:
            low, high = recipe.silence
            encoded = [p for p in encoded if not low <= p.pts * p.time_base < high]
        for packet in encoded:
            shift = round(recipe.delay / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        packets += encoded
    for stream, codec, cues in texts:
        for number, (start, end, text) in enumerate(cues):
            body = text if codec != "ass" else f"{number},0,Default,,0,0,0,,{text}"
            packet = av.Packet(body.encode())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            packet.pts = packet.dts = round(start * 1000)
            packet.duration = round((end - start) * 1000)
            packets.append(packet)
    if cover is not None:
        packet = av.Packet(recipe.cover)
        packet.stream, packet.time_base, packet.pts, packet.dts = cover, Fraction(1, 25), 0, 0
        packets.insert(0, packet)
    for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
        output.mux(packet)
    output.close()
    return path


# ------------------------------------------------------------------ carrying it over


@dataclass
class Carried:
    """An output of `carry`: its bytes, the plans and notes that led to it, the base that was used."""

    data: bytes
    plans: tuple[StreamPlan, ...]
    notes: list[str]
    base: Fraction

    def open(self) -> InputContainer:
        return av.open(io.BytesIO(self.data))


def opener(path: Path) -> Callable[[], InputContainer]:
    return lambda: av.open(str(path), metadata_errors="replace")


def carry(
    path: Path,
    muxer: str,
    *,
    base: Fraction | None = None,
    window: tuple[Fraction, Fraction | None] | None = None,
    audio: Any = "copy",
    subtitles: Any = "copy",
) -> Carried:
    """Run a Carrier into an in-memory file; the main video is copied where the format takes it."""
    with av.open(str(path), metadata_errors="replace") as source:
        main = source.streams.video[0]
        plans = plan_streams(source, main.index, muxer, audio=audio, subtitles=subtitles)
        times = sorted({p.pts * main.time_base for p in source.demux(main) if p.pts is not None})
        if base is None:
            known = [t for t in earliest(opener(path), plans, muxer) if t is not None]
            base = min([*known, times[0]])
            if muxer in ("mp4", "mov"):  # an edit list holds priming, but nothing that is to be heard
                base = min([Fraction(0), times[0], *known[:1]])
    buffer = io.BytesIO()
    options = {"movie_timescale": str(RATE)} if muxer in ("mp4", "mov") else {}
    if muxer in ("matroska", "webm"):
        options["avoid_negative_ts"] = "disabled"
    output = av.open(buffer, "w", format=muxer, container_options=options)
    carrier = Carrier(opener(path), plans, base=base, window=window)
    with av.open(str(path), metadata_errors="replace") as source:
        main = source.streams.video[0]
        out_main = None
        for plan in plans:
            mpeg4 = main.codec_context.name == "mpeg4" and main.codec_context.extradata
            if plan.action == "main" and mpeg4 and muxer != "webm":
                out_main = output.add_stream_from_template(main, opaque=True)
            elif plan.action != "main":
                carrier.add_stream(output, plan)
        carrier.copy_globals(output)
        output.start_encoding()
        last = None
        for packet in source.demux(main):
            if packet.pts is None:
                continue
            now = packet.pts * packet.time_base
            if window and not (window[0] <= now and (window[1] is None or now < window[1])):
                continue
            for ready in carrier.packets_until(now - base):
                late = max(carrier.codec_delays().values(), default=0)
                assert ready.dts * ready.time_base <= now - base + late + 2 * ready.time_base
                output.mux(ready)
            if out_main is not None:
                shift = round(base / packet.time_base)
                packet.stream, packet.pts = out_main, packet.pts - shift
                packet.dts = packet.pts if last is None else max(packet.pts, last + 1)
                last = packet.dts
                output.mux(packet)
        for ready in carrier.packets_until(None):
            output.mux(ready)
    order = [stream.index for stream in output.streams if stream.type != "attachment"]
    delays = {order.index(i): TrackChange(codec_delay=d) for i, d in carrier.codec_delays().items()}
    output.close()
    carrier.close()
    data = buffer.getvalue()
    if delays:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "out.mkv"
            file.write_bytes(data)
            amend_tracks(file, "out", delays)
            data = file.read_bytes()
    return Carried(data, plans, carrier.notes, base)


@dataclass
class Read:
    """A packet as read back: presentation time and duration in seconds, payload."""

    time: Fraction
    duration: Fraction
    data: bytes


def packets_of(container: InputContainer, index: int) -> list[Read]:
    stream = container.streams[index]
    return [
        Read(p.pts * p.time_base, (p.duration or 0) * p.time_base, bytes(p))
        for p in container.demux(stream)
        if p.size and p.pts is not None
    ]


def index_of(container: InputContainer, kind: str, number: int = 0) -> int:
    return [s.index for s in container.streams if s.type == kind][number]


def heard(container: InputContainer, number: int = 0) -> np.ndarray:
    """The first channel on the file's time line from 0 s on, at RATE, float32."""
    stream = container.streams.audio[number]
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
    line = np.zeros(8 * RATE, np.float32)
    for frame in container.decode(stream):
        start = round(frame.time * RATE)
        for part in resampler.resample(frame):
            wave = part.to_ndarray()[0]
            low = max(start, 0)
            line[low : start + wave.size] = wave[low - start :]
            start += wave.size
    return line


def burst(line: np.ndarray) -> tuple[float, float]:
    """Where the tone is heard: start and end in seconds."""
    loud = np.flatnonzero(np.abs(line) > 0.1)
    return loud[0] / RATE, loud[-1] / RATE


AAC = ("aac", {"language": "eng"}, 1)


@pytest.fixture(scope="module")
def mp4_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mp4 with two audio tracks, tags and chapters."""
    recipe = Recipe(
        audio=[
            ("aac", {"language": "eng"}, int(Disposition.default)),
            ("aac", {"language": "fra", "title": "Kommentar"}, int(Disposition.comment)),
        ],
        chapters=[(0, 0.5, "Anfang"), (0.5, 2, "Überall")],
        tags={"title": "Ein Täst", "artist": "Somebody", "creation_time": "2019-07-24T08:25:57.000000Z"},
    )
    return make(tmp_path_factory.mktemp("mp4") / "clip.mp4", recipe)


@pytest.fixture(scope="module")
def mkv_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matroska with srt, ass and an attachment."""
    cues = [(0.1, 0.6, "Erste Zeile"), (0.7, 1.2, "Zweite – Zeile"), (1.5, 1.9, "<i>Dritte</i>")]
    recipe = Recipe(
        muxer="matroska",
        audio=[AAC],
        subtitles=[("subrip", cues), ("ass", [(0.2, 1.0, r"{\b1}fett{\b0} und {\pos(10,20)}oben")])],
        attachment=("Schrift.ttf", "application/x-truetype-font", bytes(range(256)) * 9),
        chapters=[(0, 1, "Eins"), (1, 2, "Zwei")],
    )
    return make(tmp_path_factory.mktemp("mkv") / "clip.mkv", recipe)


# -------------------------------------------------------------------------- audio


@pytest.mark.parametrize("muxer", ["mp4", "mov", "matroska", "avi", "nut"])
def test_audio_payloads_are_copied(mp4_clip: Path, muxer: str) -> None:
    out = carry(mp4_clip, muxer)
    assert [p.action for p in out.plans if p.kind == "audio"] == ["copy", "copy"]
    for number in range(2):
        with av.open(str(mp4_clip)) as source, out.open() as result:
            wanted = packets_of(source, index_of(source, "audio", number))
            got = packets_of(result, index_of(result, "audio", number))
        assert len(wanted) > 90
        assert [p.data for p in got] == [p.data for p in wanted]


def test_mp4_keeps_every_time_stamp(mp4_clip: Path) -> None:
    out = carry(mp4_clip, "mp4")
    with av.open(str(mp4_clip)) as source, out.open() as result:
        wanted = [(p.pts, p.dts, p.is_discard) for p in source.demux(source.streams.audio[0]) if p.size]
        stream = result.streams.audio[0]
        got = [(p.pts, p.dts, p.is_discard) for p in result.demux(stream) if p.size]
        assert stream.time_base == Fraction(1, RATE)
    assert wanted[0] == (-1024, -1024, True)
    assert got == wanted


def test_matroska_states_priming_as_codec_delay(mp4_clip: Path) -> None:
    """Nothing is moved: the picture begins at zero, and what is heard of the sound does too."""
    out = carry(mp4_clip, "matroska")
    assert out.base == 0
    with out.open() as result:
        sound, picture = (packets_of_fresh(out, index_of(result, kind)) for kind in ("audio", "video"))
        assert {stream.start_time for stream in result.streams.audio} == {0}
        first = next(result.decode(audio=0))
    assert abs(sound[0].time + Fraction(1024, RATE)) <= Fraction(1, 1000)
    assert picture[0].time == 0 and first.pts == 0


def packets_of_fresh(out: Carried, index: int) -> list[Read]:
    with out.open() as container:
        return packets_of(container, index)


def test_matroska_to_mp4_restores_the_sample_clock(mkv_clip: Path) -> None:
    out = carry(mkv_clip, "mp4")
    with out.open() as result:
        stream = result.streams.audio[0]
        times = [p.pts for p in result.demux(stream) if p.size]
    assert set(np.diff(times)) == {1024}
    with av.open(str(mkv_clip)) as source:
        wanted = packets_of(source, 1)
    assert [p.data for p in packets_of_fresh(out, 1)] == [p.data for p in wanted]


def test_transport_stream_differs_by_framing_only(mp4_clip: Path) -> None:
    out = carry(mp4_clip, "mpegts")
    with av.open(str(mp4_clip)) as source:
        wanted = [p.data for p in packets_of(source, index_of(source, "audio"))]
    with out.open() as result:
        got = [p.data for p in packets_of(result, index_of(result, "audio"))]
    assert all(data[0] == 0xFF and data[1] & 0xF6 == 0xF0 for data in got)
    assert [data[7:] for data in got] == wanted
    # and back again
    back = carry_bytes(out, "mp4")
    with back.open() as result:
        assert [p.data for p in packets_of(result, index_of(result, "audio"))] == wanted


def carry_bytes(out: Carried, muxer: str) -> Carried:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".media") as file:
        file.write(out.data)
        file.flush()
        return carry(Path(file.name), muxer)


@pytest.mark.parametrize("muxer", ["matroska", "webm", "mp4"])
def test_opus_is_copied_from_webm(tmp_path: Path, muxer: str) -> None:
    path = make(tmp_path / "a.webm", Recipe(muxer="webm", audio=[("libopus", {}, 1)]))
    out = carry(path, muxer)
    with av.open(str(path)) as source, out.open() as result:
        wanted = packets_of(source, index_of(source, "audio"))
        got = packets_of(result, index_of(result, "audio"))
    assert [p.data for p in got] == [p.data for p in wanted]
    with out.open() as result:
        start, end = burst(heard(result))
    assert start + float(out.base) == pytest.approx(0.8, abs=0.004)
    assert end + float(out.base) == pytest.approx(1.0, abs=0.004)


def test_earliest_counts_priming_but_not_a_codec_delay(mp4_clip: Path, tmp_path: Path) -> None:
    with av.open(str(mp4_clip)) as source:
        copied = plan_streams(source, 0, "mp4")
        encoded = plan_streams(source, 0, "webm")
    assert earliest(opener(mp4_clip), copied, "mp4") == (0, Fraction(-1024, RATE))
    assert earliest(opener(mp4_clip), encoded, "webm") == (0, 0)
    path = make(tmp_path / "a.mp4", Recipe())
    with av.open(str(path)) as source:
        assert earliest(opener(path), plan_streams(source, 0, "mp4"), "mp4") == (None, None)


def test_languages_titles_and_dispositions_stay(mp4_clip: Path) -> None:
    for muxer in ("mp4", "matroska"):
        with carry(mp4_clip, muxer).open() as result:
            first, second = result.streams.audio
            assert (first.language, second.language) == ("eng", "fra")
            assert Disposition.default in first.disposition
            assert Disposition.comment in second.disposition
            assert Disposition.default not in second.disposition
            assert second.metadata["title" if muxer == "matroska" else "name"] == "Kommentar"


@pytest.mark.parametrize(("muxer", "codec"), [("webm", "opus"), ("avi", "mp3"), ("mpegts", "aac")])
def test_conversion_keeps_time_and_length(tmp_path: Path, muxer: str, codec: str) -> None:
    path = make(tmp_path / "a.mkv", Recipe(muxer="matroska", audio=[("flac", {"language": "eng"}, 1)]))
    out = carry(path, muxer)
    plan = out.plans[1]
    assert (plan.action, plan.codec) == ("convert", codec)
    assert f"converted to {codec}" in plan.reason and plan.reason in out.notes
    with out.open() as result:
        line = heard(result)
        stream = result.streams.audio[0]
        if muxer != "avi":
            assert stream.language == "eng" or muxer == "webm"
    start, end = burst(line)
    assert start + float(out.base) == pytest.approx(0.8, abs=0.005)
    assert end + float(out.base) == pytest.approx(1.0, abs=0.025)
    with out.open() as result:
        last = packets_of(result, index_of(result, "audio"))[-1]
    assert abs(last.time + last.duration + out.base - 2) <= Fraction(1152, RATE) + Fraction(2, 1000)


def test_six_channels_convert_to_opus_and_ac3(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", Recipe(muxer="matroska", audio=[("flac", {}, 1)], layout="5.1(side)"))
    for muxer, codec in (("webm", "opus"), ("avi", "ac3")):
        out = carry(path, muxer)
        assert out.plans[1].codec == codec
        with out.open() as result:
            assert result.streams.audio[0].codec_context.channels == 6


def test_a_gap_in_converted_audio_stays_a_gap(tmp_path: Path) -> None:
    recipe = Recipe(muxer="matroska", audio=[("flac", {}, 1)], silence=(0.2, 0.6))
    out = carry(make(tmp_path / "a.mkv", recipe), "webm")
    with out.open() as result:
        start, end = burst(heard(result))
    assert (start, end) == (pytest.approx(0.8, abs=0.005), pytest.approx(1.0, abs=0.025))
    assert any("gaps" in note for note in out.notes)


@pytest.mark.parametrize("codec", ["aac", "libopus", "libmp3lame"])
@pytest.mark.parametrize("muxer", ["matroska", "webm", "mp4", "mov", "mpegts", "avi"])
def test_sound_with_priming_stays_in_time(tmp_path: Path, codec: str, muxer: str) -> None:
    path = make(tmp_path / "a.mkv", Recipe(muxer="matroska", audio=[(codec, {}, 1)]))
    with av.open(str(path)) as source:
        wanted = burst(heard(source))[0]
    out = carry(path, muxer)
    if muxer in ("matroska", "webm"):
        assert out.base == 0
    with out.open() as result:
        start = burst(heard(result))[0]
    assert start + float(out.base) == pytest.approx(wanted, abs=0.0011)


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac", "ac3", "libmp3lame", "flac"])
@pytest.mark.parametrize("muxer", ["avi", "mp4", "mpegts"])
def test_a_late_start_is_kept(tmp_path: Path, codec: str, muxer: str) -> None:
    recipe = Recipe(muxer="matroska", audio=[(codec, {}, 1)], delay=Fraction(1, 2))
    path = make(tmp_path / "a.mkv", recipe)
    with av.open(str(path)) as source:
        wanted = burst(heard(source))[0]
    out = carry(path, muxer)
    with out.open() as result:
        start = burst(heard(result))[0]
    # AVI holds whole packets only; half of one is the best that it can do.
    assert start + float(out.base) == pytest.approx(wanted, abs=0.017 if muxer == "avi" else 0.002)


def test_damaged_audio_is_silence_when_converted_and_itself_when_copied(
    tmp_path: Path, mp4_clip: Path
) -> None:
    data = bytearray(mp4_clip.read_bytes())
    with av.open(str(mp4_clip)) as source:
        places = [(p.pos, p.size) for p in source.demux(source.streams.audio[0]) if p.size]
    for position, size in places[20:30]:
        data[position : position + size] = b"\xff" * size
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    with av.open(str(path)) as source:
        wanted = [p.data for p in packets_of(source, index_of(source, "audio"))]
    out = carry(path, "mp4")
    with out.open() as result:
        assert [p.data for p in packets_of(result, index_of(result, "audio"))] == wanted
    converted = carry(path, "webm")
    with converted.open() as result:
        start, _ = burst(heard(result))
    assert start == pytest.approx(0.8, abs=0.006)
    assert any("damaged" in note for note in converted.notes)


def test_damaged_framing_costs_packets_and_not_the_file(tmp_path: Path, mp4_clip: Path) -> None:
    stream = bytearray(carry(mp4_clip, "mpegts").data)
    with av.open(io.BytesIO(bytes(stream))) as source:
        whole = [p.data for p in packets_of(source, index_of(source, "audio"))]
    for data in whole[30:34]:
        head = stream.find(data[:40])
        stream[head + 1] = 0
    path = tmp_path / "broken.ts"
    path.write_bytes(stream)
    for muxer in ("mp4", "matroska"):
        out = carry(path, muxer)
        with out.open() as result:
            got = packets_of(result, index_of(result, "audio"))
        assert len(whole) - 12 <= len(got) < len(whole)


def test_damaged_ac3_headers_do_not_stop_mp4(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", Recipe(muxer="matroska", audio=[("ac3", {}, 1)]))
    whole = [p.data for p in packets_of_file(path, 1)]
    data = bytearray(path.read_bytes())
    for broken in (whole[0], whole[20]):
        place = data.find(broken)
        data[place + 4 : place + 6] = b"\xff\xff"
    path.write_bytes(data)
    out = carry(path, "mp4")
    assert [p.data for p in packets_of_fresh(out, 1)] == whole[1:20] + whole[21:]
    assert any("2 damaged packets could not be written" in note for note in out.notes)


def test_none_leaves_streams_out_and_says_so(mkv_clip: Path) -> None:
    out = carry(mkv_clip, "matroska", audio="none", subtitles="none")
    with out.open() as result:
        assert not result.streams.audio and not result.streams.subtitles
        assert len(result.streams) == 2  # video and attachment
    assert sum("left out as asked" in note for note in out.notes) == 3


# ---------------------------------------------------------------------- subtitles


def cues_of(container: InputContainer, index: int) -> list[tuple[Fraction, Fraction, str]]:
    """Visible cues: start, end (seconds) and the plain text."""
    stream = container.streams[index]
    cues = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        found = stream.codec_context.decode2(packet)
        if found is None or not len(found):
            continue
        start = packet.pts * packet.time_base
        text = "\n".join(rect.dialogue.decode() for rect in found)
        cues.append((start, start + packet.duration * packet.time_base, text))
    return cues


def test_srt_to_mov_text_and_back_to_srt(mkv_clip: Path) -> None:
    there = carry(mkv_clip, "mp4")
    assert [(p.action, p.codec) for p in there.plans if p.kind == "subtitle"] == [("convert", "mov_text")] * 2
    with there.open() as result:
        cues = cues_of(result, index_of(result, "subtitle"))
        assert result.streams.subtitles[0].language == "deu"
    shift = lambda seconds: Fraction(round(seconds * 1000), 1000)  # noqa: E731
    assert [(a, b) for a, b, _ in cues] == [
        (shift(a), shift(b)) for a, b in ((0.1, 0.6), (0.7, 1.2), (1.5, 1.9))
    ]
    assert [t for *_, t in cues][:2] == ["Erste Zeile", "Zweite – Zeile"]
    back = carry_bytes(there, "matroska")
    with back.open() as result:
        got = packets_of(result, index_of(result, "subtitle"))
    assert [p.data.decode() for p in got] == ["Erste Zeile", "Zweite – Zeile", "<i>Dritte</i>"]
    for packet, (start, end) in zip(got, ((0.1, 0.6), (0.7, 1.2), (1.5, 1.9)), strict=True):
        assert float(packet.time + back.base) == pytest.approx(start, abs=0.0015)
        assert float(packet.duration) == pytest.approx(end - start, abs=0.0015)


def test_ass_is_kept_with_header_in_matroska_and_becomes_webvtt(mkv_clip: Path) -> None:
    out = carry(mkv_clip, "matroska")
    with av.open(str(mkv_clip)) as source, out.open() as result:
        old, new = source.streams.subtitles[1], result.streams.subtitles[1]
        assert new.codec_context.extradata == old.codec_context.extradata
        assert b"Style: Default,Arial" in new.codec_context.extradata
        assert [p.data for p in packets_of(result, new.index)] == [
            p.data for p in packets_of(source, old.index)
        ]
    webm = carry(mkv_clip, "webm")
    assert [p.codec for p in webm.plans if p.kind == "subtitle"] == ["webvtt", "webvtt"]
    assert any("without its styling" in note for note in webm.notes)
    with webm.open() as result:
        assert cues_of(result, index_of(result, "subtitle"))[0][2] == "Erste Zeile"


def test_subtitles_that_do_not_fit_are_named(mkv_clip: Path) -> None:
    out = carry(mkv_clip, "avi")
    assert [p.action for p in out.plans if p.kind == "subtitle"] == ["drop", "drop"]
    assert any("subtitle stream 2 (subrip, deu) left out" in note for note in out.notes)
    assert any("2 chapters left out" in note for note in out.notes)
    assert any("Schrift.ttf" in note for note in out.notes)


def test_overlapping_lines_are_shown_together_in_mp4(tmp_path: Path) -> None:
    cues = [(0.1, 1.0, "A"), (0.4, 1.4, "B"), (0.6, 0.8, "C"), (1.6, 1.9, "D")]
    path = make(tmp_path / "a.mkv", Recipe(muxer="matroska", audio=[AAC], subtitles=[("subrip", cues)]))
    with carry(path, "mp4").open() as result:
        got = cues_of(result, index_of(result, "subtitle"))
    spans = [(float(a), float(b), sorted(t.split("\n"))) for a, b, t in got]
    edges = sorted({t for a, b, _ in cues for t in (a, b)})
    slow = [
        (a, b, shown)
        for a, b in pairwise(edges)
        if (shown := sorted(text for low, high, text in cues if low <= a < high))
    ]
    assert [(pytest.approx(a), pytest.approx(b), t) for a, b, t in slow] == spans


# ----------------------------------------------------- container, attachments, covers


def test_chapters_and_tags(mp4_clip: Path) -> None:
    for muxer in ("mp4", "mov", "matroska"):
        out = carry(mp4_clip, muxer)
        with out.open() as result:
            assert [c["metadata"]["title"] for c in result.chapters()] == ["Anfang", "Überall"]
            starts = [float(c["start"] * c["time_base"] + out.base) for c in result.chapters()]
            assert starts == pytest.approx([0, 0.5], abs=0.022 if muxer == "matroska" else 0.0011)
            tags = {k.lower(): v for k, v in result.metadata.items()}
            assert (tags["title"], tags["artist"]) == ("Ein Täst", "Somebody")
            assert tags["creation_time"] == "2019-07-24T08:25:57.000000Z"
            assert muxer != "matroska" or "major_brand" not in tags
    webm_notes = carry(mp4_clip, "mpegts").notes
    assert any("title, artist" in note or "title" in note for note in webm_notes)


def test_attachment_bytes(mkv_clip: Path) -> None:
    with carry(mkv_clip, "matroska").open() as result:
        attached = result.streams.attachments[0]
        assert attached.data == bytes(range(256)) * 9
        assert (attached.name, attached.mimetype) == ("Schrift.ttf", "application/x-truetype-font")


def jpeg() -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 16, 16, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((24, 16), 90, np.uint8), format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)])


def test_cover_picture(tmp_path: Path) -> None:
    picture = jpeg()
    path = make(tmp_path / "a.mp4", Recipe(audio=[AAC], cover=picture))
    for muxer in ("mp4", "matroska"):
        out = carry(path, muxer)
        assert [p.kind for p in out.plans if p.action == "copy"] == ["audio", "cover"]
        with out.open() as result:
            covers = [s for s in result.streams.video if Disposition.attached_pic in s.disposition]
            assert len(covers) == 1
            assert bytes(next(iter(result.demux(covers[0])))) == picture
    again = carry_bytes(carry(path, "matroska"), "mp4")
    assert "cover" in [p.kind for p in again.plans if p.action == "copy"]
    assert any("cover" in note for note in carry(path, "mpegts").notes)


# ----------------------------------------------------------------- windows, streaming


def test_window_takes_packets_by_presentation_time(mp4_clip: Path) -> None:
    window = (Fraction(1, 2), Fraction(3, 2))
    out = carry(mp4_clip, "mp4", base=window[0], window=window)
    with av.open(str(mp4_clip)) as source:
        wanted = [p for p in packets_of(source, 1) if window[0] <= p.time < window[1]]
    got = packets_of_fresh(out, 1)
    assert [p.data for p in got] == [p.data for p in wanted]
    assert all(
        abs(a.time + window[0] - b.time) <= Fraction(1, RATE) for a, b in zip(got, wanted, strict=True)
    )
    with out.open() as result:
        assert [(c["start"], c["metadata"]["title"]) for c in result.chapters()] == [(0, "Überall")]
        assert [c["end"] * c["time_base"] for c in result.chapters()] == [1]


def test_window_cuts_subtitles_to_it(mkv_clip: Path) -> None:
    window = (Fraction(9, 10), Fraction(17, 10))
    for muxer in ("matroska", "mp4"):
        out = carry(mkv_clip, muxer, base=window[0], window=window)
        with out.open() as result:
            cues = [(float(a), float(b)) for a, b, _ in cues_of(result, index_of(result, "subtitle"))]
        assert cues == [
            (pytest.approx(0, abs=0.0011), pytest.approx(0.3, abs=0.0021)),
            (pytest.approx(0.6, abs=0.0011), pytest.approx(0.8, abs=0.0021)),
        ]


def test_window_of_converted_audio(mkv_clip: Path) -> None:
    window = (Fraction(1, 2), Fraction(3, 2))
    out = carry(mkv_clip, "webm", base=window[0], window=window)
    with out.open() as result:
        start, end = burst(heard(result))
    assert (start, end) == (pytest.approx(0.3, abs=0.006), pytest.approx(0.5, abs=0.025))


def long_clip(path: Path, seconds: int) -> Path:
    """Sparse video, 8 kHz PCM and one late subtitle."""
    output = av.open(str(path), "w", format="matroska")
    video = output.add_stream("mpeg4", rate=1, width=64, height=64, pix_fmt="yuv420p")
    sound = output.add_mux_stream("pcm_s16le", rate=8000)
    sound.time_base = Fraction(1, 8000)
    text = output.add_mux_stream("subrip")
    output.start_encoding()
    for second in range(seconds):
        frame = av.VideoFrame.from_ndarray(np.full((96, 64), second % 250, np.uint8), format="yuv420p")
        frame.pts, frame.time_base = second, Fraction(1)
        output.mux(video.encode(frame))
        for tenth in range(10):
            packet = av.Packet(second.to_bytes(2, "little") * 800)
            packet.stream, packet.time_base, packet.duration = sound, Fraction(1, 8000), 800
            packet.pts = packet.dts = second * 8000 + tenth * 800
            output.mux(packet)
    packet = av.Packet(b"spaet")
    packet.stream, packet.time_base, packet.duration = text, Fraction(1), 1
    packet.pts = packet.dts = seconds - 2
    output.mux(packet)
    output.mux(video.encode(None))
    output.close()
    return path


class CountingFile(io.FileIO):
    """A file that counts the bytes that are read from it."""

    count = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_reading_stays_close_to_the_time_asked_for(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = long_clip(tmp_path / "long.mkv", 100)
    file = CountingFile(str(path))
    request.addfinalizer(file.close)

    def opened() -> InputContainer:
        return av.open(file, buffer_size=4096)

    with av.open(str(path)) as source:
        plans = plan_streams(source, 0, "matroska")
    output = av.open(io.BytesIO(), "w", format="matroska")
    with Carrier(opened, plans) as carrier:
        carrier.add_stream(output, plans[1])
        output.start_encoding()
        opening = file.count
        first = sum(p.size for p in carrier.packets_until(Fraction(1)))
        per_second = 16_000
        assert 0.9 * per_second < first < 1.2 * per_second
        assert file.count - opening < 4 * per_second
        more = sum(p.size for p in carrier.packets_until(Fraction(5)))
        assert 3.8 * per_second < more < 4.2 * per_second
        assert file.count - opening < 8 * per_second
        rest = sum(p.size for p in carrier.packets_until(None))
        assert first + more + rest == 100 * per_second


def test_window_far_inside_seeks(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = long_clip(tmp_path / "long.mkv", 200)
    window = (Fraction(190), Fraction(191))
    file = CountingFile(str(path))
    request.addfinalizer(file.close)
    with av.open(str(path)) as source:
        plans = plan_streams(source, 0, "matroska")
        wanted = [p.data for p in packets_of(source, 1) if window[0] <= p.time < window[1]]
    output = av.open(io.BytesIO(), "w", format="matroska")
    with Carrier(lambda: av.open(file), plans, base=window[0], window=window) as carrier:
        carrier.add_stream(output, plans[1])
        output.start_encoding()
        assert [bytes(p) for p in carrier.packets_until(None)] == wanted
    assert wanted and file.count < 0.5 * path.stat().st_size


def test_missing_and_disordered_time_stamps_are_mended(mp4_clip: Path) -> None:
    with av.open(str(mp4_clip)) as source:
        clock = Clock(source.streams.audio[0])
        given = [(0, 0), (1024, 1024), (None, None), (3072, 3072), (2000, 2000), (None, 5120), (6144, None)]
        times = []
        for pts, dts in given:
            packet = av.Packet(b"x")
            packet.time_base, packet.pts, packet.dts, packet.duration = Fraction(1, RATE), pts, dts, 1024
            times.append(clock.times(packet))
    ticks = [int(t.dts * RATE) for t in times]
    assert ticks == [0, 1024, 2048, 3072, 3073, 5120, 6144]
    assert all(t.pts >= t.dts for t in times)
    assert clock.repaired == 2


def test_odd_streams_never_stop_a_plan(mp4_clip: Path) -> None:
    with av.open(str(mp4_clip)) as source:
        for muxer in ("mp4", "mov", "matroska", "webm", "avi", "mpegts", "nut", "flv", "ogg"):
            plans = plan_streams(source, 0, muxer)
            assert [p.index for p in plans] == [s.index for s in source.streams]
            assert plans[0].action == "main"
            assert all(p.action in ("copy", "convert", "drop") for p in plans[1:])
            assert all(p.reason for p in plans[1:] if p.action != "copy")


# ---------------------------------------------------------------------- real media

CLIPS = [
    "torchcodec/nasa_13013.mp4",
    "derived/remux_ass_chapters_attachment.mkv",
    "androidx-media/mkv__sample_with_overlapping_srt.mkv",
    "androidx-media/mp4__sample_twos_pcm.mp4",
    "androidx-media/ts__sample_h264_dts_audio.ts",
    "shaka-player/hls-ts-muxed-aac-h265__0.ts",
    "shaka-player/hls-ts-rollover__360p30_h264_48k_160_aac_ts-0000000028.ts",
    "moviepy/transparent.webm",
    "metadata-extractor/mov__with-gps.mov",
]


def stripped(data: bytes) -> bytes:
    """An AAC frame without its ADTS header."""
    if len(data) > 9 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return data[7:] if data[1] & 1 else data[9:]
    return data


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("muxer", ["mp4", "mov", "matroska", "webm", "avi", "mpegts"])
def test_real_media(shared_data: Path, clip: str, muxer: str) -> None:
    path = shared_data / "clips" / clip
    out = carry(path, muxer)
    with av.open(str(path), metadata_errors="replace") as source:
        kinds = {s.index: s.type for s in source.streams}
        sound = {i: packets_of_file(path, i) for i, kind in kinds.items() if kind == "audio"}
    copied = [p for p in out.plans if p.kind == "audio" and p.action != "drop"]
    assert len(copied) == len(sound)
    for number, plan in enumerate(copied):
        with out.open() as result:
            got = packets_of(result, index_of(result, "audio", number))
        wanted = sound[plan.index]
        if plan.action == "copy":
            assert len(wanted) > 1
            payload = b"".join(stripped(p.data) for p in got)
            if muxer == "avi":  # silence may stand before it
                assert payload.endswith(b"".join(stripped(p.data) for p in wanted))
            else:
                assert payload == b"".join(stripped(p.data) for p in wanted)
        if muxer == "avi":
            continue  # counts frames, holds no start time
        tick = Fraction(2, 1000) if plan.action == "copy" else Fraction(150, 1000)
        assert abs(got[-1].time + out.base - wanted[-1].time) <= tick
        if plan.action == "copy":
            assert abs(got[0].time + out.base - wanted[0].time) <= tick
    for plan in out.plans:
        assert plan.action in ("main", "copy") or plan.reason in out.notes


def packets_of_file(path: Path, index: int) -> list[Read]:
    with av.open(str(path), metadata_errors="replace") as container:
        return packets_of(container, index)
