"""The verb `evaluate` on models that give features: in memory, compressed, exported; with a gallery, and with a task head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitfrost
from vitfrost.configs import Evaluate
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.evaluate_features import label_space
from vitfrost.evaluation.features import features_of
from vitfrost.evaluation.results import Row
from vitfrost.evaluation.task_head import TaskHead, as_head
from vitfrost.model import Model

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.5}
DINO = "vit_small_patch14_dinov2"
Data = list[tuple[torch.Tensor, int]]


def dino(seed: int = 0, **given: object) -> Model:
    """With maps that are not uniform, so that constant ones change the features."""
    made = Model.open(DINO, weights="random", seed=seed, image_size=56, options=SMALL, **given)
    with torch.no_grad():
        for block in made.module.blocks:
            block.attn.qkv.weight.mul_(20)
    return made


@pytest.fixture(scope="module")
def data() -> Data:
    """Twenty-four images of four classes that differ."""
    draw = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(4, 3, 56, 56, generator=draw)
    return [(means[index % 4] + 0.5 * torch.randn(3, 56, 56, generator=draw), index % 4) for index in range(24)]


@pytest.fixture(scope="module")
def frozen() -> vitfrost.Artifact:
    model = dino()
    return vitfrost.compress(model, vitfrost.plan(model, vitfrost.FreezeHeads(0.5, unit="layer")))


@pytest.mark.parametrize(("name", "depths"), [("pvt_v2_b0", None), ("maxvit_rmlp_pico_rw_256", (1, 1, 1, 1)), ("test_coatnet", None)])
def test_patches_are_positions_also_where_only_features_have_channels_first(name: str, depths: tuple[int, ...] | None) -> None:
    options = {"num_classes": 0} | ({} if depths is None else {"depths": depths})
    model = Model.open(name, weights="random", image_size=(64, 96), options=options)
    found = features_of(model, torch.zeros(1, 3, 64, 96))
    assert found.grid == (2, 3)
    assert found.patches is not None
    assert found.patches.shape == (1, 6, model.module.num_features)


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("qwen3_vit_88m_enc", {"embed_dim": 64, "depth": 1, "num_heads": 2}, (2, 3)),  # 2 x 2 patches are merged
        ("hiera_tiny_224", {"embed_dim": 16, "stages": (1, 1, 1, 1), "num_classes": 0}, (2, 3)),
    ],
)
def test_heads_on_a_map_read_the_grid_of_the_last_block(name: str, options: dict[str, Any], grid: tuple[int, int]) -> None:
    pytest.importorskip("timm.models.qwen3_vit" if name.startswith("qwen") else "timm")
    model = Model.open(name, weights="random", image_size=(64, 96), options=options)
    found = features_of(model, torch.randn(2, 3, 64, 96))
    assert found.grid == grid
    assert found.patches is not None
    assert TaskHead(lambda maps: maps).of(found, name).shape == (2, found.patches.shape[2], *grid)
    if name.startswith("hiera"):  # whose tokens are in rows and columns once they are pooled
        places = torch.arange(6).view(1, 6, 1)
        assert torch.equal(model.module.reroll(places, len(model.module.blocks) - 1).flatten(), places.flatten())


def measure(model: Model | Path, data: Data, **given: object) -> Row:
    return vitfrost.evaluate(model, data, progress=False, **given)


def test_the_row_agrees_with_plain_loops(frozen: vitfrost.Artifact, data: Data) -> None:
    original = dino()
    row = measure(frozen, data, reference=original, config=Evaluate(batch_size=5, neighbors=3))
    pixels, labels = torch.stack([image for image, _ in data]), torch.tensor([label for _, label in data])
    with torch.inference_mode():
        own, aim = (model.module.forward_features(pixels).double() for model in (frozen, original))
    found = row.features
    assert found is not None
    assert (row.outputs, row.top1, row.kl, row.labeled, row.kind, row.precision) == ("embedding", None, None, True, "executed", "fp32")
    assert found.vector == "pooled"
    patches = torch.cosine_similarity(own[:, 1:], aim[:, 1:], dim=-1).mean(1)
    assert found.likeness["patches"].cosine == pytest.approx(patches.mean().item(), abs=1e-6)
    error = (own[:, 0] - aim[:, 0]).square().sum(1) / aim[:, 0].square().sum(1)
    for part in ("pooled", "class_token"):
        assert found.likeness[part].relative_error == pytest.approx(error.mean().item(), rel=1e-4)
    low, high = found.likeness["patches"].cosine_interval
    assert low < found.likeness["patches"].cosine < high <= 1

    def neighbors(tokens: torch.Tensor) -> torch.Tensor:
        likeness = torch.nn.functional.normalize(tokens[:, 0], dim=1)
        return (likeness @ likeness.T).fill_diagonal_(-2).argmax(1)

    assert row.agreement == pytest.approx(100 * (neighbors(own) == neighbors(aim)).double().mean().item(), abs=1e-3)
    assert (found.told, found.voters, found.gallery_images) == (24, 3, None)
    nearest = 100 * (labels[neighbors(own)] == labels).double().mean().item()
    by_one = measure(frozen, data, reference=original, config=Evaluate(neighbors=1)).features
    assert by_one.neighbors.value == pytest.approx(nearest, abs=1e-3)
    assert by_one.neighbors.difference.interval[0] <= by_one.neighbors.difference.value <= by_one.neighbors.difference.interval[1]
    itself = measure(original, data, reference=original)
    assert itself.features.likeness["pooled"].cosine == 1
    assert (itself.agreement, itself.features.prototype_agreement) == (100, 100)


def test_processes_and_batches_make_no_difference(frozen: vitfrost.Artifact, data: Data) -> None:
    one, other = (measure(frozen, data, reference=dino(), config=Evaluate(batch_size=size)).features for size in (4, 24))
    assert one.prototype == other.prototype
    assert one.likeness["patches"].cosine == pytest.approx(other.likeness["patches"].cosine, abs=1e-6)


def test_labels_alone_are_enough_and_nothing_is_refused(data: Data) -> None:
    found = measure(dino(), data).features
    assert found.prototype is not None
    assert found.likeness == {}
    with pytest.raises(VitfrostError, match="no labels and there is no reference"):
        measure(dino(), [image for image, _ in data])
    unlabeled = measure(dino(), [image for image, _ in data], reference=dino(1))
    assert (unlabeled.labeled, unlabeled.features.prototype) == (False, None)
    assert unlabeled.agreement is not None


def test_a_gallery_tells_prototypes_and_the_images_need_no_labels(data: Data) -> None:
    gallery = data[:4]
    rest = data[4:]
    row = measure(dino(1), [image for image, _ in rest], reference=dino(), gallery=gallery)
    assert (row.features.gallery_images, row.features.prototype, row.features.told) == (4, None, None)
    assert row.features.prototype_agreement == row.agreement  # one image is a prototype
    told = measure(dino(), rest, gallery=gallery[:3])
    assert told.features.told == 15  # the images of three of the four classes
    with pytest.raises(VitfrostError, match="the gallery the images given has no labels"):
        measure(dino(), rest, gallery=[image for image, _ in gallery])


def test_folders_of_classes_mean_the_same_by_their_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, names in (("images", "cat dog emu"), ("gallery", "bee cat dog")):
        for name in names.split():
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(tmp_path / folder / name / f"{number}.png")
    space = label_space([tmp_path / "images", tmp_path / "gallery"])
    assert space is not None
    assert [space.named(name) for name in ("bee", "cat", "dog", "emu")] == [0, 1, 2, 3]
    row = vitfrost.evaluate(dino(), tmp_path / "images", gallery=tmp_path / "gallery", progress=False)
    assert (row.features.told, row.features.gallery_images) == (4, 6)


@pytest.mark.parametrize("form", ["onnx", "openvino", "native"])
def test_an_export_is_measured_by_its_own_runtime(form: str, data: Data, tmp_path: Path) -> None:
    if form == "native":
        pytest.importorskip("vitfrost_native", reason="the native engine is not built; make install")
    for outputs, parts in (("embedding", {"pooled"}), ("tokens", {"class_token", "patches"})):
        folder = vitfrost.export(dino(outputs=outputs), vitfrost.Export(form), out=tmp_path / outputs, images=data)
        row = measure(folder, data, reference=dino())
        assert row.runtime.startswith({"onnx": "onnxruntime"}.get(form, form))
        assert set(row.features.likeness) == parts
        assert all(like.cosine == pytest.approx(1, abs=0.01 if form == "native" else 1e-5) for like in row.features.likeness.values())
    parity = json.loads((tmp_path / "tokens" / "export.json").read_text())["parity"]
    assert parity["cosine"] == pytest.approx(1, abs=0.01 if form == "native" else 1e-6)
    assert "agreement" not in parity
    with pytest.raises(VitfrostError, match="give different features, one vector and tokens"):
        measure(tmp_path / "embedding", data, reference=tmp_path / "tokens")


def test_int8_features_are_checked_by_their_cosine(data: Data, tmp_path: Path) -> None:
    folder = vitfrost.export(dino(outputs="tokens"), vitfrost.Export(precision="int8"), out=tmp_path / "int8", images=data)
    row = measure(folder, data, reference=dino())
    assert (row.kind, row.precision) == ("executed", "int8")
    assert row.features.likeness["patches"].cosine > 0.99


def save_head(path: Path, shape: list[object], axis: int) -> Path:
    """The sigmoid of the mean over channels, as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["features", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["saliency"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [axis])
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("saliency", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "head", inputs, outputs, [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_a_head_is_a_callable_or_an_onnx_file(frozen: vitfrost.Artifact, data: Data, tmp_path: Path) -> None:
    def saliency(patches: torch.Tensor) -> torch.Tensor:
        assert patches.shape[1:] == (48, 4, 4)
        return patches.mean(1).sigmoid()

    row = measure(frozen, data, reference=dino(), head=saliency, config=Evaluate(threshold=0.45))
    pixels = torch.stack([image for image, _ in data])
    with torch.inference_mode():
        own, aim = (model.module.forward_features(pixels)[:, 1:].mean(-1).sigmoid() for model in (frozen, dino()))
    assert row.features.head.absolute_error == pytest.approx((own - aim).abs().mean().item(), abs=1e-6)
    both, either = ((own > 0.45) & (aim > 0.45)).sum(1), ((own > 0.45) | (aim > 0.45)).sum(1)
    assert row.features.head.overlap == pytest.approx((both / either.clamp_min(1) + (either == 0)).mean().item(), abs=1e-5)
    file = save_head(tmp_path / "map.onnx", ["batch", 48, 4, 4], 1)
    again = measure(frozen, data, reference=dino(), head=file, config=Evaluate(threshold=0.45)).features.head
    assert again.absolute_error == pytest.approx(row.features.head.absolute_error, abs=1e-6)
    assert again.overlap == pytest.approx(row.features.head.overlap, abs=1e-6)
    assert as_head(save_head(tmp_path / "tokens.onnx", ["batch", "tokens", 48], 2)).reads == "tokens"
    assert as_head(save_head(tmp_path / "vector.onnx", ["batch", 48], 1)).reads == "pooled"
    same = measure(dino(), data, reference=dino(), head=TaskHead(lambda vector: vector, "pooled")).features.head
    assert (same.absolute_error, same.overlap) == (0, 1)


def test_heads_that_do_not_fit_are_refused(data: Data, tmp_path: Path) -> None:
    model = dino()
    with pytest.raises(VitfrostError, match="compared with those on a reference's features; give a reference"):
        measure(model, data, head=lambda x: x)
    whole = save_head(tmp_path / "whole.onnx", ["batch", 3, 56, 56], 1)
    with pytest.raises(VitfrostError, match="which are pictures: it is a whole model; cut its decoder out"):
        measure(model, data, reference=model, head=whole)
    with pytest.raises(VitfrostError, match=r"no head .*none\.onnx; name an ONNX file"):
        as_head(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(VitfrostError, match=r"bad\.onnx cannot be loaded"):
        as_head(tmp_path / "bad.onnx")
    with pytest.raises(VitfrostError, match="cannot be run on the features of"):
        measure(model, data, reference=model, head=save_head(tmp_path / "narrow.onnx", ["batch", 20, 4, 4], 1))
    with pytest.raises(VitfrostError, match=r"gives \[\] for 16 images|gives \[3\] for 16 images"):
        measure(model, data, reference=model, head=lambda _: torch.zeros(3))
    clip = Model.open("vit_base_patch16_clip_quickgelu_224", weights="random", image_size=56, options=SMALL | {"patch_size": 14})
    assert features_of(clip, data[0][0][None]).tokens is None
    with pytest.raises(VitfrostError, match=r"reads patches, which .* does not give; open it with outputs tokens"):
        measure(clip, data, reference=clip, head=lambda x: x)


def test_classes_and_features_do_not_mix(data: Data) -> None:
    classifier = Model.open("vit_tiny_patch16_224", weights="random", image_size=56, options=SMALL | {"patch_size": 14})
    with pytest.raises(VitfrostError, match="open both with the same outputs"):
        measure(dino(), data, reference=classifier)
    for given in ({"gallery": data}, {"head": lambda x: x}, {"config": Evaluate(neighbors=3)}, {"config": Evaluate(threshold=0.1)}):
        with pytest.raises(VitfrostError, match="goes with models that give features"):
            measure(classifier, data, **given)
    classifier.outputs = "embedding"
    assert measure(classifier, data).features.vector == "pooled"


def test_the_command_prints_tables(data: Data, tmp_path: Path, call: Callable, pictures: Path) -> None:
    words = ("--model", DINO, "--weights", "random", "--image-size", "28", "--model-option", "embed_dim=48", "depth=1", "num_heads=3")
    head = save_head(tmp_path / "head.onnx", ["batch", 48, 2, 2], 1)
    done = call(
        "evaluate", *words, "--images", pictures, "--limit", "12", "--reference", DINO, "--reference-weights", "random", "--head", head,
        "--gallery", pictures, "--neighbors", "5", "--json", tmp_path / "row.json",
    )  # fmt: skip
    assert done.status == 0, done.err
    row = Row.model_validate(json.loads((tmp_path / "row.json").read_text()))
    assert row.features.head.overlap == 1
    for title in ("cosine", "class token", "relative error", "by prototype", "prototype %", "head: IoU"):
        assert title in done.out
    refused = call("evaluate", *words, "--outputs", "classes", "--images", pictures)
    assert refused.status == 2
    assert "has no classifier" in refused.err
