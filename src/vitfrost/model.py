"""The model that every verb takes: a module in memory, a timm model, or the folder of an artifact or an export, with what belongs to it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .class_names import class_space, imagenet_names, read_class_names
from .configs.model import ModelPart
from .errors import VitfrostError, shown
from .identity import Identity
from .images.classes import ClassSpace
from .images.preprocessing import Preprocessing, Reading
from .outputs import OutputKind, described
from .runtime.folder import EXPORT_FILE, is_export
from .torch_state import usual_torch
from .vit.attention import MapAttention
from .vit.checkpoint import check_finite, own_part, read_weights
from .vit.compat import import_timm
from .vit.families import built_size, family_of, find_sites
from .vit.foreign import build as build_timm
from .vit.foreign import check_same, convert_folder, convert_module
from .vit.huggingface import Converted
from .vit.image_processor import processor_reading
from .vit.load import (
    RANDOM_WEIGHTS,
    create_model,
    cut_pixels,
    device_of,
    find_device,
    hash_state,
    load_state,
    memory_of_machine,
    refuse_channels,
    refuse_cut_pixels,
    refuse_larger,
    trained_size,
)
from .vit.options import check_options
from .vit.outputs import chosen_outputs, kind_of_outputs, outputs_of, token_options, without_head
from .vit.registry import classes_of, registry_options, unwrapped
from .vit.resize import fit_state
from .vit.skeleton import Skeleton
from .vit.tiny_vit import forget_biases
from .vit.unaltered import check_layers, take_hooks_off

timm = import_timm()
# What opens the folder of each kind as a Model. These modules stand above this one, so they are named and not imported.
_FOLDERS = {"artifact": ("vitfrost.artifact", "Artifact.load"), "export": ("vitfrost.deploy.exported", "load_exported")}
log = logging.getLogger("vitfrost")
MEMORY = "memory"
LONGEST_PATH = 4000
IMAGENET_CLASSES = 1000
Size = int | tuple[int, int] | None


@dataclass(repr=False, eq=False)
class Model:
    """A model in evaluation mode, in float32, with its identity and what it reads and says.

    `state_hash`: SHA-256 of all parameters and buffers; statistics, plans and artifacts are bound to it. `weight_tag` says where the
    weights came from. `options`: what timm's model was created with beside its name and image size. `class_names`: what the outputs
    are called, where that is known. `skeleton` makes the model's layers anew, without its weights and before anything was compressed
    (None: as they are in `module`); `registered`: timm makes the same from name, image size and options.
    """

    module: nn.Module
    name: str
    image_size: tuple[int, int]
    weight_tag: str
    state_hash: str
    preprocessing: Preprocessing
    classes: int
    options: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    skeleton: Callable[[], nn.Module] | None = None
    registered: bool = True
    outputs: OutputKind = "classes"

    @classmethod
    @usual_torch()
    def of(
        cls,
        module: nn.Module,
        *,
        image_size: Size = None,
        class_names: Sequence[str] | str | Path | None = None,
        name: str | None = None,
        build: Callable[[], nn.Module] | None = None,
        image_processor: object = None,
        outputs: OutputKind | None = None,
        **reading: Unpack[Reading],
    ) -> Model:
        """A module in memory, such as a timm model with a head of your own. It is copied: what happens to it afterwards changes nothing.

        Modules of transformers (ViT, DeiT, Dinov2, DINOv3, Swin, SigLIP's and CLIP's vision models) and torchvision's ViTs become the same
        architecture of timm with their weights; outputs are compared on random pixels first. `image_processor`: that of transformers, or
        its folder, says how pictures are read; `config.id2label` names the classes.

        `image_size` (pixels) and `reading` (mean, std, crop_pct, crop_mode, interpolation) say how pictures are read; what is not given is
        taken from the module's `pretrained_cfg`, else timm's defaults (ImageNet's). `name`: what it is called in files, else timm's.
        `build` makes the module anew (any weights), for what timm's registry cannot; without it the layers are copied from the module
        itself. `outputs`: what the module gives, if not what it looks like (an embedding without a classifier, tokens without pooling).
        Raises UnsupportedModel naming what vitfrost cannot see through, VitfrostError for weights that are not finite.
        """
        if not isinstance(module, nn.Module):
            raise VitfrostError(f"a {type(module).__name__} is no torch.nn.Module; a model's name or folder is for Model.open")
        module = unwrapped(module)
        if (converted := convert_module(module)) is not None:
            if build is not None or name is not None:
                raise VitfrostError(f"this {type(module).__name__} becomes timm's {converted.name}; leave out name and build")
            return _of_foreign(module, converted, image_size, class_names, image_processor, outputs, reading)
        if image_processor is not None:
            reading = processor_reading(image_processor) | reading  # type: ignore[assignment]
        check_finite(module.state_dict(), f"the weights of this {type(module).__name__}")
        forget_biases(module)
        own: Any = copy.deepcopy(module).float().eval().requires_grad_(True)
        forget_biases(own, forever=True)
        family_of(own)  # the reason why a model is refused comes first
        size = image_size_of(own, image_size)
        own.pretrained_cfg = {**(getattr(own, "pretrained_cfg", None) or {}), "input_size": (3, *size)}  # where some families look for it
        refuse_channels(own)
        sites = find_sites(own)
        check_layers(own, sites)
        if sites.image_size != size:
            built_for = "x".join(map(str, sites.image_size))
            raise VitfrostError(f"this {type(own).__name__} is built for {built_for} px, not {size[0]}x{size[1]}; leave image_size out")
        if (patch := cut_pixels(own, size)) is not None:
            log.warning("%dx%d px hold no whole number of patches of %d px; the rest of an image is cut off", *size, patch[0])
        take_hooks_off(own, size)
        known = name or str(own.pretrained_cfg.get("architecture") or type(module).__name__)
        kind, classes = kind_of_outputs(own, known, size, outputs, named=class_names is not None)
        options = registry_options(own, known, size, classes)
        read = _preprocessing(own, size).changed(**reading)
        made = cls(
            own, known, size, MEMORY, hash_state(own), read, classes, options or {},
            skeleton=build, registered=options is not None, outputs=kind,
        )  # fmt: skip
        made.class_names = _names(class_names, made)
        return made

    @classmethod
    @usual_torch()
    def open(
        cls,
        name: str | Path,
        *,
        weights: str | Path | None = None,
        image_size: Size = None,
        classes: int | None = None,
        class_names: Sequence[str] | str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        device: str | None = None,
        seed: int = 0,
        outputs: OutputKind | None = None,
        **reading: Unpack[Reading],
    ) -> Model:
        """A timm model by its name, the artifact in a folder, or the export in one (which its own runtime runs, on the CPU).

        `weights`: a safetensors file or a checkpoint (see vit.checkpoint); None for timm's own pretrained weights; "random" for weights
        drawn from `seed`. `classes`: as many as the file's head has, if not given. `options`: of timm's model, such as depth.
        `outputs`: what the model gives: "classes", an "embedding", or "tokens", those of the last layer instead of a pooled vector. If not
        given, an embedding without a classifier and of towers that were trained to meet a text (CLIP), else classes.
        `device`: "cpu" or "cuda". `reading`: mean, std, crop_pct, crop_mode and interpolation instead of the model's.
        Raises VitfrostError in one line for anything that is not there or does not fit.
        """
        refuse_hub(name)
        if names_folder(name):
            if not Path(name).is_dir():
                raise VitfrostError(f"no artifact folder {name}, nor one of an export; a model of timm's is given by name (--model NAME)")
            built = {"weights": weights, "image size": image_size, "number of classes": classes, "options": options or None}
            for what, value in built.items():
                if value is not None:
                    raise VitfrostError(f"the artifact {name} brings its own {what}; leave out what you give for it")
            module, function = _FOLDERS["export" if is_export(name) else "artifact"]
            made: Model = attrgetter(function)(import_module(module))(Path(name))
        else:
            options = dict(options or {}) | (token_options(str(name)) if outputs == "tokens" else {})
            made = _open_timm(str(name), weights, image_size, classes, options, seed)
            if made.outputs == "classes" or class_names is not None:
                made.outputs = outputs_of(made.module, made.name, made.classes, named=class_names is not None)
            if outputs is None and made.outputs == "embedding" and made.classes:
                log.info(
                    "%s: its %d outputs are taken as an embedding; outputs classes (--outputs classes) is the other", name, made.classes
                )
        made.outputs = chosen_outputs(outputs, made.outputs, made.name, made.classes)
        made.preprocessing = made.preprocessing.changed(**reading)
        if class_names is not None:
            made.class_names = read_class_names(class_names, made.classes)
        return made if device is None else made.to(device)

    @property
    def identity(self) -> Identity:
        """What is written into statistics, plans and artifacts."""
        return Identity(
            name=self.name, image_size=self.image_size, weight_tag=self.weight_tag, state_hash=self.state_hash, classes=self.classes
        )

    @property
    def class_space(self) -> ClassSpace:
        """What folders and labels may say of the classes."""
        return class_space(self.classes, self.class_names)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return device_of(self.module)

    def to(self, device: str) -> Model:
        """Move the model itself to "cpu" or "cuda"; returns it."""
        self.module.to(find_device(device))
        return self

    def blank(self) -> nn.Module:
        """The model's layers as they were before anything was compressed, with weights that mean nothing."""
        if self.skeleton is not None:
            return self.skeleton()
        if any(isinstance(module, MapAttention) for module in self.module.modules()):
            return create_model(self.name, self.image_size, **self.options)  # type: ignore[no-any-return]
        return Skeleton(self.module)()

    def __call__(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, images * outputs]:
        """Logits of normalized pixels (or an embedding, or tokens), on the model's device."""
        logits: Tensor = self.module(pixels.to(self.device))
        return logits

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_size))
        gives, weights = described(self.outputs, self.classes), f"weights {self.weight_tag} {self.state_hash[:8]}"
        return f"{type(self).__name__}({self.name}, {size} px, {gives}, {weights})"


def _of_foreign(
    module: nn.Module,
    converted: Converted,
    image_size: Size,
    class_names: Sequence[str] | str | Path | None,
    image_processor: object,
    outputs: OutputKind | None,
    reading: Mapping[str, Any],
) -> Model:
    """timm's model of a module of transformers or torchvision, compared with it at the size it was made for, then at `image_size`."""
    check_finite(converted.state, f"the weights of this {type(module).__name__}")
    own = build_timm(converted, type(module).__name__)
    check_same(module, own, converted)
    log.info("%s is timm's %s with options %s", type(module).__name__, converted.name, converted.options)
    if converted.left_out:
        log.warning("%s of this %s is left out: outputs are what it reads", ", ".join(converted.left_out), type(module).__name__)
    size = converted.image_size if image_size is None else image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if size != converted.image_size:
        own = build_timm(replace(converted, image_size=size), type(module).__name__)
    reading = (processor_reading(image_processor) if image_processor is not None else {}) | dict(reading)
    read = _preprocessing(own, size).changed(**reading)
    names = converted.class_names if class_names is None else class_names
    given = outputs or (converted.outputs if names is None else None)
    kind, classes = kind_of_outputs(own, converted.name, size, given, named=names is not None)
    made = Model(own, converted.name, size, MEMORY, hash_state(own), read, classes, dict(converted.options), outputs=kind)
    made.class_names = None if names is None else read_class_names(names, made.classes)
    return made


def open_part(part: ModelPart, device: str | None = None, seed: int = 0) -> Model:
    """The model that a recipe or the flags of a command name. Raises VitfrostError as `Model.open` does."""
    given = asdict(part)
    name, whole = given.pop("name"), given.pop("whole_squares")
    made = Model.open(name, device=device, seed=seed, **given)
    if whole:
        made.preprocessing = replace(made.preprocessing, whole_squares=True)
    return made


ModelLike = Model | nn.Module | str | Path


def as_model(model: ModelLike, *, exports: bool = False) -> Model:
    """What a user names as a Model: a module is wrapped, a name or a folder is opened.

    `exports`: an exported model is taken as well. Raises VitfrostError as `Model.of` and `Model.open` do.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, nn.Module):
        return Model.of(model)
    if not isinstance(model, str | Path):
        raise VitfrostError(f"a {type(model).__name__} is no model; give a vitfrost.Model, a torch.nn.Module, a timm name or a folder")
    if not exports:
        refuse_export(model)
    return Model.open(model)


def refuse_export(model: str | Path) -> None:
    """Raise VitfrostError for the folder of an exported model."""
    if names_folder(model) and is_export(model):
        raise VitfrostError(f"{model} is an exported model, which can only be evaluated and run; give the artifact it was exported from")


def names_folder(model: str | Path) -> bool:
    """True for a path, a name with a separator, and, if timm has no such model, that of a folder with a config.json or export.json."""
    if isinstance(model, Path) or "/" in model or "\\" in model:
        return True
    return any((Path(model) / name).is_file() for name in ("config.json", EXPORT_FILE)) and not timm.is_model(model)


def refuse_hub(name: str | Path) -> None:
    """Raise VitfrostError for a model of the hub: nothing is downloaded but timm's own weights."""
    text = str(name)
    if len(text) > LONGEST_PATH:
        raise VitfrostError(f"timm has no model {shown(text)}; give a name of timm's, or a folder")
    if text.startswith(("hf-hub:", "hf_hub:", "local-dir:", "http:", "https:")):
        plain = text.rpartition("/")[2].partition(":")[2] or text.rpartition("/")[2]
        known = f", such as {plain}" if timm.is_model(plain) else ""
        raise VitfrostError(
            f"{text[:100]} is no name of timm's registry, and nothing else is downloaded; give the architecture's name{known}, with "
            "--weights FILE (or the folder that was downloaded)"
        )


def _open_timm(name: str, weights: str | Path | None, image_size: Size, classes: int | None, options: dict[str, Any], seed: int) -> Model:
    if classes is not None:
        options["num_classes"] = classes
    check_options({key: value for key, value in options.items() if key != "attn_head_dim"})
    random = str(weights) == RANDOM_WEIGHTS
    state = None if weights is None or random else read_weights(weights)
    converted = None if weights is None or state is None else convert_folder(weights, state, name)
    if converted is not None:
        state, options = converted.state, converted.options | options
        image_size = converted.image_size if image_size is None else image_size
    if options or image_size is not None:
        refuse_larger(name, image_size, options, memory_of_machine() // 4, "more than fit into this machine's memory")
    module = create_model(name, image_size, pretrained=weights is None, seed=seed, **options)
    refuse_channels(module)
    size = image_size_of(module, None)
    if image_size is not None:
        refuse_cut_pixels(module, size)
    config = module.pretrained_cfg
    tag = f"{config.get('architecture', name)}.{config.get('tag') or 'default'}"
    if random:
        tag = f"random:{seed}"
    elif state is not None:
        state = own_part(module, state, str(weights))
        if "num_classes" not in options and (found := classes_of(module, state)) not in (None, classes_of(module)):
            options["num_classes"] = found
            log.info("%s: its head has %d classes", weights, found)
            module = create_model(name, image_size, seed=seed, **options)
        load_state(module, without_head(module, fit_state(module, state), name), str(weights))
        tag = f"file:{Path(str(weights)).name}"
    elif "num_classes" in options and options["num_classes"] != config.get("num_classes"):
        log.warning("%s: timm's weights have no head of %s classes; it is untrained", name, options["num_classes"])
    elif weights is None and image_size is not None and (trained := trained_size(name)) not in (size, None):
        log.warning("%s: timm's weights are of %dx%d px; what depends on the size is interpolated to %dx%d", name, *trained, *size)
    module.eval()
    made = Model(module, name, size, tag, hash_state(module), _preprocessing(module, size), int(module.num_classes), options)
    made.class_names = _names(None if converted is None else converted.class_names, made)
    if converted is not None:
        made.preprocessing = made.preprocessing.changed(**processor_reading(str(weights)))
        if converted.outputs is not None and made.classes:
            made.outputs = converted.outputs
    return made


def image_size_of(module: Any, given: Size) -> tuple[int, int]:
    """Height and width in pixels: as given, as the patch embedding is built, or as the configuration says.

    Raises VitfrostError where nothing says it.
    """
    if given is not None:
        return given if isinstance(given, tuple) else (given, given)
    built_for = built_size(module)
    config = getattr(module, "pretrained_cfg", None) or {}
    found = built_for or tuple(config.get("input_size", ()))[1:]
    if len(found) != 2:
        raise VitfrostError(f"this {type(module).__name__} does not say for which image size it is; give image_size")
    return int(found[0]), int(found[1])


def _preprocessing(module: nn.Module, size: tuple[int, int]) -> Preprocessing:
    """As timm reads the module's configuration; square pictures that are prepared already are taken whole."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(module)
    return Preprocessing.from_plain(config | {"input_size": (config["input_size"][0], *size), "whole_squares": True})


def _names(given: Sequence[str] | str | Path | None, model: Model) -> tuple[str, ...] | None:
    """The names that are given; ImageNet-1k's for a trained head of as many classes as the architecture was published with."""
    if given is not None:
        return read_class_names(given, model.classes)
    published = (getattr(model.module, "pretrained_cfg", None) or {}).get("num_classes")
    trained = not model.weight_tag.startswith(RANDOM_WEIGHTS)
    return imagenet_names() if trained and model.classes == published == IMAGENET_CLASSES else None
