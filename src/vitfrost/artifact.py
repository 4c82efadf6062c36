"""The compressed model on disk: `model.safetensors` and `config.json`, no pickle.

Weights of b bits take b bits; a frozen site takes one bit per entry for the mask, one bit per frozen entry that is exactly
zero, and b bits for every other frozen entry. Everything else is float32. Loading rebuilds the model from its name, the
plan and these tensors, and gives bit-identical outputs.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn

from .class_names import names_from_plain, plain_names
from .errors import VitfrostError
from .files import atomic_folder, sha256_of_file
from .identity import Identity
from .images.preprocessing import Preprocessing
from .methods.frozen_entries import FrozenMaps
from .methods.quantize.modules import LogQuantizer, QuantizedLayer, UniformMapQuantizer, UniformQuantizer
from .methods.quantize.packing import pack, packed_size, unpack
from .methods.quantize.quantizers import zero_code
from .methods.quantize.repq import QuantizationSettings, install_quantizers
from .methods.quantize.turn import restore_turns
from .model import Model
from .outputs import OutputKind
from .passes.structure import install_structure
from .plans.schema import Plan
from .records import Format
from .regular import is_file
from .strict import Count, Positive
from .torch_state import usual_torch
from .vit.attention import MapAttention
from .vit.families import allowed_pairs
from .vit.feed_forward import use_relu
from .vit.load import create_model, refuse_larger
from .vit.outputs import outputs_of
from .vit.skeleton import Skeleton

log = logging.getLogger("vitfrost")
FORMAT = Format("an artifact", "vitfrost artifact", mend="compress again")
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
MOST_NUMBERS_PER_BYTE, SMALL_MODEL = 64, 200_000_000  # a model cut to low ranks is built whole first


@dataclass(repr=False, eq=False)
class Artifact(Model):
    """A compressed model with its plan and its history. `state_hash` and `weight_tag` are those of the original model.

    `quantization`, `structure` and `repair` are the records of these passes, `passes` those of any others by their names. `size_bytes`:
    of its folder, 0 as long as it has none.
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

    @classmethod
    def made_from(cls, model: Model, module: nn.Module, *, plan: Plan, **history: Any) -> Artifact:
        """What `module` is once the plan has been applied to `model`; `history` are the further fields."""
        changed = any(isinstance(each, MapAttention) for each in model.module.modules())
        skeleton = model.skeleton or (None if changed else Skeleton(model.module))
        about = {f.name: getattr(model, f.name) for f in fields(Model)} | {"module": module.eval(), "skeleton": skeleton}
        return cls(**about, plan=plan, **history)

    @property
    def plan_hash(self) -> str:
        """SHA-256 of the plan."""
        return self.plan.content_hash

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write the artifact's folder atomically and note its size. Raises VitfrostError where it cannot be written."""
        path = Path(folder)
        with atomic_folder(path, overwrite) as temporary:
            tensors = pack_state(self.module)
            if (bad := _first_infinite(tensors)) is not None:
                raise VitfrostError(f"the weights of {self.name} are not finite at {bad}; give weights of a training that has not diverged")
            (temporary / WEIGHTS_FILE).write_bytes(save(tensors))
            config = self._config(sha256_of_file(temporary / WEIGHTS_FILE))
            (temporary / CONFIG_FILE).write_text(json.dumps(config, separators=(",", ":")) + "\n", encoding="utf-8")
            self.size_bytes = sum(file.stat().st_size for file in temporary.iterdir())
        if not self.registered:
            log.info("%s: timm cannot make this %s again; load it with Artifact.load(folder, build=...)", path, self.name)
        return path

    def _config(self, weights_sha256: str) -> dict[str, Any]:
        names = plain_names(self.class_names)
        model = {**self.identity.model_dump(mode="json"), "options": self.options, "preprocessing": self.preprocessing.plain()}
        told = {} if outputs_of(self.module, self.name, self.classes) == self.outputs == "classes" else {"outputs": self.outputs}
        return {
            "kind": FORMAT.kind,
            "version": FORMAT.version,
            "model": model | told | ({} if names is None else {"class_names": names}) | ({} if self.registered else {"registered": False}),
            "quantization": self.quantization,
            "statistics": self.statistics,
            "structure": self.structure,
            **({} if self.repair is None else {"repair": self.repair}),
            **({"passes": self.passes} if self.passes else {}),
            "training": self.training,
            "seeds": self.seeds,
            "recipe": self.recipe,
            "plan_hash": self.plan_hash,
            "weights_sha256": weights_sha256,
            "versions": _versions(),
            "plan": self.plan.plain(),
        }

    @classmethod
    @usual_torch()
    def load(cls, folder: str | Path, build: Callable[[], nn.Module] | None = None) -> Artifact:
        """Load a saved artifact; its outputs are bit-identical to those of the model that was saved.

        `build` makes the original model (with any weights), for one that timm's registry cannot make. Raises VitfrostError for a folder
        that is no artifact, is damaged, or comes from a newer version, and where `build` is needed or makes another model.
        """
        path = Path(folder)
        plain = _read_config(path)
        plan = Plan.parse(plain.get("plan"), source=str(path / CONFIG_FILE))
        config = FORMAT.record(_Config, plain, path / CONFIG_FILE)
        if config.plan_hash != plan.content_hash:
            raise VitfrostError(f"the plan in {path / CONFIG_FILE} is not the one that was saved; compress again")
        artifact = cls(**_about_model(config.model, path, build), plan=plan, **config.history())
        try:
            artifact.size_bytes = sum(file.stat().st_size for file in path.iterdir())
            tensors = load_file(path / WEIGHTS_FILE)
        except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise FORMAT.damaged(path / WEIGHTS_FILE, f"{type(error).__name__} {error}") from error
        if (bad := _first_infinite(tensors)) is not None:
            raise FORMAT.damaged(path / WEIGHTS_FILE, f"{bad} has values that are not finite")
        restore_state(artifact.module, plan, tensors)
        return artifact


def _first_infinite(tensors: dict[str, np.ndarray]) -> str | None:
    return next((name for name, tensor in tensors.items() if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()), None)


def _about_model(about: _AboutModel, path: Path, build: Callable[[], nn.Module] | None) -> dict[str, Any]:
    """The fields of a Model, whose module has no weights yet. Raises VitfrostError where nobody can make it, or it is far larger than
    its file."""
    where = path / CONFIG_FILE
    try:
        preprocessing = Preprocessing.from_plain(about.preprocessing.model_dump())
        class_names = names_from_plain(about.class_names, about.classes)
    except (ValueError, VitfrostError) as error:
        raise FORMAT.damaged(where, f"model: {error}") from error
    if preprocessing.input_size[1:] != about.image_size:
        raise FORMAT.damaged(where, f"pictures are read at {preprocessing.input_size[1:]}, the model is for {about.image_size}")
    if build is None and not about.registered:
        raise VitfrostError(
            f"{path} is made of a {about.name}, which timm cannot make; give Artifact.load(folder, build=...), a function that makes it"
        )
    if build is None:
        most = MOST_NUMBERS_PER_BYTE * (path / WEIGHTS_FILE).stat().st_size + SMALL_MODEL
        refuse_larger(about.name, about.image_size, about.options, most, f"far more than {path / WEIGHTS_FILE} holds; compress again")
    module = copy.deepcopy(build()).float() if build else create_model(about.name, about.image_size, **about.options)
    return {name: getattr(about, name) for name in Identity.model_fields} | {
        "module": module,
        "preprocessing": preprocessing,
        "options": about.options,
        "class_names": class_names,
        "skeleton": Skeleton(module),
        "registered": about.registered,
        "outputs": about.outputs or outputs_of(module, about.name, about.classes),
    }


class _Lenient(BaseModel):
    """Fields of files that later versions may add to."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, strict=True)


Share = Annotated[float, Field(ge=-1e6, le=1e6)]
Colors = Annotated[list[Share], Field(min_length=3, max_length=3)]


class _Reading(_Lenient):
    input_size: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    mean: Colors
    std: Colors
    crop_pct: Share
    crop_mode: str
    interpolation: str
    whole_squares: bool = False


class _AboutModel(_Lenient):
    name: str
    image_size: Annotated[tuple[Positive, Positive], Field(strict=False)]
    weight_tag: str
    state_hash: str
    classes: Count
    options: dict[str, Any]
    preprocessing: _Reading
    class_names: str | list[str] | None = None
    registered: bool = True
    outputs: OutputKind | None = None


class _Config(_Lenient):
    model: _AboutModel
    quantization: dict[str, Any] | None
    statistics: dict[str, Any] | None
    structure: dict[str, Any] | None = None
    repair: dict[str, Any] | None = None
    passes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    training: dict[str, Any] | None = None
    seeds: dict[str, Count]
    recipe: dict[str, Any] | None
    plan_hash: str
    weights_sha256: str

    def history(self) -> dict[str, Any]:
        """The fields of an Artifact."""
        names = ("quantization", "statistics", "seeds", "recipe", "structure", "repair", "training", "passes")
        return {name: getattr(self, name) for name in names}


def is_artifact(path: str | Path) -> bool:
    """True for a folder that holds (or was meant to hold) an artifact."""
    return (Path(path) / CONFIG_FILE).is_file()


def settings_of(plan: Plan) -> QuantizationSettings:
    """The plan's quantization in the form the quantizer takes."""
    return QuantizationSettings.of(plan.quantize)


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


def _take_quantizers(model: nn.Module, tensors: dict[str, np.ndarray]) -> None:
    """Give maps a uniform grid, and quantizers buffers of one number per head, where the file has them."""
    for name, module in model.named_modules():
        if isinstance(module, MapAttention) and isinstance(module.map_quantizer, LogQuantizer) and f"{name}.map_quantizer.scale" in tensors:
            module.map_quantizer = UniformMapQuantizer.like(module.map_quantizer)
        elif isinstance(module, LogQuantizer) and f"{name}.octave" in tensors:
            module.octave = torch.ones(())
    for name, module in model.named_modules():
        if isinstance(module, UniformQuantizer | LogQuantizer):
            for key, buffer in list(module.named_buffers()):
                saved = tensors.get(f"{name}.{key}")
                if saved is not None and saved.ndim == 3:
                    setattr(module, key, torch.ones(saved.shape, dtype=buffer.dtype))


def restore_state(model: nn.Module, plan: Plan, tensors: dict[str, np.ndarray]) -> nn.Module:
    """Turn a freshly created timm model into the compressed one, in place: the inverse of `pack_state`."""
    sites = install_structure(model, plan)
    if plan.quantize.relu:
        use_relu(model, sites.feed_forward)
    layers = install_quantizers(model, sites, settings_of(plan))
    try:
        restore_turns(model, tensors)
        _restore_frozen(model, plan, tensors)
        _restore_layers(layers, tensors)
        _take_quantizers(model, tensors)
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


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise VitfrostError(f"no artifact folder {path}")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not is_file(path / name):
            raise VitfrostError(f"{path} is no vitfrost artifact: it has no {name}")
    _refuse_hub_folder(path)
    config = FORMAT.read(path / CONFIG_FILE)
    if sha256_of_file(path / WEIGHTS_FILE) != config.get("weights_sha256"):
        raise VitfrostError(f"{path / WEIGHTS_FILE} is not the file that was saved (truncated or altered); compress again")
    return config


def _refuse_hub_folder(path: Path) -> None:
    """A folder that was downloaded from the hub also has these two files: say how it is used."""
    plain = FORMAT.plain(path / CONFIG_FILE)
    if isinstance(plain, dict) and "kind" not in plain and isinstance(plain.get("architecture"), str):
        raise VitfrostError(
            f"{path} holds weights of {plain['architecture'][:100]}, no artifact; name the model, and give --weights {path}"
        )


def frozen_bytes(frozen: FrozenMaps) -> int:
    """Bytes a site's frozen maps take in the file, tensor data only."""
    count = int(frozen.mask.sum())
    if frozen.bits == 32:
        return packed_size(frozen.mask.numel(), 1) + 4 * count
    zeros = int(frozen.zero_entries().sum())
    return packed_size(frozen.mask.numel(), 1) + packed_size(count, 1) + packed_size(count - zeros, frozen.bits) + frozen.step.nbytes
