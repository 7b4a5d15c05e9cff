"""Building blocks of the generators and discriminators: spectrally normed layers, conditional BatchNorm, attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantrain.spectral_norm import add_spectral_norm

Init = Literal["orthogonal", "normal"]


def initialize(weight: Tensor, init: Init) -> None:
    """Fill a weight in place: orthogonal rows (Saxe et al. 2014), or N(0, 0.02^2) (Radford et al. 2016)."""
    if init == "orthogonal":
        nn.init.orthogonal_(weight)
    else:
        nn.init.normal_(weight, 0.0, 0.02)


@dataclass(frozen=True)
class Layers:
    """Makes layers that share an initialisation and, where asked, spectral norm (Miyato et al. 2018)."""

    init: Init
    spectral_norm: bool = True
    power_iterations: int = 1
    eps: float = 1e-8

    def conv(self, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
        """A convolution that keeps height and width."""
        return self._finish(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
        return self._finish(nn.Linear(inputs, outputs, bias=bias))

    def embedding(self, num_classes: int, outputs: int, spectral_norm: bool = True) -> nn.Module:
        return self._finish(ClassEmbedding(num_classes, outputs), spectral_norm)

    def _finish(self, layer: nn.Module, spectral_norm: bool = True) -> nn.Module:
        # The weight is set first: registering the norm estimates its singular vectors from the weight it finds.
        initialize(layer.weight, self.init)
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
        if self.spectral_norm and spectral_norm:
            add_spectral_norm(layer, self.power_iterations, self.eps)
        return layer


class ClassEmbedding(nn.Embedding):
    """A table of vectors: labels int64 `[N]`, or mixtures of classes `[N, num_classes]` (weights that add up to one), to `[N, S]`."""

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.weight if y.is_floating_point() else super().forward(y)


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm whose gain and bias are functions of a condition (de Vries et al. 2017; Brock et al. 2019, App. B).

    `gain` and `bias` map a condition (labels `[N]` or vectors `[N, S]`) to `[N, C]`; the gain is added to one.
    """

    def __init__(self, channels: int, gain: nn.Module, bias: nn.Module, eps: float):
        super().__init__()
        self.gain, self.bias = gain, bias
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.norm(x)
        # In the precision of the features: under autocast fp32 gains would make every feature map fp32 from here to the next convolution.
        gain, bias = (part[:, :, None, None].to(h.dtype) for part in (1 + self.gain(condition), self.bias(condition)))
        return torch.addcmul(bias, h, gain)


class SelfAttention(nn.Module):
    """Self-attention over positions with keys and values at half resolution (Zhang et al. 2019; Brock et al. 2019).

    Starts as the identity: `gamma`, the weight of the attended part, starts at 0.
    """

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.theta = layers.conv(channels, channels // 8, 1, bias=False)
        self.phi = layers.conv(channels, channels // 8, 1, bias=False)
        self.g = layers.conv(channels, channels // 2, 1, bias=False)
        self.o = layers.conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        query = self.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)
        values = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        # The published attention does not divide by the square root of the width.
        attended = F.scaled_dot_product_attention(query[:, None], keys[:, None], values[:, None], scale=1.0)[:, 0]
        return x + self.gamma * self.o(attended.transpose(1, 2).reshape(n, -1, height, width))
