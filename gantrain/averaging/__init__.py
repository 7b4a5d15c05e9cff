"""Weight averaging, usable in any training loop, without the trainer."""

from __future__ import annotations

from gantrain.averaging.average import Average, weight_profile
from gantrain.averaging.bank import LIVE, AverageBank
from gantrain.averaging.batchnorm import recalibrate
from gantrain.averaging.bema import Bema
from gantrain.averaging.ema import Ema
from gantrain.averaging.ema_steps import EmaSteps
from gantrain.averaging.lawa import Lawa
from gantrain.averaging.lookahead import Lookahead
from gantrain.averaging.power import Power
from gantrain.averaging.rule import AVERAGER, Averager
from gantrain.averaging.swa import Swa
from gantrain.spectral_norm import refresh_spectral_norms

AVERAGERS: dict[str, type[Averager]] = {
    "ema": Ema,
    "ema_steps": EmaSteps,
    "swa": Swa,
    "lawa": Lawa,
    "power": Power,
    "bema": Bema,
    "lookahead": Lookahead,
}
__all__ = [
    "AVERAGER", "AVERAGERS", "LIVE", "Average", "AverageBank", "Averager", "Bema", "Ema", "EmaSteps", "Lawa", "Lookahead", "Power", "Swa",
    "recalibrate", "refresh_spectral_norms", "weight_profile",
]  # fmt: skip
