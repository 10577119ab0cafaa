"""Losses: L1, L2, Charbonnier, and the contrastive loss of section 3.2 in both of its forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from rlfn_pipe.errors import TrainingError
from rlfn_pipe.models.pickles import Unreadable, load_plain
from rlfn_pipe.training.recipe import Stage

#: Channels of the random extractor. The paper does not state them; ours.
RANDOM_CHANNELS = 64
#: VGG-19 layers (counted as convolutions from 1) and their weights, as prior work uses them.
VGG_LAYERS = (1, 3, 5, 9, 13)
VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
#: Output channels of VGG-19's convolutions up to the 13th; 0 is a pooling.
_VGG_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512)

Extractor = Callable[[Tensor], Sequence[Tensor]]


class RandomExtractor(nn.Module):
    """The paper's extractor: Conv(k3, s1) - Tanh - Conv(k3, s1), random and never trained.

    (N, 3, h, w) in 0..1 -> a list with one feature map (N, 64, h-4, w-4). The weights follow
    from `seed` alone. No padding: a border of zeros would be a feature of its own.
    """

    def __init__(self, seed: int = 0, channels: int = RANDOM_CHANNELS) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3)
        generator = torch.Generator().manual_seed(seed)
        for conv in (self.first, self.second):
            fan_in = conv.weight[0].numel()
            with torch.no_grad():
                conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) / fan_in**0.5)
                conv.bias.zero_()  # type: ignore[union-attr]
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.second(torch.tanh(self.first(x)))]


class VggExtractor(nn.Module):
    """VGG-19 features after the ReLU of convolutions 1, 3, 5, 9 and 13 (`layers`).

    (N, 3, h, w) in 0..1 -> one map per layer. `weights` is a file with the state dict of
    torchvision's `vgg19` (keys `features.N.weight`); it is the user's to obtain.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path, layers: tuple[int, ...] = VGG_LAYERS) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        self._taps: list[int] = []
        convolutions, channels = 0, 3
        for width in _VGG_PLAN:
            if convolutions == max(layers):
                break
            if width == 0:
                modules.append(nn.MaxPool2d(2))
                continue
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            convolutions, channels = convolutions + 1, width
            if convolutions in layers:
                self._taps.append(len(modules) - 1)
        self.features = nn.Sequential(*modules)
        wanted = self.state_dict()
        try:
            state = load_plain(weights)
            self.load_state_dict({key: state[key] for key in wanted})
        except (Unreadable, RuntimeError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{weights}: does not hold the weights of VGG-19 ({type(error).__name__});"
                " give torchvision's vgg19 state dict"
            ) from error
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = (x - self.mean) / self.std
        maps = []
        for number, module in enumerate(self.features):
            x = module(x)
            if number in self._taps:
                maps.append(x)
        return maps


def contrastive(extractor: Extractor, weights: Sequence[float], sr: Tensor, hr: Tensor, lr: Tensor) -> Tensor:
    """Contrastive loss, section 3.2: sum_j w_j d(phi_j(SR), phi_j(HR)) / d(phi_j(SR), phi_j(LR up)).

    d is the mean absolute difference over the batch; the anchor is the output, the positive the
    HR image, the negative the bicubically enlarged LR image. All RGB float in 0..1, `sr` and
    `hr` (N, 3, sh, sw), `lr` (N, 3, h, w).
    """
    with torch.no_grad():
        negative = functional.interpolate(lr, size=hr.shape[-2:], mode="bicubic", align_corners=False)
        positives, negatives = extractor(hr), extractor(negative.clamp(0, 1))
    total = sr.new_zeros(())
    for weight, anchor, positive, away in zip(weights, extractor(sr), positives, negatives, strict=True):
        near = functional.l1_loss(anchor, positive)
        total = total + weight * near / (functional.l1_loss(anchor, away) + 1e-7)
    return total


def feature_difference_map(extractor: Extractor, first: Tensor, second: Tensor) -> list[Tensor]:
    """Per layer the mean over channels of |phi(first) - phi(second)|, as in the paper's figures.

    (1, 3, h, w) twice -> per layer a float map (h', w').
    """
    with torch.no_grad():
        pairs = zip(extractor(first), extractor(second), strict=True)
        return [(a - b).abs().mean(dim=1)[0] for a, b in pairs]


class StageLoss(nn.Module):
    """The weighted sum of a stage's losses. forward(sr, hr, lr) -> scalar, all RGB in 0..1."""

    def __init__(self, stage: Stage, seed: int) -> None:
        super().__init__()
        self._weights = dict(stage.losses)
        self.random = RandomExtractor(seed) if "contrastive" in self._weights else None
        self.vgg = VggExtractor(Path(stage.vgg)) if "contrastive_vgg" in self._weights else None

    def forward(self, sr: Tensor, hr: Tensor, lr: Tensor) -> Tensor:
        total = sr.new_zeros(())
        for name, weight in self._weights.items():
            if name == "l1":
                part = functional.l1_loss(sr, hr)
            elif name == "l2":
                part = functional.mse_loss(sr, hr)
            elif name == "charbonnier":
                part = torch.sqrt((sr - hr) ** 2 + 1e-6).mean()
            elif self.random is not None and name == "contrastive":
                part = contrastive(self.random, (1.0,), sr, hr, lr)
            else:
                assert self.vgg is not None
                part = contrastive(self.vgg, VGG_WEIGHTS, sr, hr, lr)
            total = total + weight * part
        return total
