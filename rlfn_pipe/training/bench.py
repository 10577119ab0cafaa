"""How fast does training run: the naive loop against ours, in patches a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.training.data import Pairs, Sampler
from rlfn_pipe.training.device import choose_compute, to_channels_last, to_tensor
from rlfn_pipe.training.optimisers import Optimisers
from rlfn_pipe.training.recipe import Stage
from rlfn_pipe.training.resident import patches, where_it_fits

#: Seconds of one slice of a measurement.
_SLICE = 0.5


def training_speed(
    network: str = "rlfn-s",
    scale: int = 4,
    batch: int = 16,
    patch: int = 192,
    seconds: float = 10.0,
    device: str = "auto",
    optimiser: str = "adam",
    compile: bool | None = None,
) -> dict[str, Any]:
    """Patches a second of the naive loop (fp32, eager, patches cut between the steps) and of ours.

    Both do the same work on the same made-up images, `seconds` each in turns after a warm-up, L1 loss and
    `optimiser`. `compile`: torch.compile for ours (default: on CUDA). Returns `naive` and `ours`
    (patches/s), their `ratio`, and the settings.
    """
    compute = choose_compute(device, "auto")
    pairs = _images(scale, patch)
    sampler = Sampler(pairs, patch, batch, (0,))
    naive = _naive(network, scale, sampler, compute.device)
    batches = patches(sampler, where_it_fits(pairs, compute.device), 0, compute)
    stage = Stage(name="bench", steps=1, batch=batch, patch=patch, optimiser=optimiser)
    use_compile = compute.device.type == "cuda" if compile is None else compile

    torch.manual_seed(0)
    model = to_channels_last(RLFN(architecture(network, scale)).to(compute.device))
    called: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if use_compile else model
    optimisers = Optimisers(stage, model)

    def ours() -> None:
        lr, hr = next(batches)
        with compute.autocast():
            sr = called(lr)
        loss = functional.l1_loss(sr.float(), hr)
        optimisers.zero_grad()
        torch.autograd.backward(loss)
        optimisers.step()

    try:
        slow, fast = _rates([naive, ours], seconds, batch, compute.device)
    finally:
        batches.close()
    return {
        "naive": slow,
        "ours": fast,
        "ratio": fast / slow,
        "network": network,
        "scale": scale,
        "batch": batch,
        "patch": patch,
        "optimiser": optimiser,
        "device": compute.describe(),
        "threads": torch.get_num_threads(),
        "compiled": use_compile,
    }


def _naive(network: str, scale: int, sampler: Sampler, device: torch.device) -> Callable[[], None]:
    """One step as one writes it first: fp32, default layout, everything one after the other."""
    torch.manual_seed(0)
    model = RLFN(architecture(network, scale)).to(device)
    adam = torch.optim.Adam(model.parameters(), 5e-4)
    count = 0

    def step() -> None:
        nonlocal count
        lr, hr = (to_tensor(part, device).contiguous() for part in sampler.batch(count))
        count += 1
        loss = functional.l1_loss(model(lr), hr)
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()

    return step


def _rates(steps: list[Callable[[], None]], seconds: float, batch: int, device: torch.device) -> list[float]:
    """Patches a second of each of `steps`: the median over short slices, after a warm-up.

    The slices take turns, so that whatever else the machine does falls on all of them alike.
    """
    slices: list[list[float]] = [[] for _ in steps]
    for step in steps:
        for _ in range(3):
            step()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds * len(steps) or not slices[-1]:
        for step, found in zip(steps, slices, strict=True):
            _wait(device)
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < _SLICE:
                step()
                count += 1
            _wait(device)
            found.append(count * batch / (time.perf_counter() - start))
    return [float(np.median(found)) for found in slices]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _images(scale: int, patch: int) -> Pairs:
    """Two made-up image pairs, large enough for a few patches."""
    generator = np.random.default_rng(0)
    side = 4 * patch
    hr = tuple(generator.integers(0, 256, (side, side, 3), np.uint8) for _ in range(2))
    lr = tuple((np.ascontiguousarray(image[::scale, ::scale]),) for image in hr)
    return Pairs(("first", "second"), hr, lr, scale)
