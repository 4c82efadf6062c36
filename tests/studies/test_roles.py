"""Which lines are which figure follows from their options alone."""

from __future__ import annotations

from typing import Any

import pytest

from vitfrost.studies.recipe import StudyRecipe
from vitfrost.studies.roles import FULL, MOST_LINES, Line, Roles, assign, line_title, lines_of, names
from vitfrost.studies.variants import expand

SHARES = [0.1, 0.2, 0.5]
PAPER: dict[str, Any] = {"freeze": SHARES, "statistics": ["fp32", "quantized"], "frozen_bits": [32, 4]}
RANDOM: dict[str, Any] = {"freeze": SHARES, "by": "random", "statistics": "quantized"}
ALONE: dict[str, Any] = {"freeze": SHARES, "by": ["entropy", "random"], "weight_bits": 32, "activation_bits": 32, "frozen_bits": 32}


def roles_of(*blocks: dict[str, Any], names: str = "abcdefgh", **plan: Any) -> Roles:
    recipe = {
        "model": {"name": "m"},
        "calibration": {"images": "i"},
        "plan": plan,
        "evaluation": {"images": "i"},
        "grid": {"seeds": [0, 1], "blocks": [{"name": name} | block for name, block in zip(names, blocks, strict=False)]},
    }
    return assign(lines_of(expand(StudyRecipe.model_validate(recipe)), []))


def cells(lines: list[Line]) -> list[tuple[str, int]]:
    return [line.cell for line in lines]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_the_papers_grid(order: tuple[int, ...]) -> None:
    blocks = [PAPER, RANDOM, ALONE]
    roles = roles_of(*(blocks[index] for index in order), names="xyz")
    assert roles.bits == (4, 4)
    assert cells(roles.paper)[:2] == [("quantized", 4), ("fp32", 32)]
    assert set(cells(roles.paper)[2:]) == {("quantized", 32), ("fp32", 4)}
    assert roles.main is roles.paper[0]
    assert roles.control is not None
    assert roles.control[0] is roles.main
    assert (roles.control[1].by, roles.control[1].cell) == ("random", ("quantized", 4))
    assert [(line.by, line.bits) for line in roles.alone] == [("entropy", FULL), ("random", FULL)]
    assert roles.panels == []
    assert roles.images == []
    assert roles.main.expected == {0.1: 2, 0.2: 2, 0.5: 2}


def test_blocks_of_one_line_are_put_together() -> None:
    roles = roles_of(PAPER, {"freeze": [0.2, 0.9], "statistics": "quantized", "seeds": [0, 1, 2]})
    assert roles.main is not None
    assert roles.main.expected == {0.1: 2, 0.2: 3, 0.5: 2, 0.9: 3}
    assert len(roles.paper) == 4


def test_other_options_of_the_whole_grid_do_not_take_its_role() -> None:
    roles = roles_of(PAPER, RANDOM, scope="model", renormalize="mass")
    assert len(roles.paper) == 4
    assert roles.control is not None
    assert roles.panels == []


def test_other_criteria_are_compared_with_entropy_and_random() -> None:
    roles = roles_of(PAPER, RANDOM, {"freeze": SHARES, "by": ["mean", "variance"], "statistics": "quantized"})
    (panel,) = roles.panels
    assert [line.by for line in panel.lines] == ["entropy", "random", "mean", "variance"]
    assert panel.lines[0] is roles.main
    assert (panel.title, panel.shares) == ("W4/A4: criterion", SHARES)
    assert names(panel.lines) == ["entropy", "random", "lowest mean", "lowest variance"]


def test_too_many_lines_are_split_by_what_differs() -> None:
    everything = ["mean", "variance", "largest-entropy", "output-error", "output-error-joint", "fisher"]
    roles = roles_of(
        PAPER, RANDOM, {"freeze": SHARES, "by": everything, "statistics": "quantized"},
        {"freeze": [0.2, 0.5], "scope": ["layer", "model"], "statistics": "quantized"},
    )  # fmt: skip
    assert [panel.title for panel in roles.panels] == ["W4/A4: criterion", "W4/A4: scope"]
    assert all(len(panel.lines) <= MOST_LINES for panel in roles.panels)
    assert names(roles.panels[1].lines) == ["per head", "per layer", "whole model"]
    assert roles.panels[1].shares == [0.2, 0.5]
    shown = {id(line) for panel in roles.panels for line in panel.lines}
    assert len(shown) == 2 + len(everything) + 2


def test_lines_of_a_single_share_are_ranked_at_it() -> None:
    roles = roles_of(
        PAPER, RANDOM, {"freeze": [0.5], "by": ["mean", "entropy"], "scope": "model", "statistics": "quantized"},
        {"freeze": [0.2, 0.5], "by": "fisher", "statistics": "quantized"},
    )  # fmt: skip
    (panel,), (ranking,) = roles.panels, roles.rankings
    assert [line.by for line in panel.lines] == ["entropy", "random", "fisher"]
    assert (ranking.bits, ranking.share) == ((4, 4), 0.5)
    assert ranking.lines[0] is roles.main
    labels = [line_title(line, ranking.lines[0]) for line in ranking.lines]
    assert labels[:2] == ["entropy", "random"]
    assert {"lowest mean, whole model", "entropy, whole model", "Fisher"} <= set(labels)
    assert len(labels) == len(set(labels)) == 4 + 1 + 3


def test_other_bits_have_a_panel_of_their_own() -> None:
    roles = roles_of(
        PAPER, {"freeze": SHARES, "by": ["random", "entropy"], "weight_bits": 6, "activation_bits": 6, "statistics": "quantized"}
    )
    (panel,) = roles.panels
    assert panel.bits == (6, 6)
    assert [line.by for line in panel.lines] == ["entropy", "random"]


def test_the_number_of_images_is_a_family() -> None:
    roles = roles_of(PAPER, {"freeze": [0.2], "statistics": "quantized", "statistics_images": [10, 100]})
    (family,) = roles.images
    assert [line.options["statistics_images"] for line in family] == [10, 100, 1000]
    assert family[-1] is roles.main
    assert roles.panels == []


@pytest.mark.parametrize("block", [RANDOM, ALONE, {"freeze": [0.2], "by": "mean", "statistics": "fp32"}])
def test_a_grid_of_one_block_has_a_role_for_every_line(block: dict[str, Any]) -> None:
    roles = roles_of(block)
    shown = [*roles.paper, *roles.alone, *(line for part in (*roles.panels, *roles.rankings) for line in part.lines)]
    assert shown
    assert roles.paper == []
    assert roles.control is None
