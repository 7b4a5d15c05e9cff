"""The `gantrain` command with a fault in it: `inject.py FAULT ARGUMENTS...`, the fault's own settings in the environment.

FAULT_RANK is the process it is in (all of them where it is not set), FAULT_UPDATE the update, FAULT_TIMES how often; in FAULT_SEEN
stands what every update has drawn.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch

from gantrain import cli
from gantrain.data import RealBatches
from gantrain.evaluation.evaluator import Evaluator
from gantrain.losses import Hinge
from gantrain.sampling import latents
from gantrain.training import update
from gantrain.training.pictures import Pictures
from gantrain.training.trainer import Trainer

RANK = os.environ.get("FAULT_RANK", os.environ.get("RANK", "0"))
AT = int(os.environ.get("FAULT_UPDATE", "0"))
left = int(os.environ.get("FAULT_TIMES", "1"))
here = {"update": -1}


def chosen() -> bool:
    """Whether the fault happens now: in this process, at this update, and not too often."""
    global left
    if os.environ.get("RANK", "0") != RANK or here["update"] != AT or left == 0:
        return False
    left -= 1
    return True


def gradient() -> None:
    """A nan in the gradient of G, after the processes have exchanged theirs: in one process only."""
    regularise = update.add_orthogonal_gradient

    def spoilt(player) -> None:
        regularise(player)
        if player.network.__class__.__name__.endswith("Generator") and chosen():
            next(player.network.parameters()).grad.view(-1)[0] = float("nan")

    update.add_orthogonal_gradient = spoilt


def loss() -> None:
    """A nan in the loss of D, before the processes exchange gradients."""
    discriminator = Hinge.discriminator

    def spoilt(self, logits_real, logits_fake):
        value = discriminator(self, logits_real, logits_fake)
        return value * float("nan") if chosen() else value

    Hinge.discriminator = spoilt


def weight() -> None:
    """An infinite weight of G: its loss and gradient were computed before, and are finite."""
    regularise = update.add_orthogonal_gradient

    def spoilt(player) -> None:
        regularise(player)
        if player.network.__class__.__name__.endswith("Generator") and chosen():
            with torch.no_grad():
                next(player.network.parameters()).view(-1)[0] = float("inf")

    update.add_orthogonal_gradient = spoilt


def scores() -> None:
    """Scores of the ema as FAULT_SCORES has them by name, one an evaluation, whatever the images look like."""
    told, score = json.loads(os.environ["FAULT_SCORES"]), Evaluator.score

    def scripted(self, names, materialize, generator, policy=None):
        found = score(self, names, materialize, generator, policy)
        for metric, values in told.items() if "ema" in found else ():
            found["ema"][metric] = values.pop(0) if values else 1.0
        return found

    Evaluator.score = scripted


def slow_scores() -> None:
    """Scores that take a second a chunk; a file says that they have begun."""
    extractor = Evaluator.extractor

    def slow(self):
        found = extractor.fget(self)

        def extract(images):
            Path(os.environ["FAULT_FILE"]).touch()
            time.sleep(1)
            return found.extract(images)

        return type(found)(extract, found.identity) if here["update"] > 0 else found

    Evaluator.extractor = property(slow)


def late() -> None:
    """SIGTERM while the last picture is drawn: everything has been scored."""
    draw = Pictures.draw_samples

    def asked(pictures, *arguments) -> None:
        draw(pictures, *arguments)
        if pictures.run.done:
            os.kill(os.getpid(), signal.SIGTERM)

    Pictures.draw_samples = asked


def stuck() -> None:
    """An evaluation that looks at nothing for a minute; a file says that it has begun."""

    def score(self, *arguments):
        Path(os.environ["FAULT_FILE"]).touch()
        time.sleep(60)

    Evaluator.score = score


def noted(path: Path) -> None:
    """Write down which positions of the streams of latents and of real images an update takes, a line each."""
    draw, batch = latents.draw, RealBatches.next

    def drawn(seed, purpose, start, *arguments, **kwargs):
        if re.fullmatch(r"g|d\d", purpose):
            with path.open("a") as file:
                file.write(f"{purpose} {start}\n")
        return draw(seed, purpose, start, *arguments, **kwargs)

    def taken(self):
        with path.open("a") as file:
            file.write(f"real {self.sampler.positions(self.turn)[0]}\n")
        return batch(self)

    latents.draw, RealBatches.next = drawn, taken


def counted() -> None:
    """Remember which update is being made."""
    step = Trainer.update

    def run(trainer) -> None:
        here["update"] = trainer.run.updates
        step(trainer)

    Trainer.update = run


if __name__ == "__main__":
    {
        "gradient": gradient,
        "loss": loss,
        "weight": weight,
        "scores": scores,
        "slow_scores": slow_scores,
        "stuck": stuck,
        "late": late,
        "none": lambda: None,
    }[sys.argv[1]]()
    counted()
    if "FAULT_SEEN" in os.environ:
        noted(Path(os.environ["FAULT_SEEN"]))
    cli.main(sys.argv[2:])
