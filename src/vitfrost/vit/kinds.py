"""Of what kind a layer is: a known class, or a subclass that computes the same; or one that normalizes."""

from __future__ import annotations

from torch import nn

# What a subclass may bring of its own: making a module, its weights, and how it is trained.
_FREE = frozenset({
    "__init__", "init_weights", "_init_weights", "reset_parameters", "load_pretrained", "no_weight_decay", "no_weight_decay_keywords",
    "group_matcher", "set_grad_checkpointing", "reset_classifier", "train", "extra_repr", "forward_intermediates",
    "prune_intermediate_layers", "get_intermediate_layers",
})  # fmt: skip


def overridden(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Methods of `kind` that take part in a forward pass and that the module's class has anew."""
    ancestors = type(module).__mro__
    above = ancestors[: ancestors.index(kind)]
    own = {name for each in kind.__mro__[: kind.__mro__.index(nn.Module)] for name, value in vars(each).items() if callable(value)}
    return sorted({name for each in above for name in vars(each) if name in own | {"__call__"} and name not in _FREE})


def is_kind(module: object, *kinds: type[nn.Module]) -> bool:
    """True for a module of one of these classes, or of a subclass that changes nothing of their forward pass."""
    return any(isinstance(module, kind) and not overridden(module, kind) for kind in kinds)


def named(module: nn.Module, *kinds: type[nn.Module]) -> str:
    """What a message calls a module that is none of these: its class, and what it has of its own where it descends from one of them."""
    name = type(module).__name__
    for kind in kinds:
        if isinstance(module, kind) and (changed := overridden(module, kind)):
            return f"{name}, which overrides {', '.join(changed)} of {kind.__name__}"
    return name


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalizes what it reads; timm's own such layers have no class in common, but a name."""
    return "Norm" in type(layer).__name__


def has_affine_norm(norm: nn.Module) -> bool:
    """True for a LayerNorm with gain and bias: the kind whose scales RepQ-ViT can re-parameterize."""
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
