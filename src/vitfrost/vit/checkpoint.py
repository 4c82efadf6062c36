"""Weights as people have them: plain or nested, with prefixes, in half precision, beside an optimizer. Tensors only, no pickled code."""

from __future__ import annotations

import argparse
import codecs
import logging
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import VitfrostError
from ..regular import is_file

log = logging.getLogger("vitfrost")

AVERAGED, TRAINED = ("state_dict_ema", "model_ema", "ema"), ("state_dict", "model")  # in the order in which timm looks for them
PREFIXES = ("module.", "_orig_mod.", "model.")
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AVERAGING = "n_averaged"  # a counter that torch's AveragedModel keeps beside the weights


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a safetensors file, or in a checkpoint of torch; averaged (EMA) weights are preferred, as timm does.

    Prefixes that wrappers put before all names (module., _orig_mod., model.) are taken off, half precision becomes float32. What was
    taken, and what else the file holds, is logged. FILE#KEY takes the weights under a key of the checkpoint, such as
    last.pth.tar#state_dict for those that were not averaged, or those whose names begin with it, such as dino.pth#teacher. Raises
    VitfrostError when the file is missing or damaged, when it holds anything but tensors, and for values that are not finite.
    """
    path, key = _split(Path(path))
    if path.is_dir():
        path = _in_folder(path)
    if not is_file(path):
        raise VitfrostError(f"no weights file {path}")
    content = _read(path)
    taken, state = _find_state(content) if key is None else _under(content, key, path)
    if state is None:
        keys = (
            f"; its keys are {_shown(content)}, and {path}#KEY takes the weights under one" if key is None and _has_states(content) else ""
        )
        raise VitfrostError(f"{path} holds no state dict of tensors{f' under {key}' if key is not None else ''}{keys}")
    _refuse_odd(state, path)
    named, prefix = _without_prefixes(state)
    if taken or prefix:
        others = [str(key) for key in content if key != taken.partition(".")[0]] if taken else []
        log.info(
            "%s: %s taken%s%s", path, f"weights '{taken}'" if taken else "weights", f", without the prefix '{prefix}'" if prefix else "",
            f"; not used: {', '.join(others[:8])}" if others else "",
        )  # fmt: skip
    single = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in named.items()}
    check_finite(single, f"the weights {path}")  # also what 64 bits could hold, and 32 cannot
    return single


def own_part(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> dict[str, torch.Tensor]:
    """The weights of the model where they lie under a prefix beside others', as the backbone of a larger network does, with a line in the
    log; all weights where its names are there, or are not found. Raises VitfrostError where they are there several times."""
    own = [name for name, _ in model.named_parameters() if "head" not in name]  # a backbone has no head, or another
    if not own or any(name in state for name in own):
        return state
    longest = max(own, key=len)
    prefixes = sorted(name.removesuffix(longest) for name in state if name.endswith(f".{longest}"))
    found = [prefix for prefix in prefixes if all(prefix + name in state for name in own)]
    if not found:
        return state
    if len(found) > 1:
        raise VitfrostError(f"{path} holds the model's weights several times; {path}#KEY takes those under one of {', '.join(found)}")
    others = [name for name in state if not name.startswith(found[0])]
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    log.info("%s: weights under the prefix '%s' taken; not used: %s%s", path, found[0], ", ".join(others[:4]) or "none", more)
    return {name.removeprefix(found[0]): tensor for name, tensor in state.items() if name.startswith(found[0])}


def _in_folder(folder: Path) -> Path:
    """The weights in a folder as the hub has them."""
    found = [folder / name for name in IN_FOLDERS if is_file(folder / name)]
    if not found:
        raise VitfrostError(f"the folder {folder} has no weights; name a file, or a folder with {' or '.join(IN_FOLDERS)}")
    return found[0]


def _split(path: Path) -> tuple[Path, str | None]:
    """FILE#KEY as file and key; a file that is called so is meant itself."""
    name, mark, key = path.name.rpartition("#")
    return (path.with_name(name), key) if mark and name and key and not path.exists() else (path, None)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _refuse_bomb(path)
        with torch.serialization.safe_globals(_beside_weights()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what kinds of tensors torch is going to give up
            return torch.load(path, map_location="cpu", weights_only=True)
    except VitfrostError:
        raise
    except Exception as error:  # the two libraries raise many types; each means the file is no weights file
        raise VitfrostError(
            f"{path} is not a readable weights file ({type(error).__name__}); give safetensors or a plain state dict"
        ) from error


def _beside_weights() -> list[Any]:
    """What training scripts keep beside the weights, all of it plain data: their arguments, and numbers of NumPy."""
    kinds = {type(np.dtype(kind)) for kind in (bool, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, *names, np.dtype, *kinds, (codecs.encode, "_codecs.encode")]


def _refuse_bomb(path: Path) -> None:
    """torch writes its archives without compression: one that says it is larger inside than outside is meant to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = sum(item.file_size for item in archive.infolist())
        if inside > path.stat().st_size:
            raise VitfrostError(f"{path} is not a readable weights file: it is compressed; save it with torch.save")


def _refuse_odd(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise VitfrostError for tensors that are no arrays of numbers: sparse, quantized, without values, or larger than what is saved."""
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex() or tensor.is_nested:
            raise VitfrostError(f"{path}: {name} is no dense tensor of real numbers; save the weights as such")
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            raise VitfrostError(f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}; save the weights with 16 or 32 bits")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise VitfrostError(f"{path}: {name} has {list(tensor.shape)} values, more than were saved; save it with .contiguous()")


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


def _under(content: Any, key: str, path: Path) -> tuple[str, dict[str, torch.Tensor] | None]:
    prefix = f"{key.removesuffix('.')}."
    if _is_state(content) and any(name.startswith(prefix) for name in content):
        return key, {name.removeprefix(prefix): tensor for name, tensor in content.items() if name.startswith(prefix)}
    if not isinstance(content, dict) or key not in content:
        raise VitfrostError(f"{path} has no weights under {key}; its keys are {_shown(content)}")
    inner, state = _find_state(content[key])
    return f"{key}.{inner}" if inner else key, state


def _shown(content: Any) -> str:
    """The keys of a checkpoint."""
    return ", ".join(str(known)[:60] for known in list(content)[:8]) if isinstance(content, dict) else "none"


def _has_states(content: Any) -> bool:
    return isinstance(content, dict) and any(_find_state(value)[1] is not None for value in content.values())


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
