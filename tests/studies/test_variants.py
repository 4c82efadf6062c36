"""Which variants a grid has: combinations, baselines, what a seed can change, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vitfrost.errors import VitfrostError
from vitfrost.studies.recipe import load_study, load_study_list
from vitfrost.studies.variants import UNFROZEN, expand, variant_from

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "eam"
BASE: dict[str, Any] = {
    "kind": "vitfrost recipe",
    "version": 1,
    "model": {"name": "vitfrost_digits"},
    "calibration": {"images": "images", "limit": 12},
    "evaluation": {"images": "images"},
}


def _write(folder: Path, blocks: list[dict[str, Any]], **grid: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE | {"grid": {"blocks": blocks} | grid}))
    return path


def test_every_combination_once_with_one_baseline_per_seed(tmp_path: Path) -> None:
    block = {"name": "EAM", "freeze": [0.0, 0.1, 0.5], "statistics": ["fp32", "quantized"], "frozen_bits": [32, 4]}
    again = {"name": "the same", "freeze": 0.1, "statistics": "fp32", "frozen_bits": 4}
    variants = expand(load_study(_write(tmp_path, [block, again], seeds=[0, 1, 2])))
    baselines = [variant for variant in variants if variant.block == UNFROZEN]
    assert [variant.seed for variant in baselines] == [0, 1, 2]
    assert len(variants) == 3 * (1 + 2 * 2 * 2)
    assert len({variant.key for variant in variants}) == len(variants)
    assert {variant.source.observed for variant in variants if variant.freeze > 0} == {"fp32-12"} | {f"w4a4-seed{s}-12" for s in range(3)}
    for name in {variant.source.model for variant in variants}:  # a model's baseline stands before its variants
        assert next(variant for variant in variants if variant.source.model == name).block == UNFROZEN
    assert all(variant_from(variant.as_dict()) == variant for variant in variants)


def test_a_seed_counts_only_where_it_changes_something(tmp_path: Path) -> None:
    full = {"weight_bits": 32, "activation_bits": 32, "frozen_bits": 32, "freeze": 0.2}
    blocks = [{"name": "entropy", **full}, {"name": "random", "by": "random", **full}]
    variants = expand(load_study(_write(tmp_path, blocks, seeds=[3, 4])))
    assert [(variant.block, variant.seed, variant.plan["seed"]) for variant in variants] == [
        ("entropy", 0, 0), ("random", 3, 3), ("random", 4, 4)
    ]  # fmt: skip
    assert {variant.source.model for variant in variants} == {"fp32"}


def test_lists_of_protected_parts_and_block_seeds(tmp_path: Path) -> None:
    block = {"name": "x", "freeze": 0.2, "protect": [[], ["cls-rows"]], "seeds": [7]}
    variants = [variant for variant in expand(load_study(_write(tmp_path, [block]))) if variant.freeze > 0]
    assert [variant.plan["protect"] for variant in variants] == [(), ("cls-rows",)]
    assert {variant.seed for variant in variants} == {7}
    assert variants[1].title.endswith("protect cls-rows")
    one = {"name": "x", "freeze": 0.2, "protect": ["cls-rows", "cls-columns"]}
    assert expand(load_study(_write(tmp_path, [one])))[-1].plan["protect"] == ("cls-rows", "cls-columns")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"name": "x", "frezee": [0.1]}, "frezee is not known here"),
        ({"name": "x", "freeze": [1.5]}, "freeze is 1.5"),
        ({"name": "x", "by": ["entropy", "luck"]}, "by is 'luck'"),
        ({"name": "x", "freeze": [0.1, 0.1]}, "freeze names a value twice"),
        ({"name": "x", "statistics": "int8"}, "statistics is 'int8'"),
        ({"name": "x", "statistics_images": [0]}, "statistics_images"),
        ({"name": "x", "seeds": []}, "seeds"),
    ],
)
def test_a_wrong_block_is_told_in_one_line(tmp_path: Path, block: dict[str, Any], said: str) -> None:
    path = _write(tmp_path, [block])
    with pytest.raises(VitfrostError) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert "grid.blocks[0]" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_quantized_statistics_need_something_quantized(tmp_path: Path) -> None:
    block = {"name": "x", "weight_bits": 32, "activation_bits": 32, "statistics": "quantized"}
    with pytest.raises(VitfrostError, match="block 'x': statistics is 'quantized', but nothing is quantized"):
        expand(load_study(_write(tmp_path, [block])))


def test_a_grid_needs_images_to_be_measured_on(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    data = {key: value for key, value in BASE.items() if key != "evaluation"}
    path.write_text(yaml.safe_dump(data | {"grid": {"blocks": [{"name": "x"}]}}))
    with pytest.raises(VitfrostError, match="evaluation is missing"):
        load_study(path)


def test_a_seed_of_the_plan_would_have_no_effect_on_a_grid(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE | {"plan": {"by": "random", "seed": 3}, "grid": {"blocks": [{"name": "x"}]}}))
    with pytest.raises(VitfrostError, match=r"plan\.seed has no effect in a grid, which has seeds of its own; write grid\.seeds"):
        load_study(path)


def test_quick_overlays_part_by_part_and_must_be_there(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"name": "x", "freeze": [0.1, 0.2]}], seeds=[0, 1])
    with pytest.raises(VitfrostError, match="has no quick variant"):
        load_study(path, quick=True)
    data = yaml.safe_load(path.read_text()) | {"quick": {"grid": {"seeds": [5]}, "evaluation": {"limit": 3}}}
    path.write_text(yaml.safe_dump(data))
    quick, full = load_study(path, quick=True), load_study(path)
    assert (quick.grid.seeds, quick.evaluation.limit) == ([5], 3)
    assert quick.grid.blocks == full.grid.blocks
    assert (full.grid.seeds, full.evaluation.limit) == ([0, 1], None)


def test_the_papers_recipes_hold_the_papers_grid() -> None:
    listed = load_study_list(RECIPES / "all.yaml")
    assert listed is not None
    published = {}
    for path in listed:
        recipe = load_study(path)
        quick = load_study(path, quick=True)
        assert recipe.published is not None
        published[path.stem] = (recipe.published.full_precision, recipe.published.quantized, *recipe.published.frozen.values())
        variants = expand(recipe)
        w4a4 = [variant for variant in variants if variant.source.quantizes]
        for seed in range(5):
            own = [variant for variant in w4a4 if variant.seed == seed]
            assert len(own) == 1 + 9 * 2 * 2 + 9
        assert {variant.freeze for variant in variants if not variant.source.quantizes} == {round(0.1 * n, 1) for n in range(1, 10)}
        assert len(expand(quick)) < len(variants) / 4
    # table 1 of the paper
    assert published == {
        "vit_small": (81.39, 64.92, 65.09, 65.19), "vit_base": (84.54, 68.46, 68.18, 68.16), "deit_tiny": (72.21, 57.91, 58.03, 58.02),
        "deit_small": (79.85, 68.58, 68.74, 68.53), "deit_base": (81.80, 75.31, 75.71, 75.64), "swin_tiny": (81.30, 70.67, 70.65, 70.55),
        "swin_small": (83.23, 79.45, 79.79, 79.63),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"recipes": []}, r"recipes is \[\]"),
        ({"recipes": ["a.yaml"], "more": 1}, "more is not known here; the fields are kind, version, recipes"),
        ({"recipes": ["missing.yaml"]}, "no recipe"),
        ({"recipes": ["recipe.yaml", "./recipe.yaml"]}, "a name twice"),
    ],
)
def test_a_wrong_list_is_told_in_one_line(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    _write(tmp_path, [{"name": "x"}])
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump({"kind": "vitfrost recipes", "version": 1} | data))
    with pytest.raises(VitfrostError, match=said):
        load_study_list(path)
