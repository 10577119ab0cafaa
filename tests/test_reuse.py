"""Reuse: `exact` gives the bits of `off`, `near` stays within its tolerance and does not drift."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from nearest import NearestNetwork, nearest_factory, nearest_spec

from rlfn_pipe.engine import colour, limits
from rlfn_pipe.engine.alpha import fill_under_alpha, grey_of
from rlfn_pipe.engine.device import resolve_precision
from rlfn_pipe.engine.hold import Hold
from rlfn_pipe.engine.layouts import chroma_size
from rlfn_pipe.engine.network import Grid
from rlfn_pipe.engine.reuse import (
    CELL,
    REACH,
    REACH_ALPHA,
    Answer,
    Gallery,
    Likeness,
    Statistics,
    cells_near,
    changed_cells,
    same_samples,
    touched,
)
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.engine.tensors import Tensors
from rlfn_pipe.engine.tiling import plan
from rlfn_pipe.errors import EngineError, UsageError
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.native.library import cpu_form
from rlfn_pipe.models.weights import load_weights
from rlfn_pipe.types import ColourInfo, Frame, Target

YUV = ColourInfo(matrix=1, range=1)
DEEP = replace(YUV, bit_depth=10)
ALPHA = ColourInfo(0, range=2, subsampling="rgb", alpha=True)
HEIGHT, WIDTH = 84, 110
FORMAT = resolve_precision("auto", torch.device("cpu"))[0]
only_native = pytest.mark.skipif(
    not cpu_form(FORMAT).startswith("native"), reason="only the compiled network keeps its layers"
)


def planes(rng: np.random.Generator, layout: ColourInfo, size: tuple[int, int]) -> list[np.ndarray]:
    """A picture with some structure: smooth noise, full of colours."""
    count = 3 + layout.alpha
    found = []
    for number in range(count):
        high, wide = size
        if layout.subsampling == "420" and number in (1, 2):
            high, wide = -(-high // 2), -(-wide // 2)
        coarse = rng.integers(40, 220, (-(-high // 6), -(-wide // 6))).repeat(6, 0).repeat(6, 1)[:high, :wide]
        fine = coarse + rng.integers(-8, 9, (high, wide))
        deep = layout.bit_depth > 8
        found.append((fine << (layout.bit_depth - 8)).astype(np.uint16 if deep else np.uint8))
    return found


def clip(*pictures: list[np.ndarray], layout: ColourInfo = YUV) -> list[Frame]:
    return [
        Frame(tuple(picture), layout, index=i, pts=i, time_base=Fraction(1, 25))
        for i, picture in enumerate(pictures)
    ]


def with_square(picture: list[np.ndarray], y: int, x: int, value: int = 235) -> list[np.ndarray]:
    """The picture with a small square on its first plane."""
    first = picture[0].copy()
    first[y : y + 6, x : x + 6] = value
    return [first, *picture[1:]]


def moving(picture: list[np.ndarray], count: int = 5) -> list[list[np.ndarray]]:
    """A cursor that wanders about the left of the picture, then stands."""
    found = [with_square(picture, 4 + 2 * i, 3 + 3 * i) for i in range(count)]
    return [*found, found[-1], found[-1]]


SPEC, WEIGHTS = load_weights("rlfn-s", 4)

FACTORY = InferenceFactory(SPEC, WEIGHTS)


def engine(reuse: str, **settings: object) -> Engine:
    settings = {"device": "cpu", "threads": 1, **settings}
    return Engine(FACTORY, SPEC, reuse=reuse, **settings)  # type: ignore[arg-type]


def target_of(frame: Frame, scale: int = 4) -> Target:
    return Target(frame.width * scale, frame.height * scale, frame.colour)


def run(made: Engine, frames: list[Frame]) -> list[Frame]:
    return list(made.run((frame, target_of(frame, made.scale)) for frame in frames))


def check_same(one: list[Frame], other: list[Frame]) -> None:
    assert [f.index for f in one] == [f.index for f in other]
    for a, b in zip(one, other, strict=True):
        assert (a.pts, a.time_base, a.concealed, a.colour) == (b.pts, b.time_base, b.concealed, b.colour)
        for p, q in zip(a.planes, b.planes, strict=True):
            np.testing.assert_array_equal(p, q)


def scenes() -> dict[str, list[Frame]]:
    rng = np.random.default_rng(7)
    a, b, c = (planes(rng, YUV, (HEIGHT, WIDTH)) for _ in range(3))
    deep = planes(rng, DEEP, (HEIGHT, WIDTH))
    clear = planes(rng, ALPHA, (HEIGHT, WIDTH))
    clear[3] = np.where(np.arange(WIDTH) < 50, 0, clear[3]).astype(np.uint8)
    solid = [*clear[:3], np.full_like(clear[3], 255)]
    nowhere = [*clear[:3], np.zeros_like(clear[3])]
    dot = np.zeros_like(clear[3])
    dot[40:44, 60:64] = 200
    chroma = [a[0], with_square([a[1]], 20, 20)[0], a[2]]
    return {
        "static": clip(a, a, a, a),
        "held": clip(a, a, a, b, b, c, c, c),
        "cursor": clip(*moving(a)),
        "alternating": clip(a, b, a, b, with_square(a, 30, 70), with_square(b, 30, 70)),
        "chroma only": clip(a, chroma, chroma, a),
        "fade in and out of a square": clip(*(with_square(a, 30, 40, v) for v in (40, 41, 60, 41, 40))),
        "10 bit": clip(*moving(deep, 3), layout=DEEP),
        "alpha": clip(clear, clear, solid, with_square(solid, 9, 9), with_square(clear, 9, 9), layout=ALPHA),
        "alpha appears": clip(nowhere, [*clear[:3], dot], [*clear[:3], dot], nowhere, layout=ALPHA),
        "tiny": clip(
            *([plane[:9, :9] for plane in picture] for picture in (deep, deep, deep[::-1])),
            layout=replace(DEEP, subsampling="444"),
        )[:2],
    }


SCENES = scenes()


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tile": 48, "overlap": 12},
        {"tile": 48, "overlap": 12, "batch": 4},
        {"tile": 48, "overlap": 12, "batch": 4, "precision": "fp32"},
        {"batch": 4},
    ],
    ids=["auto", "tiles", "tiles in batches", "fp32 batches", "frames in batches"],
)
def test_exact_gives_the_bits_of_off(name: str, settings: dict[str, object]) -> None:
    frames = SCENES[name]
    off, exact = engine("off", **settings), engine("exact", **settings)
    reference = run(off, frames)
    check_same(run(exact, frames), reference)
    assert off.statistics.frames_repeated == off.statistics.tiles_reused == 0
    assert off.statistics.frames == exact.statistics.frames == len(frames)
    assert reference[0].planes[0].std() > 1


# ---------------------------------------------------------------- what is computed


def counted(name: str, **settings: object) -> Statistics:
    made = engine("exact", **settings)
    run(made, SCENES[name])
    return made.statistics


def test_repeated_frames_are_not_computed() -> None:
    assert counted("static") == Statistics(frames=4, frames_repeated=3, tiles_computed=1, work=1.0)
    assert counted("held") == Statistics(frames=8, frames_repeated=5, tiles_computed=3, work=3.0)
    assert counted("alternating") == Statistics(frames=6, frames_repeated=2, tiles_computed=4, work=4.0)


@only_native
@pytest.mark.parametrize(("reuse", "kept"), [("off", 0), ("exact", 8)])
def test_frames_are_kept_where_they_are_looked_at(reuse: str, kept: int) -> None:
    """Where nothing is reused a frame goes with its result: it may lie in a GPU's memory, which is short."""
    alive: list[weakref.ref[np.ndarray]] = []

    def fresh() -> Iterator[tuple[Frame, Target]]:
        for seed in range(12):
            (frame,) = clip(planes(np.random.default_rng(seed), YUV, (32, 32)))
            alive.append(weakref.ref(frame.planes[0]))
            yield replace(frame, index=seed, pts=seed), target_of(frame)
        gc.collect()
        assert sum(one() is not None for one in alive[:-3]) == max(0, kept - 3)

    assert sum(1 for _ in engine(reuse).run(fresh())) == 12


def test_within_a_frame_only_what_changed_is_computed() -> None:
    """The cursor's seven frames: two as a whole, since layers are kept from the second on, three in part."""
    frames = clip(*moving(planes(np.random.default_rng(1), YUV, (160, 240))))
    exact = 3 if cpu_form("fp32") == "native" else 0
    formats = [({"precision": "fp32"}, exact)] if FORMAT != "fp32" else []
    for settings, in_part in (({}, 3), ({"tta": True}, 0), *formats):
        made, off = engine("exact", **settings), engine("off", **settings)
        check_same(run(made, frames), run(off, frames))
        one = made.statistics
        assert (one.tiles_computed, one.tiles_in_part, one.frames_repeated) == (5, in_part, 2)
        assert 2.0 < one.work < 3.5 if in_part else one.work == 5.0
        assert (off.statistics.tiles_in_part, off.statistics.work) == (0, 7.0)


@only_native
@pytest.mark.parametrize("reuse", ["exact", "off"])
def test_kept_memory_goes_first_when_it_is_short(reuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 6)
    made, other = engine(reuse), engine("off")
    calls = []

    def short(self: Engine, *args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        return infer(self, *args)

    infer = Engine.infer
    monkeypatch.setattr(Engine, "infer", short)
    frames = clip(*moving(planes(np.random.default_rng(1), YUV, (160, 240))))
    got = run(made, frames)
    monkeypatch.undo()
    check_same(got, run(other, frames))
    assert not made.sizes.limits.shortages
    count = 5 if reuse == "exact" else 7
    one = made.statistics
    assert (one.tiles_computed, one.tiles_in_part, one.work) == (count, 0, float(count))
    check_same(run(made, frames), got)
    # After a few that went well layers are kept again.
    check_same(run(made, frames), got)
    assert (made.statistics.tiles_in_part > 0) == (reuse == "exact")


def test_frames_are_alike_where_changes_reach_little_of_them() -> None:
    """A cursor, a page that is turned, the cursor on it, and a film."""
    one, other, *film = (planes(np.random.default_rng(seed), YUV, (160, 240)) for seed in range(6))
    spots = list(one)
    spots[0] = spots[0].copy()
    spots[0][::30, ::30] += 1  # every third cell or so
    pictures = [one, with_square(one, 40, 40), other, with_square(other, 40, 40), *film, film[-1], spots]
    likeness = Likeness()
    seen = [likeness.sees(frame) for frame in clip(*pictures)]
    assert seen == [False, True, True, True, True, False, False, False, True, True]
    likeness = Likeness()
    assert [likeness.sees(frame) for frame in clip(one, spots, one, spots)] == [False] * 4
    smaller = clip(planes(np.random.default_rng(0), YUV, (80, 240)))[0]
    assert not likeness.sees(smaller), "another size"


@pytest.mark.parametrize("reach", [1, 2, 5])
def test_cells_near_others(reach: int) -> None:
    cells = np.random.default_rng(reach).random((7, 12)) < 0.05
    wanted = np.zeros_like(cells)
    for y, x in zip(*np.nonzero(cells), strict=True):
        wanted[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    np.testing.assert_array_equal(cells_near(cells, reach), wanted)


@pytest.mark.parametrize(
    ("size", "kept"), [((80, 120), 8), ((3840, 2160), 4), ((7680, 4320), 4), ((15360, 8640), 1)]
)
def test_the_last_few_frames_are_kept(size: tuple[int, int], kept: int) -> None:
    """P and B frames of a held picture take turns; of large ones there are fewer."""
    gallery: Gallery[int] = Gallery()
    rng, frames = np.random.default_rng(0), []
    target = Target(*size, YUV)
    for number in range(kept + 1):
        (frame,) = clip(planes(rng, YUV, (20, 30)))
        gallery.add(frame, target, number)
        frames.append(frame)
    found = [gallery.find(replace(frame, index=99), target) for frame in frames]
    assert found == [None, *range(1, kept + 1)]
    assert gallery.find(frames[-1], target_of(frames[-1], 2)) is None
    huge = Target(40_000, 30_000, YUV)
    gallery.add(frames[0], huge, 7)
    assert gallery.find(frames[0], huge) == 7
    assert gallery.find(frames[-1], target) is None


def test_what_led_to_a_kept_result_is_let_go() -> None:
    """However many frames' results are kept, tiles are of one frame."""
    made = nearest("exact", tile=48, overlap=12)
    counts: list[int] = []

    def kept_tiles() -> int:
        gc.collect()
        return sum(type(o) is Answer and o.part is not None for o in gc.get_objects())

    before = kept_tiles()

    def work() -> Iterator[tuple[Frame, Target]]:
        for frame in SCENES["held"]:
            yield frame, target_of(frame, 2)
            counts.append(kept_tiles() - before)

    list(made.run(work()))
    assert max(counts) == len(plan(HEIGHT, WIDTH, 48, 12))


def test_tiles_that_did_not_change_are_not_computed() -> None:
    count = len(plan(HEIGHT, WIDTH, 48, 12))
    one = counted("cursor", tile=48, overlap=12)
    assert one.frames_repeated == 2 and one.tiles_computed + one.tiles_reused == 5 * count
    # The square lies in the first tile of each axis and within reach of the second at most.
    assert count <= one.tiles_computed <= count + 4 * 4
    still = counted("static", tile=48, overlap=12)
    assert still == Statistics(frames=4, frames_repeated=3, tiles_computed=count, work=float(count))


def test_tiles_of_several_frames_share_batches() -> None:
    recorder = Recorder(2)
    made = Engine(
        lambda dtype, edge, device: recorder,
        nearest_spec(2),
        device="cpu",
        precision="fp32",
        threads=1,
        batch=6,
        tile=48,
        overlap=12,
    )
    frames = clip(*moving(list(SCENES["static"][0].planes), 20))
    results = run(made, frames)
    check_same(results, run(nearest("off", tile=48, overlap=12), frames))
    assert {shape[0] for shape in recorder.seen} == {6}
    assert made.statistics.frames_repeated == 2
    assert made.statistics.tiles_reused > made.statistics.tiles_computed


class Recorder(NearestNetwork):
    """Remembers the shapes that it was given."""

    def __init__(self, scale: int) -> None:
        super().__init__(scale)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        return super().forward(x)


def nearest(reuse: str, **settings: object) -> Engine:
    settings = {"device": "cpu", "precision": "fp32", "threads": 1, **settings}
    return Engine(nearest_factory(2), nearest_spec(2), reuse=reuse, **settings)  # type: ignore[arg-type]


def test_a_repeated_frame_is_the_same_planes() -> None:
    """No conversion, no copy; a picture without a time is the caller's own, though."""
    one, other = run(nearest("exact"), SCENES["static"][:2])
    assert all(p is q for p, q in zip(one.planes, other.planes, strict=True))
    stills = [replace(frame, pts=None, time_base=None) for frame in SCENES["static"][:2]]
    one, other = run(nearest("exact"), stills)
    assert not any(np.shares_memory(p, q) for p, q in zip(one.planes, other.planes, strict=True))
    np.testing.assert_array_equal(one.planes[0], other.planes[0])


def test_another_target_or_layout_is_another_result() -> None:
    frame = SCENES["static"][0]
    full = replace(frame, colour=replace(frame.colour, range=2), index=1, pts=1)
    work = [(frame, target_of(frame, 2)), (frame, Target(100, 90, YUV)), (full, Target(100, 90, YUV))]
    exact = nearest("exact")
    check_same(list(exact.run(work)), list(nearest("off").run(work)))
    assert exact.statistics.frames_repeated == 0


def test_self_ensemble_is_reused_too() -> None:
    settings: dict[str, object] = {"tile": 48, "overlap": 12, "tta": True}
    frames = SCENES["cursor"][:3]
    exact = engine("exact", **settings)
    check_same(run(exact, frames), run(engine("off", **settings), frames))
    assert exact.statistics.tiles_reused > 0


def test_exact_is_the_default_and_others_are_refused() -> None:
    assert (
        nearest("exact").reuse == Engine(nearest_factory(2), nearest_spec(2), device="cpu").reuse == "exact"
    )
    with pytest.raises(UsageError, match="exact, near or off"):
        nearest("some")


class Uneven(NearestNetwork):
    """A device whose last bits depend on a tile's place in the batch."""

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        place = torch.arange(len(x), dtype=torch.float32)[:, None, None, None]
        return super().forward(x) + 5 * place


@pytest.mark.parametrize("tile", [0, 48])
def test_nothing_is_reused_where_bits_depend_on_the_company(tile: int) -> None:
    def made(reuse: str) -> Engine:
        return Engine(
            lambda dtype, edge, device: Uneven(2),
            nearest_spec(2),
            device="cpu",
            precision="fp32",
            threads=1,
            batch=3,
            tile=tile,
            overlap=12 if tile else None,
            reuse=reuse,
        )

    for name in ("static", "cursor"):
        exact = made("exact")
        check_same(run(exact, SCENES[name]), run(made("off"), SCENES[name]))
        assert exact.statistics.frames_repeated == exact.statistics.tiles_reused == 0


class Failing(NearestNetwork):
    """Has no memory for more than `fits` pixels at once."""

    fits = 60 * 60

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        if x.shape[0] * x.shape[2] * x.shape[3] > self.fits:
            raise MemoryError
        return super().forward(x)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("reuse", ["exact", "near"])
def test_exhausted_memory_loses_and_mixes_nothing(reuse: str, batch: int) -> None:
    said: list[str] = []
    made = Engine(
        lambda dtype, edge, device: Failing(2),
        nearest_spec(2),
        device="cpu",
        precision="fp32",
        threads=1,
        batch=batch,
        reuse=reuse,
        reuse_tolerance=0,
        on_warning=said.append,
    )
    for name in ("held", "cursor", "alternating"):
        results, reference = run(made, SCENES[name]), run(nearest("off"), SCENES[name])
        assert [frame.index for frame in results] == [frame.index for frame in reference]
        for a, b in zip(results, reference, strict=True):
            # Tiles that fade into one another may round otherwise than the whole.
            assert all(np.abs(p.astype(int) - q).max() <= 1 for p, q in zip(a.planes, b.planes, strict=True))
    assert said and made.statistics.frames_repeated > 0


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for tiles repeated frames still are caught."""
    monkeypatch.setattr("rlfn_pipe.engine.reuse.KEPT_BYTES", 1000)
    one = counted("cursor", tile=48, overlap=12)
    assert one.tiles_reused == 0 and one.frames_repeated == 2
    assert one.tiles_computed == 5 * len(plan(HEIGHT, WIDTH, 48, 12))


# ---------------------------------------------------------------- comparing


def layouts() -> Iterator[ColourInfo]:
    for subsampling in ("420", "422", "444", "440", "rgb", "grey"):
        for location in ("left", "centre", "topleft"):
            yield ColourInfo(
                0 if subsampling == "rgb" else 1,
                range=2,
                subsampling=subsampling,  # type: ignore[arg-type]
                chroma_location=location,  # type: ignore[arg-type]
            )


@pytest.mark.parametrize("layout", list(layouts()), ids=lambda c: f"{c.subsampling}-{c.chroma_location}")
def test_a_tile_is_touched_whenever_its_rgb_changes(layout: ColourInfo) -> None:
    """Against the conversion itself: single samples changed at random, odd sizes."""
    rng, size = np.random.default_rng(3), (75, 91)
    half = chroma_size(*size, layout.subsampling)
    shapes = [size] if layout.subsampling == "grey" else [size, half, half]
    first = Frame(tuple(rng.integers(60, 190, shape, dtype=np.uint8) for shape in shapes), layout)
    device = torch.device("cpu")
    before = colour.to_rgb(first, device)
    seen = 0
    for _ in range(40):
        number = int(rng.integers(len(shapes)))
        changed = [plane.copy() for plane in first.planes]
        y, x = (int(rng.integers(side)) for side in shapes[number])
        changed[number][y, x] ^= 64
        second = replace(first, planes=tuple(changed))
        assert not same_samples(first, second)
        differ = (colour.to_rgb(second, device) != before).any(dim=0).numpy()
        cells = changed_cells(first, second)
        for tile in plan(*size, 33, 12):
            rows = slice(tile.y.origin, tile.y.origin + tile.y.size)
            columns = slice(tile.x.origin, tile.x.origin + tile.x.size)
            if differ[rows, columns].any():
                assert touched(cells, tile, REACH)
                seen += 1
        assert int(cells.sum()) == 1
    assert seen >= 40
    assert cells.shape == (-(-size[0] // CELL), -(-size[1] // CELL))


def test_filling_under_alpha_stays_within_its_reach() -> None:
    rng, size = np.random.default_rng(5), (60, 60)
    device = torch.device("cpu")
    picture = planes(rng, ALPHA, size)
    picture[3] = np.where(rng.random(size) < 0.004, 200, 0).astype(np.uint8)
    first = Frame(tuple(picture), ALPHA)

    def filled(frame: Frame) -> torch.Tensor:
        return fill_under_alpha(
            colour.to_rgb(frame, device), grey_of(frame, Tensors(device)), Tensors(device)
        )

    before, furthest = filled(first), 0
    for _ in range(30):
        y, x = (int(v) for v in rng.integers(0, 60, 2))
        changed = [plane.copy() for plane in picture]
        changed[int(rng.integers(4))][y, x] ^= 200
        differ = (filled(replace(first, planes=tuple(changed))) != before).any(dim=0).numpy()
        for row, column in np.argwhere(differ):
            furthest = max(furthest, abs(int(row) - y), abs(int(column) - x))
    assert 4 < furthest <= REACH_ALPHA


@pytest.mark.parametrize("spoil", range(3))
def test_equal_samples_are_equal_everywhere(spoil: int) -> None:
    (frame,) = SCENES["static"][:1]
    copy = replace(frame, planes=tuple(plane.copy() for plane in frame.planes))
    assert same_samples(frame, copy) and not changed_cells(frame, copy).any()
    for y, x in ((0, 0), (-1, -1), (7, 8), (-1, 0)):
        planes = [plane.copy() for plane in frame.planes]
        planes[spoil][y, x] ^= 1
        other = replace(frame, planes=tuple(planes))
        assert not same_samples(frame, other) and changed_cells(frame, other).sum() == 1


# ---------------------------------------------------------------- near


@pytest.mark.parametrize("tile", [0, 48])
def test_near_takes_noise_within_the_tolerance(tile: int) -> None:
    rng = np.random.default_rng(1)
    picture = SCENES["static"][0].planes
    noisy = [
        [(plane + rng.integers(-1, 2, plane.shape)).astype(np.uint8) for plane in picture] for _ in range(5)
    ]
    settings: dict[str, object] = {"tile": tile, "overlap": 12 if tile else None, "reuse_tolerance": 2}
    made = engine("near", **settings)
    results = run(made, clip(*noisy))
    assert made.statistics.frames_repeated == 4
    check_same(results, [replace(results[0], index=i, pts=i) for i in range(5)])
    strict = engine("near", **{**settings, "reuse_tolerance": 1})
    run(strict, clip(*noisy))
    assert strict.statistics.frames_repeated == 0


@pytest.mark.parametrize("tile", [0, 48])
def test_near_does_not_drift_over_a_slow_fade(tile: int) -> None:
    """+1 code value a frame: every third frame is new, and no input is further off than the tolerance."""
    settings: dict[str, object] = {"tile": tile, "overlap": 12 if tile else None}
    luma, grey = SCENES["static"][0].planes[0], replace(YUV, subsampling="grey")
    fade = clip(*([luma + np.uint8(by)] for by in range(9)), layout=grey)
    made = nearest("near", reuse_tolerance=2, **settings)
    results, reference = run(made, fade), run(nearest("off", **settings), fade)
    assert made.statistics.frames_repeated == 6
    errors = [
        np.abs(a.planes[0].astype(int) - b.planes[0]).max() for a, b in zip(results, reference, strict=True)
    ]
    assert errors == [0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_near_keeps_quiet_tiles_beside_moving_ones() -> None:
    rng = np.random.default_rng(2)
    frames = []
    for picture in moving(list(SCENES["static"][0].planes), 4):
        frames.append([(plane + rng.integers(-1, 2, plane.shape)).astype(np.uint8) for plane in picture])
    made = engine("near", tile=48, overlap=12, reuse_tolerance=2)
    results = run(made, clip(*frames))
    reference = run(engine("off", tile=48, overlap=12), clip(*frames))
    assert made.statistics.tiles_reused > 0 and made.statistics.tiles_computed > len(
        plan(HEIGHT, WIDTH, 48, 12)
    )
    worst = max(
        np.abs(a.planes[0].astype(int) - b.planes[0]).mean() for a, b in zip(results, reference, strict=True)
    )
    assert worst < 2


@pytest.mark.parametrize("layout", [YUV, DEEP, ALPHA, replace(YUV, subsampling="422")])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (37, 51), (8, 5)])
def test_what_is_held_is_within_the_tolerance_and_of_the_film(
    layout: ColourInfo, size: tuple[int, int]
) -> None:
    """Frame by frame against the definition, cell by cell."""
    rng = np.random.default_rng(size[0])
    unit = 1 << (layout.bit_depth - 8)
    if layout.subsampling == "422":
        picture = [
            plane[:, : -(-size[1] // (1 + (i > 0)))] for i, plane in enumerate(planes(rng, ALPHA, size)[:3])
        ]
    else:
        picture = planes(rng, layout, size)
    film = []
    for i in range(12):
        noisy = [plane + rng.integers(-1, 2, plane.shape) * unit for plane in picture]
        if i % 4 == 1:
            noisy[i % len(noisy)][i % 3, i % 2] += 5 * unit
        film.append([plane.astype(picture[0].dtype) for plane in noisy])
    film[7] = [plane.copy() for plane in picture]
    film[7][0] += 10 * unit
    hold, kept, seen = Hold(2.5), 0, []
    for frame in clip(*film, layout=layout):
        made = hold(frame)
        assert (made.pts, made.index, made.colour) == (frame.pts, frame.index, frame.colour)
        seen.append(frame)
        for number, (got, given) in enumerate(zip(made.planes, frame.planes, strict=True)):
            assert np.abs(got.astype(int) - given).max() <= 2.5 * unit
            assert (np.array([f.planes[number] for f in seen]) == got).any(axis=0).all()
            kept += int((got != given).sum())
        if frame.index == 7:
            assert all(p is q for p, q in zip(made.planes, frame.planes, strict=True)), "much has changed"
    assert kept > 0
    still = replace(frame, pts=None)
    assert hold(still) is still, "a picture that is no film's"


def test_beside_a_change_nothing_is_held() -> None:
    """A seam between old and new samples lies away from where the network looks closely."""
    picture = np.full((80, 120), 100, np.uint8)
    noisy = picture + np.uint8(1)
    noisy[40, 64] = 200
    grey = replace(YUV, subsampling="grey")
    hold = Hold(2)
    first, second = (hold(frame) for frame in clip([picture], [noisy], layout=grey))
    assert first.planes[0] is picture
    new = np.zeros(picture.shape, bool)
    new[5 * 8 - 16 : 6 * 8 + 16, 8 * 8 - 16 : 9 * 8 + 16] = True
    np.testing.assert_array_equal(second.planes[0], np.where(new, noisy, picture))


@only_native
def test_near_computes_only_what_moves_over_a_noisy_drawing() -> None:
    """Where `exact` has all to do."""
    rng = np.random.default_rng(5)
    picture = planes(rng, YUV, (180, 320))
    frames = clip(*(
        [(plane + rng.integers(-1, 2, plane.shape)).astype(np.uint8) for plane in with_square(picture, 90, 20 + 4 * i)]
        for i in range(6)
    ))  # fmt: skip
    work, results = {}, {}
    for mode in ("off", "exact", "near"):
        made = engine(mode)
        results[mode] = run(made, frames)
        work[mode] = made.statistics.work
    assert work["off"] == work["exact"] == 6.0 and work["near"] < 4.0
    for a, b in zip(results["near"], results["off"], strict=True):
        assert np.abs(a.planes[0].astype(int) - b.planes[0]).mean() < 2


def test_tolerance_counts_in_code_values_of_8_bit() -> None:
    deep = list(SCENES["10 bit"][0].planes)
    pictures = [deep, [deep[0] + 8, *deep[1:]], [deep[0] + 9, *deep[1:]]]
    made = nearest("near", reuse_tolerance=2)
    run(made, clip(*pictures, layout=DEEP))
    assert made.statistics.frames_repeated == 1 and made.statistics.tiles_computed == 2


def test_near_without_tolerance_equals_off_where_nothing_repeats() -> None:
    frames = SCENES["alternating"]
    made = engine("near", tile=48, overlap=12, reuse_tolerance=0)
    check_same(run(made, frames), run(engine("off", tile=48, overlap=12), frames))


def test_memory_that_ends_with_every_result_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch leaves behind itself is no room that was made for it: it was computed again for ever."""

    def full(self: Answer, *arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Answer, "set", full)
    said: list[str] = []
    made = engine("exact", tile=120, overlap=24, on_warning=said.append)
    layout = replace(ALPHA, alpha=False)
    picture = np.random.default_rng(0).integers(0, 256, (3, 130, 140), dtype=np.uint8)
    with pytest.raises(EngineError, match="not enough memory"):
        list(made.run([(Frame(tuple(picture), layout), Target(560, 520, layout))]))
    assert len(said) <= 3
