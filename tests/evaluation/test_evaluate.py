"""The verb `evaluate` on a small model with random weights and pictures made on the fly, and once on real ones."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vitfrost.artifact import Artifact
from vitfrost.configs import Evaluate
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.description import executed_macs
from vitfrost.evaluation.evaluate import evaluate, evaluate_many, open_reference
from vitfrost.evaluation.inspect import inspect
from vitfrost.evaluation.outcomes import Outcomes, _joined, aligned, in_top
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.methods.frozen_entries import FrozenMaps
from vitfrost.model import Model
from vitfrost.plans.schema import Plan
from vitfrost.vit.families import find_sites, install_map_attention


@pytest.fixture(scope="module")
def digits() -> Model:
    return Model.open("vitfrost_digits", weights="random", seed=0)


@pytest.fixture(scope="module")
def other() -> Model:
    return Model.open("vitfrost_digits", weights="random", seed=1)


@pytest.fixture
def with_bad_files(pictures: Path, tmp_path: Path) -> Path:
    """The pictures, two of them damaged."""
    folder = Path(shutil.copytree(pictures, tmp_path / "images"))
    whole = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "0017.png").write_bytes(b"no picture")
    return folder


def logits_one_by_one(loaded: Model, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What timm's own transform and the model give, image by image."""
    from timm.data import create_transform

    options = {key: value for key, value in loaded.preprocessing.plain().items() if key != "whole_squares"}
    options["input_size"] = tuple(options["input_size"])
    transform = create_transform(**options, is_training=False)
    image_set = open_images(folder, need_labels=True)
    pictures = [transform(Image.open(folder / file).convert("RGB")) for file in image_set.files]
    with torch.inference_mode():
        return torch.cat([loaded.module(picture[None]) for picture in pictures]).double(), torch.tensor(image_set.labels)


def test_row_agrees_with_a_plain_loop(digits: Model, other: Model, pictures: Path) -> None:
    row = evaluate(digits, pictures, config=Evaluate(batch_size=7), reference=other, progress=False)
    logits, labels = logits_one_by_one(digits, pictures)
    teacher, _ = logits_one_by_one(other, pictures)
    right, teacher_right = logits.argmax(1) == labels, teacher.argmax(1) == labels
    assert row is not None
    assert row.images == 40
    assert row.top1 == pytest.approx(100 * right.double().mean().item(), abs=1e-4)
    assert row.top5 == pytest.approx(100 * (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item(), abs=1e-4)
    assert row.agreement == pytest.approx(100 * (logits.argmax(1) == teacher.argmax(1)).double().mean().item(), abs=1e-4)
    kl = torch.nn.functional.kl_div(logits.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")
    assert row.kl == pytest.approx(kl.item(), rel=1e-3)
    assert row.top1_difference.value == pytest.approx(100 * (right.double() - teacher_right.double()).mean().item(), abs=1e-4)
    assert row.interval[0] <= row.top1 <= row.interval[1]
    assert (row.kind, row.precision, row.labeled, row.reference) == ("executed", "fp32", True, "vitfrost_digits")
    assert row.macs == inspect(digits)["macs_total"]
    assert row.state_hash == digits.state_hash


def test_many_models_share_one_pass(digits: Model, other: Model, pictures: Path) -> None:
    rows = evaluate_many({"original": digits, "other": other}, pictures, reference="original", progress=False)
    assert [row.name for row in rows] == ["original", "other"]
    assert (rows[0].agreement, rows[0].kl, rows[0].top1_difference.value) == (100, 0, 0)
    assert rows[1].reference == "original"
    assert rows[0].images_hash == rows[1].images_hash
    alone = evaluate(other, pictures, reference=digits, name="other", progress=False)
    same = {"name", "top1", "top5", "agreement", "kl", "kl_interval", "top1_difference", "images_hash"}
    assert rows[1].model_dump(include=same) == alone.model_dump(include=same)


def test_json_holds_the_row(digits: Model, pictures: Path, tmp_path: Path) -> None:
    row = evaluate(digits, pictures, config=Evaluate(limit=10, seed=3), reference=digits, json=tmp_path / "row.json", progress=False)
    data = json.loads((tmp_path / "row.json").read_text())
    assert data == row.model_dump(mode="json")
    assert data["images"] == 10
    assert set(data["top1_difference"]) == {"value", "interval"}
    again = evaluate(digits, pictures, config=Evaluate(limit=10, seed=3), progress=False)
    elsewhere = evaluate(digits, pictures, config=Evaluate(limit=10, seed=4), progress=False)
    assert again.images_hash == data["images_hash"] != elsewhere.images_hash
    assert again.agreement is None


def test_bad_images_are_skipped_and_counted(digits: Model, pictures: Path, with_bad_files: Path) -> None:
    row = evaluate(digits, with_bad_files, progress=False)
    assert (row.images, row.skipped) == (38, 2)
    logits, labels = logits_one_by_one(digits, pictures)
    right = (logits.argmax(1) == labels).numpy()
    assert row.top1 == pytest.approx(100 * np.delete(right, [3, 17]).mean(), abs=1e-4)


def test_no_usable_image_is_an_error(digits: Model, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "labels.csv").write_text("file,label\na.png,0\nb.png,1\n")
    with pytest.raises(VitfrostError, match="usable"):
        evaluate(digits, tmp_path, progress=False)


def test_models_with_different_preprocessing_see_the_same_files(digits: Model, with_bad_files: Path) -> None:
    image_set = open_images(with_bad_files, need_labels=True)
    zoomed = Preprocess(digits.preprocessing.changed(crop_pct=0.5, crop_mode="center"))
    loaders = [BatchLoader(image_set, Preprocess(digits.preprocessing), 4), BatchLoader(image_set, zoomed, 4)]
    seen = list(aligned(loaders, 4))
    assert [batches[0].positions for batches in seen] == [batches[1].positions for batches in seen]
    assert sum(len(batches[0].positions) for batches in seen) == 38
    assert not torch.equal(seen[0][0].pixels, seen[0][1].pixels)
    near = copy.copy(digits)
    near.preprocessing = digits.preprocessing.changed(crop_pct=0.5, crop_mode="center")
    row = evaluate(near, with_bad_files, reference=digits, progress=False)
    assert row.kl > 0
    assert row.preprocessing["crop_pct"] == 0.5


def test_thin_picture_unusable_for_one_model_is_dropped_for_both(digits: Model, pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "images"))
    Image.new("RGB", (1, 60_000)).save(folder / "0000.png")
    centered = copy.copy(digits)
    centered.preprocessing = replace(digits.preprocessing, crop_pct=0.3, crop_mode="center")
    row = evaluate(digits, folder, config=Evaluate(batch_size=1), reference=centered, progress=False)
    assert (row.images, row.skipped) == (39, 1)


def test_unlabeled_images_need_a_reference(digits: Model, other: Model, pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "images"))
    (folder / "labels.csv").unlink()
    row = evaluate(digits, folder, reference=other, progress=False)
    assert (row.labeled, row.top1, row.interval, row.top1_difference) == (False, None, None, None)
    assert row.agreement is not None
    with pytest.raises(VitfrostError, match="no labels"):
        evaluate(digits, folder, progress=False)
    with pytest.raises(VitfrostError, match="no labels and there is no reference"):
        evaluate(digits, open_images(folder), progress=False)


def test_a_wrong_labels_file_is_not_ignored(digits: Model, other: Model, pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "images"))
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("0001.png,1", "0001.png,10"))
    with pytest.raises(VitfrostError, match="out of range"):
        evaluate(digits, folder, reference=other, progress=False)


def test_refusals(digits: Model, pictures: Path, tmp_path: Path) -> None:
    two_classes = Model.open("vitfrost_digits", weights="random", options={"num_classes": 2})
    for call, message in (
        (lambda: evaluate(digits, pictures, reference=two_classes), "must have the same classes"),
        (lambda: evaluate(tmp_path / "nothing", pictures), "no artifact"),
        (lambda: evaluate(Model.open("vitfrost_digit", weights="random"), pictures), "did you mean"),
        (lambda: evaluate_many({}, pictures), "no model"),
        (lambda: evaluate_many({"a": digits}, pictures, reference="b"), "not one of the models"),
        (lambda: evaluate_many({"a": digits, "b": two_classes}, pictures), "same classes"),
        (lambda: evaluate(digits, pictures, config=Evaluate(limit=0)), "Evaluate.limit is 0"),
        (lambda: evaluate(digits, pictures, config=Evaluate(batch_size=0)), "Evaluate.batch_size is 0"),
        (lambda: evaluate(Model.open("vitfrost_digits", crop_pct=2.0), pictures), "crop_pct"),
    ):
        with pytest.raises(VitfrostError, match=message):
            call()


def test_outputs_that_are_not_finite_are_named(digits: Model, pictures: Path) -> None:
    broken = copy.deepcopy(digits)
    with torch.no_grad():
        broken.module.head.bias[0] = float("nan")
    with pytest.raises(VitfrostError, match=r"not finite for 0000\.png"):
        evaluate(broken, pictures, progress=False)


def test_a_name_as_reference_sees_the_models_pixels(pictures: Path) -> None:
    model = Model.open("vitfrost_digits", weights="random", image_size=48, crop_pct=0.5, crop_mode="center")
    reference = open_reference("vitfrost_digits", model, weights="random")
    row = evaluate(model, pictures, config=Evaluate(limit=4), reference=reference, progress=False)
    assert (row.agreement, row.kl) == (100, 0)
    assert row.preprocessing["input_size"] == [3, 48, 48]


def frozen_artifact(original: Model, heads: int, weight_bits: int) -> Artifact:
    """The first `heads` heads of layer 0 frozen wholly, the next one by half, all in floating point."""
    model = copy.deepcopy(original.module)
    sites = find_sites(model)
    site = sites.attention[0]
    mask = torch.zeros(site.maps_shape, dtype=torch.bool)
    mask[:, :heads] = True
    mask[:, heads, : site.queries // 2] = True
    frozen = FrozenMaps(mask, None, 32, "published")
    frozen.set_values(torch.full(site.maps_shape, 1 / site.keys), None)
    install_map_attention(model)[site.name].freeze_entries(frozen)
    entries = mask.sum(dim=(0, 2, 3)).tolist()
    layers = [
        {
            "site": each.name,
            "maps": each.maps_shape,
            "prefix_tokens": each.prefix_tokens,
            "heads": [{"source": "frozen", "entries": n} if each is site and n else {"source": "computed"} for n in entries],
        }
        for each in sites.attention
    ]
    plan = Plan.parse(
        {
            "kind": "vitfrost plan",
            "version": 1,
            "model": original.identity,
            "statistics": {"hash": "a", "images_hash": "b", "images": 1, "precision": "fp32", "observed": "before"},
            "freeze": {"ratio": 0.2, "bits": 32},
            "quantize": {"weight_bits": weight_bits, "activation_bits": weight_bits},
            "layers": layers,
        },
        "test",
    )
    return Artifact(
        model, original.name, original.image_size, original.weight_tag, original.state_hash, original.preprocessing,
        original.classes, original.options, plan=plan, seeds={"plan": 5}, size_bytes=123,
    )  # fmt: skip


def test_artifacts_say_what_is_executed(digits: Model, pictures: Path) -> None:
    frozen = frozen_artifact(digits, heads=2, weight_bits=32)
    row = evaluate(frozen, pictures, config=Evaluate(limit=8), reference=digits, progress=False)
    assert (row.kind, row.precision, row.size_bytes, row.seeds) == ("executed", "fp32", 123, {"plan": 5})
    assert row.plan_hash == frozen.plan_hash
    assert row.kl > 0
    assert row.macs == executed_macs(digits) - 2 * 65 * 65 * find_sites(digits.module).attention[0].head_dim
    quantized = evaluate(frozen_artifact(digits, heads=0, weight_bits=4), pictures, config=Evaluate(limit=4), progress=False)
    assert (quantized.kind, quantized.precision, quantized.macs) == ("simulated", "W4/A4", executed_macs(digits))


scored = st.integers(1, 12).flatmap(
    lambda classes: st.tuples(
        arrays(np.float32, (5, classes), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        arrays(np.int64, 5, elements=st.integers(0, classes - 1)),
        st.integers(1, classes),
    )
)


@given(scored)
def test_in_top_is_a_stable_sort(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    logits, labels, top = case
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(in_top(logits, labels, top), (best == labels[:, None]).any(axis=1))


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 5))
def test_parts_of_processes_join_to_the_whole(images: int, world: int, batch_size: int) -> None:
    whole = Outcomes(np.arange(images), np.arange(images) % 3 == 0, seconds=np.arange(images) / 7)
    batches = np.arange(images) // batch_size
    parts = [
        Outcomes(whole.positions[mine], whole.correct1[mine], seconds=whole.seconds[mine])
        for mine in (batches % world == rank for rank in range(world))
    ]
    joined = _joined(parts[::-1])
    for name in ("positions", "correct1", "correct5", "seconds"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


@pytest.mark.shared_data
def test_real_deit_tiny(shared_data: Path) -> None:
    weights = shared_data / "deit_tiny_patch16_224" / "model.safetensors"
    model = Model.open("deit_tiny_patch16_224", weights=weights, crop_mode="squash", crop_pct=1.0)
    row = evaluate(model, shared_data / "imagenet-val", config=Evaluate(limit=48), progress=False)
    assert row.interval[0] < 79.54 < row.interval[1]
    assert row.top5 > row.top1 > 60
    assert row.macs == 1_253_683_200
