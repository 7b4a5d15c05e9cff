"""A penalty and an augmentation that use every part of their contracts, for tests of the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from game import gradients, noise, real
from torch import Tensor

from gantrain.augment import Augmentation, Plain
from gantrain.losses import R1, Hinge, Penalty
from gantrain.losses.objective import PenaltyBatch
from gantrain.randomness import Draws
from gantrain.training.terms import Terms
from gantrain.training.update import discriminator_phase, generator_phase


@dataclass(frozen=True)
class Memory(Penalty):
    """Pulls logits to a moving average of what they were, at images that are shifted at random, over fresh generated images too.

    Attributes:
        weight: of the penalty.
        half_life: of the moving average, in images.
        until: the weight falls linearly to half of itself over so many images.
    """

    weight: float = 0.3
    half_life: float = 64.0
    until: int = 1000
    every: int = 1
    networks: Literal["d", "g", "gd"] = "gd"
    differentiates_twice: bool = False

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        x = batch.x_fake if batch.x_real is None else batch.x_real
        y = batch.y_fake if batch.y_real is None else batch.y_real
        judge, logits = (batch.d_fake, batch.logits_fake) if batch.x_real is None else (batch.d_real, batch.logits_real)
        shift = batch.draws.normal("shift", 1, 1, 1).to(x.dtype)
        shifted = judge(torch.cat([x + 0.1 * shift, x - 0.1 * shift]), torch.cat([y, y]))
        fresh = batch.d_fake(batch.generator(batch.z + 0.1, batch.y_fake), batch.y_fake)
        weight = self.weight * (1 - 0.5 * min(1.0, batch.nimg / self.until))
        far = (shifted - batch.state["mean"]).square().mean() + (fresh - batch.state["mean"]).square().mean()
        return weight * far, {"mean": logits.detach().mean()}

    def initial_state(self) -> dict[str, float]:
        return {"mean": 0.25, "images": 0.0}

    def next_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
        keep = 0.5 ** (images / self.half_life)
        return {"mean": keep * state["mean"] + (1 - keep) * observed["mean"], "images": state["images"] + images}


@dataclass(frozen=True)
class OldOfG:
    """Asks for G's phase, and has no method for it."""

    networks: str = "gd"

    def penalty(self, D, x_real, x_fake, y_real, y_fake):
        return D(x_real, y_real).mean()


@dataclass(frozen=True)
class Wobble(Augmentation):
    """Scales every image by its own factor, whose spread follows the sign of D's logits at real images.

    Attributes:
        strength: spread of the factors at first.
    """

    strength: float = 0.2

    def apply(self, x: Tensor, draws: Draws, state: Mapping[str, Tensor], nimg: int) -> Tensor:
        return x * (1 + state["p"] * draws.normal("scale", 1, 1, 1)).to(x.dtype)

    def initial_state(self) -> dict[str, float]:
        return {"p": self.strength}

    def observe(self, logits_real: Tensor) -> Mapping[str, Tensor]:
        return {"sign": logits_real.sign().mean(), "logit": logits_real.mean()}

    def next_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int, nimg: int) -> dict[str, Tensor]:
        return {"p": (state["p"] + 5e-5 * images * (observed["sign"] + observed["logit"])).clamp(0.01, 1.0)}

    def shown(self, state: Mapping[str, Tensor], nimg: int) -> dict[str, Tensor | float]:
        return {"p": state["p"]}


@dataclass(frozen=True)
class PairedHinge(Hinge):
    """Pairs labels though its G sees no real images."""

    paired_labels = True


def terms(augment: Augmentation | None = None, over: tuple[Callable, int] | None = None, **penalties: Penalty) -> Terms:
    """Of a run with seed 3; `over` has the mean over processes and their number."""
    config: Any = SimpleNamespace(penalties=penalties, seed=3, augment=augment or Plain())
    return Terms(config, torch.device("cpu"), *(over or ()))


def positioned(b: int, k: int, start: int, world: int = 1, rank: int = 0, loss: Any = None):
    """One process's k micro-batches of an update that begins at a position of the stream; of G's phase if a loss is given."""
    for j in range(k):
        first = start + (j * world + rank) * b
        x, y = real(first, b)
        of_g = (x, y) if loss is None or loss.generator_sees_real else (None, y) if loss.paired_labels else None
        yield of_g, (*noise(first, b), torch.arange(first, first + b))


def play(g, d, loss, own: Terms, b: int, k: int, updates: int = 2, world: int = 1, rank: int = 0, g_steps: int = 2, first: str = "g"):
    """Some updates with every word: the gradients of the last phase of each player."""
    batch, found = b * k * world, {}
    for update in range(updates):
        nimg = update * batch
        phases = {
            "d": [(discriminator_phase, positioned(b, k, nimg, world, rank), "d0", update)],
            "g": [(generator_phase, positioned(b, k, nimg, world, rank, loss), f"g{s}", update * g_steps + s) for s in range(g_steps)],
        }
        for key in first + "dg".replace(first, ""):
            for phase, rounds, purpose, step in phases[key]:
                due = own.due(key, step)
                stats = phase(g, d, loss, rounds, k, None, due, own.setting(purpose, nimg))
                own.follow(stats, due, batch, nimg)
                assert not any(name.startswith("observed") for name in stats)
            found |= {f"{key}.{name}": grad for name, grad in gradients({"d": d, "g": g}[key].network).items()}
    return found


def flat(states: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{key}/{name}": value for key, state in states.items() for name, value in state.items()}


EVERYTHING = {"augment": Wobble(), "memory": Memory(), "lazy": Memory(every=2, networks="d"), "r1": R1(gamma=0.3, every=1)}
