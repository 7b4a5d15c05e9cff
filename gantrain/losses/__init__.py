"""Losses of the two players and penalties that are added to them; their contracts are in `gantrain.losses.objective`."""

from __future__ import annotations

from gantrain.losses.hinge import Hinge
from gantrain.losses.least_squares import LeastSquares
from gantrain.losses.minimax import Minimax
from gantrain.losses.nonsaturating import NonSaturating
from gantrain.losses.objective import LOSS, PENALTY, Loss, Penalty
from gantrain.losses.penalties import (
    DRAGAN,
    R1,
    R2,
    WGANGP,
    BalancedConsistency,
    Consistency,
    FiniteDifferenceR1,
    FiniteDifferenceR2,
    LatentConsistency,
    LeCam,
    PathLength,
)
from gantrain.losses.relativistic import Relativistic
from gantrain.losses.wasserstein import Wasserstein

LOSSES: dict[str, type[Loss]] = {
    "hinge": Hinge, "nonsaturating": NonSaturating, "minimax": Minimax, "relativistic": Relativistic, "least_squares": LeastSquares,
    "wasserstein": Wasserstein,
}  # fmt: skip
PENALTIES: dict[str, type[Penalty]] = {
    "r1": R1,
    "r2": R2,
    "fd_r1": FiniteDifferenceR1,
    "fd_r2": FiniteDifferenceR2,
    "wgan_gp": WGANGP,
    "dragan": DRAGAN,
    "lecam": LeCam,
    "cr": Consistency,
    "bcr": BalancedConsistency,
    "zcr": LatentConsistency,
    "path_length": PathLength,
}
__all__ = [
    "LOSS", "LOSSES", "PENALTIES", "PENALTY", "R1", "R2", "Hinge", "LeastSquares", "Loss", "Minimax", "NonSaturating", "Penalty",
    "Relativistic", "Wasserstein",
]  # fmt: skip
