"""The one guarded import of timm.

timm imports torchvision, whose compiled extension cannot load beside a CPU build of torch (and then even
`import timm` fails). Where the extension is missing, the two operator schemas torchvision refers to while it is
imported are declared instead: transforms, datasets and models then work; the operators themselves stay unavailable.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: Any = None
own_process = False  # whether vitfrost's command line is what runs, so that nobody else reads what `without_compiler` changes


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
    with without_compiler():
        import timm

        return timm


@contextmanager
def without_compiler() -> Iterator[None]:
    """Leave torch's compiler unloaded meanwhile, in a process of our own: loading it takes as long as PyTorch and timm together.

    torchvision imports one function of it, and timm switches it off for a method of an iterator, both of which wait until they are called.
    """
    if not own_process or "torch._dynamo" in sys.modules:
        yield
        return
    import torch.compiler

    name, disable = "torch._dynamo.utils", torch.compiler.disable
    later = sys.modules[name] = _Later(name)
    torch.compiler.disable = lambda fn=None, *given, **named: _disabled(disable, fn) if fn else disable(fn, *given, **named)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(name) is later:
            del sys.modules[name]


class _Later(ModuleType):
    """A module that is imported when something of it is used."""

    def is_compile_supported(self, *given: Any) -> Any:
        """As torch's."""
        return self.__getattr__("is_compile_supported")(*given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _disabled(disable: Callable[[Any], Any], function: Any) -> Any:
    """The function, which the compiler is to leave alone, should it be loaded by then."""

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        return (disable(function) if "torch._dynamo" in sys.modules else function)(*given, **named)

    return call
