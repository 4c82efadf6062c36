"""Weights as people have them: plain or nested, with prefixes, in half precision, beside an optimizer. Tensors only, no pickled code."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import VitfrostError

log = logging.getLogger("vitfrost")

AVERAGED, TRAINED = ("state_dict_ema", "model_ema", "ema"), ("state_dict", "model")  # in the order in which timm looks for them
PREFIXES = ("module.", "_orig_mod.", "model.")
AVERAGING = "n_averaged"  # a counter that torch's AveragedModel keeps beside the weights


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a safetensors file, or in a checkpoint of torch; averaged (EMA) weights are preferred, as timm does.

    Prefixes that wrappers put before all names (module., _orig_mod., model.) are taken off, half precision becomes float32. What was
    taken, and what else the file holds, is logged. Raises VitfrostError when the file is missing or damaged, when it holds anything but
    tensors, and for values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise VitfrostError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that training scripts keep beside the weights
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the two libraries raise many types; each means the file is no weights file
        raise VitfrostError(
            f"{path} is not a readable weights file ({type(error).__name__}); give safetensors or a plain state dict"
        ) from error
    taken, state = _find_state(content)
    if state is None:
        raise VitfrostError(f"{path} holds no state dict of tensors")
    named, prefix = _without_prefixes(state)
    if taken or prefix:
        others = [str(key) for key in content if key != taken.partition(".")[0]] if taken else []
        log.info(
            "%s: %s taken%s%s", path, f"weights '{taken}'" if taken else "weights", f", without the prefix '{prefix}'" if prefix else "",
            f"; not used: {', '.join(others[:8])}" if others else "",
        )  # fmt: skip
    check_finite(named, f"the weights {path}")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in named.items()}


def check_finite(state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise VitfrostError naming the first tensor with a value that is infinite or not a number."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise VitfrostError(f"{what} are not finite at {name}; give weights of a training that has not diverged")


def _find_state(content: Any) -> tuple[str, dict[str, torch.Tensor] | None]:
    """The state dict and the keys that lead to it, joined by dots."""
    if _is_state(content):
        return "", content
    if isinstance(content, dict):
        for key in (*AVERAGED, *TRAINED, "module"):
            if isinstance(content.get(key), dict):
                inner, state = _find_state(content[key])
                if state is not None:
                    return f"{key}.{inner}" if inner else key, state
    return "", None


def _is_state(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())


def _without_prefixes(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    taken_off, names = "", {name: tensor for name, tensor in state.items() if name != AVERAGING}
    while prefix := next((prefix for prefix in PREFIXES if names and all(name.startswith(prefix) for name in names)), None):
        taken_off += prefix
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names, taken_off
