"""A module's layers without its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Skeleton:
    """Keeps what a module is made of, and makes it anew with weights of zero, where torch makes tensors.

    Parameters are not copied, so it takes no memory to speak of; buffers are, since some hold what no checkpoint does.
    """

    def __init__(self, module: nn.Module):
        self._module = _with_parameters(module, "meta")

    def __call__(self) -> nn.Module:
        device = torch.get_default_device()
        return _with_parameters(self._module, device).to(device)


def without_memory(module: nn.Module) -> nn.Module:
    """A copy that computes shapes only."""
    return _with_parameters(module, "meta").to("meta")


def _with_parameters(module: nn.Module, device: str | torch.device) -> nn.Module:
    """A copy whose parameters are zeros on `device`; what is shared stays shared."""
    replaced: dict[int, Any] = {
        # torch.zeros_like takes a second to import what it needs where there are no values
        id(parameter): nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype, device=device), parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, replaced)
