"""The contracts of losses and penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from gantrain.contracts import Contract
from gantrain.randomness import Draws


class LogitsOf(Protocol):
    """D as penalties call it."""

    def __call__(self, x: Tensor, y: Tensor, stride: int = 1, /) -> Tensor:
        """Logits `[m n]` of images `[m n, C, H, W]` and labels `[m n]`, n at a time.

        Args:
            stride: the n images are every stride-th of the N images of the batch; by default they are all of them.
        """
        ...


class Loss(ABC):
    """What the two players minimise: the contract of everything in `LOSSES`, and of losses from outside.

    Logits are `[N]`, float32 or float64, unbounded; each result is a scalar. A loss that does not inherit from this class gets
    the same defaults. In a configuration a loss is a frozen dataclass.

    Attributes:
        generator_sees_real: whether `generator` uses `logits_real`. True by default: a loss that does not say is given them.
            False saves a forward pass of D on real images.
        paired_labels: whether the i-th generated image must have the class of the i-th real image, in both phases. False by default.
        san: whether it trains a D with a sliced head, see `gantrain.losses.direction`; `generator` is then asked about real images too,
            and does not use `logits_real`. False by default.
    """

    generator_sees_real: bool = True
    paired_labels: bool = False
    san: bool = False

    @abstractmethod
    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """D's loss."""

    @abstractmethod
    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        """G's loss; `logits_real` is None if `generator_sees_real` is False."""


@dataclass(frozen=True)
class PenaltyBatch:
    """What a penalty sees of one micro-batch in a phase of its player.

    All images are in [-1, 1] and not augmented. `d_real` and `d_fake` are D behind the augmentation of the run: they augment the i-th
    of N images as the i-th real, or generated, image was augmented for the loss, and take multiples of N images, N at a time; or of
    every stride-th of them, see `LogitsOf`.

    Attributes:
        d_real, d_fake: (images `[m N, C, H, W]`, labels `[m N]`) -> logits `[m N]`, float32 or float64, with a gradient to the player
            in whose phase they are called.
        generator: (z `[m N, dim_z]`, labels `[m N]`) -> images; with a gradient to G in G's phase. A G with a mapping network has
            `mapping(z, y) -> w` and `synthesis(w) -> images`, which `path_length` looks for here and at `generator.module`.
        x_real: real images `[N, C, H, W]` without gradient; None in G's phase if the loss of G does not see real images.
        y_real: their labels, int64 `[N]`; None likewise.
        x_fake: generated images `[N, C, H, W]`, with a gradient to G in G's phase.
        y_fake: their labels, int64 `[N]`.
        z: their latents `[N, dim_z]`.
        logits_real, logits_fake: of the loss, `[N]`, with gradient; `logits_real` is None where `x_real` is.
        draws: random numbers of this penalty for these N images.
        nimg: images seen before this update.
        state: the penalty's state before this update, scalars on the device; see `Penalty.initial_state`.
    """

    d_real: LogitsOf
    d_fake: LogitsOf
    generator: Callable[[Tensor, Tensor], Tensor]
    x_real: Tensor | None
    y_real: Tensor | None
    x_fake: Tensor
    y_fake: Tensor
    z: Tensor
    logits_real: Tensor | None
    logits_fake: Tensor
    draws: Draws
    nimg: int
    state: Mapping[str, Tensor]


class Penalty(ABC):  # noqa: B024 - one of two methods is required, see `PENALTY`
    """A term that is added to a player's loss: the contract of everything in `PENALTIES`, and of penalties from outside.

    A penalty that does not inherit from this class gets the same defaults. In a configuration a penalty is a frozen dataclass. It
    defines `term`, or `penalty` if D and the images are all that it needs.

    Attributes:
        every: the penalty is applied at every n-th step of its player and multiplied by n. 1 by default.
        networks: the players to whose loss it is added: "d", "g" or "gd". "d" by default.
        differentiates_twice: whether its value depends on a gradient, which excludes torch.compile and fp16. True by default.
    """

    every: int = 1
    networks: Literal["d", "g", "gd"] = "d"
    differentiates_twice: bool = True

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The penalty of one micro-batch, and what it has observed for its state.

        Args:
            batch: see there.
            player: in whose phase it is called; one of `networks`.

        Returns:
            The penalty, a scalar: the mean over the N images of what it asks of each.
            Scalars without gradient by name, whose means over all micro-batches and processes are handed to `next_state`.
        """
        assert batch.x_real is not None and batch.y_real is not None, "D's phase has real images"
        return self.penalty(DiscriminatorOf(batch), batch.x_real, batch.x_fake, batch.y_real, batch.y_fake), {}

    def penalty(self, D: nn.Module, x_real: Tensor, x_fake: Tensor, y_real: Tensor, y_fake: Tensor) -> Tensor:
        """The penalty of one micro-batch in D's phase, a scalar.

        Args:
            D: the discriminator, `D(x, y) -> logits [N]`, behind the augmentation of the real images.
            x_real, x_fake: images `[N, C, H, W]` in [-1, 1], without gradient.
            y_real, y_fake: their labels, int64 `[N]`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither term nor penalty")

    def initial_state(self) -> dict[str, float]:
        """What the penalty remembers from step to step, by name; nothing by default. Saved in checkpoints."""
        return {}

    def next_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
        """The state after a step in which the penalty was applied. Called without gradient; never reads a value back to the host.

        Args:
            state: before the step, scalars on the device.
            observed: means over all micro-batches and processes of what `term` returned.
            images: that the update consists of, times `every`: those that this step stands for.
        """
        return dict(state)


class DiscriminatorOf(nn.Module):
    """`d_real` of a batch as a module, for penalties that call D themselves."""

    def __init__(self, batch: PenaltyBatch):
        super().__init__()
        self.logits_of = batch.d_real

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits `[N]` of images and labels."""
        return self.logits_of(x, y)


LOSS: Contract[Loss] = Contract("loss", Loss)
PENALTY: Contract[Penalty] = Contract("penalty", Penalty, one_of=("term", "penalty"))
