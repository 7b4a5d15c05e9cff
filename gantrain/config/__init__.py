"""What a run is told: sections, cross-checks, YAML files, plug-ins by name."""

from __future__ import annotations

from gantrain.config.config import Config

__all__ = ["Config"]
