"""What may change when a run is resumed: keys on which nothing that was trained depends, and averages that are added."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gantrain import clock
from gantrain.averaging import AVERAGERS
from gantrain.averaging.swap_growth import reads_orbit
from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.config.plugins import name_of
from gantrain.config.schema import may_change
from gantrain.config.sections import AUTO
from gantrain.data import Archive, Folder, Packed
from gantrain.errors import UserError
from gantrain.home import expand_user
from gantrain.run_folder.change_words import bounded, spell, whole_entries
from gantrain.run_folder.layout import BEST

Values = tuple[Any, Any]


@dataclass(frozen=True)
class Changes:
    """How a configuration differs from the one that a run was trained with.

    Attributes:
        allowed: keys that may change, with their old and new values.
        refused: the others.
        added: averages that neither the run nor its configuration has yet, or that have not begun and now have other settings.
        removed: averages of the run that the configuration no longer has.
    """

    allowed: dict[str, Values] = field(default_factory=dict)
    refused: dict[str, Values] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def find_changes(saved: Config, config: Config, begun: Collection[str]) -> Changes:
    """Compare the configuration of a run with another one.

    Args:
        saved: the run's.
        config: the other one.
        begun: averages in the run's newest checkpoint; others in `saved` have not begun, and may change.
    """
    added = tuple(name for name, one in config.averagers.items() if name not in begun and saved.averagers.get(name) != one)
    removed = tuple(name for name in begun if name not in config.averagers)
    free = tuple(f"averagers.{name}." for name in (*config.averagers, *saved.averagers) if name not in begun)
    different = loading.differing_keys(saved, config)
    allowed = {key: values for key, values in different.items() if may_change(key) or key.startswith(free)}
    return Changes(allowed, {key: values for key, values in different.items() if key not in allowed}, added, removed)


def describe_changes(values: Mapping[str, Values]) -> str:
    """Keys with both values as YAML spells them, for a message; at most eight, and a plug-in of another name counts as one."""
    return bounded([f"{key} ({old} there, {new} now)" for key, (old, new) in whole_entries(values).items()], ", ")


def describe_root(config: Config) -> str:
    """The end of a message if `data.root` leads nowhere, which is then a mistake besides; otherwise ""."""
    data: Any = config.data
    if not isinstance(data, (Archive, Folder, Packed)) or (data.root and expand_user(data.root, "data.root").exists()):
        return ""
    return f"; data.root, too, needs a value: {spell(data.root)} does not exist" if data.root else "; data.root, too, must be set"


def refuse_reserved(names: Iterable[str]) -> None:
    """Refuse new averages whose name stands for something else.

    Raises:
        UserError: names the key.
    """
    if BEST in names:
        raise UserError(f"averagers.{BEST}: the name stands for the best average in `--average {BEST}`; use another name")


def require_late_start(config: Config, added: Collection[str], nimg: int) -> None:
    """Refuse averages that cannot begin at `nimg` images.

    Raises:
        UserError: the weight of the past in one of them is defined from the first image on.
    """
    for name in added if nimg > 0 else ():
        if config.averagers[name].exponent is not None:
            raise UserError(
                f"averagers.{name}: the weights of a {name_of(AVERAGERS, config.averagers[name])} average count from the first image,"
                f" so it cannot begin at {nimg / 1000:g} kimg; add an ema or swa, or train a new run with it"
            )


def require_time_left(config: Config, missing: Iterable[str], nimg: int) -> None:
    """Refuse averages that a run at `nimg` images does not have, if it trains no further.

    Raises:
        UserError: names the average and the remedy.
    """
    for name in missing if nimg >= clock.images(config.total_kimg) else ():
        raise UserError(
            f"averagers.{name}: the run is at {nimg / 1000:g} kimg and total_kimg={config.total_kimg:g}: nothing is left to train, so the"
            f" average would stay empty; raise total_kimg, or remove averagers.{name}"
        )


def require_passive(config: Config, added: Collection[str]) -> None:
    """Refuse to add averages that would change the training of a run.

    Raises:
        UserError: one replaces the live weights, or decides how the batch grows.
    """
    for name in added:
        averager = config.averagers[name]
        if averager.writes_back:
            raise active(name, "replaces the live weights")
        if config.swap.source is not None and config.swap.growth == AUTO and reads_orbit(averager):
            raise active(name, "is an ema, and swap.growth=auto reads the growth of the batch from all of them")


def active(name: str, why: str) -> UserError:
    """The error for an average that cannot be added to a run."""
    return UserError(
        f"averagers.{name}: {why}, so adding it would change the training of this run; `gantrain fork RUN --out NEW` begins another run"
        " from a checkpoint"
    )
