"""Result rows: what one model did on one set of images, and the file that holds them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ..files import write_json
from ..records import Format
from ..strict import Strict

if TYPE_CHECKING:
    from rich.console import Group

Percent = Annotated[float, AfterValidator(lambda value: round(value, 4))]
Interval = tuple[Percent, Percent]
Nats = Annotated[float, AfterValidator(lambda value: round(value, 8)), Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


FORMAT = Format("a results file", "vitfrost results", mend="measure again")


class Difference(Strict):
    """A paired difference in percentage points with its 95 % interval."""

    value: Percent
    interval: Interval


class Row(Strict):
    """One model on one set of images. Percent unless said; intervals are 95 %.

    `kind`: "executed" where the numbers come from arithmetic as deployed, "simulated" where quantization is imitated in
    floating point. `agreement`, `kl` (nats, KL(reference || model)) and `top1_difference` (model - reference) compare with
    the model called `reference`. `interval` belongs to `top1`. `variant`: which point of a grid it is.
    """

    name: str
    kind: Literal["executed", "simulated"]
    runtime: str
    threads: int = Field(ge=1)
    precision: str
    images: int = Field(ge=1)
    images_hash: str
    skipped: Count = 0
    labeled: bool
    top1: Percent | None = None
    top5: Percent | None = None
    interval: Interval | None = None
    reference: str | None = None
    agreement: Percent | None = None
    agreement_interval: Interval | None = None
    kl: Nats | None = None
    kl_interval: tuple[Nats, Nats] | None = None
    top1_difference: Difference | None = None
    seeds: dict[str, int] = Field(default_factory=dict)
    weight_tag: str
    state_hash: str
    plan_hash: str | None = None
    size_bytes: Count | None = None
    macs: Count | None = None
    seconds_per_image: float | None = Field(default=None, ge=0)
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    variant: dict[str, Any] | None = None

    def __repr__(self) -> str:
        shares = {"top-1": self.top1, "agreement": self.agreement}
        shown = [f"{what} {share:.2f} %" for what, share in shares.items() if share is not None]
        return f"Row({', '.join([self.name, *shown, f'{self.precision} {self.kind}', f'{self.images} images'])})"

    __str__ = __repr__


class Results(Strict):
    """The results file: rows in the order in which they were measured."""

    kind: Literal["vitfrost results"] = "vitfrost results"
    version: Literal[1] = 1
    rows: list[Row]


def save_results(results: Results, path: str | Path) -> None:
    """Write a results file atomically. Raises VitfrostError when it cannot be written."""
    write_json(path, results.model_dump(mode="json"))


def load_results(path: str | Path) -> Results:
    """Read a results file.

    Raises VitfrostError when the file is missing, damaged, of another kind, or from a newer vitfrost.
    """
    return FORMAT.load(Results, path)


def load_row(path: str | Path) -> Results:
    """Read what `vitfrost evaluate --json` wrote, one row, or a results file. Raises VitfrostError as `load_results` does."""
    data = FORMAT.plain(path)
    if isinstance(data, dict) and "state_hash" in data:
        data = {"kind": FORMAT.kind, "version": FORMAT.version, "rows": [data]}
    return FORMAT.record(Results, FORMAT.check(data, path), path)


def format_rows(rows: Sequence[Row]) -> Group:
    """Tables for a terminal, intervals below their values; columns that no row fills are left out."""
    from ..terminal import tables

    return tables([
        ("model", [row.name for row in rows]),
        ("precision", [f"{row.precision}\n{row.kind}" for row in rows]),
        ("top-1 %", [with_interval(row.top1, row.interval) for row in rows]),
        ("difference", [_difference(row) for row in rows]),
        ("MB", ["" if row.size_bytes is None else f"{row.size_bytes / 1e6:.3f}" for row in rows]),
        ("GMACs", ["" if row.macs is None else f"{row.macs / 1e9:.3f}" for row in rows]),
        ("images", [str(row.images) + (f"\n({row.skipped} skipped)" if row.skipped else "") for row in rows]),
        ("top-5 %", [with_interval(row.top5, None) for row in rows]),
        ("agreement %", [with_interval(row.agreement, row.agreement_interval) for row in rows]),
        ("KL nats", ["" if row.kl is None else f"{row.kl:.4f}" for row in rows]),
        ("ms/image", ["" if row.seconds_per_image is None else f"{1e3 * row.seconds_per_image:.1f}" for row in rows]),
    ], left=("precision",))  # fmt: skip


def _difference(row: Row) -> str:
    found = row.top1_difference
    itself = row.name == row.reference and row.kl == 0
    return "" if found is None or itself else with_interval(found.value, found.interval, "+")


def with_interval(value: float | None, interval: Interval | None, sign: str = "") -> str:
    if value is None:
        return ""
    shown = f"{value:{sign}.2f}"
    return shown if interval is None else f"{shown}\n[{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"


def environment() -> dict[str, str]:
    """What the figures were measured with: python, torch, timm, processor, platform."""
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "timm": version("timm"),
        "cpu": processor_name(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def device_environment(device: str) -> dict[str, str]:
    """What figures of a GPU were measured with besides: its name, CUDA, cuDNN, triton. Nothing for a CPU."""
    import torch

    if torch.device(device).type != "cuda":
        return {}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": import_module("triton").__version__ if find_spec("triton") is not None else "none",
    }


def processor_name() -> str:
    """The processor's model name where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine()
