"""Architectures: `build(resolution, channels, num_classes) -> (G, D)`.

`G(z, y) -> x` maps latents `[N, dim_z]` and labels `[N]` to images in [-1, 1] and has the attributes `dim_z`,
`num_classes`, `resolution` and `channels`. `D(x, y) -> logits [N]`.
"""

from __future__ import annotations

from gantrain.models.biggan import BigGAN

ARCHITECTURES: dict[str, type] = {"biggan": BigGAN}
