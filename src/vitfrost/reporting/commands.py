"""The command lines that make a run, its plan and its page again; capitals stand for files and folders of the reader."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from ..budget.history import SearchRecord
from ..configs import Compact, Search, WindowHeads
from ..configs.methods import REPQ
from ..configs.words import config_words, method_words, size_word
from ..identity import Identity
from ..plans.schema import Plan, methods_in
from ..runs.recipe import Recipe
from ..vit.compat import import_timm
from ..vit.load import RANDOM_WEIGHTS
from .parts import RunParts
from .places import ARTIFACT, PLAN, QUANTIZED, STATISTICS

timm = import_timm()
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


def model_words(model: Identity, options: Mapping[str, Any] | None = None) -> str:
    """The flags that open the model again: its weights (WEIGHTS where they are of a file), and image size and classes where they are not
    the name's own. `options`: of timm's model, as an artifact or a recipe names them; a plan does not know them."""
    own, known = dict(options or {}), _known(model.name)
    words = ["--model", model.name]
    if model.weight_tag == f"{RANDOM_WEIGHTS}:0":
        words += ["--weights", RANDOM_WEIGHTS]
    elif model.weight_tag != f"{known.get('architecture')}.{known.get('tag') or 'default'}":
        words += ["--weights", "WEIGHTS"]
    if model.image_size != tuple(known.get("input_size", ()))[1:]:
        height, width = model.image_size
        words += ["--image-size", size_word(height if height == width else model.image_size)]
    classes = own.pop("num_classes", None if model.classes == known.get("num_classes", model.classes) else model.classes)
    words += [] if classes is None else ["--classes", str(classes)]
    words += ["--model-option", *(f"{name}={_yaml_word(value)}" for name, value in own.items())] if own else []
    return shlex.join(words)


def _known(name: str) -> dict[str, Any]:
    """What timm says of a name's weights and images; of our own models, for which timm has no such entry, what the model says."""
    config = timm.get_pretrained_cfg(name)
    if config is not None:
        return dict(config.to_dict())
    built: Any = timm.create_model(name) if timm.is_model(name) else None
    return {} if built is None else dict(built.pretrained_cfg)


def _yaml_word(value: Any) -> str:
    """A value as `--model-option` reads it."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)


def plan_command(plan: Plan, options: Mapping[str, Any] | None = None) -> str:
    """How to make the plan again from its statistics, or from its model where it has none; `options`: see `model_words`."""
    source = "--statistics STATISTICS" if plan.statistics is not None else model_words(plan.model, options)
    groups = [shlex.join(words) for words in method_words(methods_in(plan)) if words]
    return NEXT.join([f"vitfrost plan {source}", *groups, "--out plan.yaml"])


def compress_command(parts: RunParts) -> str:
    """How to make the artifact of a folder's plan, with the statistics and images that its passes need."""
    if parts.plan is None:
        return f"vitfrost compress --model {parts.identity.name if parts.identity else 'MODEL'} --plan RUN/plan.yaml --out RUN/artifact"
    plan, words = parts.plan, ["vitfrost compress", model_words(parts.plan.model, parts.options), f"--plan {parts.place(PLAN)}"]
    if plan.statistics is not None and (plan.freeze is not None or any(layer.sources for layer in plan.layers)):
        own = next(
            (name for name, one in ((STATISTICS, parts.statistics), (QUANTIZED, parts.quantized)) if one and one is parts.ranking), None
        )
        words.append(f"--statistics {parts.place(own) if own else 'STATISTICS'}")
    fitted = plan.compact is not None and plan.compact.init == "activations"
    if fitted or plan.quantize.parts.any_activations or plan.quantize.method != REPQ:
        words.append("--images CALIBRATION_IMAGES")
    return " ".join([*words, f"--out {parts.place(ARTIFACT)}"])


def is_searched(plan: Plan) -> bool:
    """Whether a search under a budget made the plan."""
    found = [plan.constants is not None and plan.constants.by == "search", plan.compact is not None and plan.compact.ratio is None]
    return any(found) or (plan.windowed is not None and plan.windowed.ratio is None)


def search_command(plan: Plan, search: SearchRecord | None, given: Mapping[str, Any] | None = None) -> str:
    """How to search for the plan again; without the search's file its budget is not known. `given`: the options of `model_words`."""
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
    model = f"vitfrost search --statistics STATISTICS {model_words(plan.model, given)} --images SEARCH_IMAGES"
    return NEXT.join([model, *options, shlex.join([*heads, *near, *blocks, *bits]), "--out plan.yaml"])


def commands(parts: RunParts) -> list[str]:
    """What was run, as far as the run tells, and the page."""
    made = []
    if parts.recipe is not None:
        made.append(run_command(parts.recipe))
    elif parts.plan is not None:
        searched = is_searched(parts.plan)
        made.append(search_command(parts.plan, parts.search, parts.options) if searched else plan_command(parts.plan, parts.options))
    return [*made, "vitfrost report NEW_RUN" if made else "vitfrost report RUN"]
