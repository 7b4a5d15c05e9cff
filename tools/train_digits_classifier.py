"""Train the digits classifier whose features score runs on the digits, and write it into the package.

    python tools/train_digits_classifier.py            # about ten seconds on one core

Writes gantrain/metrics/digits_classifier.safetensors and digits_classifier.json, which contains its SHA-256 and accuracy.
The shipped weights are frozen, because scores of different weights are not comparable; run this only to see how they were
made. A quarter of the digits is held out to measure the accuracy. The shipped network is then trained on all digits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import command
import torch
import torch.nn.functional as F
from safetensors.torch import save

from gantrain.data import Digits
from gantrain.metrics.features import DIGITS_RECORD, DIGITS_WEIGHTS, DigitsClassifier

EPOCHS = 30
BATCH = 32
HELD_OUT = 450
VARIANCE = 0.25


def train(images: torch.Tensor, labels: torch.Tensor, seed: int, epochs: int) -> DigitsClassifier:
    """Returns a classifier trained on uint8 images `[N, 1, H, W]` with labels int64 `[N]`."""
    torch.manual_seed(seed)
    network = DigitsClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            # Label smoothing keeps the features of well-classified images from growing without bound.
            loss = F.cross_entropy(network(images[chosen])[1], labels[chosen], label_smoothing=0.03)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def set_scale(network: DigitsClassifier, images: torch.Tensor) -> None:
    """Scale the features to a mean variance of VARIANCE over `images`, without changing the logits.

    Fréchet distances have the units of squared features, whose scale is arbitrary after training. A positive factor commutes
    with the last ReLU, so it can be moved from the convolution before the features to the linear layer after them.
    """
    factor = (VARIANCE / network(images)[0].var(dim=0).mean()).sqrt()
    assert network.conv3.bias is not None
    network.conv3.weight.mul_(factor)
    network.conv3.bias.mul_(factor)
    network.out.weight.div_(factor)


def accuracy(network: DigitsClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the share of images that are classified correctly."""
    with torch.no_grad():
        return (network(images)[1].argmax(1) == labels).float().mean().item()


def main() -> None:
    """Train, measure the accuracy, and write the weights and their record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}, as shipped")
    parser.add_argument(
        "--out", type=Path, default=DIGITS_WEIGHTS, help="where to write the weights; the record is written to the same folder"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Digits().build()
    assert data.pixels is not None
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(arguments.seed))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    held_out = accuracy(train(data.pixels[rest], data.labels[rest], arguments.seed, arguments.epochs), data.pixels[held], data.labels[held])
    network = train(data.pixels, data.labels, arguments.seed, arguments.epochs)
    set_scale(network, data.pixels)
    weights = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    record = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "held_out_accuracy": round(held_out, 4),
        "held_out_images": HELD_OUT,
        "accuracy_on_all": round(accuracy(network, data.pixels, data.labels), 4),
        "made_by": "tools/train_digits_classifier.py",
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "torch": torch.__version__,
    }
    arguments.out.write_bytes(weights)
    arguments.out.with_name(DIGITS_RECORD.name).write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    command.run(main)
