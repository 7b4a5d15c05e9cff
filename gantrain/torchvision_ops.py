"""Makes `import torchvision` work with a CPU-only torch. Imported for its effect, before torchvision.

PyPI's torchvision wheel for Linux is a CUDA build. With a CPU-only torch its compiled library cannot be loaded, so nothing declares the
operators `torchvision::nms` and `torchvision::qnms`; torchvision's own Python code then registers shape functions for them and the
import fails with "operator torchvision::nms does not exist" (pytorch/vision issues 9077 and 9085). Declaring the two is enough:
gantrain uses neither operator.

If torchvision's library loads, this file does nothing. It can go once the default wheel can be imported with a CPU-only torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

# Kept, because the operators exist only as long as their Library.
_declared: torch.library.Library | None = None
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def torchvision_is_whole() -> bool:
    """Whether torchvision's compiled library exists and loads with this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to fix: importing it will say that it is missing
    folder = Path(spec.origin).parent
    libraries = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except (OSError, RuntimeError):
        return False
    return bool(libraries)


def declare_missing() -> None:
    """Declare the schemas of torchvision's operators if its library cannot; at most once per process."""
    global _declared
    if _declared is None and not torchvision_is_whole():
        _declared = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS.values():
            _declared.define(schema)


declare_missing()
