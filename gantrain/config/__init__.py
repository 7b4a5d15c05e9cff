"""The configuration of a run: sections, cross-checks, YAML files, plug-ins by name."""

from __future__ import annotations

from gantrain.config.config import Config

__all__ = ["Config"]
