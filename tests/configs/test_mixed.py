"""Words of single layers' and heads' bits: what they match, which one wins, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vitfrost.configs import Quantize
from vitfrost.configs.base import parsed, plain
from vitfrost.configs.mixed import matches
from vitfrost.errors import VitfrostError

LINEARS = ["patch_embed.proj", *(f"blocks.{n}.{part}" for n in range(12) for part in ("attn.qkv", "attn.proj", "mlp.fc1")), "head"]


@pytest.mark.parametrize(
    ("pattern", "name", "yes"),
    [
        ("blocks.1", "blocks.1.attn.qkv", True),
        ("blocks.1", "blocks.11.attn.qkv", False),
        ("blocks.*.fc2", "blocks.3.mlp.fc2.down", True),
        ("*qkv", "blocks.3.attn.qkv", True),
        ("head", "blocks.3.head_norm", False),
        ("blocks.[0-2].mlp", "blocks.2.mlp.fc1", True),
    ],
)
def test_patterns_are_of_names_and_of_modules_around_them(pattern: str, name: str, yes: bool) -> None:
    assert matches(pattern, name) == yes


def test_later_words_win_and_their_order_is_kept_in_files() -> None:
    config = Quantize(4, 4, layers={"*": (8, 8), "blocks.0": "2/6"}, heads={"blocks.1.attn": 6, "*.attn": {0: 8, 2: 8, 1: 3}})
    assert config.layers == ("*=8/8", "blocks.0=2/6")
    assert config.heads == ("blocks.1.attn=6", "*.attn:0,2=8", "*.attn:1=3")
    assert parsed(Quantize, plain(config)) == config
    assert [config.parts.of_layer(name) for name in ("head", "blocks.0.mlp.fc1")] == [(8, 8), (2, 6)]
    assert config.parts.of_heads("blocks.1.attn", (3, 2, 1)) == (6, 8, 3)
    assert config.parts.label == "W4/A4 mixed"
    assert config.parts.of_activations == "3 and 4 and 6 and 8"
    assert Quantize(4, 4, layers={}) == Quantize(4, 4)
    assert plain(Quantize(4, 4)) == {"weight_bits": 4, "activation_bits": 4, "levels": "published"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layers": {"head": (8, 9)}},
            "Quantize.layers is .*; 'head=8/9' should be NAME=W/A with bits from 2 to 8, or 32, such as head=8/8",
        ),
        ({"layers": "head"}, "Quantize.layers is 'head'; 'head' should be NAME=W/A"),
        ({"layers": 4}, "Quantize.layers is 4; '4' should be NAME=W/A"),
        ({"heads": ["blocks.0.attn:a=8"]}, "'blocks.0.attn:a=8' should be NAME:HEAD,...=BITS, or NAME=BITS for all heads"),
        ({"heads": {"blocks.0.attn": {0: 12}}}, "'blocks.0.attn:0=12' should be NAME:HEAD"),
    ],
)
def test_words_that_say_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(VitfrostError, match=message):
        Quantize(4, 4, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layers": {"blocks.12": (8, 8)}},
            "Quantize.layers names blocks.12, but vit has no such linear layer; it has patch_embed.proj, blocks.*.attn.qkv, "
            "blocks.*.attn.proj, blocks.*.mlp.fc1, head",
        ),
        ({"heads": {"head": 8}}, "Quantize.heads names head, but vit has no such attention layer; it has blocks.*.attn"),
        ({"heads": {"blocks.0.attn": {3: 8}}}, "Quantize.heads names head 3 of blocks.0.attn, whose heads are 0 to 2; give these"),
        ({"heads": {"blocks.1.attn": {1: 32}}}, "some heads of blocks.1.attn have 32 bits and others have less; give all heads of a layer"),
    ],
)
def test_words_that_match_nothing(fields: dict[str, Any], message: str) -> None:
    config = Quantize(4, 4, **fields)
    with pytest.raises(VitfrostError, match=re.escape(message)):
        config.parts.check("vit", LINEARS, {f"blocks.{n}.attn": 3 for n in range(12)})
