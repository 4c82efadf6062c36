"""Hallucinated heads and compact blocks in the plan's file: order and sources, old files unchanged, and what is refused."""

from __future__ import annotations

import hashlib
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.configs import Compact, FreezeEntries, Hallucinate
from vitfrost.errors import VitfrostError
from vitfrost.map_sources.hallucinated import sources
from vitfrost.plans.choose import plan, summary
from vitfrost.plans.fits import check_fits
from vitfrost.plans.heads import HeadPlan, LayerPlan
from vitfrost.plans.schema import Plan

SHAPES = [(1, 4, 5, 5), (1, 3, 5, 5)]
OLD = {
    "kind": "vitfrost plan", "version": 1,
    "model": {"name": "vitfrost_digits", "image_size": [32, 32], "weight_tag": "random:0", "state_hash": "ab" * 32, "classes": 10},
    "statistics": {"hash": "cd" * 32, "images_hash": "ef" * 32, "images": 64, "precision": "fp32", "observed": "before"},
    "freeze": {"ratio": 0.25, "by": "mean", "ties": "strict", "protect": ["cls-rows"]},
    "quantize": {"weight_bits": 4, "activation_bits": 8},
    "layers": [
        {"site": "blocks.0.attn", "maps": [1, 3, 5, 5], "prefix_tokens": 1,
         "heads": [{"source": "computed"}, {"source": "frozen", "entries": 7, "zeros": 2}, {"source": "frozen", "entries": 1}]},
        {"site": "blocks.1.attn", "maps": [2, 2, 4, 4], "unmasked": 20, "heads": [{"source": "computed"}, {"source": "computed"}]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(draw_record):
    return plan(draw_record(SHAPES), FreezeEntries(0.2), Hallucinate(0.5, by="first"), Compact(0.5))


@pytest.fixture
def written(made, tmp_path):
    made.save(tmp_path / "plan.yaml")
    return tmp_path / "plan.yaml"


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(VitfrostError) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_plans_without_the_new_parts_keep_their_hash_and_their_bytes(tmp_path):
    """As they were before there were hallucinated heads and compact blocks."""
    old = Plan.parse(OLD, "old")
    old.save(tmp_path / "plan.yaml")
    assert old.content_hash == "8fe576e86cdac32a7af2d5e8af02808cf00f892c35d6ab8fa54819cd4a260936"
    written = hashlib.sha256((tmp_path / "plan.yaml").read_bytes()).hexdigest()
    assert written == "2461d6fc396c8416052d6e0cfbf3563d1314b8db3d5c17e9da76bfd6e46e9dde"
    assert not {"hallucinate", "compact", "feed_forward"} & old.plain().keys()


def test_a_plan_with_them_survives_its_file(made, written, tmp_path):
    loaded = Plan.load(written)
    assert loaded == made
    assert loaded.content_hash == made.content_hash
    loaded.save(tmp_path / "two.yaml")
    assert written.read_bytes() == (tmp_path / "two.yaml").read_bytes()
    assert Plan.parse(made.plain(), "config.json") == Plan.parse(made.model_dump(mode="json"), "config.json") == made


def test_the_file_says_each_head_and_block_on_one_line(written):
    text = written.read_text()
    assert "#   {source: hallucinated, like: K} drops" in text
    assert "# - feed_forward, one line per block" in text
    heads = ["  - {source: frozen, entries: 5}", "  - {source: hallucinated, like: 0}", "  - {source: hallucinated, like: 1}"]
    assert [text.count(f"{line}\n") for line in heads] == [4, 2, 1]
    assert text.count("- {site: blocks.1.mlp, width: 24, hidden: 96, rank: 12}\n") == 1
    assert max(map(len, text.splitlines())) <= 140


def test_the_summary_counts_them(made):
    found = summary(made)
    assert (found["heads"], found["hallucinated_heads"], found["compact_blocks"]) == (7, 3, 2)
    assert [layer["hallucinated_heads"] for layer in found["layers"]] == [2, 1]
    assert found["frozen_entries"] == 4 * 5


heads_of_a_layer = st.lists(st.sampled_from(["computed", "frozen", "hallucinated"]), min_size=1, max_size=9).filter(
    lambda kinds: set(kinds) != {"hallucinated"}
)


@given(heads_of_a_layer, st.randoms(use_true_random=False))
def test_order_and_sources_of_any_layer(kinds, random):
    with_logits = [number for number, kind in enumerate(kinds) if kind != "hallucinated"]
    likes = {number: random.choice([None, *with_logits]) for number, kind in enumerate(kinds) if kind == "hallucinated"}
    heads = tuple(HeadPlan(source=kind, entries=int(kind == "frozen"), like=likes.get(number)) for number, kind in enumerate(kinds))
    layer = LayerPlan(site="a", maps=(1, len(kinds), 2, 2), heads=heads)
    assert sorted(layer.order) == list(range(len(kinds)))
    assert layer.order == layer.logit_heads + layer.hallucinated
    assert list(layer.logit_heads) == with_logits
    assert list(layer.hallucinated) == sorted(likes)
    for head, source in zip(layer.hallucinated, sources(layer), strict=True):
        below = [other for other in with_logits if other < head]
        assert source == (likes[head] if likes[head] is not None else below[-1] if below else with_logits[0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{source: hallucinated, like: 1}",
            "{source: hallucinated, like: 2}",
            "layers[0].heads[3].like is 2; it should be one of the heads 0, 1",
        ),
        (
            "{source: hallucinated, like: 1}",
            "{source: hallucinated, like: 9}",
            "layers[0].heads[3].like is 9; it should be one of the heads 0, 1",
        ),
        ("{source: hallucinated, like: 1}", "{source: hallucinated, like: -1}", "layers[0].heads[3].like is -1; it should be greater"),
        (
            "{source: hallucinated, like: 1}",
            "{source: computed, like: 1}",
            "layers[0].heads[3].like is 1, but a computed head has none",
        ),
        (
            "{source: hallucinated, like: 1}",
            "{source: hallucinated, entries: 2}",
            "layers[0].heads[3].entries is 2, but a hallucinated head",
        ),
        ("{source: hallucinated, like: 1}", "{source: hallucinated, zeros: 2}", "layers[0].heads[3].zeros is 2, more than the 0"),
        (
            "{source: frozen, entries: 5}\n  - {source: frozen, entries: 5}",
            "{source: hallucinated}\n  - {source: hallucinated}",
            "layers[0].heads are hallucinated, but none is left to make their maps of; leave at least one",
        ),
        (
            "maps: [1, 4, 5, 5]",
            "maps: [2, 4, 5, 5]",
            "layers[0].heads are hallucinated, but the maps have 2 windows; hallucination does not",
        ),
        (
            "name: vitfrost_digits",
            "name: swin_tiny_patch4_window7_224",
            "layers[0].heads[2].source is 'hallucinated', but hallucination does not",
        ),
        ("share: 0.5", "share: 1.0", "hallucinate.share is 1.0; it should be less than 1"),
        ("share: 0.5", "share: half", "hallucinate.share is 'half'; it should be a valid number"),
        ("ridge: 0.001", "ridge: -1", "hallucinate.ridge is -1; it should be greater than or equal to 0"),
        ("ridge: 0.001", "ridge: much", "hallucinate.ridge is 'much'; it should be a valid number"),
        ("bias: true", "bias: 1", "hallucinate.bias is 1; it should be a valid boolean"),
        ("by: first", "by: entropy", "hallucinate.by is 'entropy'; it should be 'medoids', 'explained', 'first' or 'random'"),
        (
            "space: logits\n  inter_map: linear",
            "space: post-softmax\n  inter_map: pair",
            "hallucinate.inter_map is 'pair': a pair-wise scalar",
        ),
        ("branches: 2", "branches: 5", "compact.branches is 5; it should be less than or equal to 4"),
        (
            "norm: batch\n  expand: false\n  identity: false",
            "norm: none\n  expand: false\n  identity: true",
            "compact.identity is true, which needs",
        ),
        (
            "hidden: 96, rank: 12",
            "hidden: 96, rank: 20",
            "feed_forward[0].rank is 20, which saves nothing for a projection from 96 to 24 channels",
        ),
        ("hidden: 96, rank: 12", "hidden: 96, rank: 0", "feed_forward[0].rank is 0; it should be greater than or equal to 1"),
        ("site: blocks.1.mlp", "site: blocks.0.mlp", "feed_forward[1].site is 'blocks.0.mlp', which feed_forward[0] is already"),
    ],
)
def test_nonsense_is_refused_in_one_line(written, old, new, message):
    text = "".join(line for line in written.read_text().splitlines(keepends=True) if not line.startswith("#"))
    assert old in text
    written.write_text(text.replace(old, new, 1))
    line = refusal(written)
    assert message in line
    assert line.startswith(str(written))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("hallucinate", "layers[0].heads[2].source is 'hallucinated', but the plan has no hallucinate part"),
        ("compact", "feed_forward[0].rank is 12, but the plan has no compact part"),
    ],
)
def test_heads_and_ranks_need_their_part(written, part, message):
    data = yaml.safe_load(written.read_text())
    del data[part]
    written.write_text(yaml.safe_dump(data))
    assert message in refusal(written)


def test_the_largest_useful_rank_is_allowed_and_a_block_without_rank(written):
    text = written.read_text()
    written.write_text(text.replace("rank: 12", "rank: 19", 1))
    assert Plan.load(written).feed_forward[0].rank == 19
    written.write_text(text.replace(", rank: 12", "", 1))
    loaded = Plan.load(written)
    assert [block.rank for block in loaded.feed_forward] == [None, 12]
    assert summary(loaded)["compact_blocks"] == 1


def test_a_plan_fits_a_model_with_its_feed_forward_blocks_only(made, draw_record):
    header = draw_record(SHAPES).header
    blocks = [{name: block[name] for name in ("name", "width", "hidden")} for block in header.feed_forward]
    check_fits(made, header.model, header.sites)
    check_fits(made, header.model, header.sites, blocks)
    with pytest.raises(VitfrostError, match=re.escape("feed_forward[1] of the plan is blocks.1.mlp, which vitfrost_digits does not have")):
        check_fits(made, header.model, header.sites, blocks[:1])
    wider = [blocks[0] | {"hidden": 48}, blocks[1]]
    with pytest.raises(VitfrostError, match=r"blocks.0.mlp of width 24 and 96 hidden channels, but the model's has 24 and 48"):
        check_fits(made, header.model, header.sites, wider)


def test_an_old_plan_still_loads_after_every_part_was_added():
    assert isinstance(Plan.parse(OLD, "old"), Plan)
    assert Plan.parse(OLD | {"hallucinate": {"share": 0.0}}, "old").hallucinate == Hallucinate(share=0.0)
