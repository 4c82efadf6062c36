"""Which of timm's architectures are supported: each is made without memory for its weights, and looked at as any model is."""

from __future__ import annotations

import torch

from ..errors import UnsupportedModel
from .families import find_sites
from .load import create_model


def why_unsupported(name: str) -> str | None:
    """The reason for which a timm model is refused, without the list of what is supported; None where it is supported.

    Raises VitfrostError for a name that timm does not have.
    """
    with torch.device("meta"):
        model = create_model(name)
    try:
        find_sites(model)
    except UnsupportedModel as error:
        return str(error).partition("; supported are")[0]
    return None
