"""Which heads the verb hallucinates and which blocks it compacts, alone and together with freezing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.configs import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.map_sources.hallucinated import sources
from vitfrost.methods.hallucination.fit import choose_heads, correlations
from vitfrost.plans.choose import plan
from vitfrost.plans.freeze_entries import frozen_maps
from vitfrost.plans.select import share

SHAPES = [(1, 6, 5, 5), (1, 1, 5, 5), (1, 5, 4, 4)]
COPIES = {"mix": "copy"}


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.floats(0, 0.99),
    st.sampled_from(["medoids", "explained", "first", "random"]),
    st.integers(0, 9),
)
def test_the_share_of_every_layer_is_hallucinated_and_the_rest_computed(draw_record, heads, ratio, by, seed):
    record = draw_record([(1, count, 3, 3) for count in heads])
    asked = {"share": ratio, "by": by} | ({"seed": seed} if by == "random" else {})
    made = plan(record, Hallucinate(**asked), Quantize())
    assert made == plan(record, Hallucinate(**asked), Quantize())
    for layer, count in zip(made.layers, heads, strict=True):
        assert len(layer.hallucinated) == share(ratio, count)
        assert {layer.heads[head].source for head in layer.logit_heads} == {"computed"}
        assert set(sources(layer)) <= set(layer.logit_heads)
        assert all(layer.heads[head].like is not None for head in layer.hallucinated)


def test_half_of_the_heads_rounded_down_and_a_head_alone_stays(draw_record):
    made = plan(draw_record(SHAPES), Hallucinate(0.5), Quantize())
    assert [len(layer.logit_heads) for layer in made.layers] == [3, 1, 3]
    assert made.hallucinate == Hallucinate(0.5, by="medoids")
    assert made.freeze is None


def test_medoids_are_those_of_the_statistics(draw_record):
    record = draw_record(SHAPES)
    made = plan(record, Hallucinate(0.5), Quantize())
    for layer in made.layers:
        choice = choose_heads(correlations(torch.from_numpy(record.head_moments(layer.site))), len(layer.logit_heads))
        assert layer.logit_heads == choice.kept
        assert sources(layer) == tuple(choice.kept[place] for place in choice.sources)
        # heads of equal parity are alike
        assert all(head % 2 == source % 2 for head, source in zip(layer.hallucinated, sources(layer), strict=True))


def test_the_first_heads_are_computed_and_the_others_take_turns(draw_record):
    made = plan(draw_record([(1, 8, 3, 3)]), Hallucinate(0.65, by="first"), Quantize())
    assert made.layers[0].logit_heads == (0, 1, 2)
    assert sources(made.layers[0]) == (0, 1, 2, 0, 1)


def test_a_draw_depends_on_the_seed_and_the_layer(draw_record):
    record = draw_record([(1, 12, 3, 3), (1, 12, 3, 3)])

    def drawn(seed: int) -> list[tuple[int, ...]]:
        return [layer.logit_heads for layer in plan(record, Hallucinate(0.5, by="random", seed=seed), Quantize()).layers]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0)[0] != drawn(0)[1]


def test_statistics_without_similarity_allow_copies_only(draw_record):
    record = draw_record(SHAPES, compared=False)
    with pytest.raises(VitfrostError, match=r"calibrate with Calibrate\(similarity=True\)"):
        plan(record, Hallucinate(0.5), Quantize())
    with pytest.raises(VitfrostError, match=r"calibrate with Calibrate\(similarity=True\); or let the mix start as copies"):
        plan(record, Hallucinate(0.5, by="first"), Quantize())
    for fields in (COPIES, {"inter_map": "copy"}):
        assert plan(record, Hallucinate(0.5, by="first", **fields), Quantize()).layers[0].hallucinated == (3, 4, 5)
    assert not plan(record, Hallucinate(0.1), Quantize()).layers[0].hallucinated


@pytest.mark.parametrize("shape", [(4, 4, 5, 5), (1, 4, 5, 5)])
def test_swin_is_refused_whatever_its_windows(draw_record, shape):
    record = draw_record([shape], name="swin_tiny_patch4_window7_224")
    with pytest.raises(VitfrostError, match="hallucination does not support Swin, BEiT and their like: every head") as caught:
        plan(record, Hallucinate(0.5), Quantize())
    assert "\n" not in str(caught.value)
    assert plan(record, Hallucinate(0.2), Quantize()).layers[0].hallucinated == ()


@pytest.mark.parametrize("scope", ["head", "layer", "model"])
def test_entries_are_frozen_among_the_remaining_heads_only(draw_record, scope):
    record = draw_record(SHAPES)
    both = plan(record, FreezeEntries(0.3, by="mean", scope=scope), Hallucinate(0.5, by="first"))
    remaining = [25 * 3, 25, 16 * 3]
    frozen = [sum(head.entries for head in layer.heads) for layer in both.layers]
    if scope == "head":
        assert frozen == [3 * share(0.3, 25), share(0.3, 25), 3 * share(0.3, 16)]
    elif scope == "layer":
        assert frozen == [share(0.3, entries) for entries in remaining]
    else:
        assert sum(frozen) == share(0.3, sum(remaining))
    for layer in both.layers:
        mask, values = frozen_maps(both, record.sites[layer.site], layer)
        assert not mask[:, list(layer.hallucinated)].any()
        assert not values[:, list(layer.hallucinated)].any()
        assert mask.sum((0, 2, 3)).tolist() == [head.entries for head in layer.heads]
    if scope == "head":  # what is left of a head does not depend on the others
        alone = plan(record, FreezeEntries(0.3, by="mean", scope=scope))
        for layer, other in zip(both.layers, alone.layers, strict=True):
            assert [layer.heads[head] for head in layer.logit_heads] == [other.heads[head] for head in layer.logit_heads]


def test_a_threshold_of_the_model_is_that_of_the_remaining_heads(draw_record):
    record = draw_record(SHAPES)
    made = plan(record, FreezeEntries(0.4, scope="model", ties="le"), Hallucinate(0.5, by="first"))
    scores = np.concatenate([record.sites[layer.site].entropy[:, list(layer.logit_heads)].reshape(-1) for layer in made.layers])
    eps = np.sort(scores)[share(0.4, scores.size) - 1]
    assert sum(head.entries for layer in made.layers for head in layer.heads) == (scores <= eps).sum()


def test_every_block_or_those_after_attention_are_compacted(draw_record):
    record = draw_record(SHAPES)
    made = plan(record, Compact(0.5), Quantize())
    assert [(block.site, block.width, block.hidden, block.rank) for block in made.feed_forward] == [
        (f"blocks.{number}.mlp", 24, 96, 12) for number in range(3)
    ]
    assert made.compact == Compact(ratio=0.5)
    made = plan(record, Compact(0.3, blocks="transformer"), Quantize())
    assert [block.rank for block in made.feed_forward] == [None, 7, 7]
    assert plan(record, Quantize()).feed_forward == ()


def test_older_statistics_do_not_know_the_blocks(draw_record):
    record = draw_record(SHAPES)
    record.header.feed_forward = []
    with pytest.raises(VitfrostError, match="calibrate again to compact them"):
        plan(record, Compact(0.5), Quantize())


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (Hallucinate, {"share": 1.0}, "Hallucinate.share is 1.0; it should be less than 1"),
        (Hallucinate, {"share": -0.1}, "Hallucinate.share is -0.1; it should be greater than or equal to 0"),
        (
            Hallucinate,
            {"share": 0.5, "by": "similarity"},
            "Hallucinate.by is 'similarity'; it should be 'medoids', 'explained', 'first' or 'random'",
        ),
        (Hallucinate, {"share": 0.5, "ridge": float("inf")}, "ridge is inf; it should be a finite number"),
        (
            Hallucinate,
            {"share": 0.5, "space": "post-softmax", "inter_map": "pair"},
            "inter_map is 'pair': a pair-wise scalar has no effect",
        ),
        (Hallucinate, {"heads": 3}, "heads is not known here; the fields are share, by, mix"),
        (Hallucinate, {"by": "first"}, "Hallucinate.share is missing"),
        (Compact, {"ratio": 1.5}, "Compact.ratio is 1.5; it should be less than 1"),
        (Compact, {"ratio": 0.0}, "Compact.ratio is 0.0; it should be greater than 0"),
        (Compact, {"ratio": 0.5, "branches": 0}, "branches is 0; it should be greater than or equal to 1"),
        (Compact, {"ratio": 0.5, "norm": "layer"}, "Compact.norm is 'layer'; it should be 'batch' or 'none'"),
        (
            Compact,
            {"ratio": 0.9},
            "rank 22 (ratio 0.9) of a projection from 96 to 24 channels saves nothing; the largest useful rank is 19",
        ),
        (Compact, {"ratio": 0.01}, "rank 0 (ratio 0.01) of a projection from 96 to 24 channels leaves nothing"),
    ],
)
def test_fields_out_of_range_give_one_line(draw_record, method, fields, message):
    with pytest.raises(VitfrostError) as caught:
        plan(draw_record(SHAPES), method(**fields))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_structure_alone_freezes_nothing_and_entries_alone_are_a_fifth(draw_record):
    record = draw_record([(1, 4, 3, 3)])
    assert plan(record).freeze.ratio == 0.2
    asked = {"share": 0.5, "by": "first", "mix": "copy"}
    assert plan(record, Hallucinate(**asked)).freeze is None
    assert plan(record, FreezeEntries(0.2), Hallucinate(**asked)).freeze.ratio == 0.2
    assert plan(record).quantize.weights == 4
    whole = plan(record, FreezeHeads(1.0, "layer", by="entropy", kind="dense"))
    assert (whole.quantize.weights, whole.quantize.activations) == (32, 32)
