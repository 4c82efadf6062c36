"""The page of a grid run: figures 1 to 6 and table 1 of EAM from our runs, beside the published values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..files import write_text
from ..reporting import summary
from ..reporting.build import REPORT
from ..reporting.commands import run_command
from ..reporting.figures import heat_map
from ..reporting.heads import divergence_rows
from ..reporting.summary import Figure, KeyNumber, signed
from ..reporting.templates import fill
from . import criteria, entropy_maps, paper
from .complexity import complexity, savings
from .grid_parts import GridParts, read_grid
from .roles import WORDS, bits_word

TEMPLATE, PROGRAM = "grid.html.j2", "python -m vitfrost.studies"


@dataclass(frozen=True)
class Progress:
    """How far a grid is: variants measured, all variants, those that wait for their unfrozen model, and what is missing by kind."""

    measured: int
    all: int
    waiting: int
    missing: list[tuple[str, int]]
    images: int | None
    labeled: bool
    seeds: list[int]


def progress(parts: GridParts) -> Progress:
    """How far the grid is."""
    missing = Counter(
        "unfrozen models" if variant.freeze == 0 else f"{bits_word((variant.plan['weight_bits'], variant.plan['activation_bits']))}, "
        f"{WORDS['by'].get(variant.plan['by'], variant.plan['by'])}"
        for variant in parts.missing
    )  # fmt: skip
    row = parts.some_row
    return Progress(
        len(parts.measured), len(parts.variants), parts.waiting, list(missing.items()), row.images if row else None,
        row is not None and row.labeled, sorted({variant.seed for variant in parts.variants}),
    )  # fmt: skip


def cards(parts: GridParts) -> list[KeyNumber]:
    """The headline: what quantization costs, and what freezing costs on top of it."""
    rows = [row for row in paper.paper_rows(parts) if row.ours is not None]
    accuracies = [row for row in rows if row.difference is None]
    made = []
    if accuracies:
        published = [f"{row.published:.2f}" for row in accuracies if row.published is not None]
        figures = [
            Figure(f"{row.ours.value} %", row.name, "executed" if row.precision == "32/32" else "simulated")
            for row in accuracies if row.ours
        ]  # fmt: skip
        made.append(KeyNumber("Top-1 accuracy", figures, f"Published on other images: {' and '.join(published)} %." if published else ""))
    for row in rows:
        if row.difference is not None:
            closing = None if row.published_difference is None else f"Published {signed(row.published_difference)} points."
            figure = Figure(f"{row.difference.value} points", ", ".join(row.difference.notes), "simulated")
            made.append(KeyNumber(f"{row.name}, less RepQ-ViT", [figure], closing or ""))
    return made


def facts(parts: GridParts) -> list[tuple[str, str, str]]:
    """Name, value and full hash of what the numbers hang on."""
    row, found = parts.some_row, []
    if row is not None:
        found = [("Weights", row.weight_tag, row.state_hash), ("Evaluation images", f"{row.images:,}", row.images_hash)]
    if parts.statistics is not None:
        header = parts.statistics.header
        found.append(("Images behind the statistics", f"{header.images:,}", header.images_hash))
    return found


def report_study(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a study's folder (default: `report.html` in it) and return its path. Equal folders give equal bytes.

    Parts that are not measured are left out, and the page says so. Raises VitfrostError for the folder of another run or of none, for a
    part that is damaged or of another model, and when the page cannot be written.
    """
    target = Path(run) / REPORT if out is None else Path(out)
    write_text(target, render_grid(read_grid(Path(run))))
    return target


def render_grid(parts: GridParts) -> str:
    """The page as text."""
    statistics, quantized = parts.statistics, parts.quantized
    shown = statistics or (quantized[1] if quantized else None)
    rows = entropy_maps.entropy_rows(parts, shown) if shown else None
    sites = parts.anatomy.sites.attention
    divergence = divergence_rows(sites, parts.anatomy.class_token, statistics, quantized[1]) if statistics and quantized else None
    return fill(
        TEMPLATE,
        __package__,
        name=parts.recipe.model.name,
        progress=progress(parts),
        published=parts.recipe.published,
        cards=cards(parts),
        facts=facts(parts),
        table=paper.table_one(parts),
        five=paper.figure_five(parts),
        six=paper.figure_six(parts),
        alone=paper.freezing_alone(parts),
        comparisons=criteria.comparisons(parts),
        rankings=criteria.rankings(parts),
        over_images=criteria.over_images(parts),
        attention=entropy_maps.attention_on_picture(parts.picture) if parts.picture else None,
        rows=rows,
        first=entropy_maps.first_heads(rows) if rows else [],
        shown=shown.header if shown else None,
        entropy=heat_map("mean entropy, bits", entropy_maps.mean_entropy(parts, shown), "viridis", ".2f") if shown else None,
        maps=entropy_maps.whole_maps(parts, shown) if shown else None,
        divergence=divergence,
        chosen=entropy_maps.heads_of_the_paper(divergence) if divergence else [],
        quantized=quantized,
        complexity=complexity(parts.anatomy),
        savings=savings(parts),
        recipe=summary.recipe_text(parts.recipe),
        commands=[run_command(parts.recipe, PROGRAM), f"{PROGRAM} report NEW_RUN"],
        versions=list(parts.some_row.environment.items()) if parts.some_row else [],
    )
