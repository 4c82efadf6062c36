"""Repair on the way from a plan to an artifact: what is recorded, what is loaded again, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, FreezeEntries, Hallucinate, Quantize, Repair
from vitfrost.configs.flat import UNQUANTIZED
from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.plans.heads import HeadPlan
from vitfrost.plans.schema import Plan
from vitfrost.statistics.record import Statistics


@pytest.fixture(scope="module")
def measured(pictures: Path) -> tuple[Model, Statistics]:
    loaded = Model.open("vitfrost_digits")
    return loaded, vitfrost.calibrate(loaded, pictures, vitfrost.Calibrate(limit=20, similarity=True), progress=False)


def whole_heads_frozen(statistics: Statistics, layers: set[int], quantize: Quantize = UNQUANTIZED) -> Plan:
    """All entries of all heads of some layers."""
    plan = vitfrost.plan(statistics, FreezeEntries(0.0, bits=32), quantize)
    changed = []
    for number, layer in enumerate(plan.layers):
        queries, keys = layer.maps[-2:]
        whole = HeadPlan(source="frozen", entries=queries * keys)
        heads = tuple(whole if number in layers else HeadPlan(source="computed") for _ in layer.heads)
        changed.append(layer.model_copy(update={"heads": heads}))
    return plan.model_copy(update={"layers": tuple(changed)})


def logits(made: Model) -> torch.Tensor:
    pixels = torch.randn(4, 3, *made.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return made.module(pixels)


def compressed(measured: tuple[Model, Statistics], plan: Plan, pictures: Path, **options: Any) -> Artifact:
    config = Compress(calibration_images=4, compact_images=8)
    return vitfrost.compress(measured[0], plan, statistics=measured[1], images=pictures, config=config, **options)


def test_frozen_layers_are_repaired_recorded_and_loaded_to_the_same_bits(
    measured: tuple[Model, Statistics], pictures: Path, tmp_path: Path
) -> None:
    plan = whole_heads_frozen(measured[1], {1})
    without = compressed(measured, plan, pictures)
    made = compressed(measured, plan, pictures, repair=Repair(images=16), out=tmp_path / "artifact")
    again = Artifact.load(tmp_path / "artifact")
    assert torch.equal(logits(again), logits(made))
    assert not torch.equal(logits(made), logits(without))
    assert without.repair is None
    assert again.repair == made.repair
    record = made.repair
    assert (record["method"], record["images"], record["seed"], record["skipped"]) == ("ridge", 16, 0, 0)
    assert len(record["images_hash"]) == 64
    assert made.seeds["repair"] == 0
    assert list(record["layers"])[:2] == ["blocks.1.attn.proj", "blocks.1.mlp.fc2"]
    assert all(layer["after"] < layer["before"] for layer in record["layers"].values())
    own, other = made.module.blocks[0].state_dict(), measured[0].module.blocks[0].state_dict()
    assert all(torch.equal(value, other[name]) for name, value in own.items())
    once_more = compressed(measured, plan, pictures, repair=Repair(images=16))
    assert torch.equal(logits(once_more), logits(made))


def test_the_structure_is_repaired_before_it_is_quantized(measured: tuple[Model, Statistics], pictures: Path, tmp_path: Path) -> None:
    plan = vitfrost.plan(measured[1], FreezeEntries(0.2), Hallucinate(0.5), Compact(0.5), Quantize(8, 8))
    made = compressed(measured, plan, pictures, repair=Repair("bias", images=16), out=tmp_path / "artifact")
    assert torch.equal(logits(Artifact.load(tmp_path / "artifact")), logits(made))
    assert {"blocks.0.attn.proj", "blocks.0.mlp.fc2.up"} <= set(made.repair["layers"])
    assert made.quantization is not None
    floats = vitfrost.plan(measured[1], Hallucinate(0.5), Compact(0.5))
    unquantized = compressed(measured, floats, pictures, repair=Repair("bias", images=16))
    assert unquantized.repair["layers"] == made.repair["layers"]


def test_weights_alone_are_quantized_after_the_repair_of_frozen_maps(measured: tuple[Model, Statistics], pictures: Path) -> None:
    plan = whole_heads_frozen(measured[1], {0}, Quantize(8, 32))
    assert compressed(measured, plan, pictures, repair=Repair(images=16)).repair["layers"]


def test_the_command(prepared: Any, pictures: Path, call: Any, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    vitfrost.plan(Model.open("vitfrost_digits"), Compact(0.5), out=plan)
    words = ["compress", "--model", "vitfrost_digits", "--plan", plan, "--images", pictures, "--compact-images", 8]
    done = call(*words, "--repair", "ridge", "--repair-images", 8, "--repair-penalty", 0.5, "--out", tmp_path / "artifact")
    assert done.status == 0
    assert "layers repaired on 8 images" in done.out
    assert Artifact.load(tmp_path / "artifact").repair["penalty"] == 0.5


def test_what_is_refused(measured: tuple[Model, Statistics], pictures: Path) -> None:
    loaded, statistics = measured
    frozen = whole_heads_frozen(statistics, {1})
    with pytest.raises(VitfrostError, match="--images DIR"):
        vitfrost.compress(loaded, frozen, statistics=statistics, repair=Repair())
    options: list[tuple[dict[str, Any], str]] = [
        ({"method": "gradient"}, "Repair.method is 'gradient'; it should be 'ridge' or 'bias'"),
        ({"penalty": -1.0}, "Repair.penalty is -1.0; it should be greater than or equal to 0"),
        ({"penalty": float("nan")}, "Repair.penalty is nan"),
        ({"images": 0}, "Repair.images is 0; it should be greater than or equal to 1"),
    ]
    for fields, message in options:
        with pytest.raises(VitfrostError, match=message):
            Repair(**fields)
    with pytest.raises(VitfrostError, match=r"Repair\.penalty has no effect where method is bias"):
        compressed(measured, frozen, pictures, repair=Repair("bias", penalty=1.0))
    quantized = whole_heads_frozen(statistics, {1}, Quantize(8, 8))
    with pytest.raises(VitfrostError, match="nothing to repair"):
        compressed(measured, quantized, pictures, repair=Repair(images=16))


def test_a_plan_of_the_last_block_alone_is_compressed_and_said_to_be_unrepaired(
    measured: tuple[Model, Statistics], pictures: Path, messages: Callable[[], str], tmp_path: Path
) -> None:
    plan = whole_heads_frozen(measured[1], {len(measured[1].sites) - 1})
    made = compressed(measured, plan, pictures, repair=Repair(images=16), out=tmp_path / "artifact")
    assert "nothing is repaired" in messages()
    again = Artifact.load(tmp_path / "artifact")
    assert again.repair == made.repair
    assert made.repair is not None
    assert (made.repair["images"], made.repair["layers"]) == (0, {})
    assert torch.equal(logits(again), logits(made))
