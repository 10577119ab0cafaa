"""The compiled form of the network against the plain module, and what happens where it cannot be.

All libraries are tried everywhere: where the processor lacks AVX-512 bf16 or AMX, that code runs with the instructions
emulated (tests/emulated), some hundred times slower, so that the longest tests are left out there.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import NAMES, Compiled

from rlfn_pipe.engine.device import available_memory
from rlfn_pipe.engine.tensors import DTYPES
from rlfn_pipe.engine.tiling import border_mask, plan, stretch_matrix
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.folding import weights_of
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.fuse import InferenceNet, build_inference
from rlfn_pipe.models.native import build
from rlfn_pipe.models.native import library as native
from rlfn_pipe.models.native import network as native_network
from rlfn_pipe.models.native.network import NativeNetwork, fits, winograd_squares, winograd_weights
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.strips import StripNetwork
from rlfn_pipe.models.weights import load
from rlfn_pipe.threads import only_compiled
from rlfn_pipe.types import ModelSpec

HERE = Path(__file__).resolve().parent
needed = pytest.mark.skipif(
    native.library("fp32") is None, reason=f"no compiled part: {native.why_not('fp32')}"
)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a library with emulated instructions."""

    @cache
    def built(kernel: str) -> Path:
        target = tmp_path_factory.mktemp("emulated") / f"_kernel_{kernel}.so"
        flags = [
            *(flag for flag in build.FLAGS if flag != "-O3"),
            *("-Og", "-w", f"-I{HERE / 'emulated'}"),
            *(flag for flag in build.KERNELS[kernel] if flag.startswith("-D")),
            *(flag for flag in build.KERNELS["fp32"] if flag.startswith("-m")),
        ]
        command = ["c++", *flags, "-o", str(target), str(build.HERE / "network.cpp")]
        subprocess.run(command, check=True)
        return target

    return built


def use(kernel: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a library the one for its number format, emulated where the processor cannot run it."""
    flags = native.processor_flags()
    if native.FLAGS[kernel] - flags:
        if shutil.which("c++") is None:
            pytest.skip("no C++ compiler to emulate instructions with")
        monkeypatch.setitem(native.PATHS, kernel, request.getfixturevalue("emulated")(kernel))
    flags = flags - native.FLAGS["amx"] | native.FLAGS[kernel]
    monkeypatch.setattr(native, "processor_flags", lambda: flags)
    native._loaded.cache_clear()


@pytest.fixture(params=["fp32", "bf16", "amx"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """A number format whose compiled form is there, by each library."""
    use(request.param, request, monkeypatch)
    precision = "fp32" if request.param == "fp32" else "bf16"
    found = native.library(precision)
    assert found is not None and found.kernel == request.param
    yield DTYPES[precision]
    native._loaded.cache_clear()


def is_emulated(dtype: torch.dtype) -> bool:
    found = native.library("bf16" if dtype == torch.bfloat16 else "fp32")
    return found is not None and native.PATHS[found.kernel].parent != build.HERE


def without_emulation(dtype: torch.dtype) -> None:
    """Skip a test that would take too long so."""
    if is_emulated(dtype):
        pytest.skip("takes too long with emulated instructions")


def random_network(name: str, scale: int) -> tuple[ModelSpec, RLFN]:
    """A network whose every part matters: larger weights than trained ones in ESA."""
    spec = architecture(name, scale)
    torch.manual_seed(3)
    module = RLFN(spec).eval().requires_grad_(False)
    for block in module.blocks():
        for conv in (block.esa.conv1, block.esa.conv2, block.esa.conv3, block.esa.conv4):
            conv.weight *= 3.0
    return spec, module


def picture(height: int, width: int) -> torch.Tensor:
    """Waves and noise, (1, 3, h, w), 0..255."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin(x / 5.0 + c) * torch.cos(y / (3.0 + c)) for c in range(3)])
    noise = torch.randn(3, height, width, generator=generator)
    return (127.5 + 80 * waves + 15 * noise).clamp(0, 255).round()[None]


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square of the difference in code values."""
    return float((got.double() - wanted.double()).square().mean().sqrt())


def test_six_products_are_a_convolution() -> None:
    """F(4, 3) in float64, with the transforms that winograd.hpp has."""
    a, b = 0.625, 1.5
    inputs = np.array([
        [a * a * b * b, 0, -(a * a + b * b), 0, 1, 0],
        [0, -a * b * b, -b * b, a, 1, 0],
        [0, a * b * b, -b * b, -a, 1, 0],
        [0, -b * a * a, -a * a, b, 1, 0],
        [0, b * a * a, -a * a, -b, 1, 0],
        [0, a * a * b * b, 0, -(a * a + b * b), 0, 1],
    ])  # fmt: skip
    outputs = np.array([[p**i for p in (0.0, a, -a, b, -b)] + [float(i == 3)] for i in range(4)])
    generator = np.random.default_rng(0)
    weight, pixels = generator.normal(size=(1, 1, 3, 3)), generator.normal(size=6)
    for row in range(3):
        products = winograd_weights(weight)[:, row, 0, 0] * (inputs @ pixels)
        assert np.allclose(outputs @ products, np.correlate(pixels, weight[0, 0, row]), atol=1e-12)
    square = generator.normal(size=(6, 6))
    many = winograd_squares(weight)[:, :, 0, 0] * (inputs @ square @ inputs.T)
    windows = np.lib.stride_tricks.sliding_window_view(square, (3, 3))
    assert np.allclose(outputs @ many @ outputs.T, (windows * weight[0, 0]).sum(axis=(2, 3)), atol=1e-12)


@needed
@pytest.mark.parametrize("size", [(15, 15), (16, 19), (33, 70), (61, 18), (45, 333)])
@pytest.mark.parametrize(
    ("name", "scale"),
    [("rlfn-s", 4), ("rlfn-s", 2), ("rlfn", 3), ("rlfn", 4), ("rlfn-ntire", 4), ("rlfn-ntire", 2)],
)
def test_it_is_the_network(name: str, scale: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    """In bf16 as near to float32 as the strips are, in float32 as near to float64 as 14 bits between blocks let it be.

    A wrong border, a shifted map or a forgotten channel is far beyond that.
    """
    if size == (45, 333):
        without_emulation(dtype)
    spec, module = random_network(name, scale)
    x = picture(*size)
    if dtype == torch.float32:
        got = Compiled(spec, module, dtype)(x)
        wanted = build_inference(spec, module.double(), torch.float64)(x.double())
        assert got.dtype == torch.float32 and got.shape == wanted.shape
        assert error(got, wanted) < 2e-4 and (got - wanted).abs().max() < 2e-3
        return
    wanted = build_inference(spec, module)(x)
    for edge in (False, True):
        got = Compiled(spec, module, dtype, edge)(x)
        assert got.dtype == torch.float32 and got.shape == wanted.shape
        strips = StripNetwork(spec, module, dtype, edge)(x)
        assert error(got, wanted) <= 1.05 * error(strips, wanted), edge
        assert (got - wanted).abs().max() <= 2.0 * (strips - wanted).abs().max() + 0.1, edge


@needed
@pytest.mark.parametrize(("name", "scale", "size"), [("rlfn-s", 3, (18, 37)), ("rlfn", 4, (15, 18))])
def test_float32_has_the_same_bits_by_wider_vectors(
    name: str,
    scale: int,
    size: tuple[int, int],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole pictures, and those that are computed in places, among them numbers that are none."""
    spec, module = random_network(name, scale)
    pictures = [picture(*size) for _ in range(4)]
    pictures[1][0, 1, 9, 5] += 20
    pictures[3][0, 1, 9, 5] = float("nan")
    results = {}
    for kernel in ("fp32", "avx512"):
        use(kernel, request, monkeypatch)
        network = Compiled(spec, module, torch.float32)
        assert network.library.kernel == kernel and native.cpu_form("fp32") == "native"
        kept = network.remembering(1 << 30)
        results[kernel] = [(kept(x), kept.computed) for x in pictures]
        native._loaded.cache_clear()
    assert results["fp32"][3][0].isnan().any()
    for (one, work), (other, same_work) in zip(results["fp32"], results["avx512"], strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32)) and work == same_work


@needed
@pytest.mark.parametrize("name", ["rlfn-s", "rlfn"])
def test_bits_depend_on_nothing_but_the_picture(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads, tiles inside and other pictures of a batch change nothing, and all edges of tiles are tried."""
    if name == "rlfn":
        without_emulation(dtype)
    spec, module = random_network(name, 4)
    net = Compiled(spec, module, dtype)
    size = (30, 67) if is_emulated(dtype) else (58, 131)
    x = picture(*size)
    whole = net(x)
    for columns, rows, threads in ((1, 1, 1), (2, 1, 3), (4, 5, 2), (7, size[0] // 2, 4)):
        monkeypatch.setattr(native_network, "_tiles", lambda *size, c=columns, r=rows: (c, r))
        monkeypatch.setattr(torch, "get_num_threads", lambda t=threads: t)
        assert torch.equal(net(x), whole), (columns, rows, threads)
    both = net(torch.cat([x.flip(-1), x]))
    assert torch.equal(both[1], whole[0]) and not torch.equal(both[0], whole[0])


@needed
def test_callers_at_the_same_time_have_buffers_of_their_own(dtype: torch.dtype) -> None:
    """And pictures of other sizes in between find theirs large enough."""
    spec, module = random_network("rlfn-s", 2)
    net = Compiled(spec, module, dtype)
    pictures = [picture(15, 40 - i) for i in range(4)]
    wanted = [Compiled(spec, module, dtype)(x) for x in pictures]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, right in zip(pool.map(net, pictures), wanted, strict=True):
                assert torch.equal(got, right)
    net.forget()
    assert torch.equal(net(pictures[0]), wanted[0])


@needed
@pytest.mark.slow
def test_more_threads_than_pieces_never_wait_for_one_another(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some threads are needed for some passes only, and wake late on a crowded machine."""
    without_emulation(dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    spec, module = random_network("rlfn-s", 2)
    net, x = Compiled(spec, module, dtype), picture(15, 17)
    monkeypatch.setattr(native_network, "_tiles", lambda *size: (1, 2))
    wanted = net(x)
    for _ in range(300):
        assert torch.equal(net(x), wanted)


@needed
def test_tiles_of_a_frame_lie_on_its_grid(dtype: torch.dtype) -> None:
    spec, module = random_network("rlfn-s", 2)
    x = picture(141, 160)
    exact, net = build_inference(spec, module), Compiled(spec, module, dtype)
    tiles = plan(141, 160, 96, 36)
    for tile in tiles[:1] if is_emulated(dtype) else tiles:
        y, z = tile.y, tile.x
        part = x[..., y.origin : y.origin + y.size, z.origin : z.origin + z.size]
        grid = (
            torch.from_numpy(stretch_matrix(y))[None],
            torch.from_numpy(stretch_matrix(z))[None],
            torch.from_numpy(np.outer(border_mask(y), border_mask(z)))[None, None],
        )
        wanted = exact(part, grid)
        strips = StripNetwork(spec, module, dtype)(part, grid)
        assert error(net(part, grid), wanted) <= 1.05 * error(strips, wanted) + 2e-4
        assert error(net(part), wanted) > 2 * error(net(part, grid), wanted)


@needed
def test_numbers_that_are_not_finite_come_out_as_such(dtype: torch.dtype) -> None:
    """What the engine looks for, so that it can compute such a tile again in fp32."""
    spec, module = random_network("rlfn-s", 2)
    x = picture(20, 24)
    x[0, 1, 10, 12] = float("nan")
    assert torch.isnan(Compiled(spec, module, dtype)(x)).any()
    module.blocks()[0].c1_r.weight *= 1e30
    module.blocks()[0].c2_r.weight *= 1e30
    assert not torch.isfinite(Compiled(spec, module, dtype)(picture(20, 24))).all()


@needed
def test_the_default_network_takes_it_and_other_formats_do_not(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, module = load("rlfn-s", 4)
    factory, precision = InferenceFactory(spec, weights_of(module)), NAMES[dtype]
    assert factory.serves("cpu", precision) and isinstance(factory.host(precision, False), NativeNetwork)
    assert not factory.serves("cpu", "fp16") and not factory.serves("cuda:0", precision)
    assert not InferenceFactory(spec, weights_of(module), compile=True).serves("cpu", precision)
    made = factory(dtype, True)
    assert isinstance(made, StripNetwork)
    elsewhere = factory(dtype, True, "meta")
    assert isinstance(elsewhere, InferenceNet) and elsewhere.body.weight.dtype == dtype
    monkeypatch.setenv(native.WISH, "off")
    assert not factory.serves("cpu", precision)
    x = picture(15, 16)
    assert torch.equal(torch.from_numpy(factory.host(precision, False)(x.numpy())), factory(dtype, False)(x))


def film(height: int, width: int) -> Iterator[torch.Tensor]:
    """Pictures that differ in places: corners, edges, seams of cells, much, nothing, everything."""
    x = picture(height, width)
    yield x
    for y0, x0, side in (
        (0, 0, 1),
        (height - 1, width - 1, 1),
        (31, 31, 2),
        (height // 2, 0, 9),
        (3, width - 5, 5),
    ):
        x = x.clone()
        x[..., y0 : y0 + side, x0 : x0 + side] = 255.0 - x[..., y0 : y0 + side, x0 : x0 + side]
        yield x
    yield x.clone()
    x = x.clone()
    x[:, 1, : height // 3] += 1.0  # a third, by one code value
    yield x
    for seed in range(6):  # all of it, until patience ends
        yield picture(height, width).roll(seed + 1, -1)
    x = picture(height, width)
    yield x
    x = x.clone()
    x[..., 7, 9] = float("nan")
    yield x
    yield picture(height, width)


@needed
@pytest.mark.parametrize(
    ("name", "scale", "size"),
    [("rlfn-s", 4, (97, 131)), ("rlfn", 2, (70, 33)), ("rlfn-ntire", 3, (41, 200)), ("rlfn-s", 2, (15, 16))],
)
def test_what_did_not_change_keeps_its_bits(
    name: str, scale: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    if size[0] * size[1] > 1000:
        without_emulation(dtype)
    spec, module = random_network(name, scale)
    plain = Compiled(spec, module, dtype)
    kept = plain.remembering(1 << 30)
    shares = []
    for number, x in enumerate(film(*size)):
        got, wanted = kept(x), plain(x)
        assert torch.equal(got.view(torch.int32), wanted.view(torch.int32)), number
        shares.append(kept.computed)
    assert shares[0] == 1.0 and shares[6] == 0.0
    assert shares[8:14] == [1.0] * 6, "a roll changes everything"


@needed
def test_single_pixels_anywhere_keep_all_other_bits(dtype: torch.dtype) -> None:
    """Products of a quad mix all that any of its pixels reads: a change shows further away than convolutions reach."""
    without_emulation(dtype)
    spec, module = load("rlfn-s", 4)
    plain = Compiled(spec, module, dtype)
    kept = plain.remembering(1 << 30)
    generator = torch.Generator().manual_seed(11)
    x = picture(130, 190)
    parts = 0
    for number in range(60):
        y, column = (int(torch.randint(side, (1,), generator=generator)) for side in x.shape[-2:])
        x = x.clone()
        x[0, number % 3, y, column] = 255.0 - x[0, number % 3, y, column]
        assert torch.equal(kept(x), plain(x)), (number, y, column)
        parts += kept.computed < 1.0
    assert parts > 50


@needed
def test_a_small_change_costs_little(dtype: torch.dtype) -> None:
    without_emulation(dtype)
    spec, module = load("rlfn-s", 4)
    kept = Compiled(spec, module, dtype).remembering(1 << 30)
    shares = []
    for x in list(film(180, 320))[:5]:
        kept(x)
        shares.append(kept.computed)
    assert shares[0] == 1.0 and max(shares[1:]) < 0.5


@needed
def test_layers_are_kept_within_bounds_and_handed_back(dtype: torch.dtype) -> None:
    spec, module = random_network("rlfn-s", 2)
    plain = Compiled(spec, module, dtype)
    size = plain.memory_bytes(40, 50)
    assert 40 * 50 * 800 < size < 40 * 50 * (1500 if dtype == torch.bfloat16 else 2600)
    x, other = picture(40, 50), picture(50, 40)
    tight, kept = plain.remembering(size - 1), plain.remembering(size)
    for net, share in ((tight, 1.0), (kept, 0.0)):
        for _ in range(3):
            assert torch.equal(net(x), plain(x))
        assert net.computed == share
    assert torch.equal(kept(other), plain(other)) and torch.equal(kept(x), plain(x)) and kept.computed == 1.0
    assert torch.equal(kept(torch.cat([x, x + 1])), plain(torch.cat([x, x + 1])))
    assert kept.forget() and not kept.forget() and not tight.forget()
    assert torch.equal(kept(x), plain(x)) and kept.computed == 1.0


TAKES = """
import re, sys
from threading import Condition
from dataclasses import replace
from itertools import islice
from pathlib import Path
import numpy as np
import rlfn_pipe.engine.tensors  # what some kinds lend to PyTorch does not count its code
from rlfn_pipe.bench.clip import moving_frames
from rlfn_pipe.engine.runner import Engine
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.weights import load_weights
from rlfn_pipe.pipeline.planes import from_rgb, to_rgb
from rlfn_pipe.types import MATRIX_RGB, RANGE_FULL, ColourInfo, Frame, Target

threads, kind = int(sys.argv[1]), sys.argv[2]
more = threads + (3 if kind == "plain" else 1)
spec, weights = load_weights("rlfn-s", 4)
engine = Engine(InferenceFactory(spec, weights), spec, device="cpu", precision="fp32", threads=threads, reuse="off",
                tta=kind == "tta", to_rgb=to_rgb, to_planes=from_rgb)
frames = list(islice(moving_frames(640, 360, more), more))
size = (2400, 1350) if kind == "resized" else (2560, 1440)
if kind == "alpha":
    colour = ColourInfo(MATRIX_RGB, range=RANGE_FULL, subsampling="rgb", alpha=True)
    noise = np.random.default_rng(0)
    planes = lambda: tuple(noise.integers(0, 256, (360, 640), dtype=np.uint8) for _ in range(4))
    frames = [Frame(planes(), colour, pts=i) for i in range(more)]
copies = int(kind in ("alpha", "resized"))
assert engine.sizes.lanes_for(360, 640, False, copies) == threads
def peak():
    # That of getrusage begins with what the parent had.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
# On few cores one may end before the last begins, which then takes its memory: the first wait for one another, each
# with all its memory written.
done, meeting, library = 0, Condition(), engine._forms.network(False, "fp32").library
def run_and_wait(*args, run=library.run):
    global done
    run(*args)
    with meeting:
        done += 1
        meeting.notify_all()
        assert meeting.wait_for(lambda: done >= threads, timeout=120), f"{done} of {threads} at once"
library.run = run_and_wait
before = peak()
for frame in engine.run((frame, Target(*size, frame.colour)) for frame in frames):
    del frame
taken = peak() - before
# Besides them code that is used for the first time, and frames that come and go.
reckoned = (engine.sizes.pixel_bytes + copies * 12 * 16) * 640 * 360
print(taken / (reckoned * threads + (96 << 20)))
"""


@needed
@pytest.mark.parametrize(
    ("threads", "kind"),
    [(1, "plain"), (2, "plain"), (10, "plain"), (2, "tta"), (2, "alpha"), (2, "resized")],
)
def test_frames_take_the_memory_that_is_counted_with(threads: int, kind: str) -> None:
    """By the system's account, in a process that does nothing else. Ten frames go beyond the budget of few threads."""
    if available_memory(torch.device("cpu")) < threads << 30:
        pytest.skip("needs a GiB a thread")
    command = [sys.executable, "-c", TAKES, str(threads), kind]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 1.25


def test_networks_of_other_shapes_go_without() -> None:
    for channels, mid, esa in ((10, 12, 16), (52, 48, 16), (48, 48, 8), (80, 80, 16)):
        for precision in ("bf16", "fp32"):
            assert not fits(ModelSpec("other", 2, channels, mid, 2, esa), precision)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_reason_is_told(precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(native.WISH, raising=False)
    monkeypatch.setattr(native, "processor_flags", lambda: frozenset({"avx512f"}))
    assert native.library(precision) is None
    assert {"bf16": "lacks avx512_bf16, avx512bw", "fp32": "lacks avx2, fma"}[precision] in str(
        native.why_not(precision)
    )
    assert native.why_not("fp16") == "there is none for fp16"
    flags = native.FLAGS[precision]
    monkeypatch.setattr(native, "processor_flags", lambda: flags)
    monkeypatch.setitem(native.PATHS, precision, tmp_path / "_kernel.so")
    assert native.library(precision) is None and native.why_not(precision) == "it was not built"
    assert native.can_be_built(precision)
    (tmp_path / "_kernel.so").write_bytes(b"\x7fELF, but no more")
    native._loaded.cache_clear()
    assert native.library(precision) is None and native.why_not(precision) == "it does not load here"
    native._loaded.cache_clear()


@needed
def test_float32_goes_without_the_library_for_avx512(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(native.WISH, raising=False)
    monkeypatch.setattr(native, "processor_flags", lambda: native.FLAGS["fp32"] | native.FLAGS["avx512"])
    monkeypatch.setitem(native.PATHS, "avx512", native.PATHS["fp32"])
    native._loaded.cache_clear()
    found = native.library("fp32")
    assert found is not None and found.kernel == "avx512"
    monkeypatch.setenv(native.WISH, "avx2")
    found = native.library("fp32")
    assert found is not None and found.kernel == "fp32"
    monkeypatch.delenv(native.WISH)
    monkeypatch.setitem(native.PATHS, "avx512", tmp_path / "_kernel.so")
    native._loaded.cache_clear()
    found = native.library("fp32")
    assert found is not None and found.kernel == "fp32"
    native._loaded.cache_clear()


@needed
def test_without_the_library_for_amx_pytorch_is_taken_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(native.WISH, raising=False)
    monkeypatch.setattr(native, "processor_flags", lambda: native.FLAGS["amx"])
    monkeypatch.setitem(native.PATHS, "amx", tmp_path / "_kernel.so")
    assert native.library("bf16") is None and native.why_not("bf16") == "it was not built"
    assert native.cpu_form("bf16") == "strips" and native.can_be_built("bf16")
    monkeypatch.setenv(native.WISH, "on")
    found = native.library("bf16")
    assert found is not None and found.kernel == "bf16" and native.cpu_form("bf16") == "native"
    # Where it is there, but the system keeps this process from AMX, it keeps PyTorch from it, too.
    monkeypatch.delenv(native.WISH)
    (tmp_path / "_kernel.so").write_bytes(b"\x7fELF, but no more")
    native._loaded.cache_clear()
    found = native.library("bf16")
    assert found is not None and found.kernel == "bf16" and native.why_not("bf16") is None
    native._loaded.cache_clear()


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or not shutil.which("c++"),
    reason="no C++ compiler for this system",
)
def test_the_install_built_it() -> None:
    """Where there is a compiler, the installed package has libraries that load, whatever the processor."""
    for path in native.PATHS.values():
        assert path.is_file(), "pip install did not build it"
        handle = ctypes.CDLL(str(path))
        assert handle.rlfn_run and handle.rlfn_workspace


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the package is built all the same: the hook only warns."""
    for source in (*build.HERE.glob("*.cpp"), *build.HERE.glob("*.hpp")):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.build() == "no C++ compiler was found"
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    assert "absent" in str(build.build())
    monkeypatch.setenv("CXX", "false")
    assert build.build() == "; ".join(f"{name}: false failed" for name in build.KERNELS)
    assert not list(tmp_path.glob("*.so"))


def test_an_old_compiler_gives_what_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """AVX-512 bf16 asks for a compiler of 2020; without it there are still those for float32."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *avx512bf16*) echo "unknown option" >&2; exit 1;; esac\n'
                        'while [ "$1" != -o ]; do shift; done; echo made > "$2"\n')  # fmt: skip
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setenv("CXX", str(compiler))
    (tmp_path / "network.cpp").write_text("")
    assert build.build() == "bf16: unknown option; amx: unknown option"
    assert {path.name for path in tmp_path.glob("*.so")} == {"_kernel_avx512.so", "_kernel_fp32.so"}


@needed
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_sums_that_take_the_place_of_those_before_are_never_read_too_late(
    dtype: torch.dtype, threads: int
) -> None:
    """A tall picture in many rows of tiles: a block's sums lie some rows off those that it reads, in one buffer."""
    without_emulation(dtype)
    net = Compiled(*load("rlfn-s", 2), dtype)
    size = (900, 48) if dtype == torch.bfloat16 else (2600, 24)
    x = 255.0 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with only_compiled(1):
        expected = net(x).clone()
    columns, rows = native_network._tiles(*size, threads, native_network.TILE_HEIGHT[NAMES[dtype]])
    job = native.Job(height=size[0], width=size[1], threads=threads, columns=columns, rows=rows)
    alone = native.Job(height=size[0], width=size[1], threads=threads, columns=columns, rows=1)
    if threads < 7:
        assert net.library.workspace(net.net, job) < 0.9 * net.library.workspace(net.net, alone)
    for _ in range(5):
        with only_compiled(threads):
            assert torch.equal(net(x), expected)


#: Prints whether results are the same without threads' stacks, and what comes of rows that find no room.
SHORT_OF_MEMORY = """
import resource
import numpy as np
from rlfn_pipe.models.forms import InferenceFactory
from rlfn_pipe.models.native.library import Planes, any_library
from rlfn_pipe.models.weights import load_weights
from rlfn_pipe.threads import only_compiled
network = InferenceFactory(*load_weights("rlfn-s", 2)).host("fp32", False)
picture = np.random.default_rng(0).random((1, 3, 48, 64), np.float32) * 255
expected = network(picture).copy()
network.forget()
network._spare.append(np.empty(8 << 20, np.uint8))  # what the workspace takes for six threads
width = 4 << 20
rgb, samples = np.zeros((3, 1, width), np.float32), [np.zeros(width, np.uint8) for _ in range(3)]
planes = Planes(height=1, width=width, threads=1, bytes=1, half_x=0, half_y=0, scale=1, top=255.0,
                rgb=rgb.ctypes.data, **{name: plane.ctypes.data for name, plane in zip(("y", "cb", "cr"), samples)})
held = [line.split() for line in open("/proc/self/status") if line.startswith("VmSize")]
resource.setrlimit(resource.RLIMIT_AS, (int(held[0][1]) * 1024 + (2 << 20),) * 2)
with only_compiled(6):
    print(np.array_equal(network(picture), expected))
try:
    any_library().planes(planes)
except MemoryError as error:
    print(error)
"""


@needed
def test_memory_that_ends_in_the_compiled_part_ends_no_process() -> None:
    """Fewer threads do the work where the system gives no more of them; rows without room are a MemoryError."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True", "the compiled part found no memory for its rows"], done.stderr


def test_the_trial_of_amx_asks_nobody_who_gathers_children() -> None:
    """Some supervisors ignore SIGCHLD, which is inherited, and then no end of a child is told."""
    ask = "from rlfn_pipe.models.native.library import cpu_form; print(cpu_form('bf16'))"
    ignoring = f"import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); {ask}"
    found = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (ask, ignoring)
    ]
    assert found[0] == found[1] != ""
