"""The verb `demo`: the whole path on the bundled model and digits, with nothing from outside."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import VitfrostError
from ..files import write_text
from .data import write_digit_images

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.results import Row

RECIPE = """\
# vitfrost demo: whole layers of attention frozen under a budget of time, on the bundled model and handwritten digits.
# Run again with `vitfrost run recipe.yaml --out another-folder`.
kind: vitfrost recipe
version: 1
model: {name: vitfrost_digits}
calibration: {images: data/calibration, limit: 200}
"""
FAST = """\
search: {target_latency: 0.85, runtime: onnxruntime-int8, over: [layers], images: 200}
repair: {images: 200}
export: {format: onnx, precision: int8, calibration_images: 200}
evaluation: {images: data/test}
bench: {runtime: [onnxruntime], precision: [fp32], rounds: 15, memory: false}
"""
# Without the packages of vitfrost[export] there is no runtime to be fast on: a budget of multiply-accumulates, and no times.
WITHOUT_EXPORT = """\
search: {target_macs: 0.9, over: [layers], images: 200}
repair: {images: 200}
evaluation: {images: data/test}
"""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def demo(out: str | Path | None = None) -> Path:
    """Write the digit images and a recipe into `out` (default: vitfrost-demo here), run it into `out`/run, print a table.

    A second call takes up an earlier demo in the same folder where it stopped. Returns the path of the HTML report.
    Raises VitfrostError when `out` is a file, holds anything but such a demo, or cannot be written.
    """
    folder = Path("vitfrost-demo" if out is None else out)
    recipe = folder / "recipe.yaml"
    _refuse_foreign(folder, recipe)
    from rich.console import Console

    from ..runs.run import run

    missing = [name for name in NEEDED if find_spec(name) is None]
    write_text(recipe, RECIPE + (WITHOUT_EXPORT if missing else FAST))
    write_digit_images(folder / "data")
    made = run(recipe, out=folder / "run", resume=True)
    Console(width=None if sys.stdout.isatty() else 80).print(_table(made))
    if missing:
        print(f"{', '.join(missing)} not installed, so nothing was exported and timed: pip install 'vitfrost[export]'")
    print(f"report: {made / 'report.html'}")
    return made / "report.html"


def _table(run: Path) -> Table:
    """What the run began with and what it ended with: accuracy, size, and time on ONNX Runtime where it was measured."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..evaluation.results import load_results
    from ..plans.schema import Plan
    from ..timing.bench import RESULT_FILE
    from ..timing.benchmark import load_benchmark
    from ..timing.rounds import paired_ratio

    rows = load_results(run / "results.json").rows
    original, ended = rows[0], rows[-1]
    table = Table(box=SIMPLE_HEAD, title=f"{original.images} held-out digits; intervals are 95 %", title_justify="left")
    for title in ("model", "precision", "top-1 %", "MB", "time"):
        table.add_column(title, justify="left" if title in ("model", "precision") else "right", overflow="fold")
    path = run / "bench" / RESULT_FILE
    if not path.is_file():
        for row in (original, ended):
            table.add_row(row.name, f"{row.precision}\n{row.kind}", _accuracy(row), f"{(row.size_bytes or 0) / 1e6:.2f}", "")
        return table
    timed = load_benchmark(path).rows
    began = next(row for row in timed if row.unmodified and row.precision == "fp32" and row.graph == "plain")
    final = next(row for row in timed if not row.unmodified)
    value, low, high = paired_ratio(final.round_ms, began.round_ms, seed=0)
    shares = [("original", began, original, "1"), ("frozen, repaired", final, ended, f"{value:.2f}\n[{low:.2f}, {high:.2f}]")]
    for name, made, accuracy, time in shares:
        table.add_row(name, f"{made.precision}\n{made.kind}", _accuracy(accuracy), f"{made.file_bytes / 1e6:.2f}", time)
    table.caption = f"time of the original's, ONNX Runtime, 1 thread; {final.p50_ms:.2f} ms in the end"
    table.caption_justify = "left"
    if (alike := Plan.load(run / "plan.yaml").latency) is not None:
        low, high = alike.interval
        table.caption += f"\nbeside the original in int8: {alike.ratio:.2f} [{low:.2f}, {high:.2f}]"
    return table


def _accuracy(row: Row) -> str:
    from ..evaluation.results import with_interval

    return with_interval(row.top1, row.interval)


def _refuse_foreign(folder: Path, recipe: Path) -> None:
    if folder.is_file():
        raise VitfrostError(f"{folder} is a file; name a folder with --out")
    known = [(RECIPE + rest).encode() for rest in (FAST, WITHOUT_EXPORT)]
    if folder.is_dir() and any(folder.iterdir()) and not (recipe.is_file() and recipe.read_bytes() in known):
        raise VitfrostError(f"the folder {folder} exists and is no demo of this version; name another one with --out")
