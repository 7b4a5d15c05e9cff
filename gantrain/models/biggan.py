"""BigGAN (Brock, Donahue and Simonyan 2019, "Large scale GAN training for high fidelity natural image synthesis").

Widths and the order of operations are those of the published networks (the paper's Tables 4 to 9 and the authors'
PyTorch release), so parameter counts agree. Resolutions 8 and 16 are our own and follow the pattern of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantrain.bounds import MOST_STEPS
from gantrain.errors import InvalidField, UserError, check
from gantrain.models.architecture import Architecture
from gantrain.models.layers import ConditionalBatchNorm2d, Init, Layers, SelfAttention

BOTTOM = 4  # height and width of the generator's first feature map
# Channel multipliers by resolution: the output of the generator's first layer, then the output of each of its blocks.
GENERATOR_WIDTHS = {
    8: (4, 4),
    16: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
# By resolution: the output multiplier of each block of the discriminator, and how many of its first blocks halve the resolution.
DISCRIMINATOR_WIDTHS = {
    8: ((4, 4, 4), 1),
    16: ((4, 4, 4), 2),
    32: ((4, 4, 4, 4), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
    256: ((1, 2, 4, 8, 8, 16, 16), 6),
}


@dataclass(frozen=True)
class BigGAN(Architecture):
    """Hyper-parameters of both networks.

    Attributes:
        ch: channel multiplier of both networks (published: 64 for CIFAR-10, 96 for ImageNet).
        dim_z: length of the latent vector. With `hierarchical_z` it must be a multiple of the number of chunks, which is the
            number of generator blocks plus one.
        shared_embedding: length of the class embedding that all conditional BatchNorm layers share; 0 gives every layer its
            own embedding table.
        hierarchical_z: whether to split z and feed one chunk to the first layer and one to every generator block, together
            with the class; requires `shared_embedding`.
        attention_resolution: resolution in pixels of the feature maps that get self-attention, in both networks; null for
            no attention.
        init: initialisation of the weights: "orthogonal", or "normal" for N(0, 0.02^2).
        spectral_norm: whether to apply spectral normalisation to all convolutions and linear layers and to D's class embedding.
        power_iterations: number of power iterations of the spectral norm in each training step of a network.
        sn_eps: small constant for numerical stability of the spectral norm.
        bn_eps: small constant that BatchNorm adds to the variance.
    """

    ch: int = 64
    dim_z: int = 128
    shared_embedding: int = 0
    hierarchical_z: bool = False
    attention_resolution: int | None = field(default=None, metadata={"range": "the resolution of a feature map of both networks"})
    init: Init = "orthogonal"
    spectral_norm: bool = True
    power_iterations: int = 1
    sn_eps: float = 1e-8
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        check(self, "ch", self.ch >= 1, "must be at least 1")
        check(self, "dim_z", self.dim_z >= 1, "must be at least 1")
        check(self, "shared_embedding", self.shared_embedding >= 0, "must be at least 0")
        check(self, "power_iterations", self.power_iterations >= 1, "must be at least 1")
        check(self, "power_iterations", self.power_iterations <= MOST_STEPS, f"must be at most {MOST_STEPS:,}")
        check(self, "sn_eps", self.sn_eps > 0, "must be above 0")
        check(self, "bn_eps", self.bn_eps > 0, "must be above 0")
        if self.hierarchical_z and not self.shared_embedding:
            raise InvalidField("hierarchical_z", True, "requires shared_embedding above 0 (published: 128)")

    def require_resolution(self, resolution: int) -> None:
        """Refuse a resolution for which no networks with these hyper-parameters exist.

        Raises:
            UserError: names the key of `data:` or `model:` that must change.
        """
        if resolution not in GENERATOR_WIDTHS:
            raise UserError(
                f"data.resolution: biggan does not support resolution {resolution}; choose from {', '.join(map(str, GENERATOR_WIDTHS))}"
            )
        at = self.attention_resolution
        if at is not None and at not in attention_places(resolution):
            places = ", ".join(map(str, attention_places(resolution))) or "null"
            raise UserError(
                f"model.attention_resolution: the networks for resolution {resolution} cannot have attention at {at}; choose from {places}"
            )
        if at is not None and self.ch < 8:
            raise UserError(f"model.ch: must be at least 8, because attention uses an eighth of the channels, got {self.ch}")
        slots = len(GENERATOR_WIDTHS[resolution])
        if self.hierarchical_z and self.dim_z % slots:
            raise UserError(
                f"model.dim_z: must be a multiple of {slots}, because hierarchical_z splits z into {slots} chunks at resolution"
                f" {resolution}, got {self.dim_z}; use {self.dim_z // slots * slots or slots}"
            )

    def build(self, resolution: int, channels: int, num_classes: int) -> tuple[Generator, Discriminator]:
        """Returns newly initialised networks for images `[N, channels, resolution, resolution]` of `num_classes` classes.

        Raises:
            UserError: as `require_resolution`.
        """
        self.require_resolution(resolution)
        return Generator(self, resolution, channels, num_classes), Discriminator(self, resolution, channels, num_classes)


def attention_places(resolution: int) -> list[int]:
    """Returns the resolutions at which both networks can have self-attention."""
    of_generator = {BOTTOM * 2 ** (i + 1) for i in range(len(GENERATOR_WIDTHS[resolution]) - 1)}
    halvings = DISCRIMINATOR_WIDTHS[resolution][1]
    of_discriminator = {resolution // 2 ** (i + 1) for i in range(halvings)}
    return sorted(of_generator & of_discriminator)


class GeneratorBlock(nn.Module):
    """Residual block that doubles the resolution: BN, ReLU, up, conv, BN, ReLU, conv; the shortcut is up and a 1x1 conv."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1 = layers.conv(inputs, outputs)
        self.conv2 = layers.conv(outputs, outputs)
        self.shortcut = layers.conv(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`[N, inputs, S, S]` to `[N, outputs, 2 S, 2 S]`, given the condition of the BatchNorm layers."""
        h = F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), condition)))
        # A 1x1 convolution commutes with nearest-neighbour upsampling; applied first, it costs a quarter.
        return h + F.interpolate(self.shortcut(x), scale_factor=2)


class DiscriminatorBlock(nn.Module):
    """Residual block: [ReLU,] conv, ReLU, conv[, pool]; the shortcut is [pool and] a 1x1 conv if the shape changes."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, first: bool, halve: bool):
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = layers.conv(inputs, outputs)
        self.conv2 = layers.conv(outputs, outputs)
        self.shortcut = layers.conv(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, S, S]` to `[N, outputs, S, S]`, or half of S."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        # A 1x1 convolution commutes with average pooling; applied afterwards, it costs a quarter.
        return h + self.shortcut(x)


class Generator(nn.Module):
    """G(z, y) -> x: latents `[N, dim_z]` and labels int64 `[N]` to images `[N, channels, resolution, resolution]` in [-1, 1].

    Instead of labels, y may be mixtures of classes: float `[N, num_classes]` whose rows sum to one.
    """

    accepts_mixtures = True

    def __init__(self, config: BigGAN, resolution: int, channels: int, num_classes: int):
        super().__init__()
        self.dim_z, self.num_classes = config.dim_z, num_classes
        self.resolution, self.channels = resolution, channels
        layers = Layers(config.init, config.spectral_norm, config.power_iterations, config.sn_eps)
        widths = [config.ch * m for m in GENERATOR_WIDTHS[resolution]]
        self.hierarchical = config.hierarchical_z
        self.chunk = config.dim_z // len(widths) if config.hierarchical_z else config.dim_z
        self.shared = None
        if config.shared_embedding:
            self.shared = layers.embedding(num_classes, config.shared_embedding, spectral_norm=False)
        width_of_condition = config.shared_embedding + (self.chunk if config.hierarchical_z else 0)

        def affine(outputs: int) -> nn.Module:
            """A map from the condition to the gains or biases of a BatchNorm layer."""
            if config.shared_embedding:
                return layers.linear(width_of_condition, outputs, bias=False)
            return layers.embedding(num_classes, outputs, spectral_norm=False)

        def norm(width: int) -> nn.Module:
            """A conditional BatchNorm layer."""
            return ConditionalBatchNorm2d(width, affine(width), affine(width), config.bn_eps)

        self.first = layers.linear(self.chunk, widths[0] * BOTTOM**2)
        self.blocks = nn.ModuleList(GeneratorBlock(layers, a, b, norm) for a, b in pairwise(widths))
        self.attention = nn.ModuleDict()
        if config.attention_resolution is not None:
            after = (config.attention_resolution // BOTTOM).bit_length() - 2
            self.attention[str(after)] = SelfAttention(layers, widths[after + 1])
        self.last_norm = nn.BatchNorm2d(widths[-1], eps=config.bn_eps)
        self.last = layers.conv(widths[-1], channels)

    @property
    def exempt_from_orthogonal(self) -> list[Tensor]:
        """Parameters that orthogonal regularisation skips: the shared embedding, as published."""
        return [] if self.shared is None else list(self.shared.parameters())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Generate images, as the class describes."""
        shared = self.shared(y) if self.shared is not None else y
        conditions = [shared] * len(self.blocks)
        if self.hierarchical:
            z, *chunks = z.split(self.chunk, dim=1)
            conditions = [torch.cat([shared, chunk], dim=1) for chunk in chunks]
        h = self.first(z).unflatten(1, (-1, BOTTOM, BOTTOM))  # names no batch size, so that an exported graph takes any
        for i, (block, condition) in enumerate(zip(self.blocks, conditions)):
            h = block(h, condition)
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        return torch.tanh(self.last(F.relu(self.last_norm(h))))


class Discriminator(nn.Module):
    """D(x, y) -> logits `[N]`: a projection discriminator (Miyato and Koyama 2018)."""

    def __init__(self, config: BigGAN, resolution: int, channels: int, num_classes: int):
        super().__init__()
        layers = Layers(config.init, config.spectral_norm, config.power_iterations, config.sn_eps)
        multipliers, halvings = DISCRIMINATOR_WIDTHS[resolution]
        widths = [channels, *(config.ch * m for m in multipliers)]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(layers, a, b, first=i == 0, halve=i < halvings) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.attention = nn.ModuleDict()
        if config.attention_resolution is not None:
            after = (resolution // config.attention_resolution).bit_length() - 2
            self.attention[str(after)] = SelfAttention(layers, widths[after + 1])
        self.last = layers.linear(widths[-1], 1)
        self.embed = layers.embedding(num_classes, widths[-1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits `[N]` of images `[N, channels, resolution, resolution]` in [-1, 1] with labels int64 `[N]`."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if str(i) in self.attention:
                x = self.attention[str(i)](x)
        h = F.relu(x).sum(dim=(2, 3))
        return self.last(h).squeeze(1) + (self.embed(y) * h).sum(dim=1)
