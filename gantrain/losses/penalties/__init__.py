"""Terms that are added to the loss of a player; their contract is in `gantrain.losses.objective`, their table in `gantrain.losses`."""

from __future__ import annotations

from gantrain.losses.penalties.consistency import BalancedConsistency, Consistency
from gantrain.losses.penalties.dragan import DRAGAN
from gantrain.losses.penalties.finite_differences import FiniteDifferenceR1, FiniteDifferenceR2
from gantrain.losses.penalties.latent_consistency import LatentConsistency
from gantrain.losses.penalties.lecam import LeCam
from gantrain.losses.penalties.path_length import PathLength
from gantrain.losses.penalties.wgan_gp import WGANGP
from gantrain.losses.penalties.zero_centred import R1, R2

__all__ = [
    "DRAGAN",
    "R1",
    "R2",
    "WGANGP",
    "BalancedConsistency",
    "Consistency",
    "FiniteDifferenceR1",
    "FiniteDifferenceR2",
    "LatentConsistency",
    "LeCam",
    "PathLength",
]
