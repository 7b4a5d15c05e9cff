"""What runs of earlier versions did where a later version has a key whose default does something else.

Such a run has no value for the key, neither in its `config.yaml` nor in its checkpoints, and it goes on as it began.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path

from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.losses import Loss, Relativistic

PAIRED_LABELS = "loss.paired_labels"


def load_as_begun(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in the file of a run, with overrides; see `loading.load`, also for errors."""
    overrides = list(overrides)
    config = loading.load(path, overrides)
    if "loss.name" in loading.set_keys(None, overrides):  # not the loss of the run, or the user has asked for it anew
        return config
    return as_begun(config, loading.set_keys(path, overrides))


def as_begun(config: Config, given: Collection[str]) -> Config:
    """The configuration of a run that exists, in which the lack of a key stands for what the run did before there was one.

    Args:
        config: as read from the run folder.
        given: full keys that were there.
    """
    return config if PAIRED_LABELS in given else with_pairs(config, False)


def with_pairs(config: Config, paired: bool) -> Config:
    """A configuration whose loss, if it is a relativistic one, compares images of one class, or of classes drawn independently."""
    loss: Loss = config.loss
    if not isinstance(loss, Relativistic) or loss.paired_labels == paired:
        return config
    return dataclasses.replace(config, loss=dataclasses.replace(loss, paired_labels=paired))
