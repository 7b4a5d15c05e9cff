"""Imports what commands import when they are called, so that the processes forked off this one do not spend their time on it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import pkgutil

import gantrain

LIBRARIES = (
    "torch._dynamo", "torch.distributed.tensor", "torchvision", "torch_fidelity", "scipy.optimize", "scipy.linalg", "scipy.stats",
    "matplotlib.pyplot", "matplotlib.backends.backend_agg", "plotly.graph_objects", "jinja2", "sklearn.datasets", "PIL.AvifImagePlugin",
)  # fmt: skip


def import_everything() -> None:
    """All of gantrain, and what it uses; none of it is looked through again in every process."""
    for module in pkgutil.walk_packages(gantrain.__path__, "gantrain."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
