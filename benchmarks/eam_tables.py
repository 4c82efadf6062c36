"""Grids as tables: every point of a run's folder with its intervals, as Markdown and as JSON.

    python benchmarks/eam_tables.py runs/eam/deit_tiny runs/eam/criteria --out docs/results

Writes for each folder `eam_NAME.md` and `eam_NAME.json`: mean over the calibration seeds, 95 % intervals over seeds and images, the paired
difference to the unfrozen model of the same seed, and what was measured with what. Two points of one grid are compared pairwise by
`vitfrost.studies.summary.between`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from vitfrost.evaluation.intervals import Estimate
from vitfrost.files import write_json, write_text
from vitfrost.studies.outcome_files import grid_outcomes
from vitfrost.studies.recipe import load_study
from vitfrost.studies.summary import Point, points
from vitfrost.studies.variants import UNFROZEN, changed_options


def shown(estimate: Estimate, sign: str = "") -> str:
    """ "66.03 [64.1, 68.0]"."""
    if estimate.interval is None:
        return f"{estimate.value:{sign}.2f}"
    return f"{estimate.value:{sign}.2f} [{estimate.interval[0]:{sign}.2f}, {estimate.interval[1]:{sign}.2f}]"


def by_seed(correct: np.ndarray, baseline: np.ndarray | None = None) -> list[float]:
    """Top-1 of every seed in percent, or its difference to that of the unfrozen model of the same seed."""
    less = 0.0 if baseline is None else baseline.mean(axis=1)
    return (100 * (correct.mean(axis=1) - less)).tolist()


def line(point: Point) -> str:
    """One row of the table."""
    if point.block == UNFROZEN:
        cells = ["unfrozen", "", "", "", "", f"{len(point.seeds)}", shown(point.top1), "", ""]
    else:
        differences = ", ".join(f"{value:+.2f}" for value in by_seed(point.correct, point.baseline))
        options = ", ".join(changed_options(point.options))
        cells = [
            f"{100 * point.share:.1f} %",
            point.options["by"],
            f"{point.statistics}, {point.statistics_images}",
            f"{point.options['frozen_bits']} bit",
            options,
            f"{len(point.seeds)}",
            shown(point.top1),
            f"**{shown(point.difference, '+')}**",
            differences,
        ]
    return "| " + " | ".join(cells) + " |"


def as_data(point: Point) -> dict[str, Any]:
    """The point for the JSON file."""
    return {
        "block": point.block, "statistics": point.statistics, "statistics_images": point.statistics_images, "options": point.options,
        "share": point.share, "seeds": list(point.seeds), "top1": point.top1.value, "interval": point.top1.interval,
        "difference": point.difference.value, "difference_interval": point.difference.interval,
        "top1_by_seed": by_seed(point.correct), "difference_by_seed": by_seed(point.correct, point.baseline),
        "kind": point.outcomes[0].row.kind,
        "plan_hashes": [outcome.row.plan_hash for outcome in point.outcomes],
    }  # fmt: skip


def write(folder: Path, out: Path) -> None:
    """The two files of one grid."""
    outcomes = grid_outcomes(folder)
    recipe = load_study(folder / "recipe.yaml")
    found = points(outcomes)
    row = next(outcome.row for outcome in outcomes if outcome.variant is None)
    measured_with = f"{row.runtime}, {row.threads} threads, {row.environment['cpu']}"
    text = [
        f"# {recipe.model.name}: {folder.name}",
        "",
        f"Made by `python -m vitfrost.studies run recipes/eam/{folder.name}.yaml` and `python benchmarks/eam_tables.py`.",
        f"{row.images} labeled images (`{row.images_hash[:12]}`), weights {row.weight_tag} (`{row.state_hash[:12]}`), {measured_with}.",
        f"Original: {row.top1:.2f} %. Quantized rows are `simulated` (fake quantization in fp32), the others `executed`.",
        "",
        "Top-1 is the mean over calibration seeds; the difference is paired with the unfrozen model of the same seed, image by image.",
        "Intervals are 95 %, over seeds and images (pigeonhole bootstrap).",
        "",
        "| frozen | by | statistics: model, images | constants | options | seeds | top-1 % | difference | by seed |",
        "|---|---|---|---|---|---|---|---|---|",
        *(line(point) for point in sorted(found, key=lambda point: (point.block != UNFROZEN, not point.quantized))),
    ]
    write_text(out / f"eam_{folder.name}.md", "\n".join(text) + "\n")
    data = {"model": recipe.model.name, "images": row.images, "images_hash": row.images_hash, "state_hash": row.state_hash,
            "weight_tag": row.weight_tag, "runtime": row.runtime, "threads": row.threads, "environment": row.environment,
            "original": row.top1, "points": [as_data(point) for point in found]}  # fmt: skip
    write_json(out / f"eam_{folder.name}.json", data)
    print(f"{folder.name}: {len(found)} points from {len(outcomes)} outcomes")


def main() -> None:
    """Write the files of all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for folder in options.runs:
        write(folder, options.out)


if __name__ == "__main__":
    main()
