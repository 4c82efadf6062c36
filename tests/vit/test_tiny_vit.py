"""TinyViT: padded windows against a run, biases that timm keeps between calls, weights of other windows, tokens with channels first."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.evaluation.features import about_tokens, features_of
from vitfrost.model import Model
from vitfrost.vit.compat import import_timm
from vitfrost.vit.families import find_sites
from vitfrost.vit.kept import convolutions
from vitfrost.vit.load import create_model, load_state
from vitfrost.vit.resize import fit_state

from ..shapes import shapes_only

SMALL: dict[str, Any] = {"embed_dims": (16, 24, 32), "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window_sizes": (4, 4, 4)}
NAME = "tiny_vit_5m_224"


def test_published_sizes() -> None:
    """Windows of 7 and 14 fit 224 px; convolutions are counted as a run counts them, at a size that needs padding, too."""
    with shapes_only():
        found = find_sites(create_model(NAME)).attention
        assert [(site.windows, site.heads, site.queries) for site in found] == [(16, 4, 49)] * 2 + [(1, 5, 196)] * 6 + [(1, 10, 49)] * 2
        model = create_model(NAME, (100, 190))
        sites = find_sites(model)
    assert [site.windows for site in sites.attention] == [8] * 2 + [1] * 8  # 13 x 24, 7 x 12 and 4 x 6 positions
    assert set(sites.kept) == set(convolutions(model, "", (100, 190)))


def test_a_model_that_has_run_can_be_copied_and_trained() -> None:
    """timm keeps biases that belong to the graph of an earlier call, or to inference mode."""
    module = import_timm().create_model(NAME, **SMALL, num_classes=3).eval()
    pixels = torch.zeros(1, 3, 64, 64)
    expected = module(pixels)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    model = Model.of(module, image_size=64, name="mine")
    given = model(pixels)
    given.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(given, expected)
    assert torch.equal(copy.deepcopy(model.module)(pixels), expected)


@torch.no_grad()
def test_weights_of_other_windows_are_interpolated_as_timm_does() -> None:
    from timm.models.tiny_vit import checkpoint_filter_fn

    given = create_model(NAME, 64, **SMALL).state_dict()
    biases = [key for key in given if key.endswith("attention_biases")]
    for key in biases:
        given[key].normal_(generator=torch.Generator().manual_seed(0))
    wider = create_model(NAME, 64, **{**SMALL, "window_sizes": (4, 7, 4)})
    state = fit_state(wider, given | {"stages.1.blocks.0.attn.attention_bias_idxs": torch.zeros(16, 16)})
    load_state(wider, state, "these")
    expected = checkpoint_filter_fn(given, wider)
    assert [tuple(state[key].shape) for key in biases] == [(2, 49), (2, 49), (4, 16)]
    assert all(torch.equal(state[key], expected[key]) for key in biases)


def test_tokens_have_their_channels_first() -> None:
    model = Model.open(NAME, weights="random", image_size=(64, 96), outputs="tokens", options=SMALL)
    tokens = features_of(model, torch.zeros(2, 3, 64, 96))
    assert tokens.patches is not None
    assert (tuple(tokens.patches.shape), tokens.grid) == ((2, 24, 32), (4, 6))
    assert about_tokens(model) == {"shape": [32, 4, 6], "prefix": 0, "class_token": False, "channels_first": True, "grid": [4, 6]}


def test_unusual_parts_are_refused_by_name() -> None:
    with shapes_only():
        model = create_model(NAME)
        model.stages[2].blocks[1].attn = torch.nn.Identity()
        with pytest.raises(UnsupportedModel, match=r"stages\.2\.blocks\.1\.attn is Identity; only TinyViT's own attention"):
            find_sites(model)
        del model.pretrained_cfg
        with pytest.raises(VitfrostError, match="create it by its timm name"):
            find_sites(model)
