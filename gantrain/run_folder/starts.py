"""When an average begins that is added to a run: at once, unless its `start_kimg` is set."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from gantrain.averaging.birth import has_start, starting_at
from gantrain.config.config import Config
from gantrain.home import expand_user
from gantrain.run_folder.checkpoint import CheckpointStore, read_state
from gantrain.run_folder.forking import newest_kept
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.run_folder.own_config import load_config
from gantrain.run_folder.ownership import read_rollback, state_if_whole
from gantrain.run_folder.trained_with import config_in


def begin_at_once(config: Config, names: Collection[str], given: Collection[str], nimg: int) -> Config:
    """The configuration in which averages that are added at `nimg` images start there, where no `start_kimg` was given.

    Args:
        config: as loaded.
        names: the averages that are added.
        given: full keys that the user has set (`loading.set_keys`).
        nimg: images seen at the checkpoint.
    """
    here = {name: starting_at(config.averagers[name], nimg) for name in names if is_open(config, name, given)}
    return dataclasses.replace(config, averagers={**config.averagers, **here})


def is_open(config: Config, name: str, given: Collection[str]) -> bool:
    """Whether an average has a start, and nobody has set it."""
    return has_start(config.averagers[name]) and f"averagers.{name}.start_kimg" not in given


def resolve_starts(config: Config, given: Collection[str]) -> Config:
    """The configuration of a run that may exist, with the start of every average that is added to it, or was.

    An average that was added with no start of its own keeps the one that it got then, so that the same command resumes the run.

    Args:
        config: as loaded; its `run_dir` says which run.
        given: full keys that the user has set.

    Raises:
        UserError: the run has no undamaged checkpoint.
    """
    run_dir = expand_user(config.run_dir, "run_dir")
    paths = CheckpointStore(run_dir / "checkpoints").paths()
    names = [name for name in config.averagers if is_open(config, name, given)]
    if not names or not paths or not (run_dir / CONFIG_FILE).is_file():
        return config
    path = paths[-1]
    state = state_if_whole(path)
    states = state.get("averages", {})
    added = [name for name in names if name not in states]
    if added:  # they begin at the checkpoint from which the run resumes
        path = newest_kept(run_dir, read_rollback(run_dir))
        state = read_state(path)
        states = state["averages"]
        added = [name for name in names if name not in states]
    config = begin_at_once(config, added, given, int(path.name))
    saved = (config_in(state) or load_config(run_dir)).averagers
    born = {name: states[name]["first_nimg"] for name in names if name in states and name in saved}
    kept = {
        name: starting_at(config.averagers[name], nimg)
        for name, nimg in born.items()
        if nimg > 0 and type(saved[name]) is type(config.averagers[name]) and saved[name].start_kimg == nimg / 1000
    }
    return dataclasses.replace(config, averagers={**config.averagers, **kept})
