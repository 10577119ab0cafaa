"""What a network costs: parameters, multiply-adds and activations, counted on the real module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Complexity", "count"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass(frozen=True, slots=True)
class Complexity:
    """`macs` and `activations` are for one input of `width` x `height` pixels.

    A multiply-add of a convolution or linear layer is one MAC; biases and activation functions are free. (The
    NTIRE challenge's counter adds one per LeakyReLU sample: 0.2 % more.) `activations` are the output samples
    of all convolutions, as the challenge counts them.
    """

    parameters: int
    macs: int
    activations: int
    width: int
    height: int


def count(module: nn.Module, height: int, width: int, channels: int = 3) -> Complexity:
    """Run a weightless copy of `module` on a (1, channels, height, width) input and count in hooks.

    The copy lives on torch's meta device: shapes are followed, nothing is computed, the module is untouched.
    """
    twin = copy.deepcopy(module).to("meta").eval()
    macs = activations = 0

    def counted(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal macs, activations
        if isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features
            return
        assert isinstance(layer, _CONVOLUTIONS)
        taps = layer.in_channels // layer.groups
        for side in layer.kernel_size:
            taps *= side
        if isinstance(layer, nn.ConvTranspose2d):
            macs += inputs[0].numel() * taps // layer.in_channels * layer.out_channels
        else:
            macs += output.numel() * taps
        activations += output.numel()

    for layer in twin.modules():
        if isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
            layer.register_forward_hook(counted)
    dtype = next((parameter.dtype for parameter in twin.parameters()), torch.float32)
    with torch.inference_mode():
        twin(torch.empty(1, channels, height, width, device="meta", dtype=dtype))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Complexity(parameters, macs, activations, width, height)
