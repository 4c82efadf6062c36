"""Whether what a model gives are classes, an embedding or tokens, where nobody says it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModel, VitfrostError
from ..outputs import OutputKind
from .compat import import_timm

timm = import_timm()
# Towers that were trained to meet a text: what timm calls their classes are the channels of the embedding.
_TOWERS = ("clip", "vitamin", "pe_core")
_DISTILLED = re.compile(r"deit_\w+_distilled_")
_LABELED = re.compile(r"in(1|12|21|22)k")


@cache
def embedding_widths(name: str) -> frozenset[int]:
    """The widths of the embeddings that weights of this architecture project to; empty for architectures of classifiers.

    They are the numbers of "classes" of timm's pretrained tags that were not fine-tuned on ImageNet.
    """
    architecture = name.partition(".")[0]
    if not any(word in architecture for word in _TOWERS) or not timm.is_model(architecture):
        return frozenset()
    tags = timm.list_pretrained(f"{architecture}.*")
    configs = [timm.get_pretrained_cfg(tag) for tag in tags if not _LABELED.search(tag.partition(".")[2])]
    return frozenset(int(config.num_classes) for config in configs if config is not None and config.num_classes)


def has_classifier(module: Any) -> bool:
    """Whether a layer comes after pooling; models that do not tell are taken to have one."""
    getter = getattr(module, "get_classifier", None)
    head = getter() if callable(getter) else None
    return not isinstance(head[0] if isinstance(head, tuple | list) else head, nn.Identity)


def pools(module: Any) -> bool:
    """Whether tokens are pooled; a model says it itself, or its head does."""
    pool = getattr(module, "global_pool", None)
    if pool is None:
        head = getattr(module, "head", None)
        pool = getattr(getattr(head, "global_pool", head), "pool_type", None)
    return pool != ""


def outputs_of(module: Any, name: str, classes: int, *, named: bool = False) -> OutputKind:
    """`tokens` of a model that does not pool, `embedding` without a classifier and of a tower trained to meet a text, else `classes`.

    `named`: the outputs have names, so they are classes.
    """
    if classes == 0 or not has_classifier(module):
        return "embedding" if pools(module) else "tokens"
    return "embedding" if not named and classes in embedding_widths(name) else "classes"


def chosen_outputs(given: OutputKind | None, found: OutputKind, name: str, classes: int) -> OutputKind:
    """What was asked for, where the model can give it. Raises VitfrostError where it cannot."""
    if given is None or given == found:
        return found
    if "tokens" in (given, found):
        raise VitfrostError(f"{name} gives {'one vector' if given == 'tokens' else 'tokens'} for an image, no {given}; leave outputs out")
    if given == "classes" and classes < 1:
        raise VitfrostError(f"{name} has no classifier, so its outputs are no classes; leave outputs out, or give the number of classes")
    return given


def token_options(name: str) -> dict[str, Any]:
    """What timm is told to give all tokens. Raises VitfrostError for a distilled DeiT, whose two heads read the first two tokens alone."""
    if _DISTILLED.match(name):
        raise VitfrostError(
            f"{name} is distilled: its forward pass ends at the class and the distillation token; leave outputs tokens out and give 0 "
            "classes (an embedding, beside which features have all tokens)"
        )
    return {"num_classes": 0, "global_pool": ""}


@torch.inference_mode()
def _shape_of_outputs(module: nn.Module, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of what the module says of one image. Raises UnsupportedModel where that is no tensor with an axis of images."""
    said = module(torch.zeros(1, 3, *size, device=next(module.parameters()).device))
    if not isinstance(said, Tensor) or said.ndim < 2:
        found = list(said.shape) if isinstance(said, Tensor) else type(said).__name__
        raise UnsupportedModel(f"this {type(module).__name__} gives {found} for an image; logits, an embedding or tokens are supported")
    return tuple(said.shape)


def kind_of_outputs(module: nn.Module, name: str, size: tuple[int, int], given: OutputKind | None, named: bool) -> tuple[OutputKind, int]:
    """What a module gives for an image, and how many classes its head has. Raises UnsupportedModel, and VitfrostError for others."""
    shape = _shape_of_outputs(module, size)
    found = outputs_of(module, name, shape[1], named=named)
    if len(shape) != 2 and found != "tokens":
        raise UnsupportedModel(
            f"this {type(module).__name__} gives {list(shape)} for an image; logits, an embedding or tokens are supported"
        )
    return chosen_outputs(given, found, f"this {type(module).__name__}", shape[1]), shape[1] if has_classifier(module) else 0


def without_head(module: Any, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights without those of a classifier, and of attention pooling, that the model does not have; others stay as they are.

    Raises VitfrostError for tokens of a model whose last norm comes after pooling.
    """
    pooled = pools(module)
    if not pooled and any(key.startswith("fc_norm.") for key in state):
        raise VitfrostError(f"{name} has its last norm after pooling, so its tokens are no output of their own; leave outputs tokens out")
    if has_classifier(module):
        return state
    own, left_out = module.state_dict().keys(), ("head.", "head_dist.") if pooled else ("head.", "head_dist.", "attn_pool.")
    return {key: value for key, value in state.items() if key in own or not key.startswith(left_out)}
