"""Building blocks of generators and discriminators: layers with spectral norm, conditional BatchNorm, self-attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantrain.spectral_norm import add_spectral_norm

Init = Literal["orthogonal", "normal"]


def initialize(weight: Tensor, init: Init) -> None:
    """Initialise a weight in place: orthogonal rows (Saxe et al. 2014), or N(0, 0.02^2) (Radford et al. 2016)."""
    if init == "orthogonal":
        nn.init.orthogonal_(weight)
    else:
        nn.init.normal_(weight, 0.0, 0.02)


@dataclass(frozen=True)
class Layers:
    """Makes layers with a common initialisation and, if `spectral_norm`, spectral norm (Miyato et al. 2018)."""

    init: Init
    spectral_norm: bool = True
    power_iterations: int = 1
    eps: float = 1e-8

    def conv(self, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
        """A convolution that keeps height and width."""
        return self._finish(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))

    def linear(self, inputs: int, outputs: int, bias: bool = True, spectral_norm: bool = True) -> nn.Module:
        """A linear layer."""
        return self._finish(nn.Linear(inputs, outputs, bias=bias), spectral_norm)

    def embedding(self, num_classes: int, outputs: int, spectral_norm: bool = True) -> nn.Module:
        """A class embedding of length `outputs`."""
        return self._finish(ClassEmbedding(num_classes, outputs), spectral_norm)

    def _finish(self, layer: nn.Conv2d | nn.Linear | nn.Embedding, spectral_norm: bool = True) -> nn.Module:
        # Initialise first: registering the spectral norm computes singular vectors of the current weight.
        initialize(layer.weight, self.init)
        bias = getattr(layer, "bias", None)  # an embedding has none
        if bias is not None:
            nn.init.zeros_(bias)
        if self.spectral_norm and spectral_norm:
            add_spectral_norm(layer, self.power_iterations, self.eps)
        return layer


class ClassEmbedding(nn.Embedding):
    """An embedding that also accepts mixtures of classes, float `[N, num_classes]` whose rows sum to one."""

    def forward(self, y: Tensor) -> Tensor:
        """Labels int64 `[N]`, or mixtures, to vectors `[N, S]`."""
        return y @ self.weight if y.is_floating_point() else super().forward(y)


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm whose gain and bias depend on a condition (de Vries et al. 2017; Brock et al. 2019, App. B).

    `gain` and `bias` map a condition (labels `[N]` or vectors `[N, S]`) to `[N, C]`. One is added to the gain.
    """

    def __init__(self, channels: int, gain: nn.Module, bias: nn.Module, eps: float):
        super().__init__()
        self.gain, self.bias = gain, bias
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise `[N, C, H, W]`."""
        h = self.norm(x)
        # Cast to the features' precision: under autocast, fp32 gains would make all feature maps fp32 until the next convolution.
        gain, bias = (part[:, :, None, None].to(h.dtype) for part in (1 + self.gain(condition), self.bias(condition)))
        return torch.addcmul(bias, h, gain)


class SelfAttention(nn.Module):
    """Self-attention over positions, with keys and values at half resolution (Zhang et al. 2019; Brock et al. 2019).

    It is initially the identity, because `gamma`, the weight of the attended part, starts at 0.
    """

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.theta = layers.conv(channels, channels // 8, 1, bias=False)
        self.phi = layers.conv(channels, channels // 8, 1, bias=False)
        self.g = layers.conv(channels, channels // 2, 1, bias=False)
        self.o = layers.conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        n, _, height, width = x.shape
        query = self.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)
        values = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        # The published attention does not divide by the square root of the width.
        attended = F.scaled_dot_product_attention(query[:, None], keys[:, None], values[:, None], scale=1.0)[:, 0]
        return x + self.gamma * self.o(attended.transpose(1, 2).reshape(n, -1, height, width))
