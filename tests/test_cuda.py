"""The kernels for NVIDIA GPUs against what they replace: on a GPU where there is one, else as C++ on the CPU."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_emulation import Emulated

from rlfn_pipe.engine import colour as conversions
from rlfn_pipe.engine.ends import samples as samples_of
from rlfn_pipe.engine.layouts import chroma_size
from rlfn_pipe.engine.tiling import border_mask, plan, stretch_matrix
from rlfn_pipe.errors import SlowerThanMeant
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.cuda import library, pictures, trial
from rlfn_pipe.models.cuda.library import Maker
from rlfn_pipe.models.cuda.network import Convolution, KernelNet
from rlfn_pipe.models.fuse import InferenceNet, build_inference, for_device
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.pipeline import tensor_planes as planes
from rlfn_pipe.types import MATRIX_BT709, RANGE_FULL, RANGE_LIMITED, ColourInfo, Frame

CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
LAYOUTS = [
    ColourInfo(MATRIX_BT709, range=RANGE_LIMITED, subsampling="420", chroma_location="left"),
    ColourInfo(MATRIX_BT709, range=RANGE_FULL, subsampling="420", chroma_location="centre", bit_depth=10),
    ColourInfo(MATRIX_BT709, range=RANGE_LIMITED, subsampling="420", chroma_location="topleft", bit_depth=16),
    ColourInfo(MATRIX_BT709, range=RANGE_LIMITED, subsampling="422", chroma_location="left"),
    ColourInfo(MATRIX_BT709, range=RANGE_LIMITED, subsampling="440", chroma_location="topleft"),
    ColourInfo(MATRIX_BT709, range=RANGE_LIMITED, subsampling="444"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def maker(emulated: Emulated) -> Maker:
    """Kernels for `DEVICE`."""
    if DEVICE == CPU:
        return emulated
    found = library.gpu(DEVICE)
    if found is None:
        pytest.skip(f"no kernels for this GPU: {library.why_not(DEVICE)[0]}")
    return found


class Limited:
    """A maker with less shared memory."""

    def __init__(self, maker: Maker, shared: int) -> None:
        self.shared, self.processors, self.kernel = min(shared, maker.shared), maker.processors, maker.kernel


@pytest.mark.parametrize(
    ("inputs", "outputs", "how"),
    [
        (48, 48, {"active": True, "skip": True}),
        (52, 52, {"active": True}),
        (20, 30, {"skip": True}),
        (3, 48, {}),
        (48, 48, {"scale": 4}),
        (52, 27, {"scale": 3}),
        (48, 12, {"scale": 2}),
        (48, 16, {"stride": 2}),
    ],
)
@pytest.mark.parametrize("shared", [227 << 10, 99 << 10])
def test_convolutions(maker: Maker, inputs: int, outputs: int, how: dict[str, int], shared: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    how = dict(how)
    stride, scale = how.pop("stride", 1), how.get("scale", 0)
    conv = torch.nn.Conv2d(inputs, outputs, 3, stride, 0 if stride == 2 else 1).half()
    made = Convolution(Limited(maker, shared), copy.deepcopy(conv).to(DEVICE), **how)
    x = torch.randn(2, inputs, 19, 21, generator=generator).half()
    wanted = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, conv.padding)
    if how.get("active"):
        wanted = F.leaky_relu(wanted, 0.05)
    skip = None
    if how.get("skip"):
        plus = torch.randn(wanted.shape, generator=generator).half()
        wanted, skip = wanted + plus, filled(plus)
    got = made(filled(x).to(DEVICE), None if skip is None else skip.to(DEVICE)).cpu()
    if scale:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), F.pixel_shuffle(wanted, scale), atol=1e-5, rtol=1e-5)
    else:
        assert not got[..., outputs:].any(), "what fills up stays zero"
        torch.testing.assert_close(
            got[..., :outputs].permute(0, 3, 1, 2).double(), wanted, atol=2e-3, rtol=1e-3
        )


def filled(x: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) as the kernels have it."""
    return F.pad(x.permute(0, 2, 3, 1), (0, -x.shape[1] % 8)).contiguous()


@pytest.mark.parametrize(("name", "scale"), [("rlfn-s", 4), ("rlfn", 2), ("rlfn-ntire", 3)])
def test_the_network_is_the_folded_one(maker: Maker, name: str, scale: int) -> None:
    spec = replace(architecture(name, scale), blocks=1)
    torch.manual_seed(2)
    module = RLFN(spec).eval().requires_grad_(False)
    x = 255 * torch.rand(2 if name == "rlfn" else 1, 3, 25, 18)
    exact = build_inference(spec, module.double(), torch.float64)(x.double())
    for edge in (False, True) if name == "rlfn-s" else (False,):
        plain = build_inference(spec, module, torch.float16, edge_fp32=edge)
        made = build_inference(spec, module, torch.float16, edge_fp32=edge, form=KernelNet).to(DEVICE)
        made.maker = maker
        # As in the engine: what is to be float32 is no TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            got = made(x.to(DEVICE)).cpu()
        assert got.shape == exact.shape and got.dtype == torch.float32
        loss = (plain(x) - exact).square().mean()
        assert (got - exact).square().mean() < 1.1 * loss, "no worse than PyTorch's fp16"


def test_tiles_lie_on_their_frame_s_grid(maker: Maker) -> None:
    spec = replace(architecture("rlfn-s", 2), blocks=1)
    torch.manual_seed(2)
    module = RLFN(spec).eval().requires_grad_(False)
    plain = build_inference(spec, module.double(), torch.float64)
    made = build_inference(spec, module, torch.float16, form=KernelNet).to(DEVICE)
    made.maker = maker
    tiles = plan(61, 73, 36, 12)[:3]
    x = 255 * torch.rand(len(tiles), 3, tiles[0].y.size, tiles[0].x.size)
    masks = [np.outer(border_mask(t.y), border_mask(t.x))[None] for t in tiles]
    grid = tuple(
        torch.from_numpy(np.stack(each).astype(np.float32))
        for each in ([stretch_matrix(t.y) for t in tiles], [stretch_matrix(t.x) for t in tiles], masks)
    )
    wanted = plain(x.double(), tuple(each.double() for each in grid))
    got = made(x.to(DEVICE), tuple(each.to(DEVICE) for each in grid)).cpu()
    off, other = ((each - wanted).square().mean().sqrt() for each in (got, plain(x.double())))
    assert off < 0.04 and other > 2 * off, "as in the frame, not as in a picture of its own"


@pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda c: f"{c.subsampling} {c.chroma_location} {c.bit_depth}"
)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (37, 71)])
def test_pictures_are_those_of_the_engine(maker: Maker, layout: ColourInfo, height: int, width: int) -> None:
    random = np.random.default_rng(height)
    top, dtype = 1 << layout.bit_depth, np.uint8 if layout.bit_depth == 8 else np.uint16
    small = chroma_size(height, width, layout.subsampling)
    frame = Frame(
        tuple(random.integers(0, top, size).astype(dtype) for size in ((height, width), small, small)), layout
    )
    rgb = conversions.to_rgb(frame, CPU)
    torch.testing.assert_close(planes.rgb_by(maker, frame, DEVICE).cpu(), rgb, atol=2e-3, rtol=1e-5)
    excess = torch.randn(3, height, width, generator=torch.Generator().manual_seed(1))
    large = 255 * torch.rand(3, 2 * height + 2, 2 * width + 3, generator=torch.Generator().manual_seed(2))
    large = large[:, : 2 * height, : 2 * width]
    for plus in (None, excess, torch.zeros_like(excess)):
        there = None if plus is None else plus.to(DEVICE)
        made = planes.by_maker(maker, large.to(DEVICE), layout, there)
        got = samples_of([plane.cpu() for plane in made])
        wanted = samples_of(conversions.from_rgb(large, layout, excess=plus))
        for p, q in zip(got, wanted, strict=True):
            off = np.abs(p.astype(int) - q)
            assert p.dtype == q.dtype and off.max() <= 1 and (off > 0).mean() < (0.01 if top == 256 else 0.2)


def test_they_are_used_where_they_give_what_pytorch_gives(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but on the CPU: right kernels, wrong ones, and such that do not compile."""
    monkeypatch.setattr(trial, "maker_on", lambda device: emulated)
    monkeypatch.setattr(trial, "TRIED", ((1, 15, 16),))
    monkeypatch.setattr(planes, "_maker_on", lambda device: emulated)
    spec = replace(architecture("rlfn-ntire", 4), blocks=1)
    torch.manual_seed(5)
    module = RLFN(spec).eval().requires_grad_(False)

    def network() -> InferenceNet:
        return for_device(spec, module, torch.float16, False, "cpu")

    assert type(network()) is KernelNet
    assert type(for_device(spec, module, torch.float32, False, "cpu")) is InferenceNet
    right = Convolution.__call__
    monkeypatch.setattr(Convolution, "__call__", lambda *given, **more: right(*given, **more) * 0.8)
    with pytest.warns(SlowerThanMeant, match="not used, they are .* code values off"):
        assert type(network()) is InferenceNet

    def fails(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("NVRTC: no such instruction\nmore of it")

    monkeypatch.setattr(Convolution, "__call__", fails)
    with pytest.warns(SlowerThanMeant, match="not used, RuntimeError: NVRTC: no such instruction$"):
        assert type(network()) is InferenceNet

    layout, rgb = ColourInfo(1, range=1), 255 * torch.rand(3, 20, 30)
    frame = Frame(tuple(plane.numpy() for plane in conversions.from_rgb(rgb.clone(), layout)), layout)
    tried = (planes._down_works, planes._up_works)
    excess = torch.randn(3, 10, 15)
    for each in tried:
        each.cache_clear()
    try:
        assert torch.equal(planes.to_rgb(frame, CPU), planes.rgb_by(emulated, frame, CPU))
        for plus in (None, excess):
            got = planes.from_rgb(rgb, layout, excess=plus)
            assert all(map(torch.equal, got, planes.by_maker(emulated, rgb, layout, plus)))
        for each in tried:
            each.cache_clear()
        monkeypatch.setattr(pictures, "planes", fails)
        monkeypatch.setattr(pictures, "rgb", fails)
        with pytest.warns(SlowerThanMeant, match="not used"):
            planes.from_rgb(rgb, layout)
        with pytest.warns(SlowerThanMeant, match="not used"):
            planes.to_rgb(frame, CPU)
        assert not planes._down_works(CPU, layout, None) and not planes._up_works(CPU, layout), "tried once"

        def no_room(*_: object, **__: object) -> torch.Tensor:
            raise RuntimeError("CUDA: CUDA_ERROR_OUT_OF_MEMORY")

        monkeypatch.setattr(pictures, "planes", no_room)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="OUT_OF_MEMORY"):
                planes.from_rgb(rgb, layout, excess=excess)
    finally:
        for each in tried:
            each.cache_clear()


def test_networks_that_the_kernels_are_not_written_for_run_by_operators(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "maker_on", lambda device: emulated)
    for spec in (
        replace(architecture("rlfn", 4), blocks=1, channels=80),
        replace(architecture("rlfn", 4), blocks=1, esa_channels=8),
    ):
        module = RLFN(spec).eval().requires_grad_(False)
        assert type(for_device(spec, module, torch.float16, False, "cpu")) is InferenceNet


@pytest.mark.parametrize("architecture_name", ["sm_80", "sm_120"])
def test_they_compile_for_gpus_and_registers_suffice(
    architecture_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NVRTC itself, which asks for no GPU; sums that do not stay in registers would cost half the speed."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed ({error})")
    monkeypatch.setenv("RLFN_PIPE_CACHE", str(tmp_path))
    made: list[tuple[str, dict[str, object]]] = []

    class Listed:
        shared, processors = 99 << 10 if architecture_name == "sm_120" else 163 << 10, 100

        def kernel(self, name: str, defines: dict[str, object]) -> None:
            made.append((name, defines))

    for name in ("rlfn-s", "rlfn"):
        spec = architecture(name, 4)
        net = build_inference(
            replace(spec, blocks=1), RLFN(replace(spec, blocks=1)), torch.float16, form=KernelNet
        )
        net.maker = Listed()
        net._layers()
    made.append(
        (
            "planes",
            {
                "PLANES": 1,
                "SAMPLE": "u16",
                "SCALE": 4,
                "FIRST_X": -3,
                "COUNT_X": 7,
                "STEP_X": 2,
                "FIRST_Y": -3,
                "COUNT_Y": 8,
                "STEP_Y": 2,
            },
        )
    )
    made.append(("samples", {"SAMPLES": 1, "SAMPLE": "u8", "HALF_X": 1, "HALF_Y": 1}))
    for name, defines in made:
        options = [f"--gpu-architecture={architecture_name}", "--std=c++17", "--ptxas-options=-v"]
        _, words = library.compiled(
            library._SOURCE.read_bytes(), [*options, *(f"-D{k}={v}" for k, v in defines.items())]
        )
        spilt = int(re.search(r"(\d+) bytes spill stores", words).group(1))
        assert spilt <= 32, (name, defines, words)
    code = library.machine_code(made[-1][1], architecture_name)
    assert (
        code == library.machine_code(made[-1][1], architecture_name)
        and len(list(tmp_path.rglob("*.cubin"))) == 1
    )
    with pytest.raises(RuntimeError, match=r"NVRTC: NVRTC_ERROR_COMPILATION: kernels.cu.* error: .*u9"):
        library.machine_code({"SAMPLES": 1, "SAMPLE": "u9", "HALF_X": 1, "HALF_Y": 1}, architecture_name)
    # An empty log was written into Python's only blank of one byte.
    assert library.compiled(b"__device__ int one;", [f"--gpu-architecture={architecture_name}"])[1] == ""
    assert bytes([32]) == b"\x20"
    assert library.architecture_for(9, 0) == "sm_90" and library.architecture_for(12, 9) == "sm_121"
