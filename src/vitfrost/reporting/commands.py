"""The command lines that make a run, its plan and its page again; capitals stand for files and folders of the reader."""

from __future__ import annotations

import shlex
from dataclasses import replace

from ..budget.history import SearchRecord
from ..configs import Compact, Search, WindowHeads
from ..configs.words import config_words, method_words
from ..plans.schema import Plan, methods_in
from ..runs.recipe import Recipe
from .parts import RunParts

NEXT = " \\\n    "


def run_command(recipe: Recipe, program: str = "vitfrost") -> str:
    """How to run a recipe again with a program that runs its kind."""
    replaced = [
        ("--weights", "WEIGHTS", recipe.model.weights not in (None, "random")),
        ("--calibration", "CALIBRATION_IMAGES", True),
        ("--images", "EVALUATION_IMAGES", recipe.evaluation is not None),
    ]
    options = [f"{name} {value}" for name, value, wanted in replaced if wanted]
    return NEXT.join([f"{program} run recipe.yaml --out NEW_RUN", *options])


def plan_command(plan: Plan) -> str:
    """How to make the plan again from its statistics, or from its model where it has none."""
    source = "--statistics STATISTICS" if plan.statistics is not None else f"--model {shlex.quote(plan.model.name)} --weights WEIGHTS"
    groups = [shlex.join(words) for words in method_words(methods_in(plan)) if words]
    return NEXT.join([f"vitfrost plan {source}", *groups, "--out plan.yaml"])


def is_searched(plan: Plan) -> bool:
    """Whether a search under a budget made the plan."""
    found = [plan.constants is not None and plan.constants.by == "search", plan.compact is not None and plan.compact.ratio is None]
    return any(found) or (plan.windowed is not None and plan.windowed.ratio is None)


def search_command(plan: Plan, search: SearchRecord | None) -> str:
    """How to search for the plan again; without the search's file its budget is not known."""
    options = ["--target-macs SHARE"]
    if search is not None:
        known = {name: value for name, value in search.budget.items() if name != "search_over" and value is not None}
        budget = Search(**known, over=search.budget["search_over"], images=search.subject.images.images, seed=search.subject.images.seed)
        options = [shlex.join(config_words(budget))]
    heads = [] if plan.constants is None else config_words(replace(plan.constants, unit="head", by=None, seed=0))
    blocks = [] if plan.compact is None else config_words(replace(plan.compact, ratio=Compact.ratio))
    windowed = plan.windowed
    if windowed is None and search is not None and search.subject.windowed and "windows" in search.budget["search_over"]:
        windowed = WindowHeads(**search.subject.windowed)
    near = [] if windowed is None else config_words(windowed)
    bits = config_words(plan.quantize, always=("weights", "activations"))
    model = f"vitfrost search --statistics STATISTICS --model {plan.model.name} --weights WEIGHTS --images SEARCH_IMAGES"
    return NEXT.join([model, *options, shlex.join([*heads, *near, *blocks, *bits]), "--out plan.yaml"])


def commands(parts: RunParts) -> list[str]:
    """What was run, as far as the run tells, and the page."""
    made = []
    if parts.recipe is not None:
        made.append(run_command(parts.recipe))
    elif (
        parts.plan is not None
        and parts.plan.statistics is not None
        and (parts.plan.freeze or parts.plan.constants or parts.plan.windowed or parts.plan.hallucinate or parts.plan.compact)
    ):
        made.append(search_command(parts.plan, parts.search) if is_searched(parts.plan) else plan_command(parts.plan))
    return [*made, "vitfrost report NEW_RUN" if made else "vitfrost report RUN"]
