"""The configuration that a checkpoint was trained with, as its state has it.

A run's `config.yaml` is a text that anybody can edit, so it cannot say what the weights beside it were trained with. The state can: it is
written together with the weights, and its checksum is in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.config.plain import leaves
from gantrain.errors import UserError
from gantrain.run_folder.earlier import as_begun
from gantrain.run_folder.json_values import as_json, restored

KEY = "config"  # in the state; a checkpoint of an earlier version does not have it


def to_state(config: Config) -> dict[str, Any]:
    """The entry of a state: the resolved configuration as JSON values."""
    return {KEY: as_json(loading.to_dict(config))}


def config_in(state: Mapping[str, Any]) -> Config | None:
    """The configuration in a state; None if it has none, or this program cannot read it, such as one with a plug-in that has changed."""
    values = state.get(KEY)
    if values is None:
        return None
    try:
        plain = restored(values)
        return as_begun(loading.build(plain), {key for key, _ in leaves(plain)})
    except UserError:
        return None
