"""The engine: order, batches, sizes, tiles, memory, overflow, precision, self-ensemble."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nearest import NearestNetwork, nearest_factory, nearest_spec

from rlfn_pipe.engine import device as device_module
from rlfn_pipe.engine import transfer
from rlfn_pipe.engine.colour import add_excess
from rlfn_pipe.engine.device import Device, resolve_device, resolve_precision
from rlfn_pipe.engine.host import Host
from rlfn_pipe.engine.limits import PATIENCE, Limits
from rlfn_pipe.engine.network import Grid
from rlfn_pipe.engine.overflow import Doubts
from rlfn_pipe.engine.picture import Picture
from rlfn_pipe.engine.resize import resize
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.engine.settings import Settings
from rlfn_pipe.engine.sizes import CPU_STRIPS, TILE_SHARE
from rlfn_pipe.engine.tensors import Tensors
from rlfn_pipe.engine.tiling import plan
from rlfn_pipe.engine.transfer import Arrival, fetch
from rlfn_pipe.errors import EngineError, UsageError
from rlfn_pipe.jobs.room import EngineRoom
from rlfn_pipe.memory import is_out_of_memory
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.cuda import trial
from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.forms import InferenceFactory, form_on
from rlfn_pipe.models.native.library import cpu_form
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.weights import save
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.types import ColourInfo, Frame, ModelSpec, Target

RGB = ColourInfo(0, range=2, subsampling="rgb")


def pictures(sizes: list[tuple[int, int]], seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    return [
        Frame(
            tuple(rng.integers(0, 256, size, dtype=np.uint8) for _ in range(3)),
            RGB,
            index=number,
            pts=number * 3,
            time_base=Fraction(1, 25),
            concealed=number == 1,
        )
        for number, size in enumerate(sizes)
    ]


def work(frames: list[Frame], scale: int) -> list[tuple[Frame, Target]]:
    return [(frame, Target(frame.width * scale, frame.height * scale, RGB)) for frame in frames]


def nearest(scale: int, **settings: object) -> Engine:
    settings = {"device": "cpu", "precision": "fp32", "threads": 1, **settings}
    return Engine(nearest_factory(scale), nearest_spec(scale), **settings)  # type: ignore[arg-type]


def check_identity(frames: list[Frame], results: list[Frame], scale: int) -> None:
    assert [r.index for r in results] == [f.index for f in frames]
    for frame, result in zip(frames, results, strict=True):
        assert (result.pts, result.time_base, result.concealed) == (
            frame.pts,
            frame.time_base,
            frame.concealed,
        )
        for plane, original in zip(result.planes, frame.planes, strict=True):
            np.testing.assert_array_equal(plane, original.repeat(scale, 0).repeat(scale, 1))


MIXED = [(40, 70), (150, 97), (40, 70), (3, 200), (150, 97), (40, 70), (64, 64)]


@pytest.mark.parametrize("tile", [None, 0, 60])
@pytest.mark.parametrize("batch", [None, 1, 3, 50])
def test_identity_is_exact_in_order_whatever_tile_and_batch(tile: int | None, batch: int | None) -> None:
    frames = pictures(MIXED)
    check_identity(frames, list(nearest(2, tile=tile, batch=batch).run(work(frames, 2))), 2)


class Recorder(NearestNetwork):
    """Remembers how many tiles of what shape came together."""

    def __init__(self, scale: int) -> None:
        super().__init__(scale)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        if grid is not None:
            assert grid[0].shape[:2] == (x.shape[0], x.shape[2]) and grid[1].shape[:2] == (
                x.shape[0],
                x.shape[3],
            )
        return super().forward(x)


def test_batches_are_filled_across_frames_of_mixed_sizes() -> None:
    network = Recorder(2)
    engine = Engine(
        lambda dtype, edge, device: network,
        nearest_spec(2),
        device="cpu",
        precision="fp32",
        batch=4,
        threads=1,
    )
    frames = pictures([(30, 40), (50, 60)] * 8)
    check_identity(frames, list(engine.run(work(frames, 2))), 2)
    assert [shape[0] for shape in network.seen] == [4, 4, 4, 4]


def test_look_ahead_is_bounded() -> None:
    taken = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal taken
        while True:
            (frame,) = pictures([(20 + taken % 13, 30)])
            taken += 1
            yield frame, Target(60, 40 + 2 * ((taken - 1) % 13), RGB)

    results = nearest(2, batch=4).run(endless())
    for number in range(60):
        next(results)
        assert taken - number < 20


def test_arbitrary_target_sizes_go_through_lanczos() -> None:
    (frame,) = pictures([(20, 30)])
    flat = Frame(tuple(np.full((20, 30), v, np.uint8) for v in (7, 99, 250)), RGB)
    for size in ((33, 50), (200, 31), (40, 60), (1, 1)):
        results = list(
            nearest(2).run([(frame, Target(size[1], size[0], RGB)), (flat, Target(size[1], size[0], RGB))])
        )
        assert results[0].planes[0].shape == size
        assert [int(plane.min()) for plane in results[1].planes] == [7, 99, 250]
        assert [int(plane.max()) for plane in results[1].planes] == [7, 99, 250]


def lanczos_matrix(out_size: int, in_size: int) -> np.ndarray:
    """All of an axis by the definition, (out_size, in_size) float64."""
    stretch = max(1.0, in_size / out_size)
    matrix = np.zeros((out_size, in_size))
    beyond = int(4 * stretch)
    taps = np.arange(-beyond, in_size + beyond)
    for row in range(out_size):
        d = (taps - ((row + 0.5) * in_size / out_size - 0.5)) / stretch
        weights = np.where(np.abs(d) < 3, np.sinc(d) * np.sinc(d / 3), 0.0)
        np.add.at(matrix[row], np.clip(taps, 0, in_size - 1), weights / weights.sum())
    return matrix


@pytest.mark.parametrize(
    "size", [(5, 20), (1, 1), (75, 99), (300, 31), (64, 70), (33, 96), (20, 300), (160, 7)]
)
def test_lanczos_equals_its_definition(size: tuple[int, int]) -> None:
    """Band by band as by one matrix for each axis."""
    image = 255.0 * torch.rand(3, 20, 70, generator=torch.Generator().manual_seed(3))
    down, across = (torch.from_numpy(lanczos_matrix(*pair)) for pair in zip(size, (20, 70), strict=True))
    wanted = down @ image.double() @ across.T
    for given in (image, image.transpose(-1, -2).contiguous().transpose(-1, -2)):
        for part, arrays in ((given, Tensors(torch.device("cpu"))), (given.numpy(), Host())):
            got = torch.as_tensor(resize(part, *size, arrays))
            torch.testing.assert_close(got.double(), wanted, atol=2e-4, rtol=0.0)
            assert resize(part, 20, 70, arrays) is part


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_what_goes_around_the_network_is_enlarged_alike(scale: int) -> None:
    """Where it is resized later, arrays get it by bands and tensors by PyTorch."""
    rgb, excess = (
        255.0 * torch.rand(3, side * scale, 3 * side * scale) for side, scale in ((7, scale), (7, 1))
    )
    wanted = add_excess(rgb, excess)
    got = Host().resized(rgb.numpy(), excess.numpy(), *rgb.shape[-2:])
    torch.testing.assert_close(torch.from_numpy(got), wanted, atol=1e-3, rtol=0)


def test_limits_are_checked() -> None:
    for settings in (
        {"overlap": -1},
        {"tile": 40, "overlap": 36},
        {"tile": -1},
        {"batch": 0},
        {"precision": "int8"},
    ):
        with pytest.raises(UsageError):
            nearest(2, **settings)
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(UsageError):
            resolve_device(name)


def test_default_overlap_follows_the_tile() -> None:
    engines = {tile: nearest(2, tile=tile).sizes.overlap for tile in (None, 0, 12, 40, 64, 96, 120, 400)}
    assert engines == {None: 60, 0: 60, 12: 0, 40: 28, 64: 36, 96: 48, 120: 60, 400: 60}


def test_hardware_that_nobody_measured_is_taken_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module, "may_have_a_gpu", lambda: True)
    monkeypatch.setattr(device_module, "_mps_available", lambda: True)
    device, reason = resolve_device("auto")
    assert device.type == "cpu" and "--device mps" in reason
    assert resolve_device("mps")[0].type == "mps"


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux' own files")
def test_gpus_are_looked_for_where_drivers_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build of PyTorch that can use none is not asked; else any sign will do, though it costs PyTorch's import."""
    signs = tmp_path / "nvidiactl", tmp_path / "kfd"
    monkeypatch.setattr(device_module, "_DRIVERS", tuple(map(str, signs)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "one")
    facts = ["__version__ = '2.13.0'", "cuda: Optional[str] = '13.0'", "hip: Optional[str] = None"]
    monkeypatch.setattr(device_module, "_torch_lines", lambda: facts)
    assert not device_module.may_have_a_gpu() and resolve_device("auto")[0].type == "cpu"
    signs[1].touch()
    assert device_module.may_have_a_gpu() and str(resolve_device("auto")[0]) == "cuda:0"
    facts[1] = "cuda: Optional[str] = None"
    assert not device_module.may_have_a_gpu()
    facts[2] = "hip = '6.4'"
    assert device_module.may_have_a_gpu()
    facts.clear()  # a build that says nothing of itself
    assert device_module.may_have_a_gpu() and device_module.torch_version.__wrapped__() == str(
        torch.__version__
    )


def test_the_version_is_that_of_the_library() -> None:
    assert device_module.torch_version() == str(torch.__version__)
    facts = device_module._torch_facts()
    assert facts["cuda"] == str(torch.version.cuda) and facts["hip"] == str(torch.version.hip)


def test_memory_is_told_from_other_errors_while_pytorch_is_half_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("a shape is wrong"))


def test_precision_has_a_reason() -> None:
    name, reason = resolve_precision("auto", torch.device("cpu"))
    assert name in ("bf16", "fp32") and "CPU" in reason
    assert resolve_precision("auto", torch.device("cuda", 0))[0] == "fp16"


def test_resolved_settings_pin_what_free_memory_would_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlfn_pipe.engine import settings as module

    options = UpscaleOptions(scale=2, device="cpu", precision="fp32", threads=1)
    monkeypatch.setattr(module, "available_memory", lambda device: 400 << 20)
    room = EngineRoom(options, lambda text: None)
    told = room.resolved(2)
    assert json.loads(json.dumps(told)) == told
    assert told["budget"] == 100 << 20
    monkeypatch.setattr(module, "available_memory", lambda device: 40 << 30)
    assert room.resolved(4) == told, "memory is looked at once"
    assert EngineRoom(options, lambda text: None).resolved(2) != told
    again = EngineRoom(UpscaleOptions(scale=2), lambda text: None, resolved=told)
    assert again.resolved(2) == told
    engine = again.engine_for(2)
    assert not engine.sizes.limits.shrunk
    small = room.engine_for(2).sizes.tile_for(2000, 2000)
    assert 0 < small == engine.sizes.tile_for(2000, 2000)
    with pytest.raises(UsageError, match="lack"):
        EngineRoom(options, lambda text: None, resolved={"device": "cpu"}).resolved(2)


def test_settings_are_found_once_and_given_back() -> None:
    found = Settings.resolve(device="cpu", threads=3, tile=96, budget=5)
    assert (found.threads, found.tile, found.budget) == (3, 96, 5)
    assert found.precision in ("bf16", "fp32") and found.compile in ("on", "off")
    assert Settings.pinned(found.to_dict(), "cpu") == found
    with pytest.raises(UsageError, match="compile"):
        Settings.resolve(device="cpu", compile="perhaps")
    formed = Settings.resolve(device="cpu", form=lambda device, precision: f"{precision} on {device.type}")
    assert found.instructions == ""
    assert formed.instructions == f"{torch.backends.cpu.get_cpu_capability()}, {found.precision} on cpu"
    native = Settings.resolve(device="cpu", form=lambda device, precision: "native, amx")
    assert native.instructions == "native, amx", "PyTorch has no part in it"


def test_jobs_know_by_which_road_their_pixels_came(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv(trial.WISH, raising=False)
    monkeypatch.setattr(trial, "why_not", lambda device: (None, ""))
    spec, small = architecture("rlfn-s", 2), ModelSpec("own", 2, 32, 32, 2)
    assert (form_on(cuda, "fp16", spec), form_on(cuda, "fp32", spec)) == ("cuda", "operators")
    monkeypatch.setenv(trial.WISH, "off")
    assert form_on(cuda, "fp16", spec) == "operators"
    monkeypatch.delenv(trial.WISH)
    monkeypatch.setattr(trial, "why_not", lambda device: ("it is too old", ""))
    assert form_on(cuda, "fp16", spec) == "operators"
    cpu = torch.device("cpu")
    assert form_on(cpu, "fp32", spec) == cpu_form("fp32")
    assert form_on(cpu, "fp32", small) == "strips", "the compiled part is not for it"
    assert form_on(cpu, "fp32", spec, compile=True) == "compiled"


def test_a_job_with_a_network_of_its_own_has_that_ones_form(tmp_path: Path) -> None:
    """In strips threads decide on the last bits: workers each take the threads that were resolved."""
    spec = ModelSpec("own", 2, 32, 32, 2)
    save(tmp_path / "own.safetensors", RLFN(spec), spec)
    options = UpscaleOptions(
        model=str(tmp_path / "own.safetensors"), device="cpu", precision="fp32", threads=8
    )
    room = EngineRoom(options, lambda text: None, workers=4)
    told = room.resolved(2)
    assert str(told["instructions"]).endswith("strips") and told["threads"] == 2
    again = EngineRoom(options, lambda text: None, resolved=told, workers=4)
    assert again.engine_for(2).threads == 2


def test_a_job_goes_on_on_any_device_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs each worker has its own, whichever of them planned the film."""
    from rlfn_pipe.engine import settings as module

    def found(name: str) -> tuple[Device, str]:
        kind, _, index = name.partition(":")
        return Device(kind, int(index) if index else None), "asked for"

    monkeypatch.setattr(module, "resolve_device", found)
    monkeypatch.setattr(module, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(module, "available_memory", lambda device: 1 << 30)
    first, second = (Settings.resolve(device=f"cuda:{index}", threads=8) for index in (0, 1))
    told = first.to_dict()
    assert told == second.to_dict() and told["device"] == "cuda"
    again = Settings.pinned(told, "cuda:1")
    assert again == second and str(again.found) == "cuda:1"
    with pytest.raises(UsageError, match="--device cpu is cpu here, and the work was begun on cuda"):
        Settings.pinned(told, "cpu")

    room = EngineRoom(
        UpscaleOptions(device="cuda:1,cuda:0"), lambda text: None, resolved={**told, "budget": 5}, workers=2
    )
    settings = room._resolve(room.spec_for(4))
    assert (settings.device, settings.budget, settings.threads) == ("cuda:1", 5, 8)
    # A GPU's pixels have nothing to do with the threads here, so workers share them and a job may go on with more.
    assert room._threads_are_free(settings, room.spec_for(4)) and room._share(settings) == 4
    alone = EngineRoom(UpscaleOptions(device="cuda:0", threads=8), lambda text: None, workers=1).resolved(4)
    shared = EngineRoom(UpscaleOptions(device="cuda:1", threads=8), lambda text: None, workers=2).resolved(4)
    assert alone == shared


# ---------------------------------------------------------------- memory


def test_limits_grow_again_after_many_good_batches() -> None:
    limits = Limits()
    assert (limits.tile_of(0), limits.batch_of(9), limits.shrunk) == (0, 9, False)
    assert limits.halve_batch(8) == 4
    assert limits.halve_batch(4) == 2
    for _ in range(PATIENCE - 1):
        limits.went_well(1)  # not to the full: says nothing
        limits.went_well(2)
    assert limits.batch == 2, "what is lowered in several steps has failed once"
    limits.went_well(2)
    assert limits.batch == 4
    limits.halve_batch(4)
    for _ in range(2 * PATIENCE - 1):
        limits.went_well(2)
    assert limits.batch == 2, "a limit that failed again is tried less often"
    limits.went_well(2)
    for _ in range(2 * PATIENCE):
        limits.went_well(4)
    assert limits.batch is None and not limits.shrunk and limits.shortages == 3
    assert limits.halve_tile(100, 48) == 50
    assert (limits.tile_of(0), limits.tile_of(40), limits.tile_of(99)) == (50, 40, 50)
    for _ in range(4 * PATIENCE):
        limits.went_well(1)
    assert limits.tile is None


def test_layers_are_kept_again_after_many_good_batches() -> None:
    limits = Limits()
    limits.keep_no_layers()
    assert not limits.layers and not limits.shrunk and limits.shortages == 0
    limits.halve_batch(2)
    for _ in range(PATIENCE):
        assert not limits.layers
        limits.went_well(1)
    assert limits.batch is None and not limits.layers, "the batch first: it costs more"
    for _ in range(PATIENCE):
        assert not limits.layers
        limits.went_well(1)
    assert limits.layers


def test_frames_are_whole_while_they_fit_the_budget_and_tiles_leave_room_for_a_canvas() -> None:
    engine = nearest(2, budget=300 << 20)
    fits = int(((300 << 20) - CPU_STRIPS) / engine.sizes.pixel_bytes)
    assert engine.sizes.tile_for(1, fits) == 0
    side = engine.sizes.tile_for(1, fits + 1)
    share = side**2 * engine.sizes.pixel_bytes + CPU_STRIPS
    assert 0.99 * TILE_SHARE < share / (300 << 20) <= TILE_SHARE
    tiny = nearest(2, budget=1)
    assert (tiny.sizes.tile_for(192, 192), tiny.sizes.tile_for(192, 193)) == (0, 192), (
        "never smaller than that"
    )


@pytest.mark.parametrize("overlap", [None, 0, 36, 100])
@pytest.mark.parametrize("budget", [1, 100 << 20, 160 << 20])
def test_tiles_that_little_memory_asks_for_are_not_computed_many_times_over(
    budget: int, overlap: int | None
) -> None:
    engine = nearest(2, budget=budget, overlap=overlap)
    tiles = plan(540, 960, engine.sizes.tile_for(540, 960), engine.sizes.overlap)
    assert sum(tile.y.size * tile.x.size for tile in tiles) < 3.5 * 540 * 960


def test_tiles_grow_again_when_memory_is_back() -> None:
    network = Failing(2, 90 * 90, 0.0, MemoryError)
    engine = Engine(
        lambda dtype, edge, device: network, nearest_spec(2), device="cpu", precision="fp32", threads=1
    )
    first = pictures([(100, 97)])
    check_identity(first, list(engine.run(work(first, 2))), 2)
    assert engine.sizes.limits.shrunk and engine.sizes.tile_for(100, 97) == 50
    network.fits = 1 << 30
    for _ in range(PATIENCE // 4 + 1):
        check_identity(first, list(engine.run(work(first, 2))), 2)
    assert (
        engine.sizes.tile_for(100, 97) == 0
        and not engine.sizes.limits.shrunk
        and engine.sizes.limits.shortages == 1
    )


def cpu_allocator_error() -> RuntimeError:
    """What PyTorch really raises."""
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("an exbibyte was allocated")


OUT_OF_MEMORY: list[Callable[[], BaseException]] = [
    cpu_allocator_error,
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError("CUDA: CUDA_ERROR_OUT_OF_MEMORY"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def test_out_of_memory_is_known_by_type_and_exact_words() -> None:
    assert all(is_out_of_memory(make()) for make in OUT_OF_MEMORY)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(RuntimeError("CUDA memory is strange"))
    assert not is_out_of_memory(ValueError("not enough memory"))


class Failing(NearestNetwork):
    """Fails when a call holds more pixels than fit, and at random."""

    def __init__(self, scale: int, fits: int, chance: float, make: Callable[[], BaseException]) -> None:
        super().__init__(scale)
        self.fits, self.chance, self.make = fits, chance, make
        self.random, self.failures = random.Random(3), 0

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        if x.shape[0] * x.shape[2] * x.shape[3] > self.fits or (
            x.shape[2] > 60 and self.random.random() < self.chance
        ):
            self.failures += 1
            raise self.make()
        return super().forward(x)


@pytest.mark.parametrize("make", OUT_OF_MEMORY)
@pytest.mark.parametrize("batch", [1, 6])
def test_out_of_memory_halves_and_loses_nothing(make: Callable[[], BaseException], batch: int) -> None:
    network, said = Failing(2, 90 * 90, 0.3, make), []
    engine = Engine(
        lambda dtype, edge, device: network,
        nearest_spec(2),
        device="cpu",
        precision="fp32",
        batch=batch,
        threads=1,
        on_warning=said.append,
    )
    frames = pictures([(150, 97), (60, 60), (150, 97), (200, 220), (60, 60), (20, 20)] * 2)
    check_identity(frames, list(engine.run(work(frames, 2))), 2)
    assert network.failures == len(said) > 0
    assert all("out of memory" in line for line in said)


@pytest.mark.parametrize("size", [(40, 40), (64, 60)])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_that_was_filled_up_is_halved_as_one(size: tuple[int, int], count: int) -> None:
    """The memory that a few frames lacked was that of the full batch: nothing says that a tile is too large."""
    network, said = Failing(2, size[0] * size[1], 0.0, MemoryError), []
    engine = Engine(
        lambda dtype, edge, device: network, nearest_spec(2), device="cpu", precision="fp32", batch=4, threads=1,
        on_warning=said.append,
    )  # fmt: skip
    frames = pictures([size] * count)
    check_identity(frames, list(engine.run(work(frames, 2))), 2)
    assert [line.rpartition("going on with ")[2] for line in said] == [
        "2 tile(s) at once",
        "1 tile(s) at once",
    ]


@pytest.mark.parametrize("size", [(200, 200), (203, 205)])
def test_the_smallest_tile_that_fails_is_one_sentence(size: tuple[int, int]) -> None:
    network = Failing(2, 400, 0.0, MemoryError)
    engine = Engine(
        lambda dtype, edge, device: network, nearest_spec(2), device="cpu", precision="fp32", threads=1
    )
    with pytest.raises(EngineError, match="not enough memory") as caught:
        list(engine.run(work(pictures([(9, 9), (20, 20), size]), 2)))
    assert caught.value.frame == 2


def test_memory_that_ends_while_frames_open_or_close_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlfn_pipe.engine import colour

    rng, failures = random.Random(5), 0

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        last = False

        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal last, failures
            last = not last and rng.random() < 0.5
            if last:
                failures += 1
                raise MemoryError
            return real(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(colour, "to_rgb", failing(colour.to_rgb))
    monkeypatch.setattr(colour, "from_rgb", failing(colour.from_rgb))
    frames = pictures(MIXED)
    check_identity(frames, list(nearest(2, batch=3).run(work(frames, 2))), 2)
    assert failures > 2


def test_other_errors_are_not_swallowed() -> None:
    network = Failing(2, 0, 0.0, lambda: RuntimeError("a shape is wrong"))
    engine = Engine(
        lambda dtype, edge, device: network, nearest_spec(2), device="cpu", precision="fp32", threads=1
    )
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        list(engine.run(work(pictures([(20, 20)]), 2)))


# ---------------------------------------------------------------- overflow


class Overflowing(NearestNetwork):
    """Gives NaN or infinity for bright tiles unless it runs in float32."""

    def __init__(self, dtype: torch.dtype, value: float) -> None:
        super().__init__(2)
        self.dtype, self.value = dtype, value

    def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        y = super().forward(x)
        if self.dtype != torch.float32:
            y[x.amax(dim=(1, 2, 3)) > 250, 1, 3, 4] = self.value
        return y


def overflowing(value: float, **settings: object) -> Engine:
    settings = {"device": "cpu", "precision": "bf16", "threads": 1, **settings}
    return Engine(lambda dtype, edge, device: Overflowing(dtype, value), nearest_spec(2), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tile", [0, 60])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("reuse", ["exact", "off"])
def test_tiles_that_overflow_are_redone_in_fp32(value: float, tile: int, late: bool, reuse: str) -> None:
    said: list[str] = []
    engine = overflowing(value, batch=3, tile=tile, reuse=reuse, on_warning=said.append)
    assert not engine.late_checks, "the CPU's results are there at once"
    engine.late_checks = late
    frames = pictures([(70, 80)] * 4)
    frames[2] = Frame(tuple(plane // 2 for plane in frames[2].planes), RGB, 2, 6, Fraction(1, 25))
    check_identity(frames, list(engine.run(work(frames, 2))), 2)
    assert said and all("fp32" in line for line in said)


def test_flags_are_read_no_further_than_they_are_needed() -> None:
    doubts: Doubts[str] = Doubts()
    doubts.add(fetch([torch.tensor([True, False, True])]), ["a", "b", "c"])
    doubts.add(fetch([torch.tensor([False, True])]), ["d"])
    doubts.add(fetch([torch.tensor([False])]), ["e"])
    assert doubts.settle(0) == [] and doubts.added == 3
    bad = doubts.settle(2)
    assert bad == ["b", "d"] and doubts.settle(1) is bad
    bad.pop()
    doubts.add(fetch([torch.tensor([True, False])]), ["f", "g"])
    assert doubts.added == 4
    assert doubts.settle() == ["b", "e", "g"]


class Slow(Arrival):
    """Tensors that are on the host only when somebody waits for them, as from a device."""

    underway: ClassVar[list[Slow]] = []
    most = 0

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__([torch.full_like(tensor, 77) for tensor in tensors], None)
        self._sent = [tensor.clone() for tensor in tensors]
        self.underway.append(self)
        Slow.most = max(Slow.most, len(self.underway))

    def tensors(self) -> list[torch.Tensor]:
        for copy, sent in zip(super().tensors(), self._sent, strict=True):
            copy.numpy()[...] = sent.numpy()
        if self in self.underway:
            self.underway.remove(self)
        return super().tensors()


@pytest.fixture
def slow_way(monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    """All that the engine fetches is on its way until it is waited for."""
    monkeypatch.setattr(transfer, "fetch", Slow)
    monkeypatch.setattr(Slow, "underway", [])
    monkeypatch.setattr(Slow, "most", 0)
    return Slow


@pytest.mark.parametrize("bright", [(), (2, 6), range(9)])
@pytest.mark.parametrize(
    ("tile", "reuse"), [(0, "off"), (0, "exact"), (60, "off"), (60, "exact"), (60, "near")]
)
def test_frames_on_their_way_while_others_are_computed(
    slow_way: type[Slow], bright: Sequence[int], tile: int, reuse: str
) -> None:
    """Also where it turns out on arrival only that a tile had overflowed, of this frame or one that it shares."""
    said: list[str] = []
    engine = overflowing(float("nan"), batch=2, tile=tile, reuse=reuse, on_warning=said.append)
    assert engine.ahead == 0
    engine.late_checks, engine.ahead = True, 2
    frames = pictures([(70, 80)] * 9)
    for i, frame in enumerate(frames):
        if i not in bright:
            frames[i] = replace(frame, planes=tuple(plane // 2 for plane in frame.planes))
    # A frame that shares most of its tiles with the one before, and repeated ones.
    for i in (3, 4, 7):
        planes = tuple(plane.copy() for plane in frames[2].planes)
        if i == 3:
            planes[0][-9:, -9:] ^= 64
        frames[i] = replace(frames[i], planes=planes)
    got = []
    for frame in engine.run(work(frames, 2)):
        got.append(frame)
        if not bright:  # else some planes are made again, and nobody waits for the first ones
            assert sum(len(each._tensors) == 3 for each in slow_way.underway) <= 2
    assert slow_way.most >= 3, "planes of two frames, and flags"
    check_identity(frames, got, 2)
    assert bool(said) == bool(bright)


def test_a_device_has_the_next_batch_before_the_last_one_is_waited_for(slow_way: type[Slow]) -> None:
    network = NearestNetwork(2)
    at_each_batch: list[int] = []

    def counted(dtype: torch.dtype, edge: bool, device: str) -> NearestNetwork:
        forward = network.forward

        def seen(x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
            at_each_batch.append(len(got))
            return forward(x, grid)

        network.forward = seen  # type: ignore[method-assign]
        return network

    got: list[Frame] = []
    engine = Engine(counted, nearest_spec(2), device="cpu", precision="fp32", batch=4, threads=1, reuse="off")
    engine.ahead = 2
    frames = pictures([(40, 40)] * 16)
    for frame in engine.run(work(frames, 2)):
        got.append(frame)
    check_identity(frames, got, 2)
    assert at_each_batch[:2] == [0, 0] and at_each_batch[2] <= 4


def test_memory_that_ends_while_frames_are_on_their_way(slow_way: type[Slow]) -> None:
    settings = {"batch": 2, "tile": 80, "overlap": 20, "threads": 1}
    engine = Engine(
        lambda dtype, edge, device: Failing(2, 90 * 90, 0.4, MemoryError),
        nearest_spec(2),
        device="cpu",
        **settings,  # type: ignore[arg-type]
    )
    engine.ahead = 2
    frames = pictures([(150, 97), (60, 60), (150, 97), (200, 220), (60, 60)] * 2)
    check_identity(frames, list(engine.run(work(frames, 2))), 2)
    assert engine.sizes.limits.shrunk


def test_memory_that_ends_with_tiles_in_doubt_loses_nothing() -> None:
    """Tiles are cut anew while zeros stand for some of them."""

    class Both(Failing):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__(2, 90 * 90, 0.4, MemoryError)
            self.dtype = dtype

        def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
            y = super().forward(x)
            return y if self.dtype == torch.float32 else y * float("nan")

    settings = {"precision": "bf16", "batch": 2, "tile": 80, "overlap": 20, "threads": 1}
    engine = Engine(lambda dtype, edge, device: Both(dtype), nearest_spec(2), device="cpu", **settings)  # type: ignore[arg-type]
    engine.late_checks = True
    frames = pictures([(150, 97), (60, 60), (150, 97), (200, 220), (60, 60)] * 2)
    check_identity(frames, list(engine.run(work(frames, 2))), 2)
    assert engine.sizes.limits.shrunk


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("failing", [(0,), (2, 9), (3, 4), (11, 23)])
def test_memory_that_ends_while_results_are_placed_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, batch: int, ahead: int, failing: tuple[int, ...]
) -> None:
    """Also where some of a batch's tiles are placed already, or their flags are on their way."""
    calls = iter(range(10**6))

    def fails_at_times(function: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*arguments: Any) -> Any:
            if next(calls) in failing:
                raise MemoryError
            return function(*arguments)

        return tried

    monkeypatch.setattr(Picture, "_add", fails_at_times(Picture._add))
    monkeypatch.setattr(transfer, "fetch", fails_at_times(fetch))
    engine = overflowing(float("nan"), batch=batch, tile=128, overlap=12)
    engine.late_checks, engine.ahead = True, ahead
    frames = pictures([(300, 300)] * 4)
    check_identity(frames, list(engine.run(work(frames, 2))), 2)
    assert engine.sizes.limits.shortages


def test_what_was_finished_before_a_failure_is_given_out(slow_way: type[Slow]) -> None:
    engine = nearest(2, batch=1)
    engine.ahead = 2
    frames = pictures([(20, 20)] * 6)
    jobs = work(frames, 2)
    jobs[4] = (frames[4], Target(40, 40, replace(RGB, matrix=99, subsampling="420")))
    got: list[Frame] = []
    with pytest.raises(EngineError, match="99") as caught:
        got.extend(engine.run(jobs))
    assert caught.value.frame == 4
    check_identity(frames[:4], got, 2)


def test_weights_that_give_nan_in_fp32_too_are_an_error() -> None:
    class Broken(NearestNetwork):
        def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
            return super().forward(x) * float("nan")

    engine = Engine(
        lambda dtype, edge, device: Broken(2), nearest_spec(2), device="cpu", precision="bf16", threads=1
    )
    with pytest.raises(EngineError, match="no finite"):
        list(engine.run(work(pictures([(20, 20)]), 2)))


# ---------------------------------------------------------------- a real network


def small_rlfn(scale: int = 2) -> tuple[ModelSpec, InferenceFactory, RLFN]:
    spec = ModelSpec("random", scale, 8, 8, 2, input_range=1.0)
    torch.manual_seed(0)
    module = RLFN(spec).eval().requires_grad_(False)
    # A step up in contrast around mid grey, so that the output is a picture and not clipped to black.
    module.upsampler[0].bias.fill_(0.5)
    return spec, InferenceFactory(spec, weights_of(module)), module


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (14, 14), (15, 40), (33, 22)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sizes_below_the_minimum_are_reflected_and_cropped(size: tuple[int, int], scale: int) -> None:
    spec, factory, _ = small_rlfn(scale)
    engine = Engine(factory, spec, device="cpu", precision="fp32", threads=1)
    frames = pictures([size])
    (result,) = engine.run(work(frames, scale))
    assert result.planes[0].shape == (size[0] * scale, size[1] * scale)


def test_engine_equals_the_plain_module() -> None:
    spec, factory, module = small_rlfn()
    frames = pictures([(40, 50)])
    (result,) = Engine(factory, spec, device="cpu", precision="fp32", threads=1).run(work(frames, 2))
    x = torch.from_numpy(np.stack(frames[0].planes).astype(np.float32))[None] / 255
    expected = (module(x)[0] * 255).round().clamp(0, 255).numpy()
    assert np.abs(np.stack(result.planes) - expected).max() <= 1
    assert expected.std() > 1


def test_batches_of_tiles_of_several_frames_equal_single_ones() -> None:
    spec, factory, _ = small_rlfn()
    frames = pictures([(90, 100), (84, 100), (90, 100)])
    settings = {"device": "cpu", "precision": "fp32", "threads": 1, "tile": 66, "overlap": 24}
    one = list(Engine(factory, spec, batch=1, **settings).run(work(frames, 2)))  # type: ignore[arg-type]
    many = list(Engine(factory, spec, batch=7, **settings).run(work(frames, 2)))  # type: ignore[arg-type]
    for a, b in zip(one, many, strict=True):
        assert all(np.abs(p.astype(int) - q).max() <= 1 for p, q in zip(a.planes, b.planes, strict=True))


@pytest.mark.parametrize("tile", [0, 66])
def test_self_ensemble_is_the_mean_of_eight(tile: int) -> None:
    """Against a plain loop over whole frames; tiles keep to the turned frame's grid."""
    spec, factory, module = small_rlfn()
    frames = pictures([(84, 100)], seed=5)
    settings = {"device": "cpu", "precision": "fp32", "threads": 1, "overlap": 36, "tta": True}
    (result,) = Engine(factory, spec, tile=tile, **settings).run(work(frames, 2))  # type: ignore[arg-type]
    x = torch.from_numpy(np.stack(frames[0].planes).astype(np.float32))[None] / 255
    total = torch.zeros(1, 3, 168, 200)
    for turns in range(4):
        for mirror in (False, True):
            y = torch.rot90(x, turns, (-2, -1))
            y = module(y.flip(-1) if mirror else y)
            total += torch.rot90(y.flip(-1) if mirror else y, -turns, (-2, -1))
    expected = (total[0] / 8 * 255).round().clamp(0, 255).numpy()
    assert np.abs(np.stack(result.planes) - expected).max() <= 1


def test_what_lies_outside_the_rgb_cube_goes_around_the_network() -> None:
    """Super-white comes back although the network never sees it."""
    seen: list[float] = []

    class Watching(NearestNetwork):
        def forward(self, x: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
            seen.extend((float(x.min()), float(x.max())))
            return super().forward(x)

    engine = Engine(
        lambda dtype, edge, device: Watching(2), nearest_spec(2), device="cpu", precision="fp32", threads=1
    )
    layout = ColourInfo(1, range=1, subsampling="444")
    frame = Frame((np.full((20, 20), 254, np.uint8), *(np.full((20, 20), 128, np.uint8),) * 2), layout)
    (result,) = engine.run([(frame, Target(40, 40, layout))])
    assert int(result.planes[0].min()) == 254
    assert max(seen) <= 255.0 and min(seen) >= 0.0


def test_deep_sources_ask_for_float32_edges() -> None:
    asked: list[tuple[torch.dtype, bool]] = []

    def factory(dtype: torch.dtype, edge: bool, device: str) -> NearestNetwork:
        asked.append((dtype, edge))
        return NearestNetwork(2)

    engine = Engine(factory, nearest_spec(2), device="cpu", precision="bf16", threads=1)
    deep = ColourInfo(0, range=2, subsampling="rgb", bit_depth=10)
    frame = Frame(tuple(np.full((16, 16), 700, np.uint16) for _ in range(3)), deep)
    list(engine.run([(frame, Target(32, 32, deep)), *work(pictures([(16, 16)]), 2)]))
    assert asked == [(torch.bfloat16, True), (torch.bfloat16, False)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("depth", [8, 10])
def test_short_formats_in_tiles_stay_near_fp32(precision: str, depth: int) -> None:
    spec, factory, _ = small_rlfn()
    deep = ColourInfo(0, range=2, subsampling="rgb", bit_depth=depth)
    (source,) = pictures([(84, 100)])
    target = Target(200, 168, deep)
    settings = {"device": "cpu", "threads": 1, "tile": 66, "overlap": 36, "batch": 2}
    (expected,) = Engine(factory, spec, precision="fp32", **settings).run([(source, target)])  # type: ignore[arg-type]
    (result,) = Engine(factory, spec, precision=precision, **settings).run([(source, target)])  # type: ignore[arg-type]
    for plane, reference in zip(result.planes, expected.planes, strict=True):
        assert np.abs(plane.astype(int) - reference.astype(int)).max() <= 2 << (depth - 8)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("tensors", [True, False])
@pytest.mark.parametrize("wish", ["1", "0"])
def test_large_buffers_suit_the_allocator(wish: str, tensors: bool) -> None:
    """In huge pages they are handed back at once; without them they are kept, and the next one is the same."""
    ones = "torch.ones(1 << 26, dtype=torch.uint8)" if tensors else "numpy.ones(1 << 26, numpy.uint8)"
    script = (
        f"import {'torch' if tensors else 'numpy'}\n"
        f"from rlfn_pipe.allocator import suit_allocator; mode = suit_allocator(tensors={tensors})\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        f"before = resident(); x = {ones}; held = resident() - before\n"
        "del x; print(mode, held >> 20, (resident() - before) >> 20, sep=',')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "THP_MEM_ALLOC_ENABLE": wish, "NUMPY_MADVISE_HUGEPAGE": wish},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split(",")
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    possible = setting.is_file() and "[never]" not in setting.read_text(encoding="ascii")
    assert found[0] == ("huge pages" if wish == "1" and possible else "kept")
    held, left = int(found[1]), int(found[2])
    assert held >= 60 and (left < 10 if found[0] == "huge pages" else left >= 60)


def test_tensors_that_lie_together_travel_as_one() -> None:
    flat = torch.arange(40, dtype=torch.int16)
    parts = transfer.apart(flat, [(4, 5), (2, 6), (8,)])
    assert [tuple(part.shape) for part in parts] == [(4, 5), (2, 6), (8,)]
    one = transfer.together(parts)
    assert one is not None and torch.equal(one, flat) and one.data_ptr() == flat.data_ptr()
    assert torch.equal(transfer.together(parts[1:]), flat[20:])
    for others in (
        [parts[0], parts[2]],
        [parts[1], parts[0]],
        [parts[0].T, parts[1]],
        [parts[0], torch.arange(12, dtype=torch.int16).view(2, 6)],
        [flat[:10].view(torch.uint8), flat[10:]],
    ):
        assert transfer.together(others) is None
    arrays = [np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::2], np.ones((3, 1), np.uint8)]
    sent = transfer.send_together(arrays, torch.device("cpu"))
    assert all(np.array_equal(tensor.numpy(), array) for tensor, array in zip(sent, arrays, strict=True))
