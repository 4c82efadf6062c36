"""Multiply-accumulates and parameters: published totals, parts that add up, and a count by running the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitfrost.errors import VitfrostError
from vitfrost.evaluation.cost import (
    frozen_savings,
    logit_macs,
    macs_by_part,
    parameters_by_part,
    softmax_elements,
)
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import create_model
from vitfrost.vit.sites import ModelSites

from ..shapes import shapes_only


def skeleton(name: str, image_size: int | tuple[int, int] | None) -> tuple[nn.Module, ModelSites]:
    model = create_model(name, image_size)
    return model, find_sites(model)


PUBLISHED = [
    ("deit_tiny_patch16_224", 224, 1.254, {"query_key_projection": 13.9, "query_key_product": 7.1, "feed_forward": 55.6}),
    ("deit_small_patch16_224", 224, 4.599, {"query_key_projection": 15.2, "map_value_product": 3.9, "feed_forward": 60.6}),
    ("deit_base_patch16_224", 224, 17.564, {"value_output_projection": 15.9, "query_key_product": 2.0, "feed_forward": 63.5}),
    ("deit_tiny_patch16_224", 384, 4.682, {"query_key_product": 16.4, "value_output_projection": 10.9, "feed_forward": 43.6}),
    ("deit_small_patch16_224", 384, 15.490, {"query_key_product": 9.9, "value_output_projection": 13.2, "feed_forward": 52.7}),
    ("deit_base_patch16_224", 384, 55.484, {"query_key_product": 5.5, "value_output_projection": 14.7, "feed_forward": 58.9}),
    ("deit_tiny_patch16_224", 1024, 99.70, {"query_key_product": 38.8, "query_key_projection": 3.6, "feed_forward": 14.5}),
    ("deit_small_patch16_224", 1024, 242.90, {"query_key_product": 31.8, "query_key_projection": 6.0, "feed_forward": 23.9}),
    ("deit_base_patch16_224", 1024, 659.78, {"query_key_product": 23.4, "query_key_projection": 8.8, "feed_forward": 35.2}),
    ("swin_tiny_patch4_window7_224", 224, 4.49, {"query_key_projection": 15.4, "query_key_product": 1.55, "feed_forward": 61.8}),
    ("swin_small_patch4_window7_224", 224, 8.74, {"query_key_projection": 15.9, "query_key_product": 1.3, "feed_forward": 63.5}),
    ("vitfrost_pvt_tiny", 224, 1.93, {"spatial_reduction": 4.73, "feed_forward": 70.0}),
    ("vitfrost_pvt_small", 224, 3.82, {"spatial_reduction": 5.51, "feed_forward": 71.2}),
    ("vitfrost_pvt_medium", 224, 6.66, {}),
    ("vitfrost_pvt_large", 224, 9.81, {}),
    ("pvt_v2_b0", 224, 0.57, {}),
    ("pvt_v2_b2", 224, 4.03, {}),
    ("pvt_v2_b2_li", 224, 3.89, {}),
    ("nextvit_small", 224, 5.79, {"stem": 10.35, "convolution": 19.5, "feed_forward": 62.1, "patch_merging": 1.91}),
    ("nextvit_base", 224, 8.27, {}),
    ("nextvit_large", 224, 10.75, {}),
]


@pytest.mark.parametrize(("name", "image_size", "total", "shares"), PUBLISHED)
def test_published_multiply_accumulates(name: str, image_size: int, total: float, shares: dict[str, float]) -> None:
    with shapes_only():
        macs = macs_by_part(*skeleton(name, image_size))
    found = sum(macs.values())
    assert found / 1e9 == pytest.approx(total, abs=0.0006 if total < 50 and "deit" in name else 0.006)
    for part, percent in shares.items():
        assert 100 * macs[part] / found == pytest.approx(percent, abs=0.06)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("deit_tiny_patch16_224", 5.72), ("deit_small_patch16_224", 22.05), ("deit_base_patch16_224", 86.57),
     ("deit_tiny_distilled_patch16_224", 5.91), ("swin_tiny_patch4_window7_224", 28.29),
     ("pvt_v2_b0", 3.67), ("pvt_v2_b2", 25.36), ("pvt_v2_b2_li", 22.55),
     ("nextvit_small", 31.76), ("nextvit_base", 44.82), ("nextvit_large", 57.87)],
)  # fmt: skip
def test_published_parameters(name: str, millions: float) -> None:
    with shapes_only():
        model, sites = skeleton(name, None)
    counts = parameters_by_part(model, sites)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(counts.values()) / 1e6 == pytest.approx(millions, abs=0.006)
    assert counts["query_key_projection"] == pytest.approx(counts["value_output_projection"], rel=0.01)


# The papers print one digit behind the point.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("vitfrost_pvt_tiny", 13.2), ("vitfrost_pvt_small", 24.5), ("vitfrost_pvt_medium", 44.2), ("vitfrost_pvt_large", 61.4)],
)
def test_published_parameters_of_pyramids(name: str, millions: float) -> None:
    with shapes_only():
        model, sites = skeleton(name, None)
    counts = parameters_by_part(model, sites)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(counts.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    reductions = sum(parameter.numel() for path, parameter in model.named_parameters() if ".attn.sr." in path)
    assert counts["spatial_reduction"] == reductions > 0


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("vitfrost_digits", None), ("swin_tiny_patch4_window7_224", 56), ("vitfrost_pvt_tiny", (70, 96)), ("pvt_v2_b0", (70, 96)),
     ("pvt_v2_b2_li", 64), ("nextvit_small", (70, 96))],
)  # fmt: skip
def test_linear_layers_cost_what_their_run_shows(name: str, image_size: int | tuple[int, int] | None) -> None:
    with shapes_only():
        model, sites = skeleton(name, image_size)
    seen = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal seen
        outputs = output.shape[1] if isinstance(layer, nn.Conv2d) else layer.out_features
        seen += output.numel() // outputs * layer.weight.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, *sites.image_size, device="meta"))
    macs = macs_by_part(model, sites)
    assert sum(macs.values()) - macs["query_key_product"] - macs["map_value_product"] == seen


def test_equations_6_to_9_are_the_layers_of_a_plain_transformer() -> None:
    _, sites = skeleton("vitfrost_digits", None)
    macs = macs_by_part(*skeleton("vitfrost_digits", None))
    tokens, width, layers = 65, sites.attention[0].width, 6
    attention = sum(macs[part] for part in ("query_key_projection", "query_key_product", "map_value_product", "value_output_projection"))
    assert attention == layers * (4 * tokens * width**2 + 2 * tokens**2 * width)  # EAM, equation 6
    assert macs["feed_forward"] == layers * 8 * tokens * width**2  # equation 7
    assert softmax_elements(sites) == layers * 4 * tokens**2


def test_entry_wise_freezing_saves_nothing_on_dense_hardware() -> None:
    with shapes_only():
        model, sites = skeleton("deit_tiny_patch16_224", None)
    fifth = int(0.2 * 197 * 197)
    savings = frozen_savings({site.name: [fifth] * 3 for site in sites.attention}, sites)
    assert savings.dense_saved_macs == 0
    assert 100 * savings.ideal_saved_macs / sum(macs_by_part(model, sites).values()) == pytest.approx(1.43, abs=0.01)
    assert "every product of a dense machine remains" in savings.why


def test_wholly_frozen_heads_drop_their_logits() -> None:
    _, sites = skeleton("vitfrost_digits", None)
    site = sites.attention[2]
    savings = frozen_savings({site.name: [65 * 65, 0, 65 * 65, 10]}, sites)
    assert savings.whole_heads == 2
    assert savings.dense_saved_macs == logit_macs(site) // 2
    assert savings.ideal_saved_macs == savings.dense_saved_macs + 10 * site.head_dim
    assert savings.frozen_entries == 2 * 65 * 65 + 10


def test_entries_behind_a_shift_mask_need_not_be_frozen() -> None:
    _, sites = skeleton("vitfrost_digits", None)
    site = sites.attention[0]
    counts = {site.name: [4000, 3999, 0, 0]}
    assert frozen_savings(counts, sites).whole_heads == 0
    assert frozen_savings(counts, sites, {site.name: 4000}).whole_heads == 1


def test_frozen_savings_refuses_another_models_plan() -> None:
    _, sites = skeleton("vitfrost_digits", None)
    with pytest.raises(VitfrostError, match="does not have"):
        frozen_savings({"blocks.99.attn": [0]}, sites)
    with pytest.raises(VitfrostError, match="do not fit"):
        frozen_savings({sites.attention[0].name: [65 * 65 + 1, 0, 0, 0]}, sites)
    with pytest.raises(VitfrostError, match="do not fit"):
        frozen_savings({sites.attention[0].name: [1, 2]}, sites)
