"""timm modules made by name, and weights put into them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import VitfrostError, shown
from ..regular import is_file
from .compat import import_timm
from .draws import own_seed
from .options import check_options

timm = import_timm()
RANDOM_WEIGHTS = "random"
LONGEST_NAME = 100
LARGEST_SIDE = 16384


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters (or buffers) lie; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def find_device(name: str) -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1"). Under torchrun "cuda" is the process's own GPU.

    Raises VitfrostError for a name that means nothing here.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise VitfrostError(f"the device '{name}' cannot be used here ({reason}); give cpu, or cuda where there is a GPU") from error
    if device.type not in ("cpu", "cuda"):
        raise VitfrostError(f"the device '{name}' holds no numbers; give cpu or cuda")
    return device


def hash_state(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the state dict, independent of the order of its keys."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_weights(path: Path, name: str) -> str:
    """The file itself, or the one of the model `name` (its tag may be left out) in a folder of weights.

    Raises VitfrostError where the folder has none.
    """
    if not path.is_dir():
        return str(path.resolve())
    for known in (name, name.partition(".")[0]):
        for file in (path / known / "model.safetensors", path / f"{known}.safetensors"):
            if is_file(file):
                return str(file.resolve())
    short = name.partition(".")[0]
    raise VitfrostError(f"the folder {path} has no weights of {name}; put them at {path / short / 'model.safetensors'}")


def _names(keys: set[str]) -> str:
    shown = sorted(keys)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def load_state(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load strictly; raise VitfrostError that names the keys that are missing, unexpected or of another shape."""
    own = model.state_dict()
    problems = []
    if missing := own.keys() - state.keys():
        problems.append(f"missing {_names(missing)}")
    if unexpected := state.keys() - own.keys():
        problems.append(f"unexpected {_names(unexpected)}")
    shapes = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    if shapes:
        first = sorted(shapes)[0]
        problems.append(
            f"other shapes at {_names(shapes)} ({first}: {list(state[first].shape)} in the file, {list(own[first].shape)} in the model)"
        )
    whole = {key for key in own.keys() & state.keys() if own[key].is_floating_point() and not state[key].is_floating_point()}
    if whole:  # codes, whose scales are elsewhere
        problems.append(f"whole numbers ({state[min(whole)].dtype}) for weights at {_names(whole)}")
    if problems:
        raise VitfrostError(f"the weights {path} do not fit the model: {'; '.join(problems)}")
    model.load_state_dict(state)


def trained_size(name: str) -> tuple[int, int] | None:
    """Height and width that timm's pretrained weights of a model are of; None where timm does not say it."""
    config = timm.get_pretrained_cfg(name)
    return None if config is None else tuple(config.input_size[1:])


def _size_options(name: str, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """How timm is told an image size: an argument where the model is built for one, else its configuration."""
    config = timm.get_pretrained_cfg(name)
    if config is None or config.fixed_input_size:
        return {"img_size": image_size}
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    return {"pretrained_cfg_overlay": {"input_size": (config.input_size[0], height, width)}}


def cut_pixels(module: nn.Module, size: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) of a patch where images of `size` do not hold a whole number of them, and the rest would not be looked at."""
    first: Any = next((each for each in module.modules() if isinstance(each, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or any(first.padding) or getattr(module, "dynamic_img_pad", False):
        return None
    if getattr(getattr(module, "patch_embed", None), "dynamic_img_pad", False):
        return None
    return first.stride if any(side % step for side, step in zip(size, first.stride, strict=True)) else None


def refuse_cut_pixels(module: nn.Module, size: tuple[int, int]) -> None:
    """Raise VitfrostError, which names sizes nearby, where the model would not see the last rows or columns of an image."""
    patch = cut_pixels(module, size)
    if patch is not None:
        near = [tuple(step * (side // step + more) for side, step in zip(size, patch, strict=True)) for more in (0, 1)]
        shown = " or ".join(str(height) if height == width else f"{height}x{width}" for height, width in near if min(height, width) > 0)
        raise VitfrostError(f"the image size {size[0]}x{size[1]} is no multiple of the patch size {patch[0]}; give {shown}")


def refuse_channels(module: nn.Module) -> None:
    """Raise VitfrostError for a model that reads other images than RGB."""
    first = next((each for each in module.modules() if isinstance(each, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        raise VitfrostError(
            f"this {type(module).__name__} reads images of {first.in_channels} channel{'s' * (first.in_channels != 1)}, and pictures are "
            "read as RGB; give a model of three (timm makes one of other weights with in_chans=3)"
        )


def refuse_larger(name: str, image_size: int | tuple[int, int] | None, options: dict[str, Any], most: int, why: str) -> None:
    """Raise VitfrostError for a model of more than `most` numbers, before their memory is taken. `why`: what the bound is."""
    with torch.device("meta"):
        made = create_model(name, image_size, **options)
    count = sum(tensor.numel() for tensor in (*made.parameters(), *made.buffers()))
    if count > most:
        raise VitfrostError(f"the model {name} of these options has {count / 1e6:,.0f} million numbers, {why}")


def memory_of_machine() -> int:
    """Bytes; where nothing tells, those of a large machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 40


def create_model(
    name: str, image_size: int | tuple[int, int] | None = None, *, pretrained: bool = False, seed: int = 0, **options: Any
) -> Any:
    """Create a timm model; raise VitfrostError for an unknown name, and for options that are not on the list of options.py or that the
    model does not take.

    Weights that no file brings are drawn from `seed`; torch's generator stays as it is. A model that takes images of any size is not
    built for `image_size`, which then stands in its configuration only. Beside timm's own options plain ViTs take `attn_head_dim`, the
    width of a head where it is not the model's width over the number of heads, and every model `norm_eps`, what LayerNorms add to the
    variance.
    """
    from . import digits, pvt  # noqa: F401  (registers our own models)
    from .plain import attention_with_heads_of
    from .tiny_vit import forget_biases

    given, eps = dict(options), options.pop("norm_eps", None)
    check_options({"norm_eps": eps} | {name: value for name, value in options.items() if name != "attn_head_dim"})
    if len(name) > LONGEST_NAME or not timm.is_model(name):
        import difflib

        if len(name) > LONGEST_NAME:
            raise VitfrostError(f"timm has no model {shown(name)}; timm.list_models() lists the names")
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists the names"
        raise VitfrostError(f"timm has no model '{name}'{hint}")
    sides = () if image_size is None else image_size if isinstance(image_size, tuple) else (image_size,)
    if not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise VitfrostError(f"the image size {image_size} is out of range; give 1 to {LARGEST_SIDE} pixels")
    if "attn_head_dim" in options:
        options["attn_layer"] = attention_with_heads_of(options.pop("attn_head_dim"))
    try:
        if image_size is not None:
            options |= _size_options(name, image_size)
        with own_seed(seed):
            made = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # constructors raise anything where options do not go together
        if pretrained and given and "loading state_dict" in str(error):
            changed = ", ".join(f"{option}={value}" for option, value in given.items())
            raise VitfrostError(
                f"timm's weights of {name} do not fit {changed}; give weights that do (--weights FILE), or random ones"
            ) from error
        what = "create the model with its pretrained weights (give --weights FILE to use your own)" if pretrained else "create the model"
        raise VitfrostError(f"timm cannot {what} {name}: {type(error).__name__}: {error}") from error
    forget_biases(made, forever=True)
    for module in made.modules() if eps is not None else ():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    return made
