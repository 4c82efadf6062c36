"""Modules of known classes that compute something else, or hold layers that are none of torch's."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
import torch
from torch import nn

import vitfrost
from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.vit.compat import import_timm

import_timm()
from timm.models.vision_transformer import VisionTransformer  # noqa: E402  (timm must be imported through the guard)


def small() -> Any:
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=4)


class Adapted(nn.Module):
    """A layer with an adapter beside it."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 2)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class Wrapped(nn.Module):
    """A backbone in a module of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small()


def test_a_hook_that_only_looks_is_left_out_of_the_copy() -> None:
    given, seen = small(), []
    given.blocks[1].attn.register_forward_hook(lambda *_: seen.append(1))
    model = vitfrost.Model.of(given)
    assert len(given.blocks[1].attn._forward_hooks) == 1
    seen.clear()
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(pixels), model(pixels))
    assert seen == []
    given.blocks[1].attn._forward_hooks.clear()
    assert torch.equal(model(pixels), given.eval()(pixels))


def hooked(model: Any) -> None:
    model.blocks[1].attn.register_forward_hook(lambda _, __, output: 3 * output)


def hooked_before(model: Any) -> None:
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))


def patched(model: Any) -> None:
    model.blocks[1].mlp.forward = types.MethodType(lambda self, x: self.fc2(self.fc1(x)), model.blocks[1].mlp)


@pytest.mark.parametrize(
    ("change", "where"), [(hooked, "'blocks.1.attn'"), (hooked_before, "this VisionTransformer"), (patched, "'blocks.1.mlp'")]
)
def test_what_changes_the_outputs_is_refused(change: Any, where: str) -> None:
    model = small()
    change(model)
    with pytest.raises(UnsupportedModel, match=f"{where} has a hook or a forward pass of its own, which changes what the model gives"):
        vitfrost.Model.of(model)


def test_layers_that_are_not_plain_are_refused() -> None:
    model = small()
    model.blocks[0].attn.qkv = Adapted(model.blocks[0].attn.qkv)
    with pytest.raises(UnsupportedModel, match=r"blocks\.0\.attn\.qkv is a Adapted, not a plain layer; merge an adapter"):
        vitfrost.Model.of(model)
    model = small()
    nn.utils.parametrizations.weight_norm(model.blocks[1].mlp.fc1)
    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.mlp\.fc1 is parametrized; .*remove_parametrizations"):
        vitfrost.Model.of(model)


@pytest.mark.parametrize(("model", "where"), [(Wrapped(), ".backbone"), (nn.Sequential(small()), ".0")])
def test_a_wrapped_model_is_named(model: nn.Module, where: str) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(f"wraps a VisionTransformer at {where}; give that module alone")):
        vitfrost.Model.of(model)


@pytest.mark.usefixtures("unchecked")
def test_arguments_of_another_kind(shallow: Any, tmp_path: Any) -> None:
    plan: Any = vitfrost.plan(shallow.statistics, vitfrost.FreezeHeads(0.2))
    wrong: Any = "ridge"
    for call, said in (
        (lambda: vitfrost.Model.of(wrong), "a str is no torch.nn.Module; a model's name or folder is for Model.open"),
        (lambda: vitfrost.calibrate(shallow.model, shallow.pictures, {"limit": 8}), "config is a dict; give vitfrost.Calibrate(...)"),  # type: ignore[arg-type]
        (lambda: vitfrost.compress(shallow.model, plan, repair=wrong), "repair is a str; give vitfrost.Repair(...)"),
        (lambda: vitfrost.compress(shallow.model, None), "plan is a NoneType; give a vitfrost.Plan, or the file of one"),  # type: ignore[arg-type]
        (lambda: vitfrost.export(shallow.model, wrong, out=tmp_path / "out"), "config is a str; give vitfrost.Export(...)"),
        (
            lambda: vitfrost.search(shallow.model, shallow.pictures, wrong, statistics=shallow.statistics),
            "budget is a str; give vitfrost.Search(...)",
        ),
        (lambda: vitfrost.bench(shallow.model, wrong), "config is a str; give vitfrost.Bench(...)"),
        (lambda: vitfrost.evaluate(shallow.model, shallow.pictures, config=wrong), "config is a str; give vitfrost.Evaluate(...)"),
    ):
        with pytest.raises(VitfrostError, match=re.escape(said)):
            call()
