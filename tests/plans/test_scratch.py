"""Plans without statistics, and the command `plan` with every option of the two new parts."""

from __future__ import annotations

import pytest

from vitfrost.configs import Calibrate, Compact, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.map_sources.hallucinated import sources
from vitfrost.model import Model
from vitfrost.plans.choose import plan
from vitfrost.plans.fits import check_fits
from vitfrost.plans.schema import Plan
from vitfrost.statistics.calibrate import calibrate
from vitfrost.vit.families import find_sites

from ..models import random_model

ALL = [
    "--hallucinate", 0.4, "--mix", "ridge", "--ridge", 0.5, "--space", "logits", "--inter-map", "pair", "--intra-map", "5x5",
    "--prefix", "include", "--map-bias", "no", "--compact", 0.25, "--compact-init", "weights", "--compact-blocks", "transformer",
    "--branches", 3, "--branch-norm", "batch", "--expand", "--identity", "--noise", 0.5,
]  # fmt: skip
HALLUCINATED = {
    "share": 0.4, "mix": "ridge", "ridge": 0.5, "space": "logits", "inter_map": "pair", "intra_map": "5x5", "prefix": "include",
    "bias": False,
}  # fmt: skip
DRAWN = ["--hallucinate-by", "random", "--hallucinate-seed", 4]
COMPACTED = Compact(
    ratio=0.25, init="weights", blocks="transformer", branches=3, norm="batch", expand=True, identity=True, noise=0.5
)  # fmt: skip


@pytest.fixture(scope="module")
def statistics(pictures, tmp_path_factory):
    """Statistics of the digits model, with and without similarity."""
    folder = tmp_path_factory.mktemp("statistics")
    for name, similarity in (("with", True), ("without", False)):
        calibrate(
            "vitfrost_digits", pictures, Calibrate(limit=8, similarity=similarity), out=folder / f"{name}.safetensors", progress=False
        )
    return folder


def test_a_model_alone_gives_a_plan_that_fits_it():
    made = plan(Model.open("vitfrost_digits", weights="random"), Hallucinate(0.5), Compact(0.5))
    loaded = Model.open("vitfrost_digits", weights="random")
    sites = find_sites(loaded.module)
    check_fits(made, loaded.identity, sites.signature(), [site.signature() for site in sites.feed_forward])
    assert made == plan(loaded, Hallucinate(share=0.5, by="first"), Compact())
    assert (made.statistics, made.freeze) == (None, None)
    assert (made.quantize.weights, made.quantize.activations) == (32, 32)
    for layer, site in zip(made.layers, sites.attention, strict=True):
        assert layer.logit_heads == tuple(range(-(-site.heads // 2)))
        assert sources(layer) == tuple(range(site.heads // 2))
    assert all(block.rank == round(0.5 * block.width) for block in made.feed_forward)
    assert plan(Model.open("vitfrost_digits", weights="random"), Quantize(32, 32)).plain().keys() == {
        "kind",
        "version",
        "model",
        "statistics",
        "freeze",
        "quantize",
        "layers",
    }


def test_pooled_blocks_and_convolution_blocks_are_told_apart():
    made = plan(Model.open("nextvit_small", weights="random", image_size=64), Compact(0.25, blocks="transformer"))
    ranks = [block.rank for block in made.feed_forward]
    assert None in ranks
    assert sum(rank is not None for rank in ranks) == len(made.layers)


def test_what_takes_statistics_and_swin_are_refused(tmp_path):
    with pytest.raises(VitfrostError, match="choosing heads by medoids needs their similarity"):
        plan(Model.open("vitfrost_digits", weights="random"), Hallucinate(0.5, by="medoids"))
    swin = random_model("swin_tiny_patch4_window7_224", 64, window_size=2, depths=(1, 1), num_heads=(2, 4), embed_dim=16)
    with pytest.raises(VitfrostError, match="hallucination does not support Swin"):
        plan(swin, Hallucinate(0.5), out=tmp_path / "plan.yaml")
    assert not (tmp_path / "plan.yaml").exists()
    assert plan(swin, Compact(0.5)).feed_forward[0].rank == 8


def test_the_command_reaches_every_option(call, statistics, tmp_path):
    called = call("plan", "--statistics", statistics / "with.safetensors", *ALL, *DRAWN, "--out", tmp_path / "p.yaml")
    assert called.status == 0, called.err
    made = Plan.load(tmp_path / "p.yaml")
    assert made.hallucinate == Hallucinate(**HALLUCINATED, by="random", seed=4)
    assert made.compact == COMPACTED
    assert (made.freeze, made.quantize.weights) == (None, 32)
    heads, blocks = sum(len(layer.hallucinated) for layer in made.layers), len(made.feed_forward)
    assert f"{heads} of {sum(len(layer.heads) for layer in made.layers)} heads hallucinated" in called.out
    assert f"{blocks} feed-forward blocks compact" in called.out


def test_the_command_takes_a_model_instead_of_statistics(call, tmp_path):
    arguments = ["plan", "--model", "vitfrost_digits", "--weights", "random", "--weight-bits", 8, "--levels", "strict", *ALL]
    called = call(*arguments, "--out", tmp_path / "p.yaml")
    assert called.status == 0, called.err
    made = Plan.load(tmp_path / "p.yaml")
    assert made.hallucinate == Hallucinate(**HALLUCINATED, by="first")
    assert made.compact == COMPACTED
    assert (made.statistics, made.freeze, made.quantize.weights, made.quantize.levels) == (None, None, 8, "strict")
    assert made.model.state_hash == Model.open("vitfrost_digits", weights="random").state_hash


@pytest.mark.parametrize(
    ("arguments", "ratio", "hallucinated", "compact"),
    [
        ([], 0.2, False, False),
        (["--hallucinate", 0.5], None, True, False),
        (["--compact", 0.5], None, False, True),
        (["--hallucinate", 0.5, "--compact", 0.5, "--freeze", 0.1], 0.1, True, True),
    ],
)
def test_nothing_is_frozen_unasked_once_something_else_is_done(call, statistics, tmp_path, arguments, ratio, hallucinated, compact):
    called = call("plan", "--statistics", statistics / "with.safetensors", *arguments, "--out", tmp_path / "p.yaml")
    assert called.status == 0, called.err
    made = Plan.load(tmp_path / "p.yaml")
    assert (None if made.freeze is None else made.freeze.ratio) == ratio
    assert (made.hallucinate is not None, made.compact is not None) == (hallucinated, compact)
    assert made.hallucinate is None or made.hallucinate.by == "medoids"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hallucinate", 0.5], "give either --statistics FILE or --model NAME"),
        (["--model", "vitfrost_digits", "--weights", "random", "--freeze", 0.2], "freezing by what maps are takes their statistics"),
        (
            ["--model", "vitfrost_digits", "--weights", "random", "--hallucinate", 0.5, "--hallucinate-by", "medoids"],
            "needs their similarity",
        ),
        (["--statistics", "with", "--weights", "random"], "--weights goes with --model; statistics know their model"),
        (["--statistics", "without", "--hallucinate", 0.5], "calibrate with --similarity"),
        (["--statistics", "with", "--hallucinate", 1.5], "hallucinate is 1.5; it should be less than 1"),
        (["--statistics", "with", "--compact", 1.5], "compact is 1.5; it should be less than 1"),
    ],
)
def test_the_command_refuses_in_one_line(call, statistics, tmp_path, arguments, message):
    places = {name: statistics / f"{name}.safetensors" for name in ("with", "without")}
    called = call("plan", *(places.get(word, word) for word in arguments), "--out", tmp_path / "p.yaml")
    assert called.status == 2
    assert message in called.err
    assert called.err.count("\n") == 1
    assert not (tmp_path / "p.yaml").exists()
