"""What is added to the losses of the two players: penalties, and the augmentation of what D sees, with what they remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gantrain.augment import Augmentation, Plain
from gantrain.config.config import Config
from gantrain.devices import widest_float
from gantrain.losses import Penalty
from gantrain.randomness import Draws
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.run_folder.json_values import as_json
from gantrain.training.results import require_augmented, require_numbers, require_state

PlayerKey = Literal["d", "g"]
OBSERVED = "observed/"  # prefix of what penalties and the augmentation have observed, among a phase's statistics
PENALTIES, AUGMENT = "penalties/", "augment"  # keys of their states: penalties/NAME and augment


def observed_as(key: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a plug-in has observed, by the names that it has among a phase's statistics."""
    return {f"{OBSERVED}{key}//{name}": value for name, value in values.items()}


class Due(NamedTuple):
    """A penalty that is applied in a step.

    Attributes:
        penalty: the penalty.
        factor: it is multiplied by this: by n if it is applied at every n-th step.
        name: its free name in the configuration; a penalty without one goes by its class.
        state: before this step.
    """

    penalty: Penalty
    factor: float
    name: str = ""
    state: Mapping[str, Tensor] = {}

    @property
    def key(self) -> str:
        """Its name in statistics, random numbers and states."""
        return self.name or type(self.penalty).__name__

    def shown_as(self, player: PlayerKey) -> str:
        """The name of its statistic in a phase of this player."""
        return f"penalty/{self.key}/{player}" if self.penalty.networks == "gd" else f"penalty/{self.key}"


@dataclass(frozen=True)
class Setting:
    """Where in a run a phase is, and how D sees images in it.

    Attributes:
        purpose: first part of the names of the phase's random numbers, such as "d0".
        seed: of the run.
        nimg: images seen before this update.
        augmentation: of all images that D sees; None for none.
        state: the augmentation's state.
    """

    purpose: str = ""
    seed: int = 0
    nimg: int = 0
    augmentation: Augmentation | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def draws(self, name: str, positions: Tensor) -> Draws:
        """Random numbers of this phase for the images at these positions."""
        return Draws(self.seed, f"{self.purpose}/{name}", positions)

    def augmented(self, x: Tensor, kind: Literal["real", "fake"], positions: Tensor) -> Tensor:
        """Images as D sees them.

        Args:
            x: images `[m N, C, H, W]`; the i-th of every N is transformed in the same way.
            kind: real and generated images have independent transforms.
            positions: int64 `[N]`.

        Raises:
            ValueError: there is an augmentation, and the images are not a multiple of N, as when a penalty passes D a part of them.
        """
        if self.augmentation is None:
            return x
        repeats, rest = divmod(len(x), len(positions))
        if rest or not repeats:
            raise ValueError(
                f"D was passed {len(x)} images, and with an augmentation it takes the {len(positions)} of the micro-batch, a multiple of"
                " them, or every n-th by `batch.d_real(x, y, n)`"
            )
        positions = positions.repeat(repeats) if repeats > 1 else positions
        found = self.augmentation.apply(x, self.draws(f"augment/{kind}", positions), self.state, self.nimg)
        require_augmented(found, x, self.augmentation)
        return found


def augmentation_of(config: Config) -> Augmentation:
    """The augmentation of a run."""
    return config.augment


class Terms:
    """The penalties and the augmentation of a run, and the state of each: scalars on the device, the same on every process.

    Args:
        config: of the run.
        device: of the states.
        mean: takes a tensor and returns its mean over all processes, on every process.
        world: number of processes.
    """

    def __init__(self, config: Config, device: torch.device, mean: Callable[[Tensor], Tensor] = lambda t: t, world: int = 1):
        self.config, self.device, self.mean, self.world = config, device, mean, world
        augmentation = augmentation_of(config)
        self.augmentation = None if type(augmentation) is Plain else augmentation
        self.plugins: dict[str, Penalty | Augmentation] = {f"{PENALTIES}{name}": one for name, one in config.penalties.items()}
        if self.augmentation is not None:
            self.plugins[AUGMENT] = self.augmentation
        self.states = {key: self._begin(key) for key in self.plugins}

    def _begin(self, key: str, saved: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """The state of a plug-in as it was saved, or as it is at first."""
        plugin = self.plugins[key]
        first = plugin.initial_state()
        require_numbers(first, plugin, "initial_state")
        values = {name: float((saved or {}).get(name, value)) for name, value in first.items()}
        return {name: torch.tensor(value, dtype=widest_float(self.device), device=self.device) for name, value in values.items()}

    # ---- in every phase ----------------------------------------------------------------------------------------------

    def due(self, player: PlayerKey, step: int | None) -> list[Due]:
        """The penalties of a player's step, each with its factor.

        Args:
            player: whose phase it is.
            step: its number, counted for this player; None leaves out those that are not applied at every step.
        """
        found = []
        for name, one in self.config.penalties.items():
            now = one.every == 1 if step is None else step % one.every == 0
            if player in one.networks and now:
                found.append(Due(one, float(one.every), name, self.states[f"{PENALTIES}{name}"]))
        return found

    def setting(self, purpose: str, nimg: int) -> Setting:
        """The setting of the phase of this purpose."""
        return Setting(purpose, self.config.seed, nimg, self.augmentation, self.states.get(AUGMENT, {}))

    @torch.no_grad()
    def follow(self, stats: dict[str, Tensor], due: Sequence[Due], images: int, nimg: int) -> None:
        """Bring all states to after a phase, and take what was observed out of its statistics.

        Every process must call it at the same time. With several, it costs one exchange if anything was observed.

        Args:
            stats: of the phase.
            due: its penalties.
            images: that the update consists of, over all processes.
            nimg: images seen before the update.
        """
        observed = self._observed(stats)
        for one in due:
            key = f"{PENALTIES}{one.key}"
            if self.states[key]:
                seen = images * one.penalty.every
                self._set(key, one.penalty.next_state(self.states[key], observed.get(key, {}), seen))
        if self.augmentation is not None and self.states[AUGMENT] and "loss/d" in stats:
            self._set(AUGMENT, self.augmentation.next_state(self.states[AUGMENT], observed.get(AUGMENT, {}), images, nimg))

    def _observed(self, stats: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Means over all processes of what was observed, by plug-in and name; those of a plug-in without a state are dropped."""
        found = {name.removeprefix(OBSERVED): stats.pop(name) for name in [*stats] if name.startswith(OBSERVED)}
        names = sorted(name for name in found if self.states[name.partition("//")[0]])
        if not names:
            return {}
        values = torch.stack([found[name].to(widest_float(self.device)) for name in names])
        values = self.mean(values) if self.world > 1 else values
        by_plugin: dict[str, dict[str, Tensor]] = {}
        for name, value in zip(names, values.unbind()):
            key, _, what = name.partition("//")
            by_plugin.setdefault(key, {})[what] = value
        return by_plugin

    def _set(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Keep a plug-in's next state."""
        before = self.states[key]
        require_state(state, before, self.plugins[key])
        self.states[key] = {name: state[name].detach().to(old) for name, old in before.items()}

    # ---- in the record and in checkpoints ----------------------------------------------------------------------------

    def shown(self, nimg: int) -> dict[str, float]:
        """The augmentation's numbers for a line of the record, such as its probability."""
        if self.augmentation is None:
            return {}
        found = self.augmentation.shown(self.states[AUGMENT], nimg)
        require_numbers(found, self.augmentation, "shown")
        return {f"{AUGMENT}/{name}": float(value) for name, value in found.items()}

    def state(self) -> dict[str, Any]:
        """The states as JSON values under one key; nothing if there are none."""
        saved: dict[str, Any] = {}
        for key, state in self.states.items():
            if state:
                kind, _, name = key.partition("/")
                values = as_json({what: value.item() for what, value in state.items()})
                saved |= {kind: values} if kind == AUGMENT else {kind: {**saved.get(kind, {}), name: values}}
        return {"terms": saved} if saved else {}

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore the states; one that was not saved begins anew."""
        saved = snapshot.state.get("terms", {})
        for key in self.states:
            kind, _, name = key.partition("/")
            of = saved.get(kind, {})
            self.states[key] = self._begin(key, of if kind == AUGMENT else of.get(name))
