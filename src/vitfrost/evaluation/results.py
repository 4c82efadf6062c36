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
from ..outputs import OutputKind
from ..records import Format
from ..strict import Strict

if TYPE_CHECKING:
    from rich.console import Group

Percent = Annotated[float, AfterValidator(lambda value: round(value, 4))]
Interval = tuple[Percent, Percent]
Nats = Annotated[float, AfterValidator(lambda value: round(value, 8)), Field(ge=0)]
Cosine = Annotated[float, AfterValidator(lambda value: round(value, 6))]
Count = Annotated[int, Field(ge=0)]


FORMAT = Format("a results file", "vitfrost results", mend="measure again")


class Difference(Strict):
    """A paired difference in percentage points with its 95 % interval."""

    value: Percent
    interval: Interval


class Likeness(Strict):
    """How like one part of the features is to the reference's: mean cosine, and mean relative error |x - y|^2 / |y|^2 of an image."""

    cosine: Cosine
    cosine_interval: tuple[Cosine, Cosine] | None
    relative_error: Nats
    relative_error_interval: tuple[Nats, Nats] | None


class Accuracy(Strict):
    """Percent of the images that are told right, and the paired difference to the reference."""

    value: Percent
    interval: Interval | None
    difference: Difference | None = None


class HeadFigures(Strict):
    """A task head's outputs beside those on the reference's features: mean absolute error, and intersection over union (0 to 1) of what is
    above the threshold."""

    absolute_error: Nats
    absolute_error_interval: tuple[Nats, Nats] | None
    overlap: Cosine
    overlap_interval: tuple[Cosine, Cosine] | None
    threshold: float


class FeatureFigures(Strict):
    """What a model that gives features did. `vector`: the part that images are compared by; `likeness` by part.

    `prototype` and `neighbors`: how many of the `told` images, whose class others have too, are told right by the nearest prototype and by
    `voters` neighbors; `prototype_agreement`: how many have the same nearest prototype as with the reference, in percent. `gallery_images`:
    of how many other images prototypes and neighbors are; None where the images are each other's, each left out for itself.
    """

    vector: str
    likeness: dict[str, Likeness] = Field(default_factory=dict)
    told: Count | None = None
    prototype: Accuracy | None = None
    neighbors: Accuracy | None = None
    voters: Count | None = None
    prototype_agreement: Percent | None = None
    prototype_agreement_interval: Interval | None = None
    gallery_images: Count | None = None
    gallery_hash: str | None = None
    head: HeadFigures | None = None


class Row(Strict):
    """One model on one set of images. Percent unless said; intervals are 95 %.

    `kind`: "executed" where the numbers come from arithmetic as deployed, "simulated" where quantization is imitated in
    floating point. `agreement`, `kl` (nats, KL(reference || model)) and `top1_difference` (model - reference) compare with
    the model called `reference`. `interval` belongs to `top1`. `variant`: which point of a grid it is. A model that gives features has
    `features`; it has no top-1 and no KL, and `agreement` is the share of images that have the same nearest other image.
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
    outputs: OutputKind = "classes"
    features: FeatureFigures | None = None

    def __repr__(self) -> str:
        shares = {"top-1": self.top1, "agreement": self.agreement}
        shown = [f"{what} {share:.2f} %" for what, share in shares.items() if share is not None]
        if self.features is not None:
            shown = [f"{part} cosine {like.cosine:.4f}" for part, like in self.features.likeness.items()] + shown
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
        *feature_columns(rows),
        ("KL nats", ["" if row.kl is None else f"{row.kl:.4f}" for row in rows]),
        ("ms/image", ["" if row.seconds_per_image is None else f"{1e3 * row.seconds_per_image:.1f}" for row in rows]),
    ], left=("precision",))  # fmt: skip


def feature_columns(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """What models that give features did; columns without any entry for others."""
    figures = [row.features for row in rows]
    parts = list(dict.fromkeys(part for found in figures if found is not None for part in found.likeness))
    columns = []
    for part in parts:
        likeness = [None if found is None else found.likeness.get(part) for found in figures]
        columns.append(
            (
                f"cosine\n{part.replace('_', ' ')}",
                ["" if each is None else with_interval(each.cosine, each.cosine_interval, digits=4) for each in likeness],
            )
        )
        columns.append(
            (
                f"relative error\n{part.replace('_', ' ')}",
                ["" if each is None else with_interval(each.relative_error, each.relative_error_interval, digits=4) for each in likeness],
            )
        )
    for title, name in (("by prototype", "prototype"), ("by neighbors", "neighbors")):
        told: list[Accuracy | None] = [None if found is None else getattr(found, name) for found in figures]
        columns.append((f"top-1 %\n{title}", ["" if each is None else with_interval(each.value, each.interval) for each in told]))
        lost = [None if each is None else each.difference for each in told]
        columns.append((f"difference\n{title}", ["" if each is None else with_interval(each.value, each.interval, "+") for each in lost]))
    same = ["" if found is None else with_interval(found.prototype_agreement, found.prototype_agreement_interval) for found in figures]
    heads = [None if found is None else found.head for found in figures]
    errors = ["" if each is None else with_interval(each.absolute_error, each.absolute_error_interval, digits=4) for each in heads]
    overlaps = ["" if each is None else with_interval(each.overlap, each.overlap_interval, digits=4) for each in heads]
    return [*columns, ("same\nprototype %", same), ("head: mean\nabsolute error", errors), ("head: IoU", overlaps)]


def _difference(row: Row) -> str:
    found = row.top1_difference
    itself = row.name == row.reference and row.kl == 0
    return "" if found is None or itself else with_interval(found.value, found.interval, "+")


def with_interval(value: float | None, interval: Interval | None, sign: str = "", digits: int = 2) -> str:
    if value is None:
        return ""
    form = f"{sign}.{digits}f"
    return f"{value:{form}}" if interval is None else f"{value:{form}}\n[{interval[0]:{form}}, {interval[1]:{form}}]"


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
