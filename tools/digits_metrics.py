"""Print the table of docs/digits_metrics.md: the digits metrics of images whose quality is known.

python tools/digits_metrics.py
"""

from __future__ import annotations

import command
import torch

from gantrain.data import Digits
from gantrain.metrics import METRICS, DigitsFeatures, FeatureSet


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images blurred by a Gaussian of `sigma` pixels."""
    from torchvision.transforms.v2.functional import gaussian_blur

    size = 2 * round(3 * sigma) + 1
    return gaussian_blur(images, [size, size], [sigma, sigma])


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    data = Digits().build()
    x, dice = data.pixels, torch.Generator().manual_seed(0)
    assert x is not None
    order = torch.randperm(len(x), generator=dice)
    noisy = lambda level: (x + torch.randn(x.shape, generator=dice) * 255 * level).round().clamp(0, 255).to(torch.uint8)  # noqa: E731
    rows = {
        "all digits": x,
        "blur, sigma 0.5 pixels": blurred(x, 0.5),
        "blur, sigma 1": blurred(x, 1.0),
        "blur, sigma 2": blurred(x, 2.0),
        "noise, sigma 0.05": noisy(0.05),
        "noise, sigma 0.1": noisy(0.1),
        "noise, sigma 0.2": noisy(0.2),
        "only digits 0 to 4": x[data.labels < 5],
        "one digit repeated": x[:1].repeat(len(x), 1, 1, 1),
        "black": torch.zeros_like(x),
        "uniform noise": torch.randint(0, 256, x.shape, dtype=torch.uint8, generator=dice),
    }
    extract = DigitsFeatures().build(torch.device("cpu")).extract
    features = lambda images: FeatureSet(*extract(images))  # noqa: E731
    real = features(x)
    pairs = [("half of the digits against the other half", features(x[order[:898]]), features(x[order[898:]]))]
    pairs += [(f"{name} against all", features(images), real) for name, images in rows.items()]
    print("| images | N | digits_fid | digits_is | digits_kid | digits_precision | digits_recall |\n|---|---|---|---|---|---|---|")
    for name, fake, reference in pairs:
        scores: dict[str, float] = {}
        for metric in METRICS.values():
            scores |= metric().compute(fake, reference)
        cells = [f"{scores[m]:.3f}" for m in ("fid", "is", "kid", "precision", "recall")]
        print("| " + " | ".join([name, str(len(fake)), *cells]) + " |", flush=True)


if __name__ == "__main__":
    command.run(main)
