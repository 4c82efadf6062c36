"""From statistics to counts, and from counts back to the very entries that were chosen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitfrost
from vitfrost.configs import FreezeEntries, FreezeHeads, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.plans.choose import plan, summary, unfrozen_plan
from vitfrost.plans.criteria import CRITERIA
from vitfrost.plans.freeze_entries import frozen_maps
from vitfrost.plans.heads import HeadPlan
from vitfrost.plans.schema import Plan
from vitfrost.plans.select import share

SHAPES = [(1, 3, 9, 9), (1, 3, 9, 9)]
WINDOWED = [(4, 2, 6, 6), (2, 3, 6, 6)]


def masks(made, record):
    """Frozen entries and constants of every layer."""
    return [frozen_maps(made, record.sites[layer.site], layer) for layer in made.layers]


def edited(made, layer, head, **changes):
    """The plan with one head's line changed, as an editor would."""
    data = made.model_dump(mode="json")
    data["layers"][layer]["heads"][head] |= changes
    return Plan.model_validate(data)


def flat(record, name, key):
    """One key of all layers in a row: layer, head, window, query, key."""
    sites = list(record.sites.values())
    scores = [CRITERIA[name](site, 5, number) for number, site in enumerate(sites)]
    arrays = scores if key == "scores" else [getattr(site, key) for site in sites]
    return np.concatenate([array.swapaxes(0, 1).reshape(-1) for array in arrays])


@given(
    st.sampled_from(sorted(CRITERIA)), st.sampled_from(["head", "layer", "model"]), st.booleans(),
    st.floats(0, 0.6), st.sampled_from([(), ("cls-rows",), ("cls-rows", "cls-columns")]), st.integers(0, 3),
)  # fmt: skip
def test_every_scope_freezes_the_floor_of_the_ratio_and_nothing_masked_or_protected(draw_record, by, scope, masked, ratio, protect, seed):
    record = draw_record(WINDOWED, seed, masked)
    made = plan(record, FreezeEntries(ratio, by=by, scope=scope, protect=protect, seed=seed if by == "random" else 0))
    found = [mask for mask, _ in masks(made, record)]
    for mask, site in zip(found, record.sites.values(), strict=True):
        if masked:
            assert not (mask & ~site.allowed[:, None]).any()
        if protect:
            assert not mask[:, :, 0].any()
        if "cls-columns" in protect:
            assert not mask[..., 0].any()
    unmasked = [
        [int(site.allowed.sum()) if masked else int(np.prod(mask.shape)) // mask.shape[1]] * mask.shape[1]
        for mask, site in zip(found, record.sites.values(), strict=True)
    ]
    if scope == "head":
        for mask, counts in zip(found, unmasked, strict=True):
            assert mask.sum(axis=(0, 2, 3)).tolist() == [share(ratio, count) for count in counts]
    elif scope == "layer":
        assert [mask.sum() for mask in found] == [share(ratio, sum(counts)) for counts in unmasked]
    else:
        assert sum(mask.sum() for mask in found) == share(ratio, sum(map(sum, unmasked)))


@pytest.mark.parametrize("by", sorted(CRITERIA))
@pytest.mark.parametrize("ratio", [0.05, 0.4, 1.0])
def test_the_model_scope_is_one_ranking_of_all_entries(draw_record, by, ratio):
    record = draw_record(SHAPES)
    made = plan(record, FreezeEntries(ratio, by=by, scope="model", seed=5 if by == "random" else 0))
    found = np.concatenate([mask.swapaxes(0, 1).reshape(-1) for mask, _ in masks(made, record)])
    order = np.lexsort((flat(record, by, "mean"), flat(record, by, "variance"), flat(record, by, "scores")))
    expected = np.zeros(found.size, dtype=bool)
    expected[order[: int(ratio * found.size)]] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scope", ["head", "layer", "model"])
@pytest.mark.parametrize("ties", ["strict", "le"])
def test_thresholds_are_those_of_equation_15(draw_record, scope, ties):
    """Against eps computed from scratch: `strict` gives the mean below eps and zero at eps, `le` the mean up to eps."""
    record = draw_record(SHAPES)
    made = plan(record, FreezeEntries(0.3, scope=scope, ties=ties))
    entropies = [site.entropy for site in record.sites.values()]
    everything = np.sort(np.concatenate([entropy.reshape(-1) for entropy in entropies]))
    for (mask, values), site in zip(masks(made, record), record.sites.values(), strict=True):
        for head in range(3):
            entropy, mean = site.entropy[:, head], site.mean[:, head]
            pool = np.sort({"head": entropy, "layer": site.entropy, "model": everything}[scope].reshape(-1))
            eps = pool[int(0.3 * pool.size) - 1]
            assert (entropy == eps).sum() > 1
            np.testing.assert_array_equal(mask[:, head], entropy <= eps)
            np.testing.assert_array_equal(values[:, head], np.where(entropy < eps if ties == "strict" else entropy <= eps, mean, 0))


def test_a_head_without_entries_at_the_threshold_of_its_scope_gets_no_zeros(draw_record):
    record = draw_record(SHAPES[:1])
    site = record.sites["blocks.0.attn"]
    site.entropy[:, 0], site.entropy[:, 1], site.entropy[:, 2] = 1.0, 2.0, 3.0
    made = plan(record, FreezeEntries(0.5, scope="layer", ties="strict"))
    assert [(head.entries, head.zeros) for head in made.layers[0].heads] == [(81, 0), (81, 81), (0, 0)]
    ((mask, values),) = masks(made, record)
    np.testing.assert_array_equal(values[:, 0], site.mean[:, 0])
    assert mask[:, 1].all()
    assert not values[:, 1:].any()


def test_constants_are_the_means_and_zero_outside_the_mask(draw_record):
    record = draw_record(WINDOWED, masked=True)
    for (mask, values), site in zip(masks(plan(record, FreezeEntries(0.3)), record), record.sites.values(), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, np.where(mask, site.mean, 0))


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["head", "layer", "model"]))
def test_a_larger_ratio_freezes_what_a_smaller_one_does_and_more(draw_record, one, other, scope):
    record = draw_record(SHAPES)
    few, many = (masks(plan(record, FreezeEntries(ratio, scope=scope)), record) for ratio in sorted((one, other)))
    for (smaller, _), (larger, _) in zip(few, many, strict=True):
        assert (smaller <= larger).all()


def test_an_edited_count_freezes_that_many_and_leaves_the_other_heads_alone(draw_record):
    record = draw_record(SHAPES)
    made = plan(record, FreezeEntries(0.25, by="random", seed=3))
    before, after = masks(made, record), masks(edited(made, 1, 2, entries=50), record)
    assert after[1][0][:, 2].sum() == 50
    assert (before[1][0][:, 2] <= after[1][0][:, 2]).all()
    np.testing.assert_array_equal(before[1][0][:, :2], after[1][0][:, :2])
    np.testing.assert_array_equal(before[0][0], after[0][0])


def test_a_count_beyond_the_unprotected_entries_is_an_error_that_names_the_head(draw_record):
    record = draw_record(SHAPES)
    made = edited(plan(record, FreezeEntries(0.25, protect=["cls-rows"])), 1, 2, entries=80)
    with pytest.raises(VitfrostError, match=r"layers\[1\]\.heads\[2\]\.entries is 80, but only 72 can be frozen"):
        frozen_maps(made, record.sites["blocks.1.attn"], made.layers[1])


@pytest.mark.parametrize("scope", ["head", "layer", "model"])
def test_too_high_a_ratio_names_the_highest_possible_one(draw_record, scope):
    record = draw_record(SHAPES)
    with pytest.raises(VitfrostError, match=r"FreezeEntries.ratio is 0.95, .* at most 0.7901 can be frozen"):
        plan(record, FreezeEntries(0.95, protect=["cls-rows", "cls-columns"], scope=scope))
    made = plan(record, FreezeEntries(0.7901, protect=["cls-rows", "cls-columns"], scope=scope))
    assert summary(made)["frozen_entries"] == (6 * 63 if scope == "head" else 2 * 191 if scope == "layer" else 383)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (FreezeEntries, {"ratio": 1.5}, "FreezeEntries.ratio is 1.5; it should be less than or equal to 1"),
        (FreezeEntries, {"ratio": -0.1}, "ratio is -0.1; it should be greater than or equal to 0"),
        (FreezeEntries, {"ratio": float("nan")}, "ratio is nan"),
        (FreezeEntries, {"bits": 9}, "bits is 9; it should be 2, 3, 4, 5, 6, 7, 8 or 32"),
        (Quantize, {"weights": 1}, "weights is 1; it should be 2"),
        (Quantize, {"activations": 16}, "activations is 16; it should be 2"),
        (FreezeEntries, {"grid": "row"}, "grid is 'row'; it should be 'layer' or 'head'"),
        (FreezeEntries, {"by": "entrop"}, "by is 'entrop'; it should be one of entropy, mean"),
        (FreezeEntries, {"scope": "map"}, "scope is 'map'; it should be 'head', 'layer' or 'model'"),
        (FreezeHeads, {"unit": "row"}, "unit is 'row'; it should be 'head' or 'layer'"),
        (FreezeEntries, {"ties": "lt"}, "ties is 'lt'"),
        (Quantize, {"levels": "some"}, "levels is 'some'"),
        (FreezeEntries, {"order": "merge"}, "order is 'merge'"),
        (FreezeEntries, {"seed": -1}, "seed is -1"),
        (FreezeEntries, {"protect": ["cls"]}, r"protect\[0\] is 'cls'; it should be 'cls-rows' or 'cls-columns'"),
    ],
)
def test_fields_out_of_range_give_one_line(method, fields, message):
    with pytest.raises(VitfrostError, match=message) as caught:
        method(**fields)
    assert "\n" not in str(caught.value)


def test_protection_without_prefix_tokens_is_an_error(draw_record):
    with pytest.raises(VitfrostError, match="no class token"):
        plan(draw_record(WINDOWED, prefix_tokens=0), FreezeEntries(protect=["cls-rows"]))


def test_statistics_that_are_not_finite_are_refused_unless_masked(draw_record):
    record = draw_record(WINDOWED, masked=True)
    site = record.sites["blocks.1.attn"]
    site.entropy[~np.broadcast_to(site.allowed[:, None], site.entropy.shape)] = np.nan
    plan(record, FreezeEntries(0.2))
    site.entropy[0, 0, 0, 0] = np.nan
    with pytest.raises(VitfrostError, match=r"blocks.1.attn hold values that are not finite"):
        plan(record, FreezeEntries(0.2))


def test_statistics_of_another_shape_are_refused(draw_record):
    made = plan(draw_record(SHAPES))
    with pytest.raises(VitfrostError, match=r"maps \[1, 3, 8, 8\], the plan has \[1, 3, 9, 9\]"):
        frozen_maps(made, draw_record([(1, 3, 8, 8)]).sites["blocks.0.attn"], made.layers[0])


def test_no_freezing_needs_no_statistics_and_ratio_zero_leaves_every_head_computed(draw_record, identity):
    record = draw_record(SHAPES)
    quantize = Quantize(8, 32)
    unfrozen = unfrozen_plan(identity, record.header.sites, quantize)
    assert unfrozen.statistics is None
    for made in (unfrozen, plan(record, Quantize()), plan(record, FreezeEntries(0.0))):
        assert {head for layer in made.layers for head in layer.heads} == {HeadPlan(source="computed")}
        assert not any(mask.any() or values.any() for mask, values in masks(made, record))
    assert plan(record, Quantize()).freeze is None
    assert plan(record, FreezeEntries(0.0)).freeze is not None


def test_the_verb_writes_the_plan_it_returns(draw_record, tmp_path):
    made = vitfrost.plan(draw_record(WINDOWED, masked=True), FreezeEntries(0.3, ties="strict", scope="model"), out=tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == made


def test_the_summary_counts_unmasked_entries_and_whole_heads(draw_record):
    record = draw_record(WINDOWED, masked=True)
    made = plan(record, FreezeEntries(0.5))
    per_head = int(record.sites["blocks.1.attn"].allowed.sum())
    made = edited(made, 1, 0, source="frozen", entries=per_head)
    found = summary(made)
    assert found["layers"][1]["entries"] == 3 * per_head
    assert found["layers"][1]["frozen_entries"] == per_head + 2 * (per_head // 2)
    assert [layer["frozen_heads"] for layer in found["layers"]] == [0, 1]
    assert found["frozen_entries"] == sum(mask.sum() for mask, _ in masks(made, record))
    assert found["fraction"] == pytest.approx(found["frozen_entries"] / found["entries"])


def test_statistics_given_are_not_changed(draw_record):
    record = draw_record(WINDOWED, masked=True)
    before = {name: dataclasses.replace(site, entropy=site.entropy.copy(), mean=site.mean.copy()) for name, site in record.sites.items()}
    masks(plan(record, FreezeEntries(0.4, ties="strict", protect=["cls-rows"])), record)
    for name, site in record.sites.items():
        np.testing.assert_array_equal(site.entropy, before[name].entropy)
        np.testing.assert_array_equal(site.mean, before[name].mean)
        np.testing.assert_array_equal(site.allowed, before[name].allowed)
