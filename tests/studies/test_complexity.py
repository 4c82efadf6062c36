"""Equations 6 to 9 against counted products, and savings against measure.cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitfrost.evaluation.cost import frozen_savings, macs_by_part
from vitfrost.reporting.parts import Anatomy
from vitfrost.studies.complexity import complexity, savings
from vitfrost.studies.grid_parts import read_grid
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import create_model


def anatomy_of(name: str, image_size: int | None = None) -> Anatomy:
    model = create_model(name, image_size)
    sites = find_sites(model)
    return Anatomy(sites, True, macs_by_part(model, sites))


def test_deit_tiny_by_hand() -> None:
    found = complexity(anatomy_of("deit_tiny_patch16_224"))
    n, d = 197, 192
    ((layers, cells),) = found.table.rows
    assert layers == "0–11"
    expected = [4 * n * d * d, 2 * n * n * d, 4 * n * d * d + 2 * n * n * d, 8 * n * d * d, 12 * n * d * d + 2 * n * n * d]
    assert [cell.value for cell in cells] == [
        "197",
        "192",
        "1",
        *(f"{value / 1e6:,.2f}" for value in expected),
        f"{12 * expected[-1] / 1e6:,.2f}",
    ]
    assert found.equations == found.counted == 12 * expected[-1]


@pytest.mark.parametrize(
    ("name", "size"), [("swin_tiny_patch4_window7_224", 224), ("swin_tiny_patch4_window7_224", 112), ("vitfrost_digits", None),
     ("vitfrost_pvt_tiny", 224), ("pvt_v2_b0", 96), ("pvt_v2_b2_li", 64), ("nextvit_small", 96)],
)  # fmt: skip
def test_equations_agree_with_what_is_counted(name: str, size: int | None) -> None:
    anatomy = anatomy_of(name, size)
    found = complexity(anatomy)
    assert found.equations == found.counted
    assert found.counted + sum(count for _, count in found.beyond) == found.total == sum(anatomy.macs.values())


def test_stages_of_windowed_models_are_told_apart() -> None:
    found = complexity(anatomy_of("swin_tiny_patch4_window7_224"))
    assert [(name, cells[0].value, cells[2].value) for name, cells in found.table.rows] == [
        ("0–1", "49", "64"), ("2–3", "49", "16"), ("4–9", "49", "4"), ("10–11", "49", "1"),
    ]  # fmt: skip


def test_next_vit_by_hand() -> None:
    """M keys to N queries, hidden widths of 2 d and 3 d, and feed-forward blocks behind convolutions, at 224 px."""
    found = complexity(anatomy_of("nextvit_small"))
    rows = {name: dict(zip(found.table.columns, (cell.value for cell in cells), strict=True)) for name, cells in found.table.rows}
    assert list(rows) == ["0", "1–2", "3", "convolution 0–2", "convolution 3–5", "convolution 6–13", "convolution 14–15"]
    n, m, d, wide = 784, 49, 192, 256
    projections, products, feed_forward = 2 * (n + m) * d * d, 2 * n * m * d, 2 * n * wide * 2 * wide
    layer = projections + products + feed_forward
    expected = [projections, products, projections + products, feed_forward, layer, layer]
    costs = [value for column, value in rows["0"].items() if column not in ("N", "M keys", "d", "windows", "MLP's hidden width")]
    assert costs == [f"{value / 1e6:,.2f}" for value in expected]
    assert [rows["0"][column] for column in ("N", "M keys", "d", "windows", "MLP's hidden width")] == ["784", "49", "192", "1", "512"]
    convolution = rows["convolution 0–2"]
    assert [convolution[column] for column in ("N", "M keys", "d", "MLP's hidden width")] == ["3,136", "–", "96", "288"]
    assert convolution["all these layers"] == f"{3 * 2 * 3136 * 96 * 288 / 1e6:,.2f}"


def test_only_wholly_frozen_heads_save_and_constants_cost_bytes(finished_grid: Path) -> None:
    parts = read_grid(finished_grid)
    found = savings(parts)
    assert found is not None
    assert found.rows == len(parts.measured) - 2
    assert found.saving == 2
    rows = {name: [cell.value for cell in cells] for name, cells in found.table.rows}
    assert len(rows) == found.plans == len(found.table.rows)
    sites = parts.anatomy.sites
    whole = {site.name: [site.entries // site.heads] * site.heads for site in sites.attention}
    dense = frozen_savings(whole, sites).dense_saved_macs
    for criterion in ("lowest mean", "lowest variance"):
        frozen, saved, ideal, constants = rows[f"W4/A4, {criterion}, 100 %"]
        assert frozen == f"{sum(site.entries for site in sites.attention):,}"
        assert saved.startswith(f"{dense / 1e6:,.2f} M")
        assert ideal.startswith(f"{dense / 1e6:,.2f} M")
        assert constants == "0.1 kB"
    nothing = [saved for name, (_, saved, _, _) in rows.items() if not name.endswith(", 100 %")]
    assert set(nothing) == {"nothing"}
    assert "W4/A4, entropy, 20 %" in rows
    assert "W4/A4, entropy, statistics of the original, 32-bit constants, 20 %" in rows
