"""Losses: `discriminator(logits_real, logits_fake)` and `generator(logits_real, logits_fake)`, each a scalar to minimise.

Logits are `[N]`. A loss whose `generator` does not use `logits_real` says `generator_sees_real: ClassVar[bool] = False`; the
update then saves D a forward and passes None.
"""
from gantrain.losses.hinge import Hinge
from gantrain.losses.nonsaturating import NonSaturating
from gantrain.losses.relativistic import Relativistic

LOSSES: dict[str, type] = {"hinge": Hinge, "nonsaturating": NonSaturating, "relativistic": Relativistic}
