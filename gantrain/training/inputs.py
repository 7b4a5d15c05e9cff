"""What goes into an update: real images and latents."""

from __future__ import annotations

SHOWN = 5  # unreadable images named on the console at a time
