"""Training in one process: it learns, what it writes is true, and what cannot be trained is refused in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, FreezeHeads, Train
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.evaluate import evaluate
from vitfrost.evaluation.results import load_results
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import plan
from vitfrost.statistics.calibrate import calibrate
from vitfrost.training.checkpoint import load_checkpoint
from vitfrost.training.train import train

from .lines import read_metrics

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def trained(recipe: Path, out: Path, **options: Any) -> Path:
    own = {name: options.pop(name) for name in ("resume",) if name in options}
    return train(recipe, out, Train(**options), progress=False, device="cpu", **own)


def test_a_run_leaves_what_it_says_and_its_accuracy_is_that_of_the_artifact(
    written: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    run = trained(written(evaluate_every=1, ema=0.5), tmp_path / "run")
    names = {path.name for path in run.iterdir()}
    assert names == {"recipe.yaml", "metrics.jsonl", "checkpoint.pt", "artifact", "result.json"}
    lines = read_metrics(run / "metrics.jsonl")
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8, 10]
    assert [line["epoch"] for line in logged] == [0.4, 0.8, 1.2, 1.6, 2.0]
    assert all(line["images_per_second"] > 0 and 0 < line["lr"] <= 1e-3 for line in logged)
    evaluated = [line for line in lines if "top1" in line]
    assert [(line["step"], line["images"], "result" in line) for line in evaluated] == [(5, 40, False), (10, 40, True)]
    assert evaluated[0]["interval"][0] <= evaluated[0]["top1"] <= evaluated[0]["interval"][1]
    (row,) = load_results(run / "result.json").rows
    assert evaluated[-1]["top1"] == row.top1
    again = evaluate(run / "artifact", pictures, progress=False)
    assert again is not None
    same = {"seconds_per_image", "name"}
    assert row.model_dump(exclude=same) == again.model_dump(exclude=same)
    assert (row.kind, row.precision, row.images) == ("executed", "fp32", 40)


@pytest.mark.usefixtures("unchecked")
def test_it_learns_pictures_by_heart(written: Callable[..., Path], tmp_path: Path) -> None:
    recipe = written(
        augment={"flip": 0, "rotate": 0}, schedule={"epochs": 80}, optimizer={"lr": 5e-3, "weight_decay": 0.0}, batch_size=20,
    )  # fmt: skip
    run = trained(recipe, tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert losses[0] > 2
    assert losses[-1] < 0.7 * losses[0]
    top1 = load_results(run / "result.json").rows[0].top1
    assert top1 is not None
    assert top1 > 60


def test_an_artifact_remembers_options_classes_and_where_it_comes_from(written: Callable[..., Path], tmp_path: Path) -> None:
    options = {**SMALL, "drop_path_rate": 0.1, "patch_drop_rate": 0.25}
    run = trained(written(model={"options": options, "classes": 12, "image_size": 24}), tmp_path / "run")
    artifact = Artifact.load(run / "artifact")
    assert artifact.classes == artifact.module.num_classes == 12
    assert artifact.image_size == (24, 24)
    assert artifact.options == {**SMALL, "num_classes": 12}
    assert artifact.weight_tag.startswith("trained:")
    assert artifact.training is not None
    assert artifact.training["steps"] == 10
    assert artifact.training["start"]["weight_tag"] == "random:0"
    assert artifact.recipe is not None
    assert str(tmp_path) not in str(artifact.recipe)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(written: Callable[..., Path], tmp_path: Path) -> None:
    mixing = {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "chunk": 4}
    options = {**SMALL, "drop_path_rate": 0.2, "proj_drop_rate": 0.1}
    runs = [
        trained(written(f"{name}.yaml", mixing=mixing, model={"options": options}, seed=seed), tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    states = [Artifact.load(run / "artifact").module.state_dict() for run in runs]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_the_average_is_what_is_kept(written: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(written(ema=0.9), tmp_path / "run")
    kept = Artifact.load(run / "artifact").module.state_dict()
    state = torch.load(run / "checkpoint.pt", weights_only=True)["state"]
    assert all(torch.equal(kept[key], state["average"][key]) for key in kept)
    assert not torch.equal(kept["head.weight"], state["model"]["head.weight"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant", "epochs": None, "steps": 6, "warmup": 2}, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ({"name": "linear", "epochs": None, "steps": 4, "warmup": 0}, [1, 0.75, 0.5, 0.25]),
        ({"name": "cosine", "epochs": None, "steps": 4, "warmup": 0, "min_lr": 5e-4}, [1, 0.926777, 0.75, 0.573223]),
    ],
)
def test_the_learning_rate_follows_the_schedule(
    written: Callable[..., Path], tmp_path: Path, schedule: dict[str, Any], expected: list[float]
) -> None:
    run = trained(written(schedule=schedule, log_every=1, data={"evaluation": None}), tmp_path / "run")
    rates = [line["lr"] / 1e-3 for line in read_metrics(run / "metrics.jsonl")]
    assert rates == pytest.approx(expected, rel=1e-4)
    assert not (run / "result.json").exists()


def test_a_time_limit_ends_the_run_after_a_whole_step(written: Callable[..., Path], tmp_path: Path) -> None:
    schedule = {"epochs": 3, "follow": "time"}
    run = trained(written(schedule=schedule, time_limit=0.02, log_every=1), tmp_path / "run")
    rates = [line["lr"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert len(rates) >= 1
    assert (run / "result.json").is_file()
    short = trained(written("short.yaml", schedule={"epochs": 100000}, time_limit=1e-6), tmp_path / "short")
    assert Artifact.load(short / "artifact").training["steps"] == 1  # type: ignore[index]


def test_bfloat16_trains_and_keeps_single_precision(written: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(written(precision="bf16"), tmp_path / "run")
    assert {value.dtype for value in Artifact.load(run / "artifact").module.state_dict().values()} == {torch.float32}
    assert all(2 < line["loss"] < 4 for line in read_metrics(run / "metrics.jsonl") if "loss" in line)


def test_trained_weights_are_taken_and_another_head_stays_untrained(written: Callable[..., Path], tmp_path: Path) -> None:
    original = Model.open("vitfrost_digits", weights="random", seed=3, options=SMALL)
    save_file(original.module.state_dict(), tmp_path / "w.safetensors")
    still = {"optimizer": {"lr": 1e-9, "weight_decay": 0.0}, "schedule": {"epochs": 1}}
    same = trained(written(model={"weights": "w.safetensors"}, **still), tmp_path / "same")
    other = trained(written("o.yaml", model={"weights": "w.safetensors", "classes": 12}, **still), tmp_path / "other")
    kept, changed = (Artifact.load(run / "artifact").module.state_dict() for run in (same, other))
    expected = original.module.state_dict()
    torch.testing.assert_close(kept, expected, atol=1e-6, rtol=0)
    assert changed["head.weight"].shape == (12, 32)
    torch.testing.assert_close(changed["blocks.0.attn.qkv.weight"], expected["blocks.0.attn.qkv.weight"], atol=1e-6, rtol=0)


BOTH = {"hallucinate": {"share": 0.5, "by": "first"}, "compact": {"ratio": 0.5}}


def test_a_plans_structure_is_trained_from_scratch_and_merged(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    run = trained(written(plan=BOTH, ema=0.9, evaluate_every=1), tmp_path / "run")
    artifact = Artifact.load(run / "artifact")
    assert [head.source for head in artifact.plan.layers[0].heads] == ["computed", "hallucinated"]
    state = artifact.module.state_dict()
    assert state["blocks.0.mlp.fc2.down.weight"].shape == (16, 128)
    assert state["blocks.0.attn.qkv.weight"].shape == (16 + 16 + 32, 32)
    assert not any("branches" in key for key in state)
    held = torch.load(run / "checkpoint.pt", weights_only=True)["state"]
    assert any("branches" in key for key in held["model"])
    (row,) = load_results(run / "result.json").rows
    again = evaluate(run / "artifact", pictures, progress=False)
    assert again is not None
    assert (row.top1, row.images_hash, row.plan_hash, row.macs) == (again.top1, again.images_hash, again.plan_hash, again.macs)
    plain = trained(written("plain.yaml"), tmp_path / "plain")
    (other,) = load_results(plain / "result.json").rows
    assert row.macs is not None
    assert other.macs is not None
    assert row.macs < other.macs


def test_trained_weights_take_up_a_plans_structure_in_closed_form(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    source = Model.open("vitfrost_digits", weights="random", seed=3, options=SMALL)
    save_file(source.module.state_dict(), tmp_path / "w.safetensors")
    hallucinate = {"share": 0.5, "by": "first", "mix": "copy"}
    changes = {
        "plan": {"hallucinate": hallucinate, "compact": {"ratio": 0.5, "noise": 0.0}},
        "model": {"weights": "w.safetensors"},
        "start": {"images": str(pictures), "limit": 20},
        "optimizer": {"lr": 1e-9, "weight_decay": 0.0},
    }
    run = trained(written(**changes), tmp_path / "run")
    artifact = Artifact.load(run / "artifact")
    assert artifact.structure is not None
    assert artifact.structure["images"] == 20
    assert 0 < max(artifact.structure["relative_errors"].values()) < 1
    qkv, original = artifact.module.state_dict()["blocks.0.attn.qkv.weight"], source.module.state_dict()["blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(qkv[:16], original[:16], atol=1e-6, rtol=0)
    going_on = written("on.yaml", model={"weights": None}, start={"artifact": str(run / "artifact")})
    again = Artifact.load(trained(going_on, tmp_path / "again") / "artifact")
    assert again.plan == artifact.plan
    assert not torch.equal(again.module.state_dict()["blocks.0.attn.qkv.weight"], qkv)
    with pytest.raises(VitfrostError, match="need images"):
        trained(written("no.yaml", **{**changes, "start": {}}), tmp_path / "no")


def test_statistics_choose_heads_and_fit_their_mix(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    calibrate("vitfrost_digits", pictures, Calibrate(limit=12, similarity=True), out=tmp_path / "s.safetensors", progress=False)
    recipe = written(
        plan={"hallucinate": {"share": 0.5}}, model={"weights": "timm", "options": None}, start={"statistics": "s.safetensors"},
        optimizer={"lr": 1e-9, "weight_decay": 0.0}, schedule={"epochs": 1}, teacher={"original": True, "weight": 1.0},
    )  # fmt: skip
    artifact = Artifact.load(trained(recipe, tmp_path / "run") / "artifact")
    assert artifact.plan.statistics is not None
    assert all(len(layer.hallucinated) == 2 for layer in artifact.plan.layers)
    mixes = [value for key, value in artifact.module.state_dict().items() if key.endswith("hallucination.mix.weight")]
    assert len(mixes) == 6
    assert all(((mix != 0) & (mix != 1)).any() for mix in mixes)
    untrained = {"plan": {"hallucinate": {"share": 0.5}}, "model": {"options": None}, "start": {"statistics": "s.safetensors"}}
    with pytest.raises(VitfrostError, match="for other weights"):
        trained(written("other.yaml", **untrained), tmp_path / "other")


@pytest.mark.usefixtures("unchecked")
def test_constants_of_frozen_heads_are_trained(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    """The EAM paper's own outlook, "retrain with fixed maps": from a frozen artifact, by imitation of the original, without labels."""
    statistics = calibrate("vitfrost_digits", pictures, Calibrate(limit=12), progress=False)
    chosen = plan(statistics, FreezeHeads(0.5, kind="local", window=3))
    frozen = compress("vitfrost_digits", chosen, statistics=statistics, out=tmp_path / "frozen")
    recipe = written(
        model={"options": None}, teacher={"name": "vitfrost_digits", "weights": "timm", "weight": 1.0}, schedule={"epochs": 6},
        data={"train": [{"source": str(pictures), "labels": "none"}]}, augment={"flip": 0, "rotate": 0},
    )  # fmt: skip
    run = trained(recipe, tmp_path / "run", artifact=tmp_path / "frozen", teacher_weights="timm")
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]
    made = Artifact.load(run / "artifact")
    assert made.plan == chosen
    before, after = frozen.module.state_dict(), made.module.state_dict()
    kernels = [key for key in after if key.endswith(".kernel")]
    assert kernels
    assert all(not torch.equal(before[key], after[key]) for key in kernels)
    inline = written("inline.yaml", plan={"constants": {"unit": "layer", "ratio": 1.0, "by": "first"}}, schedule={"epochs": 1})
    scratch = Artifact.load(trained(inline, tmp_path / "scratch") / "artifact")
    assert all(len(layer.constant) == 2 for layer in scratch.plan.layers)
    with pytest.raises(VitfrostError, match="no teacher of its own"):
        trained(inline, tmp_path / "other", teacher_weights="timm")


@pytest.mark.usefixtures("unchecked")
def test_last_tokens_are_imitated(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    save_file(Model.open("vitfrost_digits", weights="random", seed=3, options=SMALL).module.state_dict(), tmp_path / "w.safetensors")
    teacher = {"original": True, "weight": 1.0, "tokens": 2.0}
    still = {"optimizer": {"lr": 1e-9}, "log_every": 1}
    run = trained(written(model={"weights": "w.safetensors"}, teacher=teacher, **still), tmp_path / "same")
    assert max(abs(line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line) < 1e-5
    other = {"name": "vitfrost_digits", "weights": "timm", "weight": 1.0, "tokens": 1.0}
    wide = {"depth": 2, "embed_dim": 64, "num_heads": 4}
    small = {"model": {"options": wide}, "augment": {"flip": 0, "rotate": 0}, "optimizer": {"lr": 2e-3}, "schedule": {"epochs": 8}}
    losses = []
    for tokens in (0.0, 1.0):
        run = trained(written(f"{tokens}.yaml", teacher=other | {"tokens": tokens}, **small), tmp_path / f"run{tokens}")
        losses.append([line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line])
    assert losses[1][0] > losses[0][0]  # the tokens' part comes on top
    assert losses[1][-1] < 0.8 * losses[1][0]
    with pytest.raises(VitfrostError, match="cannot be compared"):
        trained(written("narrow.yaml", teacher=other), tmp_path / "narrow")


def test_a_plan_that_quantizes_or_freezes_is_not_trained(written: Callable[..., Path], prepared: Any, tmp_path: Path) -> None:
    recipe = written(plan=str(prepared.plan), model={"weights": "timm", "options": None})
    with pytest.raises(VitfrostError, match="freezes entries or quantizes"):
        trained(recipe, tmp_path / "run")


@pytest.mark.usefixtures("unchecked")
def test_a_teacher_of_another_size_is_imitated_without_labels(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    source = {"train": [{"source": str(pictures), "labels": "none"}], "size": 40}
    shorter = {"schedule": {"epochs": 12}, "optimizer": {"lr": 2e-3}, "augment": {"flip": 0, "rotate": 0}}
    teacher = {"name": "vitfrost_digits", "weights": "timm", "weight": 1.0, "temperature": 2.0}
    run = trained(written(data=source, teacher=teacher, model={"image_size": 24}, **shorter), tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_a_teacher_is_built_with_its_own_options(written: Callable[..., Path], tmp_path: Path) -> None:
    """The teacher has the weights that the student starts from, so there is nothing to imitate yet."""
    narrow = {**SMALL, "embed_dim": 16}
    save_file(Model.open("vitfrost_digits", weights="random", seed=3, options=narrow).module.state_dict(), tmp_path / "t.safetensors")
    teacher = {"name": "vitfrost_digits", "weights": str(tmp_path / "t.safetensors"), "options": narrow, "weight": 1.0}
    model = {"weights": str(tmp_path / "t.safetensors"), "options": narrow}
    run = trained(written(model=model, teacher=teacher, optimizer={"lr": 1e-9}, log_every=1), tmp_path / "run")
    assert max(abs(line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line) < 1e-5
    with pytest.raises(VitfrostError, match=r"t\.safetensors"):
        trained(written("plain.yaml", model=model, teacher={**teacher, "options": {}}), tmp_path / "plain")


def test_the_original_as_teacher_starts_without_a_difference(written: Callable[..., Path], tmp_path: Path) -> None:
    state = Model.open("vitfrost_digits", weights="random", seed=3, options=SMALL).module.state_dict()
    within = {f"backbone.{name}": tensor for name, tensor in state.items()}  # of a larger network
    save_file(within | {"projector.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    teacher = {"original": True, "weight": 1.0, "kind": "soft"}
    run = trained(written(model={"weights": "w.safetensors"}, teacher=teacher, optimizer={"lr": 1e-9}, log_every=1), tmp_path / "run")
    assert max(abs(line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line) < 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 64}, "40 images, fewer than one batch of 64"),
        ({"model": {"name": "nextvit_small", "options": None, "image_size": 32}, "batch_size": 1}, "too small for BatchNorm"),
        ({"mixing": {"mixup": 0.5, "chunk": 6}}, "no multiple of mixing.chunk 6"),
        ({"optimizer": {"name": "adamm"}}, "optimizer adamm cannot be made"),
        ({"model": {"classes": 4}}, "has a label out of range: 4 for"),
        ({"model": {"image_size": [32, 64]}}, "32 x 64 pixels"),
        ({"model": {"options": {"depths": 2}}}, "depths"),
        ({"teacher": {"name": "vitfrost_digits", "weights": "absent.pt"}}, "no weights file"),
        ({"data": {"evaluation": {"labels": "none"}}}, "accuracy needs labels"),
        ({"data": {"evaluation": {"split": "test"}}}, "has no split test"),
        ({"plan": "absent.yaml"}, "no plan"),
        ({"start": {"artifact": "absent"}}, "no artifact folder"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(
    written: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(VitfrostError) as caught:
        trained(written(**changes), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_state_stays(written: Callable[..., Path], tmp_path: Path) -> None:
    """The first gradient is finite; the weights that its step leaves are so large that a later one overflows."""
    explosive = {"optimizer": {"name": "sgd", "lr": 1e30, "clip": None}, "schedule": {"epochs": 4, "warmup": 0}}
    recipe = written(**explosive, checkpoint_every={"steps": 1}, log_every=1)
    said = r"not finite in epoch 1, step (\d+) \(learning rate .*\); lower optimizer.lr, .*; the checkpoint of step (\d+) stays"
    with pytest.raises(VitfrostError, match=said) as caught:
        trained(recipe, tmp_path / "run")
    numbers = re.search(said, str(caught.value))
    assert numbers is not None
    bad, good = (int(number) for number in numbers.groups())
    assert 1 <= good < bad
    held = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt", held["inputs"])
    assert state["step"] == good
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert not (tmp_path / "run" / "artifact").exists()


def test_a_folder_with_something_else_or_a_run_is_left_alone(written: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    with pytest.raises(VitfrostError, match="holds no training run"):
        trained(written(), tmp_path / "thesis")
    trained(written(), tmp_path / "run")
    with pytest.raises(VitfrostError, match="add --resume"):
        trained(written(), tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(written: Callable[..., Path], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    with pytest.raises(VitfrostError, match="no permission"):
        trained(written(), closed / "run")


def test_tensorboard_is_written_or_its_package_is_named(written: Callable[..., Path], tmp_path: Path) -> None:
    recipe = written(tensorboard=True)
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(VitfrostError, match=r"pip install 'vitfrost\[tensorboard\]'"):
            trained(recipe, tmp_path / "run")
    else:
        assert any((trained(recipe, tmp_path / "run") / "tensorboard").iterdir())
