"""Optimizers of the players; their contract is in `gantrain.optimizers.optimizer`."""

from __future__ import annotations

from gantrain.optimizers.adam import Adam, AdamW
from gantrain.optimizers.optimizer import OPTIMIZER, Betas, Optimizer, betas_at
from gantrain.optimizers.rmsprop import RmsProp
from gantrain.optimizers.sgd import Sgd

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": Sgd, "rmsprop": RmsProp}
__all__ = ["OPTIMIZER", "OPTIMIZERS", "Adam", "AdamW", "Betas", "Optimizer", "RmsProp", "Sgd", "betas_at"]
