"""Models whose stream is turned by a layer of its own, by `fast`: recorded, saved, loaded, resized, begun again, evaluated as features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, Evaluate, FreezeHeads, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.features import features_of
from vitfrost.evaluation.inspect import skeleton
from vitfrost.methods.quantize.polish import PolishOptions
from vitfrost.methods.quantize.turn import turned_places
from vitfrost.model import Model
from vitfrost.passes.left_models import LeftModels
from vitfrost.passes.quantize_steps.polish import Polish
from vitfrost.passes.quantizers import fast

from ..conftest import unchecked_shapes
from ..models import random_model
from .test_quantize_chain import chained, pixels

pytestmark = [pytest.mark.xdist_group("turned"), pytest.mark.usefixtures("unchecked")]  # one worker makes each model once
FAST = Quantize(4, 8, method="fast")
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "projection": ("vit_base_patch16_clip_224.openai", SMALL | {"num_classes": 512}, ["norm_pre"]),
    "no projection": ("vit_base_patch16_clip_224.openai", SMALL | {"num_classes": 0}, ["norm_pre", "norm"]),
    "tokens": ("vit_small_patch16_224", SMALL | {"num_classes": 0, "global_pool": ""}, ["norm"]),
    "mean of tokens": ("vit_small_patch16_224", SMALL | {"num_classes": 0, "global_pool": "avg", "fc_norm": True}, ["norm"]),
}


def opened(case: str) -> Model:
    """With single channels that are large, as trained models have them: what a rotation is for."""
    name, options, _ = CASES[case]
    model = random_model(name, 32, **options)
    with torch.no_grad():
        for block in model.module.blocks:
            block.norm1.weight[::7] *= 12
            block.norm2.weight[::11] *= 12
            block.attn.qkv.weight.mul_(3)
    return model


def compressed(model: Model, quantize: Quantize = FAST, out: Path | None = None) -> Artifact:
    return vitfrost.compress(model, vitfrost.plan(model, quantize), images=list(pixels(24, 4)), config=Compress(0, 24), out=out)


@pytest.fixture(scope="module", params=CASES)
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Model, Artifact, Path]:
    folder = tmp_path_factory.mktemp("turned") / "made"
    with unchecked_shapes():
        model = opened(request.param)
        return request.param, model, compressed(model, out=folder), folder


Made = tuple[str, Model, Artifact, Path]


def test_the_rotation_is_recorded_and_kept(made: Made) -> None:
    case, _, artifact, _ = made
    record = artifact.quantization
    rotation = record["steps"][1]
    assert (rotation["step"], rotation["rotated"], rotation["turned"]) == ("rotation", True, CASES[case][2])
    assert rotation["kept"]
    assert rotation["after"] < 0.2
    assert record["outputs"] == ("tokens" if case == "tokens" else "embedding")
    assert turned_places(artifact.module) == CASES[case][2]


@torch.no_grad()
def test_what_was_saved_is_loaded_with_the_same_bits(made: Made) -> None:
    case, _, artifact, folder = made
    loaded = Artifact.load(folder)
    assert turned_places(loaded.module) == CASES[case][2]
    assert torch.equal(loaded.module(pixels(4)), artifact.module(pixels(4)))
    assert torch.equal(loaded.module.forward_features(pixels(4)), artifact.module.forward_features(pixels(4)))
    assert loaded.quantization == artifact.quantization
    assert {name.rpartition(".")[2] for name in load_file(folder / "model.safetensors") if name.startswith("norm.0.")} <= {
        "places",
        "signs",
    }


@torch.no_grad()
def test_features_are_the_original_s_but_for_quantization(made: Made) -> None:
    _, model, artifact, folder = made
    wanted, found = features_of(model, pixels(6, 9)), features_of(artifact, pixels(6, 9))
    for part in ("pooled", "tokens", "class_token", "patches"):
        one, other = getattr(wanted, part), getattr(found, part)
        assert (one is None) == (other is None)
        assert one is None or torch.nn.functional.cosine_similarity(one, other, dim=-1).mean() > 0.95
    rows = vitfrost.evaluate(folder, [(image, 0) for image in pixels(6, 9)], config=Evaluate(limit=6), reference=model, progress=False)
    assert rows is not None


def test_costs_and_parameters_are_those_of_the_model(made: Made) -> None:
    _, model, artifact, folder = made
    told = [vitfrost.inspect(each) for each in (model, folder)]
    assert told[0]["macs"] == told[1]["macs"]
    assert told[0]["parameters"] == told[1]["parameters"]
    assert turned_places(skeleton(artifact)[0]) == []


@torch.no_grad()
def test_at_another_size(made: Made, tmp_path: Path) -> None:
    case, _, artifact, _ = made
    large = vitfrost.resize(artifact, 48, out=tmp_path / "large")
    assert turned_places(large.module) == CASES[case][2]
    again, given = Artifact.load(tmp_path / "large"), pixels(2, size=48)
    assert torch.equal(again.module(given), large.module(given))
    kept = large.module.state_dict()
    for name, value in artifact.module.state_dict().items():
        assert name == "pos_embed" or torch.equal(kept[name], value), name


@torch.no_grad()
def test_a_run_that_was_killed_finds_its_models(made: Made, tmp_path: Path) -> None:
    _, model, artifact, _ = made
    left = LeftModels(tmp_path, artifact.plan, model.blank)
    left.keep("key", artifact.module, {})
    found = left.find("key")
    assert found is not None
    assert torch.equal(found[0](pixels(2)), artifact.module(pixels(2)))


@torch.no_grad()
def test_frozen_layers_and_compact_blocks_go_along(tmp_path: Path) -> None:
    model = opened("no projection")
    plan = vitfrost.plan(model, FreezeHeads(0.5, unit="layer"), Compact(0.5, init="weights"), FAST)
    artifact = vitfrost.compress(model, plan, images=list(pixels(12, 4)), config=Compress(0, 12), out=tmp_path / "made")
    assert artifact.quantization is not None
    assert artifact.quantization["steps"][1]["turned"] == ["norm_pre", "norm"]
    assert torch.equal(Artifact.load(tmp_path / "made").module(pixels(3)), artifact.module(pixels(3)))


def test_gradient_steps() -> None:
    steps = (*fast.STEPS, Polish(PolishOptions(steps=2, batch=4, every=1)))
    module, records = chained(opened("no projection"), 32, steps)
    assert records[1]["rotated"]
    assert [record["step"] for record in records][-1] == "polish"
    assert bool(module(pixels(2)).isfinite().all())


@pytest.mark.parametrize(("part", "change"), [("places", 1), ("signs", 0.5)])
def test_a_damaged_turn_is_refused(tmp_path: Path, part: str, change: float) -> None:
    folder = tmp_path / "made"
    compressed(opened("tokens"), Quantize(4, 32, method="fast", steps=("rotation",)), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"norm.0.{part}"] = tensors[f"norm.0.{part}"] + type(tensors[f"norm.0.{part}"][0])(change)
    save_file(tensors, folder / "model.safetensors")
    config = (folder / "config.json").read_text()
    digest = vitfrost.files.sha256_of_file(folder / "model.safetensors")
    (folder / "config.json").write_text(_with_digest(config, digest))
    with pytest.raises(VitfrostError, match="do not fit the plan"):
        Artifact.load(folder)


def _with_digest(config: str, digest: str) -> str:
    before, _, rest = config.partition('"weights_sha256":"')
    return f'{before}"weights_sha256":"{digest}{rest[64:]}'
