"""gantrain: a GAN trainer in which weight averaging is a first-class experiment."""

from __future__ import annotations

from gantrain.version import __version__

TYPE_CHECKING = False  # `typing` is not imported for it: a signal during the first imports of the command is a traceback
if TYPE_CHECKING:
    from typing import Any

__all__ = ["__version__", "evaluate", "load_generator"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `gantrain --help` does not wait for torch.
    if name == "load_generator":
        from gantrain.sampling.generators import load_generator

        return load_generator
    if name == "evaluate":
        from gantrain.evaluation.api import evaluate

        return evaluate
    raise AttributeError(f"module 'gantrain' has no attribute {name!r}")
