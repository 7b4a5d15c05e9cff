"""Weight averaging, usable in anybody's training loop, without the trainer."""
from gantrain.averaging.average import Average, Averager
from gantrain.averaging.bank import LIVE, AverageBank
from gantrain.averaging.batchnorm import recalibrate
from gantrain.averaging.ema import Ema, EmaSteps
from gantrain.averaging.swa import Swa

AVERAGERS: dict[str, type] = {"ema": Ema, "ema_steps": EmaSteps, "swa": Swa}

__all__ = ["AVERAGERS", "LIVE", "Average", "AverageBank", "Averager", "Ema", "EmaSteps", "Swa", "recalibrate"]
