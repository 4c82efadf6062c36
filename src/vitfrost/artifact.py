"""The compressed model on disk: `model.safetensors` and `config.json`, no pickle.

Weights of b bits take b bits; a frozen site takes one bit per entry for the mask, one bit per frozen entry that is exactly
zero, and b bits for every other frozen entry. Everything else is float32. Loading rebuilds the model from its name, the
plan and these tensors, and gives bit-identical outputs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn

from .errors import VitfrostError
from .files import atomic_folder, sha256_of_file
from .images.preprocess import Preprocess
from .methods.frozen_entries import FrozenMaps
from .methods.quantize.modules import QuantizedLayer
from .methods.quantize.packing import pack, packed_size, unpack
from .methods.quantize.quantizers import zero_code
from .methods.quantize.repq import QuantizationSettings, install_quantizers
from .passes.structure import install_structure
from .plans.file import parse_plan, plan_hash
from .plans.schema import Plan
from .records import Format
from .vit.attention import MapAttention
from .vit.families import allowed_pairs
from .vit.load import LoadedModel, create_model

FORMAT = Format("an artifact", "vitfrost artifact", mend="compress again")
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass
class Artifact(LoadedModel):
    """A compressed model with its plan and its history. `state_hash` and `weight_tag` are those of the original model.

    `quantization`, `structure` and `repair` are the records of these passes, `passes` those of any others by their names.
    """

    plan: Plan = None  # type: ignore[assignment]
    quantization: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None
    structure: dict[str, Any] | None = None
    repair: dict[str, Any] | None = None
    passes: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    seeds: dict[str, int] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    size_bytes: int = 0

    @property
    def plan_hash(self) -> str:
        """SHA-256 of the plan."""
        return plan_hash(self.plan)


def is_artifact(path: str | Path) -> bool:
    """True for a folder that holds (or was meant to hold) an artifact."""
    return (Path(path) / CONFIG_FILE).is_file()


def settings_of(plan: Plan) -> QuantizationSettings:
    """The plan's quantization in the form the quantizer takes."""
    return QuantizationSettings(plan.quantize.weights, plan.quantize.activations, plan.quantize.levels)


def build_frozen(plan: Plan, mask: torch.Tensor, allowed: torch.Tensor | None) -> FrozenMaps:
    """An empty FrozenMaps module for a site, with the plan's options."""
    assert plan.freeze is not None
    return FrozenMaps(mask, allowed, plan.freeze.bits, plan.quantize.levels, plan.freeze.renormalize, plan.freeze.order)


def _frozen_tensors(name: str, frozen: FrozenMaps) -> dict[str, np.ndarray]:
    tensors = {f"{name}.mask": np.packbits(frozen.mask.cpu().numpy().reshape(-1), bitorder="little")}
    if frozen.bits == 32:
        return tensors | {f"{name}.values": frozen.values.cpu().numpy()}
    zeros = frozen.zero_entries()
    return tensors | {
        f"{name}.zeros": np.packbits(zeros, bitorder="little"),
        f"{name}.codes": pack(frozen.codes.cpu().numpy()[~zeros], frozen.bits),
        f"{name}.step": frozen.step.cpu().numpy(),
    }


def pack_state(model: nn.Module) -> dict[str, np.ndarray]:
    """The tensors of `model.safetensors`: the state dict with integer weights and frozen maps packed."""
    tensors = {name: value.detach().cpu().contiguous().numpy() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer) and module.bits != 32:
            tensors[f"{name}.codes"] = pack(module.codes.cpu().numpy().reshape(-1), module.bits)
            zero_point = tensors[f"{name}.zero_point"]
            small = np.abs(zero_point).max(initial=0) < 2**15
            tensors[f"{name}.zero_point"] = zero_point.astype(np.int16) if small else zero_point
        elif isinstance(module, FrozenMaps):
            for key in [key for key in tensors if key.startswith(f"{name}.")]:
                del tensors[key]
            tensors |= _frozen_tensors(name, module)
    return tensors


def _restore_frozen(model: nn.Module, plan: Plan, tensors: dict[str, np.ndarray]) -> None:
    for name, module in model.named_modules():
        key = f"{name}.frozen"
        if not isinstance(module, MapAttention) or f"{key}.mask" not in tensors:
            continue
        if plan.freeze is None:
            raise VitfrostError("the artifact holds frozen maps, but its plan freezes nothing")
        shape = module.site.maps_shape
        flat = unpack(tensors.pop(f"{key}.mask"), 1, module.site.entries).astype(bool)
        frozen = build_frozen(plan, torch.from_numpy(flat.reshape(shape)), allowed_pairs(model, name))
        count = int(flat.sum())
        if frozen.bits == 32:
            frozen.values = torch.from_numpy(tensors.pop(f"{key}.values"))
        else:
            zeros = unpack(tensors.pop(f"{key}.zeros"), 1, count).astype(bool)
            codes = np.full(count, zero_code(frozen.bits, frozen.levels), dtype=np.int16)
            codes[~zeros] = unpack(tensors.pop(f"{key}.codes"), frozen.bits, int((~zeros).sum()))
            frozen.codes, frozen.step = torch.from_numpy(codes), torch.from_numpy(tensors.pop(f"{key}.step"))
        frozen.restore_constants()
        module.freeze_entries(frozen)


def _restore_layers(layers: dict[str, QuantizedLayer], tensors: dict[str, np.ndarray]) -> None:
    for name, layer in layers.items():
        if f"{name}.bias" in tensors and layer.bias is None:  # a bias that the re-parameterization created
            layer.bias = nn.Parameter(torch.from_numpy(tensors[f"{name}.bias"]), requires_grad=False)
        if layer.bits != 32:
            codes = unpack(tensors[f"{name}.codes"], layer.bits, layer.codes.numel())
            tensors[f"{name}.codes"] = codes.reshape(tuple(layer.codes.shape))
            tensors[f"{name}.zero_point"] = tensors[f"{name}.zero_point"].astype(np.float32)


def restore_state(model: nn.Module, plan: Plan, tensors: dict[str, np.ndarray]) -> nn.Module:
    """Turn a freshly created timm model into the compressed one, in place: the inverse of `pack_state`."""
    sites = install_structure(model, plan)
    layers = install_quantizers(model, sites, settings_of(plan))
    try:
        _restore_frozen(model, plan, tensors)
        _restore_layers(layers, tensors)
        frozen_keys = {key for key in model.state_dict() if ".frozen." in key}
        outcome = model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()}, strict=False)
    except (KeyError, RuntimeError, ValueError) as error:
        raise VitfrostError(f"the tensors do not fit the plan: {type(error).__name__} {error}") from error
    missing = set(outcome.missing_keys) - frozen_keys
    if missing or outcome.unexpected_keys:
        first = sorted(missing | set(outcome.unexpected_keys))[0]
        raise VitfrostError(f"the tensors do not fit the plan, first at {first}")
    for layer in layers.values():
        if layer.bits != 32:
            layer.restore_weight()
    return model.eval()


def _versions() -> dict[str, str]:
    from . import __version__

    return {"vitfrost": __version__, "torch": torch.__version__, "timm": version("timm")}


def save_artifact(artifact: Artifact, path: str | Path, overwrite: bool = False) -> Path:
    """Write the artifact's folder atomically and note its size. Raises VitfrostError where it cannot be written."""
    path = Path(path)
    with atomic_folder(path, overwrite) as folder:
        (folder / WEIGHTS_FILE).write_bytes(save(pack_state(artifact.model)))
        config = {
            "kind": FORMAT.kind,
            "version": FORMAT.version,
            "model": {**artifact.identity(), "options": artifact.options, "preprocessing": artifact.preprocessing},
            "quantization": artifact.quantization,
            "statistics": artifact.statistics,
            "structure": artifact.structure,
            **({} if artifact.repair is None else {"repair": artifact.repair}),
            **({"passes": artifact.passes} if artifact.passes else {}),
            "training": artifact.training,
            "seeds": artifact.seeds,
            "recipe": artifact.recipe,
            "plan_hash": artifact.plan_hash,
            "weights_sha256": sha256_of_file(folder / WEIGHTS_FILE),
            "versions": _versions(),
            "plan": artifact.plan.plain(),
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config, separators=(",", ":")) + "\n", encoding="utf-8")
        artifact.size_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return path


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise VitfrostError(f"no artifact folder {path}")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise VitfrostError(f"{path} is no vitfrost artifact: it has no {name}")
    config = FORMAT.read(path / CONFIG_FILE)
    if sha256_of_file(path / WEIGHTS_FILE) != config.get("weights_sha256"):
        raise VitfrostError(f"{path / WEIGHTS_FILE} is not the file that was saved (truncated or altered); compress again")
    return config


def load_artifact(path: str | Path) -> Artifact:
    """Load a saved artifact; its outputs are bit-identical to those of the model that was saved.

    Raises VitfrostError for a folder that is no artifact, is damaged, or comes from a newer version.
    """
    path = Path(path)
    config = _read_config(path)
    plan = parse_plan(config.get("plan"), source=str(path / CONFIG_FILE))
    if config.get("plan_hash") != plan_hash(plan):
        raise VitfrostError(f"the plan in {path / CONFIG_FILE} is not the one that was saved; compress again")
    try:
        about = config["model"]
        size = tuple(about["image_size"])
        preprocessing = {key: tuple(value) if isinstance(value, list) else value for key, value in about["preprocessing"].items()}
        Preprocess(preprocessing)
        model = create_model(about["name"], size, **about["options"])
        artifact = Artifact(
            model, about["name"], size, about["weight_tag"], about["state_hash"], preprocessing, about["classes"], about["options"],
            plan=plan, quantization=config["quantization"], statistics=config["statistics"], structure=config.get("structure"),
            repair=config.get("repair"), passes=config.get("passes", {}), training=config.get("training"), seeds=config["seeds"],
            recipe=config["recipe"],
            size_bytes=sum(file.stat().st_size for file in path.iterdir()),
        )  # fmt: skip
        tensors = load_file(path / WEIGHTS_FILE)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise FORMAT.damaged(path, f"{type(error).__name__} {error}") from error
    restore_state(model, plan, tensors)
    return artifact


def frozen_bytes(frozen: FrozenMaps) -> int:
    """Bytes a site's frozen maps take in the file, tensor data only."""
    count = int(frozen.mask.sum())
    if frozen.bits == 32:
        return packed_size(frozen.mask.numel(), 1) + 4 * count
    zeros = int(frozen.zero_entries().sum())
    return packed_size(frozen.mask.numel(), 1) + packed_size(count, 1) + packed_size(count - zeros, frozen.bits) + frozen.step.nbytes
