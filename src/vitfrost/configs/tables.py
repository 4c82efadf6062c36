"""Tables of options for the documentation, out of the configuration classes: `python -m vitfrost.configs docs/options.md`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from ..plans.criteria import CRITERIA
from .base import Option
from .flat import MethodOptions, flat_options
from .methods import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize, Repair, WindowHeads
from .verbs import Bench, Calibrate, Compress, Evaluate, Export, Run, Search, Train
from .words import default_text, metavar

CLASSES = (
    Calibrate, FreezeEntries, FreezeHeads, WindowHeads, Hallucinate, Compact, Quantize, Search, Compress, Repair, Export, Evaluate, Bench,
    Run, Train,
)  # fmt: skip
MARK = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.S)


def option_table(options: Iterable[Option]) -> str:
    """One row per option: flag, default, values, meaning."""
    rows = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for option in options:
        rows.append(f"| `--{option.name}` | {_cell(default_text(option))} | {_values(option)} | {_escaped(option.help)} |")
    return "\n".join(rows)


def criteria_table() -> str:
    """One row per criterion."""
    rows = ["| `--by` | score of a weight A with mean A^mu over the images | |", "|---|---|---|"]
    for name, criterion in CRITERIA.items():
        needs = "needs `--sensitivity`" if criterion.needs_sensitivity else ""
        meaning = "; ".join(part for part in (criterion.meaning, needs) if part)
        rows.append(f"| `{name}` | {_escaped(criterion.formula)} | {_escaped(meaning)} |")
    return "\n".join(rows)


def table(name: str) -> str:
    """The table of a mark: a configuration class by name, plan (all methods of a plan), or criteria. Raises KeyError for another name."""
    if name == "criteria":
        return criteria_table()
    if name == "plan":
        return option_table(flat_options().values())
    cls = {each.__name__: each for each in CLASSES}[name]
    return option_table(MethodOptions.of(cls).options.values())


def rewritten(text: str) -> str:
    """The text with what stands between `<!-- table: NAME -->` and `<!-- end -->` made anew."""
    return MARK.sub(lambda mark: f"<!-- table: {mark[1]} -->\n{table(mark[1])}\n<!-- end -->", text)


def _values(option: Option) -> str:
    if option.choices is not None:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    if option.type is bool:
        return "`yes`, `no`" if option.flag.form == "yes-no" else "a switch"
    bounds: list[str] = []
    for check in (check for each in option.checks for check in (get_args(each) or (each,))):
        for name, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below")):
            if (value := getattr(check, name, None)) is not None:
                bounds.append(f"{word} {value}")
    return " ".join(bounds) or f"`{metavar(option)}`"


def _cell(default: str | None) -> str:
    return "" if default is None else default if " " in default else f"`{default}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
