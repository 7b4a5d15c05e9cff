"""Write random weights for torch-fidelity's Inception-v3, for tests and benchmarks without the download.

    python tools/random_inception.py RANDOM.pth

Use them with `eval.features={name: inception, weights: RANDOM.pth}`. They cost as much time as the published weights, but the
scores are meaningless.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import command
import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as module

from gantrain import torchvision_ops  # noqa: F401 - before torch-fidelity, which imports torchvision


class Unloaded(module.FeatureExtractorInceptionV3):
    """The network without the weights that its constructor would download."""

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True) -> None:
        """Load nothing."""


def random_weights(images: Tensor) -> dict[str, Tensor]:
    """He initialisation (seed 0), with the BatchNorm statistics of `images`, uint8 `[N, 3, H, W]`."""
    with mock.patch.object(module, "load_state_dict_from_url", lambda url, progress=True: {}):
        network = Unloaded("inception-v3-compat", ["2048", "logits_unbiased"], verbose=False)
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        network(images)
    return network.state_dict()


def main() -> None:
    """Parse the arguments and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file to write")
    out = parser.parse_args().out
    torch.save(random_weights(torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))), out)


if __name__ == "__main__":
    command.run(main)
