"""The contracts of losses and penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from gantrain.contracts import Contract


class Loss(ABC):
    """What the two players minimise: the contract of everything in `LOSSES`, and of losses from outside.

    Logits are `[N]`, float32 or float64, unbounded; each result is a scalar. A loss that does not inherit from this class gets
    the same defaults. In a configuration a loss is a frozen dataclass.

    Attributes:
        generator_sees_real: whether `generator` uses `logits_real`. True by default: a loss that does not say is given them.
            False saves a forward pass of D on real images.
    """

    generator_sees_real: bool = True

    @abstractmethod
    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """D's loss."""

    @abstractmethod
    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        """G's loss; `logits_real` is None if `generator_sees_real` is False."""


class Penalty(ABC):
    """A term that is added to D's loss: the contract of everything in `PENALTIES`, and of penalties from outside.

    A penalty that does not inherit from this class gets the same defaults. In a configuration a penalty is a frozen dataclass.

    Attributes:
        every: the penalty is applied at every n-th step of D and multiplied by n. 1 by default.
    """

    every: int = 1

    @abstractmethod
    def penalty(self, D: nn.Module, x_real: Tensor, x_fake: Tensor, y_real: Tensor, y_fake: Tensor) -> Tensor:
        """The penalty of one micro-batch, a scalar.

        Args:
            D: the discriminator, `D(x, y) -> logits [N]`.
            x_real, x_fake: images `[N, C, H, W]` in [-1, 1], without gradient.
            y_real, y_fake: their labels, int64 `[N]`.
        """


LOSS: Contract[Loss] = Contract("loss", Loss)
PENALTY: Contract[Penalty] = Contract("penalty", Penalty)
