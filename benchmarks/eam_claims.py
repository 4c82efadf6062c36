"""The claims of the EAM paper as paired differences, from two grids and the redundancy study.

    python benchmarks/eam_claims.py --grid runs/eam/deit_tiny --criteria runs/eam/criteria \\
        --redundancy docs/results/eam_redundancy.json --out docs/results/eam_claims.md

For each claim the comparison that decides it, as Markdown: mean over the calibration seeds with a 95 % interval over seeds and images.
docs/results/eam.md quotes it.
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from vitfrost.evaluation.intervals import Estimate
from vitfrost.files import read_json, write_text
from vitfrost.studies.outcome_files import grid_outcomes
from vitfrost.studies.summary import Point, between, points, select

PAPER = {"EAM_FP32": ("fp32", 32), "EAM_4bits": ("quantized", 4)}
SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def shown(estimate: Estimate) -> str:
    """ "-1.48 [-4.28, 0.86]"."""
    low, high = estimate.interval or (float("nan"), float("nan"))
    return f"{estimate.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n## {title}\n")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def one(among: list[Point], **wanted: Any) -> Point | None:
    """The only point with these options."""
    found = [point for point in select(among, **wanted) if point.quantized]
    return found[0] if found else None


def claims_of_grid(found: list[Point]) -> None:
    """Figures 5 and 6 and table 1."""

    def cell(share: float, statistics: str, bits: int) -> Point | None:
        return one(found, by="entropy", freeze=share, statistics=statistics, frozen_bits=bits)

    rows = []
    for share in SHARES:
        cells = [cell(share, statistics, bits) for statistics in ("fp32", "quantized") for bits in (32, 4)]
        rows.append([f"{share:.0%}", *("" if point is None else f"{shown(point.difference)} ({len(point.seeds)})" for point in cells)])
    heads = [f"statistics {statistics}, {bits} bit" for statistics in ("fp32", "quantized") for bits in (32, 4)]
    table("Difference to RepQ-ViT (seeds)", ["frozen", *heads], rows)

    rows = []
    for share in SHARES:
        pairs = [
            (cell(share, "quantized", 4), cell(share, "fp32", 4)),
            (cell(share, "quantized", 32), cell(share, "fp32", 32)),
            (cell(share, "quantized", 4), cell(share, "fp32", 32)),
            (cell(share, "quantized", 32), cell(share, "quantized", 4)),
        ]
        rows.append([f"{share:.0%}", *(shown(between(a, b)) if a and b else "" for a, b in pairs)])
    table(
        "Does the source of the statistics matter? Does the precision of the constants?",
        ["frozen", "quantized less fp32, 4 bit", "the same, 32 bit", "EAM_4bits less EAM_FP32", "32 less 4 bit, quantized"],
        rows,
    )

    rows = []
    alone = [point for point in found if not point.quantized]
    for share in SHARES:
        entropy, random = cell(share, "quantized", 4), one(found, by="random", freeze=share)
        pair = [select(alone, by=by, freeze=share) for by in ("entropy", "random")]
        rows.append([
            f"{share:.0%}",
            shown(between(entropy, random)) if entropy and random else "",
            shown(random.difference) if random else "",
            shown(between(pair[0][0], pair[1][0])) if pair[0] and pair[1] else "",
            shown(pair[0][0].difference) if pair[0] else "",
        ])  # fmt: skip
    heads = [
        "frozen",
        "entropy less random, W4/A4",
        "random less unfrozen, W4/A4",
        "entropy less random, fp32",
        "entropy less original, fp32",
    ]
    table("Entropy against random", heads, rows)


def claims_of_criteria(found: list[Point]) -> None:
    """The harder test: everything at its share against entropy as printed, W4/A4."""
    rows = []
    for point in found:
        literal = one(found, by="entropy", freeze=point.freeze, scope="head", frozen_bits=4, renormalize="none", protect=(),
                      statistics_images=1000)  # fmt: skip
        if literal is None or point.freeze == 0:
            continue
        rows.append([
            f"{point.freeze:.0%}", point.options["by"], point.options["scope"], f"{point.options['frozen_bits']}",
            " ".join([point.options["renormalize"], *point.options["protect"]]), f"{point.statistics_images}", f"{len(point.seeds)}",
            f"{point.top1.value:.2f}", shown(point.difference), "" if point is literal else shown(between(point, literal)),
            f"{point.difference.value / literal.difference.value:.2f}",
        ])  # fmt: skip
    heads = ["frozen", "by", "scope", "bits", "rows", "images", "seeds", "top-1", "less unfrozen", "less entropy as printed",
             "share of entropy's loss"]  # fmt: skip
    table("Criteria and placement", heads, sorted(rows, key=lambda row: (row[0], -float(row[7]))))


def claims_of_redundancy(found: dict[str, Any]) -> None:
    """Means over the calibration seeds."""
    pairs = next(iter(found["correlations"].values())).keys()
    rows = []
    for pair in pairs:
        per_head, model = (np.mean([seed[pair][kind] for seed in found["correlations"].values()]) for kind in ("per_head_mean", "model"))
        rows.append([pair, f"{per_head:.2f}", f"{model:.2f}"])
    table("Rank correlations (mean over seeds)", ["criteria", "within a head, mean", "over the model"], rows)
    rows = []
    names = next(iter(found["constant"].values())).keys()
    for name in names:
        seeds = [seed[name] for seed in found["constant"].values()]
        cells = [
            f"{100 * np.mean([seed[kind] for seed in seeds]):.1f} %" if kind in seeds[0] else "" for kind in ("constant", "zero", "mass")
        ]
        rows.append([name, *cells])
    table("Frozen entries that the quantizer had made constant", ["frozen by, scope, share", "constant", "zero", "attention mass"], rows)
    for kind in ("kl", "top1_difference"):
        print(f"\nheads, entropy against {kind}: {found[f'heads_entropy_to_{kind}']}")


HEAD = """# The claims of the EAM paper in numbers

Written by `python benchmarks/eam_claims.py` from the outcomes of `python -m vitfrost.studies run recipes/eam/deit_tiny.yaml`,
`python -m vitfrost.studies run recipes/eam/criteria.yaml` and `python benchmarks/eam_redundancy.py`. Points of top-1, means over
calibration seeds (their number in brackets), paired image by image, with 95 % intervals over seeds and images. What they mean is in
[eam.md](eam.md).
"""


def main() -> None:
    """Write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--grid", "--criteria", "--redundancy"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with redirect_stdout(StringIO()) as written:
        print(HEAD, end="")
        if options.grid:
            claims_of_grid(points(grid_outcomes(options.grid)))
        if options.criteria:
            claims_of_criteria(points(grid_outcomes(options.criteria)))
        if options.redundancy:
            claims_of_redundancy(read_json(options.redundancy))
    write_text(options.out, written.getvalue())


if __name__ == "__main__":
    main()
