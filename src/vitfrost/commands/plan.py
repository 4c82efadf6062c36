"""The commands `plan` and `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..configs import Compact, FreezeHeads, Hallucinate, Quantize, Search, WindowHeads
from ..configs.flat import NONE, flat_options, methods_of
from ..configs.verbs import MADE_BY
from ..configs.words import spelled
from ..errors import VitfrostError
from .arguments import Flags, ModelFlags, announce_simulation
from .flags import Given, Group, takes

_OTHERS = {option.name for cls in (WindowHeads, Hallucinate, Compact, Quantize) for option in Group.of(cls).options}
FREEZING = Group("frozen weights and heads", tuple(option for name, option in flat_options().items() if name not in _OTHERS))
CHANGES: dict[Any, Group] = {  # how a search makes its changes
    FreezeHeads: Group.of(FreezeHeads, without=("ratio", "unit", "by", "seed")),
    WindowHeads: Group.of(WindowHeads, without=("ratio",)),
    Compact: Group.of(Compact, without=("ratio", "blocks")),
}
METHODS = (FREEZING, Group.of(WindowHeads), Group.of(Hallucinate), Group.of(Compact), Group.of(Quantize))


@takes(*METHODS)
def plan(
    *,
    given: Given,
    out: Path,
    statistics: Path | None = None,
    model: Flags = ModelFlags(),
) -> None:
    """Choose what happens to every head, feed-forward block and bit; write a plan that you can read, edit and diff.

    Bits are 4 where single weights are frozen, and 32 (floating point) otherwise. To come down to a budget, see `vitfrost search`.

    Args:
        out: plan file (.yaml).
        statistics: file from `vitfrost calibrate`; without it, give --model: a plan for training or timing, which freezes and computes
            the first heads, and no single weights.
    """
    if (statistics is None) == (model.model is None):
        raise VitfrostError("give either --statistics FILE or --model NAME (a plan without statistics, for training)")
    if statistics is not None and (named := model.given()):
        raise VitfrostError(f"{named[0]} goes with --model; statistics know their model, so leave it out")
    methods = methods_of(given.values, spelled, freezes=statistics is not None)
    if statistics is None and given.values.get("freeze", NONE) != NONE and ("by" in given or "unit" not in given):
        raise VitfrostError("freezing by what maps are takes their statistics; give --statistics FILE, or --unit head without --by")
    from .. import plan as verb

    source: Any = statistics if statistics is not None else model.open()
    _print_planned(out, verb(source, *methods, out=out))


@takes(
    Group.of(Search),
    *CHANGES.values(),
    Group.of(Quantize),
)
def search(
    *,
    given: Given,
    out: Path,
    statistics: Path,
    images: Path,
    model: Flags = ModelFlags(),
    labels: Path | None = None,
    record: Path | None = None,
    resume: bool = False,
) -> None:
    """Search for the plan that changes the outputs least within a budget of lost points, multiply-accumulates or latency.

    Heads are frozen or windowed, layers frozen, and ranks of feed-forward blocks lowered, by what every change does to the outputs of the
    model on images.

    Args:
        out: plan file (.yaml).
        statistics: file from `vitfrost calibrate`, of the model.
        images: folder from which images are drawn to measure on.
        labels: CSV with the columns file and label, if not labels.csv in the folder.
        record: file for all that is measured; beside the plan, named like it, if not given.
        resume: go on with that file.
    """
    if model.model is None:
        raise VitfrostError("a search measures the model; give --model NAME")
    budget = given.config(Search)
    bits = {"weight-bits": 32, "activation-bits": 32} | dict(given.values)
    how: list[Any] = [Given(bits).config(Quantize)]
    for method, group in CHANGES.items():
        units = [unit for unit, made_by in MADE_BY.items() if made_by is method]
        if set(units) & set(budget.over):
            how.append(given.config(method))
        else:
            asked = " or ".join(units)
            given.refuse((option.name for option in group.options), f"goes with --search-over {asked}; give that too, or leave it out")
    from .. import search as verb

    made = verb(model.open(), images, budget, *how, statistics=statistics, labels=labels, record=record, resume=resume, out=out)
    _print_planned(out, made)


def _print_planned(out: Path, made: Any) -> None:
    from ..plans.choose import summary

    found = summary(made)
    parts = []
    if found["constant_heads"]:
        parts.append(f"{found['constant_heads']} of {found['heads']} heads frozen whole")
    if found["windowed_heads"]:
        parts.append(f"{found['windowed_heads']} of {found['heads']} heads windowed")
    if found["frozen_entries"] or not parts:
        parts.append(f"{found['frozen_entries']:,} of {found['entries']:,} attention weights frozen ({100 * found['fraction']:.2f} %)")
    if found["hallucinated_heads"]:
        parts.append(f"{found['hallucinated_heads']} of {found['heads']} heads hallucinated")
    if found["compact_blocks"]:
        parts.append(f"{found['compact_blocks']} feed-forward blocks compact")
    if (timed := found.get("latency")) is not None:
        low, high = timed["interval"]
        parts.append(f"{timed['ratio']:.3f} of the original's latency on {timed['runtime']} (95 % interval {low:.3f} to {high:.3f})")
    print(f"{out}: {', '.join(parts)}")
    announce_simulation(made)
