"""Table (Markdown) and learning curves of what hmhsa_cffn_runs.py gathered; with --text also put between the marks of a document.

python benchmarks/hmhsa_cffn_tables.py docs/results/hmhsa_cffn_cpu.json \\
    --figure docs/results/hmhsa_cffn_cpu.png --text docs/results/hmhsa_cffn.md
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "baseline": "#111111", "hmhsa": "#7b3fa0", "cffn": "#1f77b4", "both": "#d1495b", "quick_width": "#6b6b6b", "quick_heads": "#2e8b57",
    "head_copies": "#b08fc7", "rank75": "#e59500", "conv5": "#8c564b", "branch_rates": "#17a2b8", "taught": "#bcbd22",
}  # fmt: skip
DASHES = ["-", "--", ":"]
BEGIN, END = "<!-- cpu runs: written by benchmarks/hmhsa_cffn_tables.py -->", "<!-- cpu runs: end -->"


def estimate(found: dict[str, Any] | None, sign: str = "") -> str:
    """A value with its interval; a dash where there is none."""
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{found['value']:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def table(runs: list[dict[str, Any]], means: list[dict[str, Any]]) -> str:
    """One line per run, and the mean of those that have several seeds."""
    lines = ["| | MMACs | seed | top-1 % | minus baseline, points | minus width 88, points | minutes | weights |", "|---" * 8 + "|"]
    for _, same in groupby(sorted(runs, key=lambda run: list(COLORS).index(run["name"])), key=lambda run: run["name"]):
        group = list(same)
        for run in group:
            top1 = estimate({"value": run["top1"], "interval": run["interval"]})
            apart = [estimate(run["differences"].get(reference), "+") for reference in ("baseline", "quick_width")]
            cells = [run["title"], f"{run['macs'] / 1e6:.1f}", str(run["seed"]), top1, *apart, f"{run['seconds'] / 60:.0f}"]
            lines.append(f"| {' | '.join([*cells, run['weights_sha256'][:12]])} |")
        for mean in (mean for mean in means if mean["name"] == group[0]["name"]):
            apart = [estimate(mean["differences"].get(reference), "+") for reference in ("baseline", "quick_width")]
            title = f"{group[0]['title']}, mean of {len(mean['seeds'])}"
            lines.append(f"| {title} | {group[0]['macs'] / 1e6:.1f} | | {estimate(mean['top1'])} | {' | '.join(apart)} | | |")
    return "\n".join(lines)


def figure(runs: list[dict[str, Any]], path: Path) -> None:
    """Training loss and top-1 by epoch; a color per structure, a dash per seed."""
    drawn, panels = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for key, axes, title in zip(("loss", "top1"), panels, ("training loss", "top-1, % of the test pictures"), strict=True):
        for run in runs:
            if key == "loss" and run["name"] == "taught":
                continue  # half of its loss is a divergence from the teacher, which compares with no other
            points = [(point["epoch"], point[key]) for point in run["curve"] if point[key] is not None]
            first = run["seed"] == min(other["seed"] for other in runs if other["name"] == run["name"])
            look: dict[str, Any] = {"color": COLORS[run["name"]], "linestyle": DASHES[run["seed"] % 3], "marker": "."}
            axes.plot(*zip(*points, strict=True), label=run["title"] if first else None, linewidth=1.4, **look)
        axes.set(xlabel="epoch", ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#dddddd", linewidth=0.6)
    handles, _ = panels[1].get_legend_handles_labels()
    seeds = sorted({run["seed"] for run in runs})
    handles += [plt.Line2D([], [], color="black", linestyle=DASHES[seed % 3], label=f"seed {seed}") for seed in seeds]
    drawn.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9)
    pictures = sorted({run["images"] for run in runs})
    drawn.suptitle(f"Mini-ImageNet at 64 px, {', '.join(f'{count:,}' for count in pictures)} test pictures, fp32, executed", fontsize=10)
    drawn.savefig(path, dpi=150)


def status(found: dict[str, Any], figure: Path | None) -> str:
    """What ran, with what it gave, and what has not run."""
    runs, waiting = found["runs"], found["waiting"]
    missing = ", ".join(f"{title} (seed {', '.join(seeds)})" for title, seeds in _by_title(waiting).items())
    rest = f"Not finished yet, so without numbers: {missing}." if missing else "All of them are finished."
    if not runs:
        return f"None of the {len(waiting)} runs is finished. {rest}"
    processors = ", ".join(sorted({run["environment"]["cpu"] for run in runs}))
    lines = [
        f"{len(runs)} of {len(runs) + len(waiting)} runs are finished. {rest}",
        f"Executed in fp32, one thread of a shared {processors}; minutes are those that passed, not CPU time. Differences are paired, on",
        "the same pictures and with the same seed; intervals of one run are over pictures, those of means over pictures and seeds.",
    ]
    if figure is not None:
        lines += ["", f"![training loss and top-1 by epoch]({figure.name})"]
    return "\n".join([*lines, "", table(runs, found["means"])])


def _by_title(waiting: list[dict[str, Any]]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for run in waiting:
        named.setdefault(run["title"], []).append(str(run["seed"]))
    return named


def put(text: str, path: Path) -> None:
    """Replace what a document has between the marks. Raises ValueError where it has none."""
    document = path.read_text(encoding="utf-8")
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}; put them where the table belongs")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Print the text, draw the figure, fill the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--text", type=Path, help="document whose marked part is replaced")
    options = parser.parse_args()
    found = json.loads(options.json.read_text())
    text = status(found, options.figure)
    print(text)
    if options.figure is not None and found["runs"]:
        figure(found["runs"], options.figure)
    if options.text is not None:
        put(text, options.text)


if __name__ == "__main__":
    main()
