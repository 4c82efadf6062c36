"""The one guarded import of timm.

timm imports torchvision, whose compiled extension cannot load beside a CPU build of torch (and then even
`import timm` fails). Where the extension is missing, the two operator schemas torchvision refers to while it is
imported are declared instead: transforms, datasets and models then work; the operators themselves stay unavailable.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: Any = None


def torchvision_extension_loads() -> bool:
    """Try to load torchvision's real compiled extension; True when its operators are registered."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(library))
            return True
        except (OSError, RuntimeError):
            continue
    return False


def declare_torchvision_schemas() -> None:
    """Declare the schemas of the missing operators once per process; the library object must stay alive."""
    global _declared
    if _declared is None:
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared = library


def import_timm() -> ModuleType:
    """Import timm, declaring torchvision's operator schemas first where its extension cannot load."""
    if "timm" not in sys.modules and "torchvision" not in sys.modules and not torchvision_extension_loads():
        declare_torchvision_schemas()
    import timm

    return timm
