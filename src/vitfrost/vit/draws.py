"""Random weights that depend on their seed alone: not on the processor nor on what other threads draw, and torch's own generator stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What draws, and takes a generator. Of nn.init those functions that hand themselves over as a whole.
_METHODS = ("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_")
_FACTORIES = ("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm")
_DRAWING: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(Tensor, name) for name in _METHODS),
        *(getattr(torch, name) for name in _FACTORIES),
        *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),
    ]
)
# What puts values into a tensor: for one that has shapes alone there is nothing to do, and torch would load its compiler for it.
_FILLING: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(Tensor, f"{name}_") for name in ("add", "clamp", "copy", "erfinv", "fill", "mul", "normal", "uniform", "zero")),
        *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),
    ]
)


class own_seed(TorchFunctionMode):
    """Within the block what this thread draws on the CPU comes from a generator of its own, seeded with `seed`."""

    def __init__(self, seed: int):
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING and (filled := args[0] if args else kwargs["tensor"]).is_meta:
            return filled
        if func in (Tensor.erfinv, Tensor.erfinv_):
            return _inverse_error_function(func, args[0])
        if func in _DRAWING and kwargs.get("generator") is None and _on_cpu(args, kwargs):
            kwargs = kwargs | {"generator": self._generator}
        return func(*args, **kwargs)


def _inverse_error_function(func: Callable[..., Any], x: Tensor) -> Tensor:
    """In double precision: truncated normal weights go through it, and in float32 processors differ in its last bit."""
    found = x.double().erfinv().to(x.dtype)
    return x.copy_(found) if func is Tensor.erfinv_ else found


def _on_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    device = given.device if given is not None else kwargs.get("device") or torch.get_default_device()
    return torch.device(device).type == "cpu"
