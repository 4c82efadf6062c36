"""Points of a grid: seeds are averaged, differences paired with the unfrozen model of the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.errors import VitfrostError
from vitfrost.evaluation.intervals import bootstrap_over_seeds
from vitfrost.evaluation.results import Row
from vitfrost.runs.recipe import PlanPart
from vitfrost.studies.outcome_files import Outcome, load_outcome, load_outcomes, outcome_path
from vitfrost.studies.summary import between, points, select
from vitfrost.studies.table import format_points
from vitfrost.studies.variants import UNFROZEN, Source, Variant, changed_options

IMAGES = 60


def _row(name: str, images_hash: str = "h") -> Row:
    return Row(
        name=name, kind="simulated", runtime="torch", threads=1, precision="W4/A4", images=IMAGES, images_hash=images_hash, labeled=True,
        weight_tag="t", state_hash="s",
    )  # fmt: skip


def _outcome(seed: int, freeze: float, wrong: int, by: str = "entropy", block: str = "EAM", **options: object) -> Outcome:
    source = Source(4, 4, "published", seed, "fp32", 0 if freeze == 0 else 12)
    variant = Variant.of(UNFROZEN if freeze == 0 else block, source, PlanPart(freeze=freeze, by=by, seed=seed, **options))
    return Outcome(variant, "c", _row(variant.title), np.arange(IMAGES) >= wrong, int(1000 * freeze), 1000)


def test_points_average_seeds_and_pair_them_with_their_own_baseline() -> None:
    outcomes = [_outcome(0, 0.0, 6), _outcome(1, 0.0, 12), _outcome(0, 0.5, 12), _outcome(1, 0.5, 15), _outcome(0, 0.1, 6)]
    by_share = {point.freeze: point for point in points(outcomes)}
    half = by_share[0.5]
    assert half.seeds == (0, 1)
    assert half.correct.mean(axis=1).tolist() == [0.8, 0.75]
    assert half.top1.value == pytest.approx(77.5)
    assert half.baseline.mean(axis=1).tolist() == [0.9, 0.8]
    assert half.difference.value == pytest.approx(-7.5)
    assert half.difference.interval is not None
    assert half.difference.interval[0] < -7.5 < half.difference.interval[1]
    assert half.share == 0.5
    assert by_share[0.1].seeds == (0,)
    assert [point.freeze for point in select(by_share.values(), "EAM", by="entropy", statistics="fp32")] == [0.1, 0.5]
    assert all(part.row_count == 3 for part in format_points(list(by_share.values())).renderables)
    other = points([*outcomes, _outcome(0, 0.3, 1, renormalize="mass", protect=["cls-rows"])])[-1]
    assert changed_options(other.options) == ["protect cls-rows", "renormalize mass"]


def test_between_pairs_the_seeds_that_both_have() -> None:
    outcomes = [_outcome(seed, 0.0, 6) for seed in range(3)]
    outcomes += [_outcome(seed, 0.5, 12) for seed in range(3)] + [_outcome(seed, 0.5, 18, by="random") for seed in (1, 2, 0)]
    found = {point.options["by"]: point for point in points(outcomes) if point.block == "EAM"}
    assert between(found["entropy"], found["random"]).value == pytest.approx(10.0)
    lonely = points([_outcome(0, 0.0, 6), _outcome(1, 0.0, 6), _outcome(0, 0.5, 12), _outcome(1, 0.2, 12)])
    assert between(lonely[1], lonely[2]).value == 0.0  # single seeds are paired as they are


def test_a_missing_or_foreign_baseline_is_told() -> None:
    with pytest.raises(VitfrostError, match="the unfrozen model of w4a4-seed0 has not been measured"):
        points([_outcome(0, 0.5, 3)])
    foreign = replace(_outcome(0, 0.0, 3), row=_row("x", "other"))
    with pytest.raises(VitfrostError, match="measured on other images"):
        points([foreign, _outcome(0, 0.5, 3)])


def test_outcomes_survive_their_files_and_damage_is_told(tmp_path: Path) -> None:
    outcome = _outcome(0, 0.5, 7)
    assert outcome.correct is not None
    outcome.save(tmp_path)
    assert outcome.variant is not None
    path = outcome_path(tmp_path, outcome.variant)
    again = load_outcome(path)
    assert again.variant == outcome.variant
    assert again.row == outcome.row
    assert np.array_equal(again.correct, outcome.correct)  # type: ignore[arg-type]
    other = _outcome(0, 0.1, 7).variant
    assert other is not None
    assert [found.variant for found in load_outcomes(tmp_path, [other, outcome.variant])] == [outcome.variant]
    path.write_text(path.read_text().replace('"fp32"', '"fp64"', 1).replace('"plan"', '"plane"'))
    with pytest.raises(VitfrostError, match=f"{path.name} is damaged"):
        load_outcome(path)


@given(
    seeds=st.integers(1, 6), images=st.integers(2, 40), rate=st.floats(0, 1), shift=st.floats(0, 1), draw=st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_intervals_over_seeds_hold_their_value_and_are_repeatable(seeds: int, images: int, rate: float, shift: float, draw: int) -> None:
    rng = np.random.default_rng(draw)
    reference = rng.random((seeds, images)) < rate
    model = reference ^ (rng.random((seeds, images)) < shift)
    found = bootstrap_over_seeds(model, reference, draws=200)
    assert found == bootstrap_over_seeds(model, reference, draws=200)
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.value == pytest.approx(100 * (model.mean() - reference.mean()))
    assert bootstrap_over_seeds(reference, model, draws=200).value == pytest.approx(-found.value)
    assert bootstrap_over_seeds(model, model, draws=50).interval == (0.0, 0.0)


def test_intervals_over_seeds_cover_about_as_often_as_they_say() -> None:
    """Seeds and images both vary; the true mean lies in 95 % intervals of 200 repetitions at least 180 times."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        by_seed = rng.normal(0.7, 0.02, size=(5, 1))
        hard = rng.random((1, 300)) < 0.2
        model = rng.random((5, 300)) < np.where(hard, by_seed - 0.4, by_seed + 0.1)
        interval = bootstrap_over_seeds(model, seed=1, draws=300).interval
        assert interval is not None
        covered += interval[0] <= 70.0 <= interval[1]
    assert covered >= 180
