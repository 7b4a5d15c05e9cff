"""The words that an update may consist of, and what an update of each takes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from random_game import Game
from timing import seconds_of
from torch import Tensor, nn

from gantrain.augment import AUGMENTATIONS
from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.losses import LOSSES, PENALTIES
from gantrain.optimizers import OPTIMIZERS
from gantrain.training.players import build_optimizer, set_groups
from gantrain.training.terms import AUGMENT, PlayerKey, Terms
from gantrain.training.update import discriminator_phase, generator_phase

PLAIN = "as configured"
KINDS = ("loss", "penalty", "augmentation", "model", "optimizer", "clipping")
NIMG = 10_000_000  # late in a run: what begins after some images has begun
P = 0.2  # of ADA


class Word(NamedTuple):
    """A configuration with one word more.

    Attributes:
        name: of the variant.
        kind: one of `KINDS`.
        overrides: that add it.
        config: with it.
        cycle: updates until every lazy penalty has been applied as often as in the long run.
    """

    name: str
    kind: str
    overrides: list[str]
    config: Config
    cycle: int


def candidates() -> Iterator[tuple[str, str, str, list[str]]]:
    """(kind, word, name of the variant, overrides) of all that gantrain has, whether it fits the configuration or not."""
    for word in LOSSES:
        yield "loss", word, f"loss {word}", [f"loss={{name: {word}}}"]
    for word, penalty in PENALTIES.items():
        if penalty().every > 1:
            yield "penalty", word, f"{word}, every {penalty().every}", [f"penalties.{word}={{name: {word}}}"]
        yield "penalty", word, f"{word}, every 1", [f"penalties.{word}={{name: {word}, every: 1}}"]
    for word in AUGMENTATIONS:
        if word == "ada":
            yield "augmentation", word, f"ada, p {P}", [f"augment={{name: ada, p: {P}}}"]
            yield "augmentation", word, f"ada, adaptive at p {P}", ["augment={name: ada}"]
        elif word != "none":
            yield "augmentation", word, word, [f"augment={{name: {word}}}"]
    yield "model", "san", "san", ["model.san=true"]
    for word in OPTIMIZERS:
        yield "optimizer", word, word, [f"optim.g={{name: {word}}}", f"optim.d={{name: {word}}}"]
    yield "clipping", "clip", "clip_g, clip_d", ["optim.clip_g=1", "optim.clip_d=1"]


def words_of(path: str, overrides: Sequence[str], plain: Config, only: Sequence[str]) -> tuple[list[Word], dict[str, str]]:
    """The words that can be added to a configuration, and by variant, why others cannot.

    Args:
        path: of the configuration.
        overrides: of it.
        plain: it.
        only: kinds or words; all if empty.
    """
    found: list[Word] = []
    refused: dict[str, str] = {}
    for kind, word, name, added in candidates():
        if only and kind not in only and word not in only:
            continue
        try:
            config = load(path, [*overrides, *added])
        except UserError as error:
            refused[name] = str(error)
            continue
        if config != plain:
            found.append(Word(name, kind, added, config, cycle_of(config)))
    return found, refused


def cycle_of(config: Config) -> int:
    """Updates after which all lazy penalties have been applied as often as in the long run."""
    steps = {"d": config.optim.d_steps, "g": config.optim.g_steps}
    return math.lcm(*(one.every // math.gcd(one.every, steps[key]) for one in config.penalties.values() for key in one.networks))


class WordGame(Game):
    """A game whose words can be exchanged. Its weights never move, so that all words are timed at the same ones."""

    def __init__(self, config: Config, arguments: argparse.Namespace):
        super().__init__(config, arguments)
        self.networks = {config.model: [player.network for player in self.players]}
        self.optimizers: dict[tuple, torch.optim.Optimizer] = {}
        self.updates, self.terms = 0, Terms(config, self.device)

    def time(self, word: Word, updates: int) -> float:
        """Seconds of an update with this word, a mean over so many."""
        self.config, self.updates = word.config, 0
        if word.config.model not in self.networks:
            self.networks[word.config.model] = self.build(word.config)
        networks = self.networks[word.config.model]
        self.players = self.players_of(word.config, networks, [self.optimizer(word, *one) for one in zip("gd", networks)])
        self.terms = Terms(word.config, self.device)
        if "p" in self.terms.states.get(AUGMENT, {}):
            self.terms.states[AUGMENT]["p"].fill_(P)
        return seconds_of(self.update_with_terms, updates, self.device)

    def optimizer(self, word: Word, key: PlayerKey, network: nn.Module) -> torch.optim.Optimizer:
        """An optimizer that stands still, and keeps its state from turn to turn."""
        optim = word.config.optim
        rule = {"g": optim.g, "d": optim.d}[key]
        if (network, rule) not in self.optimizers:
            self.optimizers[network, rule] = build_optimizer(rule, network, {"g": optim.lr_g, "d": optim.lr_d}[key], optim)
            set_groups(self.optimizers[network, rule], {"lr": 0.0})
        return self.optimizers[network, rule]

    def update_with_terms(self) -> None:
        """An update as training makes it: all steps of both players, with penalties and augmentation."""
        optim, first = self.config.optim, self.config.optim.first
        steps: dict[PlayerKey, tuple[Callable, int]] = {"d": (discriminator_phase, optim.d_steps), "g": (generator_phase, optim.g_steps)}
        for key in sorted(steps, key=lambda key: key != first):
            phase, count = steps[key]
            for s in range(count):
                due, setting = self.terms.due(key, self.updates * count + s), self.terms.setting(f"{key}{s}", NIMG)
                stats = phase(*self.players, self.config.loss, self.batches(key), self.rounds, None, due, setting)
                self.terms.follow(stats, due, self.batch_size, NIMG)
        self.updates += 1

    def batches(self, key: PlayerKey) -> Iterator[tuple]:
        """The rounds of a phase."""
        loss, b, real = self.config.loss, self.micro_batch, self.real
        shown: tuple[Tensor | None, Tensor] | None = real
        if key == "g" and not loss.generator_sees_real:
            shown = (None, real[1]) if loss.paired_labels else None
        for j in range(self.rounds):
            start = (self.updates * self.rounds + j) * b
            yield shown, (*self.noise, torch.arange(start, start + b, device=self.device))
