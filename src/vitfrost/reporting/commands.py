"""The command lines that make a run, its plan and its page again; capitals stand for files and folders of the reader."""

from __future__ import annotations

import shlex

from pydantic import BaseModel

from ..budget.history import SearchRecord
from ..plans.schema import Plan
from ..runs.recipe import Recipe
from .parts import RunParts

NEXT = " \\\n    "
COMPACT_NAMES = {"init": "compact-init", "blocks": "compact-blocks", "norm": "branch-norm"}
CONSTANTS_NAMES = {"kind": "constants"}
HALLUCINATE_NAMES = {"by": "hallucinate-by", "bias": "map-bias"}


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
    """How to make the plan again from its statistics."""
    freeze, quantize, heads, blocks = plan.freeze, plan.quantize, plan.hallucinate, plan.compact
    lines = ["vitfrost plan --statistics STATISTICS"]
    if freeze is not None:
        lines[0] += f" --freeze {freeze.ratio} --by {shlex.quote(freeze.by)} --scope {freeze.scope}"
    if (whole := plan.constants) is not None and whole.ratio is not None:
        options = _changed(whole, ("unit", "ratio", "by", "seed"), CONSTANTS_NAMES)
        lines.append(" ".join([f"--unit {whole.unit} --freeze {whole.ratio} --by {shlex.quote(whole.by)}", *options]))
    if heads is not None:
        lines.append(" ".join([f"--hallucinate {heads.share}", *_changed(heads, ("share", "seed"), HALLUCINATE_NAMES)]))
    if blocks is not None:
        lines.append(" ".join([f"--compact {blocks.ratio}", *_changed(blocks, ("ratio",), COMPACT_NAMES)]))
    constants = "" if freeze is None else f"--frozen-bits {freeze.bits} "
    seed = next((part.seed for part in (freeze, whole, heads) if part is not None), 0)
    bits = f"--weight-bits {quantize.weight_bits} --activation-bits {quantize.activation_bits}"
    return NEXT.join([*lines, f"{constants}{bits} --seed {seed} --out plan.yaml"])


def is_searched(plan: Plan) -> bool:
    """Whether a search under a budget made the plan."""
    return (plan.constants is not None and plan.constants.by == "search") or (plan.compact is not None and plan.compact.ratio is None)


def search_command(plan: Plan, search: SearchRecord | None) -> str:
    """How to search for the plan again; without the search's file its budget is not known."""
    options = ["--target-macs SHARE"]
    if search is not None:
        budget, images = search.budget, search.subject.images
        names = ("target_macs", "target_latency", "runtime", "threads", "max_drop")
        known = {f"--{name.replace('_', '-')}": budget.get(name) for name in names}
        options = [f"{name} {value}" for name, value in known.items() if value is not None]
        options += [f"--search-over {' '.join(budget['search_over'])}", f"--search-images {images.images}", f"--seed {images.seed}"]
        options += [] if budget["rescore"] == "lazy" else [f"--rescore {budget['rescore']}"]
    kinds = [] if plan.constants is None else _changed(plan.constants, ("unit", "ratio", "by", "seed"), CONSTANTS_NAMES)
    blocks = [] if plan.compact is None else _changed(plan.compact, ("ratio",), COMPACT_NAMES)
    bits = f"--weight-bits {plan.quantize.weight_bits} --activation-bits {plan.quantize.activation_bits}"
    model = f"vitfrost plan --statistics STATISTICS --model {plan.model.name} --weights WEIGHTS --images SEARCH_IMAGES"
    return NEXT.join([model, " ".join(options), " ".join([*kinds, *blocks, bits]), "--out plan.yaml"])


def _changed(part: BaseModel, told: tuple[str, ...], names: dict[str, str]) -> list[str]:
    """Options of a plan's part that are not left as they are by default; those that are switches have no value."""
    options = []
    for field, about in type(part).model_fields.items():
        value = getattr(part, field)
        if field in told or value == about.default:
            continue
        option = "--" + names.get(field, field.replace("_", "-"))
        options.append(option if value is True else f"{option} {'no' if value is False else value}")
    return options


def commands(parts: RunParts) -> list[str]:
    """What was run, as far as the run tells, and the page."""
    made = []
    if parts.recipe is not None:
        made.append(run_command(parts.recipe))
    elif (
        parts.plan is not None
        and parts.plan.statistics is not None
        and (parts.plan.freeze or parts.plan.constants or parts.plan.hallucinate or parts.plan.compact)
    ):
        made.append(search_command(parts.plan, parts.search) if is_searched(parts.plan) else plan_command(parts.plan))
    return [*made, "vitfrost report NEW_RUN" if made else "vitfrost report RUN"]
