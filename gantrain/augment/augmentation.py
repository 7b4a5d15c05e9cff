"""The contract of augmentations: transforms of all images that D sees, real and generated alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from gantrain.contracts import Contract
from gantrain.randomness import Draws


class Augmentation(ABC):
    """Transforms images before D sees them: the contract of everything in `AUGMENTATIONS`, and of augmentations from outside.

    An augmentation that does not inherit from this class gets the same defaults. In a configuration it is a frozen dataclass.
    """

    @property
    def reads_sign(self) -> bool:
        """Whether its state follows the signs of D's logits: False by default. A loss without a boundary at 0 is then refused."""
        return False

    @abstractmethod
    def apply(self, x: Tensor, draws: Draws, state: Mapping[str, Tensor], nimg: int) -> Tensor:
        """The transformed images, of the same shape and dtype, differentiable (twice) with respect to `x`.

        Args:
            x: images `[N, C, H, W]`, mostly in [-1, 1].
            draws: random numbers of these N images; the transform of an image depends on its own numbers alone.
            state: the augmentation's state, scalars on the device.
            nimg: images seen before this update.
        """

    def initial_state(self) -> dict[str, float]:
        """What the augmentation remembers from step to step, by name; nothing by default. Saved in checkpoints."""
        return {}

    def observe(self, logits_real: Tensor) -> Mapping[str, Tensor]:
        """What it observes in each phase of D, scalars by name: means over the images of a micro-batch. Nothing by default.

        Args:
            logits_real: of augmented real images, `[N]`, without gradient.
        """
        return {}

    def next_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int, nimg: int) -> dict[str, Tensor]:
        """The state after a phase of D. Called without gradient; never reads a value back to the host.

        Args:
            state: before it.
            observed: means over all micro-batches and processes of what `observe` returned.
            images: real images of this phase, over all processes.
            nimg: images seen before this update.
        """
        return dict(state)

    def shown(self, state: Mapping[str, Tensor], nimg: int) -> dict[str, Tensor | float]:
        """Numbers for the record, by name, such as the probability p; nothing by default."""
        return {}


AUGMENTATION: Contract[Augmentation] = Contract("augmentation", Augmentation)
