"""Searches of models that give features: relative error, nearest neighbors, and a record that says so."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vitfrost
from vitfrost.budget.effects import EffectMeter
from vitfrost.budget.history import load_search
from vitfrost.budget.replacements import Replacements
from vitfrost.configs import Calibrate, Compact, FreezeHeads, Search
from vitfrost.errors import VitfrostError
from vitfrost.methods.output_distance import distances
from vitfrost.model import Model
from vitfrost.plans.choose import computed_layer
from vitfrost.statistics.record import Statistics
from vitfrost.vit.families import find_sites

OPTIONS = {"embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.5}
Subject = tuple[Model, Statistics, list[torch.Tensor]]


@pytest.fixture(scope="module", params=["embedding", "tokens"])
def subject(request: pytest.FixtureRequest) -> Subject:
    model = Model.open("vit_small_patch14_dinov2", weights="random", image_size=56, options=OPTIONS, outputs=request.param)
    images = list(torch.randn(12, 3, 56, 56, generator=torch.Generator().manual_seed(0)))
    return model, vitfrost.calibrate(model, images, Calibrate(sensitivity=True), progress=False), images


def test_the_effect_is_the_relative_error_and_the_agreement_of_neighbors(subject: Subject) -> None:
    model, statistics, images = subject
    sites = find_sites(model.module)
    layers = [computed_layer(site, None) for site in statistics.header.sites]
    replacements = Replacements(copy.deepcopy(model.module), sites, layers, statistics, FreezeHeads(kind="dense"), Compact(), {})
    meter = EffectMeter(replacements, torch.stack(images).split(5), outputs=model.outputs)
    start = replacements.state
    state = replace(start, heads=(frozenset({0, 2}), *start.heads[1:]))
    found = meter.measure(state, start)
    with torch.no_grad():
        changed, original = replacements.model(torch.stack(images)).double(), model(torch.stack(images)).double()
    assert found.kl == pytest.approx(distances(model.outputs, original, changed).mean().item(), rel=1e-4)
    assert found.kl > 0

    def neighbors(outputs: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.normalize(outputs.flatten(1), dim=1)
        return (rows @ rows.T).fill_diagonal_(-2).argmax(1)

    assert found.agreement == pytest.approx(100 * (neighbors(changed) == neighbors(original)).double().mean().item())
    assert (meter.original.agreement, meter.original.kl, found.top1) == (100, 0, None)


def test_a_search_ends_in_a_plan_that_tells_relative_errors(subject: Subject, tmp_path: Path) -> None:
    model, statistics, images = subject
    plan = vitfrost.search(
        model, [(image, 0) for image in images], Search(target_macs=0.97, images=12, over=("heads",)), statistics=statistics,
        out=tmp_path / "plan.yaml", progress=False,
    )  # fmt: skip
    record = load_search(tmp_path / "plan.search.json")
    assert (record.subject.outputs, record.subject.images.labeled) == (model.outputs, False)
    assert any("relative error +" in (head.why or "") for layer in plan.layers for head in layer.heads)
    made = vitfrost.compress(model, plan, statistics=statistics)
    row = vitfrost.evaluate(made, images, reference=model, progress=False)
    assert row.features.likeness["patches"].relative_error > 0
    with pytest.raises(VitfrostError, match="needs no labels; leave labels out"):
        vitfrost.search(model, images, Search(max_drop=1), statistics=statistics, labels="labels.csv")


def test_fast_is_guarded_by_the_relative_error_and_a_repair_lowers_it(subject: Subject) -> None:
    model, statistics, images = subject
    made = vitfrost.compress(
        model, vitfrost.plan(statistics, vitfrost.Quantize(4, 8, method="fast", steps=("ridge",))), images=images,
        config=vitfrost.Compress(calibration_images=12),
    )  # fmt: skip
    record = made.quantization
    assert record["outputs"] == model.outputs
    held = torch.stack(images)
    with torch.no_grad():
        assert distances(model.outputs, model(held), made(held)).mean() < 0.1
    assert all(0 <= step["after"] < 1 for step in record["steps"])
    plan = vitfrost.plan(statistics, FreezeHeads(0.5, by="fisher"))
    with torch.no_grad():
        errors = [
            float(distances(model.outputs, model(held), vitfrost.compress(model, plan, images=images, repair=repair)(held)).mean())
            for repair in (None, vitfrost.Repair())
        ]
    assert errors[1] <= errors[0]
