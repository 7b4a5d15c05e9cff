"""The configuration with which a checkpoint is read: a run's `config.yaml`, except where somebody has edited what it was trained with.

Networks may fit a configuration that they were not trained with, such as one with another activation or `hierarchical_z`. Their images
would be wrong, and nothing would say so. Training refuses such an edit; all else reads the checkpoint as it was trained, and notes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.config.plain import leaves
from gantrain.errors import UserError
from gantrain.run_folder.changes import describe_changes, find_changes
from gantrain.run_folder.checkpoint import read_state
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.run_folder.notes import note_once
from gantrain.run_folder.trained_with import KEY, config_in, to_state

Values = dict[str, Any]


def config_at(path: Path, run: Path, config: Config, overrides: Iterable[str] = ()) -> Config:
    """The configuration with which a checkpoint is read.

    Keys that may not change when a run is resumed have the values that the checkpoint was trained with, unless they are overridden; a
    note on standard error names those that differ. A checkpoint of an earlier version does not know its values.

    Args:
        path: the checkpoint.
        run: its run folder.
        config: that of `config.yaml`, with overrides.
        overrides: the same as `section.key=value`.

    Raises:
        UserError: the other keys do not go together with what the checkpoint was trained with.
        Damaged, Gone, OtherFormat, Unreadable: as in `read_state`.
    """
    state = read_state(path)
    if state.get(KEY) == to_state(config)[KEY] or (trained := config_in(state)) is None:
        return config  # nearly always, so nothing is built
    given = loading.set_keys(None, overrides)
    refused = find_changes(trained, config, list(state.get("averages", trained.averagers))).refused
    edited = {key: values for key, values in refused.items() if not is_given(key, given)}
    if not edited:
        return config
    words = f"{run / CONFIG_FILE} was edited: {describe_changes(edited)}"
    moment = f"the checkpoint at {int(path.name) / 1000:g} kimg"
    try:
        now = loading.to_dict(config)
        restored = loading.build(with_overrides(put_back(now, loading.to_dict(trained), edited), now, given))
    except UserError as error:
        raise UserError(f"{words}, and {moment} cannot be read with the other keys ({error}); restore these values") from error
    note_once(f"{words}; {moment} is read with what it was trained with ('there')")
    return restored


def is_given(key: str, given: Collection[str]) -> bool:
    """Whether an override sets a key, or chooses the plug-in that it belongs to."""
    return any(key == one or key.startswith(f"{one.removesuffix('.name')}.") for one in given)


def put_back(now: Mapping[str, Any], before: Mapping[str, Any], keys: Collection[str], prefix: str = "") -> Values:
    """Nested values with those of `before` at some full keys; an entry of another name is exchanged whole.

    Args:
        now, before: as `to_dict` gives them.
        keys: full keys that differ.
        prefix: of the keys of these values.
    """
    values: Values = {}
    for key in (*now, *(key for key in before if key not in now)):
        full = f"{prefix}{key}"
        if not any(one == full or one.startswith(f"{full}.") for one in keys):
            if key in now:
                values[key] = now[key]
            continue
        one, other = now.get(key), before.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and f"{full}.name" not in keys and full not in keys:
            values[key] = put_back(one, other, keys, f"{full}.")
        elif key in before:
            values[key] = other
    return values


def with_overrides(values: Values, now: Mapping[str, Any], given: Collection[str]) -> Values:
    """Nested values with the overridden ones, also where an entry was exchanged whole.

    Args:
        values: changed in place, and returned.
        now: with the overrides, as `to_dict` gives them.
        given: full keys that are overridden.
    """
    for key, value in leaves(now):
        if key in given:
            *sections, name = key.split(".")
            inner = values
            for section in sections:
                if not isinstance(inner.get(section), dict):
                    inner[section] = {}
                inner = inner[section]
            inner[name] = value
    return values
