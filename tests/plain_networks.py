"""BigGAN without BatchNorm: a plug-in from outside gantrain whose gradient is a mean over images, however a batch is cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gantrain.models.biggan import BigGAN


class NoNorm(nn.Module):
    def forward(self, x):
        return x


@dataclass(frozen=True)
class PlainBigGAN(BigGAN):
    """Conditional gains and biases stay, the normalisation by batch statistics goes."""

    def build(self, resolution: int, channels: int, num_classes: int):
        generator, discriminator = super().build(resolution, channels, num_classes)
        for block in generator.blocks:
            block.norm1.norm = block.norm2.norm = NoNorm()
        generator.last_norm = NoNorm()
        return generator, discriminator
