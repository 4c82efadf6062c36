"""What the engine does not run is refused in one line that says why, and what can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitfrost.configs import Compact, FreezeEntries, Hallucinate, Quantize, WindowHeads
from vitfrost.deploy.native.eight_bits import in_integers
from vitfrost.deploy.native.families import to_native
from vitfrost.errors import VitfrostError

from ..models import random_model
from .simulation import quantized

STRICT = Quantize(4, 4, "strict")


def set_zero_point(module: Any) -> None:
    module.blocks[1].attn.qkv.input_quantizer.zero_point = torch.tensor(7.25)


def set_far_zero_point(module: Any) -> None:
    module.blocks[0].mlp.fc2.input_quantizer.zero_point = torch.tensor(-40000.0)


def set_scales(module: Any) -> None:
    module.blocks[0].mlp.fc1.input_quantizer.scale = torch.ones(10)


def set_activation(module: Any) -> None:
    module.blocks[0].mlp.act = nn.Tanh()


def set_norm(module: Any) -> None:
    module.blocks[0].norm1 = nn.RMSNorm(32)


def set_pooling(module: Any) -> None:
    module.global_pool = "max"


def set_padding(module: Any) -> None:
    stride, _, dilation, groups = module.patch_embed.proj.geometry
    module.patch_embed.proj.geometry = (stride, (1, 1), dilation, groups)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            set_zero_point,
            {},
            "the input of blocks.1.attn.qkv: the zero point is 7.25 .*; plan with Quantize.levels=.strict",
        ),
        (
            set_far_zero_point,
            {},
            "the input of blocks.0.mlp.fc2: a zero point of 4e.04 says that .* hardly vary, .*; export it in floating",
        ),
        (set_scales, {}, "the input of blocks.0.mlp.fc1: its quantizer has 10 scales, .*; vitfrost evaluate simulates it"),
        (set_activation, {}, "blocks.0.mlp: its activation is Tanh, .*; export it in floating point with Export"),
        (set_norm, {}, "blocks.0.norm1: it is a RMSNorm, .*; export it in floating point with Export"),
        (set_pooling, {}, "the head: it pools by max, .*; export it in floating point with Export"),
        (
            set_padding,
            {},
            "patch_embed: its patches overlap, or leave something of the picture out, .*; export it in floating point with Export",
        ),
        (None, {"qk_norm": True}, "blocks.0.attn: q_norm is a LayerNorm, .*; export it in floating point with Export"),
        (
            None,
            {"global_pool": "map", "class_token": False},
            "the head: it pools by attention, .*; export it in floating point with Export",
        ),
    ],
)
def test_parts_of_a_model(change: Any, options: dict[str, Any], message: str) -> None:
    module = quantized(4, 4, **options)
    if change is not None:
        change(module)
    with pytest.raises(VitfrostError, match=message):
        to_native(module, "the model")


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([WindowHeads(0.5, 3, "mean"), STRICT], "windowed heads keep a mean of what is outside, .*; plan with WindowHeads.outside="),
        ([FreezeEntries(0.3, renormalize="mass"), STRICT], "rows are renormalized .mass., .*; plan with FreezeEntries.renormalize="),
        ([FreezeEntries(0.3, order="merge-quantize"), STRICT], "constants are merged before .*FreezeEntries.order=.quantize-merge"),
        ([FreezeEntries(0.3, bits=6), STRICT], "frozen entries have 6 bits and a grid of their own, .*; plan with FreezeEntries.bits=4"),
        ([FreezeEntries(0.3, bits=32), STRICT], "frozen entries are in floating point, .*; plan with FreezeEntries.bits=4"),
        ([FreezeEntries(0.3, bits=32), Quantize(4, 32)], "frozen entries in floating point, .*; plan with FreezeEntries.bits=4"),
        ([FreezeEntries(0.3), Quantize(4, 4)], "zero point is .* and no integer, .*; plan with Quantize.levels=.strict.."),
        ([Quantize(32, 8, "strict")], "quantized activations and weights in floating point; plan with Quantize.weights=8"),
        ([Hallucinate(0.5, by="first", mix="copy", space="post-softmax"), STRICT], "after the softmax, .*Hallucinate.space=.logits"),
        ([Hallucinate(0.5, by="first", mix="copy", intra_map="key-grid"), STRICT], "the grid of keys, .*Hallucinate.intra_map=.3x3"),
    ],
)  # fmt: skip
def test_plans(shallow: Any, methods: list[Any], message: str, tmp_path: Path) -> None:
    made = shallow.compress(tmp_path / "made", *methods)
    with pytest.raises(VitfrostError, match=message):
        to_native(in_integers(made, None), made.name)


def test_images_are_needed_where_activations_have_no_ranges(shallow: Any, tmp_path: Path) -> None:
    made = shallow.compress(tmp_path / "made", Compact(0.5))
    with pytest.raises(VitfrostError, match=r"needs calibration images; give"):
        in_integers(made, None)


@pytest.mark.parametrize(("name", "options"), [("nextvit_small", {"depths": (1, 1, 5, 1)})])
def test_other_families_are_named(name: str, options: dict[str, Any]) -> None:
    model = random_model(name, 64, **options)
    with pytest.raises(
        VitfrostError,
        match=rf"{name} is a \w+, and the native engine runs plain ViTs, DeiTs, Swin Transformers and PVT v2 so far; export it",
    ):
        to_native(model.module, model.name)
