"""The largest counts that a command line or a configuration takes: beyond them, a command would work for weeks, or for ever.

They are far above what anybody means, so that they refuse mistyped numbers only. What a machine's memory or disk takes is compared
with the machine, where the sizes are known.
"""

from __future__ import annotations

MOST_IMAGES = 10**9  # drawn, or generated for a score: 12 days at 1,000 a second
MOST_FRAMES = 10**6  # of a film: 11 hours at 24 a second
MOST_FPS = 1000  # frames per second, far above those of any screen
MOST_GRADIENTS = 10**6  # that measure a noise scale, or passes that measure BatchNorm's statistics: 12 days at one a second
MOST_RESAMPLES = 10**5  # random halves behind an interval, for each of which all metrics are computed
MOST_STEPS = 10**4  # of D per update of G, or power iterations per forward pass
MOST_SIDE = 2**14  # pixels of an image's side: a batch of 16 has 12 GiB as uint8 RGB
