"""Optimisers: Adam as in the paper, and Muon for the inner convolutions as our faster road."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlfn_pipe.training.recipe import Stage

_MOMENTUM = 0.95
#: Makes Muon's step about as large (root mean square) as Adam's, so one rate serves both.
_ADAM_LIKE = 0.2


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly: (B, rows, columns) float32, rows <= columns.

    The quintic Newton-Schulz iteration pushes all singular values to about one (0.7 to 1.2)
    without a decomposition.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised per convolution (kernel seen as a matrix).

    Parameters are 4-D kernels (out, in, kh, kw). All kernels of one shape go through the
    iteration together.
    """

    def __init__(self, params: list[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply one update from the gradients in place."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                buffers = [self.state[p]["momentum"] for p in params]
                grads = [p.grad for p in params if p.grad is not None]
                torch._foreach_lerp_(buffers, grads, 1 - _MOMENTUM)
                look_ahead = torch._foreach_lerp(grads, buffers, _MOMENTUM)
                flat = torch.stack([u.reshape(shape[0], -1) for u in look_ahead])
                tall = flat.shape[1] > flat.shape[2]
                update = orthogonalise(flat.mT if tall else flat)
                update = (update.mT if tall else update) * (_ADAM_LIKE * max(flat.shape[1:]) ** 0.5)
                for p, u in zip(params, update, strict=True):
                    p.add_(u.reshape(shape), alpha=-group["lr"])


class Optimisers:
    """The optimiser or optimisers of a stage (`parts`), handled as one."""

    def __init__(self, stage: Stage, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        inner: list[Tensor] = []
        if stage.optimiser == "muon":
            ends = ("conv_1.", "upsampler.")
            inner = [p for name, p in named if p.ndim == 4 and not name.startswith(ends)]
        chosen = {id(p) for p in inner}
        rest = [p for _, p in named if id(p) not in chosen]
        adam = torch.optim.Adam(rest, lr=stage.rate, betas=stage.betas, eps=stage.epsilon, foreach=True)
        self.parts: list[torch.optim.Optimizer] = [adam]
        if inner:
            self.parts.append(Muon(inner, lr=stage.rate))

    def set_rate(self, rate: float) -> None:
        """Use `rate` from the next update on."""
        for optimiser in self.parts:
            for group in optimiser.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimiser in self.parts:
            optimiser.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One update."""
        for optimiser in self.parts:
            optimiser.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """All state as plain data and tensors."""
        return [optimiser.state_dict() for optimiser in self.parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Take up the state of optimisers of the same kind over the same network; settings stay the stage's own."""
        if len(state) != len(self.parts):
            raise ValueError("the state is of another kind of optimiser")
        for optimiser, part in zip(self.parts, state, strict=True):
            own = [
                {key: value for key, value in g.items() if key != "params"} for g in optimiser.param_groups
            ]
            optimiser.load_state_dict(part)
            for group, settings in zip(optimiser.param_groups, own, strict=True):
                group.update(settings)
