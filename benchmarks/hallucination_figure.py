"""Table (Markdown) and figure of what hallucination_latency.py measured: time over multiply-accumulates, both relative to the original.

python benchmarks/hallucination_figure.py docs/results/hmhsa_cffn_latency.json --figure docs/results/hmhsa_cffn_latency.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"hMHSA": "#7b3fa0", "head copies": "#b08fc7", "cFFN": "#1f77b4", "hMHSA + cFFN": "#d1495b", "narrower original": "#6b6b6b"}
MARKERS = {"eager": "o", "compiled": "P", "onnxruntime": "s", "openvino": "D"}


def table(rows: list[dict[str, Any]]) -> str:
    """One line per model, runtime and batch size; cells are time (and its interval) over multiply-accumulates."""
    titles = [title for title in COLORS if any(row["variant"] == title for row in rows)]
    lines = ["| model | runtime | batch | original, ms per image | " + " | ".join(titles) + " |", "|---" * (4 + len(titles)) + "|"]
    places = dict.fromkeys((row["model"], row["runtime"], row["batch"]) for row in rows)
    for place in places:
        here = {row["variant"]: row for row in rows if (row["model"], row["runtime"], row["batch"]) == place}
        cells = []
        for title in titles:
            row = here.get(title)
            low, high = row["interval"] if row else (0, 0)
            cells.append(f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}] / {row['macs_ratio']:.2f}" if row else "")
        name, runtime, batch = place
        lines.append(f"| {name} | {runtime} | {batch} | {here['original']['p50_ms']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    drawn, panels = plt.subplots(1, len(models), figsize=(4.2 * len(models), 4.4), sharey=True, layout="constrained")
    for axes, name in zip([panels] if len(models) == 1 else panels, models, strict=True):
        axes.plot([0.7, 1.05], [0.7, 1.05], color="#999999", linewidth=1, linestyle="--")
        axes.axhline(1, color="#999999", linewidth=0.8)
        for row in rows:
            if row["model"] != name or row["variant"] == "original":
                continue
            low, high = row["interval"]
            filled = COLORS[row["variant"]] if row["batch"] == 1 else "white"
            axes.errorbar(
                row["macs_ratio"], row["ratio"], [[max(row["ratio"] - low, 0)], [max(high - row["ratio"], 0)]],
                color=COLORS[row["variant"]], marker=MARKERS[row["runtime"]], markerfacecolor=filled, markersize=6, linewidth=0.8,
            )  # fmt: skip
        axes.set(title=name, xlabel="multiply-accumulates / original", xlim=(0.76, 1.01), ylim=(0.7, 1.25))
    first = panels if len(models) == 1 else panels[0]
    first.set_ylabel("time / original on the same runtime")
    handles = [plt.Line2D([], [], color=color, marker="o", linestyle="", label=title) for title, color in COLORS.items()]
    used = {row["runtime"] for row in rows}
    handles += [
        plt.Line2D([], [], color="black", marker=mark, linestyle="", label=runtime) for runtime, mark in MARKERS.items() if runtime in used
    ]
    handles += [plt.Line2D([], [], color="#999999", linestyle="--", label="time saved as multiply-accumulates")]
    drawn.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    drawn.suptitle("Filled: batch 1, open: batch 16; below 1 is faster than the original", fontsize=9)
    drawn.savefig(path, dpi=150)


def main() -> None:
    """Print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    rows = json.loads(options.json.read_text())["rows"]
    print(table(rows))
    if options.figure is not None:
        figure(rows, options.figure)


if __name__ == "__main__":
    main()
