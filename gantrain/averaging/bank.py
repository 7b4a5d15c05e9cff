"""The bank: several averages of one network, by name."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from gantrain.averaging.average import Average, Averager, named_weights, write_buffers, write_weights
from gantrain.errors import UserError, did_you_mean

LIVE = "live"  # the name of the weights that are trained, among the averages


class AverageBank:
    """Follows a network with any number of averages at once.

        bank = AverageBank(generator, {"ema": Ema(half_life_kimg=10), "swa": Swa(start_kimg=100)})
        ...
        optimizer.step(); nimg += batch_size; bank.update(nimg)
        ...
        bank.materialize("ema", another_generator)

    Args:
        network: the live network, on its final device, wrapped (DDP, torch.compile) or not.
        averagers: rules by free name.
        nimg: images seen so far.
    """

    def __init__(self, network: nn.Module, averagers: Mapping[str, Averager], nimg: int = 0):
        self.network = network
        weights = named_weights(network)
        self.averages = {name: Average(averager, weights, nimg) for name, averager in averagers.items()}

    def update(self, nimg: int) -> None:
        """Take the live weights at `nimg` images into every average. No device sync."""
        for average in self.averages.values():
            average.update(nimg)

    def __iter__(self) -> Iterator[str]:
        return iter(self.averages)

    def started(self) -> list[str]:
        """Names of the averages that hold something."""
        return [name for name, average in self.averages.items() if average.started]

    def materialize(self, name: str, into: nn.Module) -> None:
        """Write an average's weights, or the live ones for "live", and the live buffers into a module like the network.

        BatchNorm statistics are then the live ones: see `gantrain.averaging.batchnorm` for what fits an average.

        Raises:
            UserError: no average of that name, or `into` has other weights.
        """
        if name != LIVE and name not in self.averages:
            raise UserError(f"no average {name!r}{did_you_mean(name, [LIVE, *self.averages])}")
        write_weights(named_weights(self.network) if name == LIVE else self.averages[name].shadows, into)
        write_buffers(self.network.named_buffers(), into)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The shadows by average and weight name, for saving."""
        return {name: average.shadows for name, average in self.averages.items()}

    def state(self) -> dict[str, Any]:
        """What `load` needs beside the tensors, as JSON values."""
        return {name: average.state() for name, average in self.averages.items()}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue every average from saved values."""
        for name, average in self.averages.items():
            if name not in tensors or name not in state:
                raise UserError(f"the checkpoint holds no average {name!r}{did_you_mean(name, tensors)}")
            average.load(tensors[name], **state[name])
