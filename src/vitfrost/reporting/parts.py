"""The parts of a run's folder that the page shows, read and checked to belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..artifact import CONFIG_FILE, FORMAT, WEIGHTS_FILE
from ..budget.history import SUFFIX, SearchRecord, load_search
from ..errors import VitfrostError
from ..evaluation.cost import FrozenSavings, frozen_savings, macs_by_part, parameters_by_part
from ..evaluation.results import Results, Row, load_row
from ..identity import Identity
from ..passes.structure import has_structure, install_structure
from ..plans.fits import check_fits
from ..plans.heads import LayerPlan
from ..plans.schema import Plan
from ..runs.recipe import Recipe, is_study, load_recipe, read_recipe
from ..runtime.folder import is_export, read_export
from ..statistics.record import Statistics
from ..timing.benchmark import Benchmark, load_benchmark
from ..vit.families import find_sites, has_class_token
from ..vit.load import create_model
from ..vit.sites import ModelSites
from .places import ARTIFACT, BENCH, DEPLOY, PLAN, QUANTIZED, RECIPE, RESULTS, ROW, STATISTICS, find_places

ARTIFACT_KEYS = {"model", "plan", "seeds", "versions", "weights_sha256"}


@dataclass(frozen=True)
class Costs:
    """Parameters, and multiply-accumulates per image, by part."""

    parameters: dict[str, int]
    macs: dict[str, int]


@dataclass(frozen=True)
class Anatomy:
    """What the model's architecture tells: its sites, whether query 0 is a class token, its costs, and with the plan's structure.

    `planned` is None where the plan changes no layer.
    """

    sites: ModelSites
    class_token: bool
    macs: dict[str, int]
    parameters: dict[str, int] = field(default_factory=dict)
    planned: Costs | None = None


class HallucinatedHead(BaseModel):
    """What an artifact says of a hallucinated head (see passes.quality)."""

    head: int
    like: int
    explained: float | None = None
    distance: float | None = None


class StructureRecord(BaseModel):
    """What an artifact says of its changed layers: images behind the factors, errors by feed-forward block, heads by site."""

    images: int | None = None
    relative_errors: dict[str, float] = {}
    heads: dict[str, list[HallucinatedHead]] = {}


class _Structure(BaseModel):
    structure: StructureRecord


@dataclass(frozen=True)
class RunParts:
    """What was found in the folder of a run; parts that are not there are None.

    `plan` is the one inside the artifact where there is one (it is what runs), else `plan.yaml`. `named`: what parts are called that have
    other names than a run's, by these.
    """

    recipe: Recipe | None
    statistics: Statistics | None
    quantized: Statistics | None
    plan: Plan | None
    plan_differs: bool
    artifact: dict[str, Any] | None
    artifact_bytes: int | None
    results: Results | None
    record: StructureRecord | None = None
    search: SearchRecord | None = None
    bench: Benchmark | None = None
    exported: dict[str, Any] | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> Identity | None:
        """Name, image size, weight tag and hash of the model."""
        found = [identity for _, identity in self._identities()]
        return found[0] if found else None

    def _identities(self) -> list[tuple[str, Identity]]:
        """Which model each part is of; the plan inside the artifact names the artifact's."""
        return [
            *([(self.called(PLAN if self.artifact is None else ARTIFACT), self.plan.model)] if self.plan else []),
            *([(STATISTICS, self.statistics.header.model)] if self.statistics else []),
            *([(QUANTIZED, self.quantized.header.model)] if self.quantized else []),
            *([("the search", self.search.subject.model)] if self.search else []),
        ]

    @cached_property
    def anatomy(self) -> Anatomy | None:
        """Sites and costs of the model, built anew by timm with untrained weights; None where its name is not known.

        Raises VitfrostError when the statistics or the plan do not fit its sites.
        """
        if self.identity is None:
            return None
        if self.artifact and not self.artifact["model"].get("registered", True):
            return None
        model = create_model(self.identity.name, self.identity.image_size, **self.options)
        sites = find_sites(model)
        for statistics in (self.statistics, self.quantized):
            if statistics is not None:
                statistics.check_fits(self.identity, sites.signature())
        if self.plan is not None:
            check_fits(self.plan, self.identity, sites.signature(), [site.signature() for site in sites.feed_forward])
        class_token = has_class_token(model)
        macs, parameters, planned = macs_by_part(model, sites), parameters_by_part(model, sites), None
        if self.plan is not None and has_structure(self.plan):
            changed = install_structure(model, self.plan)
            planned = Costs(parameters_by_part(model, changed), macs_by_part(model, changed))
        return Anatomy(sites, class_token, macs, parameters, planned)

    def called(self, name: str) -> str:
        """What a part of the folder is called, by the name that a run gives it."""
        return self.named.get(name, name)

    def place(self, name: str) -> str:
        """How a command names a part of the folder."""
        return f"RUN/{self.called(name)}"

    @property
    def options(self) -> dict[str, Any]:
        """The options of timm's model that the artifact names, or the recipe."""
        if self.artifact:
            return dict(self.artifact["model"].get("options", {}))
        return dict(self.recipe.model.options) if self.recipe else {}

    @property
    def shown(self) -> Statistics | None:
        """The statistics whose maps are drawn: the original model's where there are any."""
        return self.statistics or self.quantized

    @property
    def ranking(self) -> Statistics | None:
        """The statistics that the plan was made from; None where they are not in the folder."""
        if self.plan is None or self.plan.statistics is None:
            return None
        found = [one for one in (self.statistics, self.quantized) if one and one.content_hash == self.plan.statistics.hash]
        return found[0] if found else None

    @property
    def savings(self) -> FrozenSavings | None:
        """What the plan's frozen entries save; nothing in layers that hallucinate, whose other maps are made of all logits."""
        if self.plan is None or self.anatomy is None:
            return None
        sites = self.anatomy.sites

        def of(layers: list[LayerPlan]) -> FrozenSavings:
            frozen = {layer.site: [head.entries for head in layer.heads] for layer in layers}
            return frozen_savings(frozen, sites, {layer.site: layer.entries_per_head for layer in layers})

        found = of(list(self.plan.layers))
        free = of([layer for layer in self.plan.layers if not layer.hallucinated])
        return replace(found, whole_heads=free.whole_heads, dense_saved_macs=free.dense_saved_macs, ideal_saved_macs=free.ideal_saved_macs)

    @property
    def compared(self) -> Statistics | None:
        """The statistics that say how alike the heads are: the original model's where they do."""
        return next((one for one in (self.statistics, self.quantized) if one is not None and one.similarity is not None), None)

    @property
    def trained(self) -> bool:
        """Whether the artifact was trained after it was made."""
        return self.artifact is not None and self.artifact.get("training") is not None

    @property
    def repaired(self) -> bool:
        """Whether the artifact was repaired."""
        return self.artifact is not None and self.artifact.get("repair") is not None

    @property
    def changed(self) -> bool:
        """Whether the plan changes layers."""
        return self.plan is not None and has_structure(self.plan)

    @property
    def original(self) -> Row | None:
        """The first result row without a plan."""
        return next((row for row in self._rows() if row.plan_hash is None), None)

    @property
    def compressed(self) -> Row | None:
        """The last result row with a plan."""
        return next((row for row in reversed(self._rows()) if row.plan_hash is not None), None)

    def _rows(self) -> list[Row]:
        return self.results.rows if self.results else []

    def check(self, folder: Path) -> None:
        """Raise VitfrostError when nothing was found, or when two parts are of different models."""
        identities = self._identities()
        if not identities and self.results is None:
            raise VitfrostError(
                f"{folder} holds no run: none of {STATISTICS}, {PLAN}, {ARTIFACT}, {RESULTS} and {ROW}; make one with vitfrost run"
            )
        hashes = [(name, identity.state_hash) for name, identity in identities]
        hashes += [
            (f"row '{row.name}' of {self.named.get(ROW, RESULTS)}", row.state_hash) for row in (self.original, self.compressed) if row
        ]
        for name, state_hash in hashes[1:]:
            if state_hash != hashes[0][1]:
                raise VitfrostError(
                    f"{folder} mixes runs: {hashes[0][0]} is of the weights {hashes[0][1][:12]}, {name} of {state_hash[:12]}; "
                    f"give the folder of one run"
                )


def read_parts(folder: Path) -> RunParts:
    """Read every part that is there.

    Raises VitfrostError for a folder that is missing or holds no run, a damaged part, or parts of different models.
    """
    if not folder.is_dir():
        raise VitfrostError(f"no run folder {folder}; vitfrost run makes one")
    if (folder / RECIPE).is_file() and is_study(read_recipe(folder / RECIPE)):
        raise VitfrostError(f"{folder} is the folder of a study; make its page with python -m vitfrost.studies report {folder}")

    places = find_places(folder)

    def optional(name: str, read: Any) -> Any:
        return read(places[name]) if places[name].exists() else None

    artifact = optional(ARTIFACT, _read_artifact)
    written = optional(PLAN, Plan.load)
    plan = Plan.parse(artifact["plan"], source=str(places[ARTIFACT] / CONFIG_FILE)) if artifact else written
    parts = RunParts(
        recipe=optional(RECIPE, load_recipe),
        statistics=optional(STATISTICS, Statistics.load),
        quantized=optional(QUANTIZED, Statistics.load),
        plan=plan,
        plan_differs=written is not None and plan is not None and written.content_hash != plan.content_hash,
        artifact=artifact,
        artifact_bytes=sum(file.stat().st_size for file in places[ARTIFACT].iterdir()) if artifact else None,
        results=optional(RESULTS, load_row) or optional(ROW, load_row),
        record=_read_record(artifact, places[ARTIFACT] / CONFIG_FILE) if artifact else None,
        search=_read_search(folder, places[PLAN]),
        bench=optional(BENCH, load_benchmark),
        exported=read_export(places[DEPLOY]) if is_export(places[DEPLOY]) else None,
        named={name: found for name, path in places.items() if (found := str(path.relative_to(folder))) != name},
    )
    parts.check(folder)
    return parts


def _read_artifact(folder: Path) -> dict[str, Any]:
    config = FORMAT.read(folder / CONFIG_FILE)
    if not config.keys() >= ARTIFACT_KEYS:
        raise FORMAT.damaged(folder / CONFIG_FILE, f"it has no {min(ARTIFACT_KEYS - config.keys())}")
    if not (folder / WEIGHTS_FILE).is_file():
        raise VitfrostError(f"the artifact {folder} has no {WEIGHTS_FILE}; compress again")
    return config


def _read_search(folder: Path, plan: Path) -> SearchRecord | None:
    """The search of the plan, or another one that lies in the folder (of several the first by name)."""
    found = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (path.name != plan.with_suffix(SUFFIX).name, path.name))
    return load_search(found[0]) if found else None


def _read_record(config: dict[str, Any], path: Path) -> StructureRecord | None:
    if config.get("structure") is None:
        return None
    return FORMAT.record(_Structure, {"structure": config["structure"]}, path).structure
