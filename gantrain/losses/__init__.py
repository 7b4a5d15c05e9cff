"""Losses: `discriminator(logits_real, logits_fake)` and `generator(logits_real, logits_fake)`, each a scalar to minimise.

Logits are `[N]`. A loss whose `generator` does not use `logits_real` says `generator_sees_real: ClassVar[bool] = False`; the
update then saves D a forward and passes None. A penalty has `penalty(D, x_real, x_fake, y_real, y_fake)`, a scalar too, and
`every`, D steps from one application to the next.
"""

from __future__ import annotations

from gantrain.losses.hinge import Hinge
from gantrain.losses.nonsaturating import NonSaturating
from gantrain.losses.penalties import R1, R2
from gantrain.losses.relativistic import Relativistic

LOSSES: dict[str, type] = {"hinge": Hinge, "nonsaturating": NonSaturating, "relativistic": Relativistic}
PENALTIES: dict[str, type] = {"r1": R1, "r2": R2}
