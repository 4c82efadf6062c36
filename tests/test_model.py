"""A model in memory: opened, calibrated, compressed, measured, saved and loaded without a file of weights or pictures."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch.utils.data import DataLoader, Dataset, TensorDataset

import vitfrost as vf
from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.vit.load import create_model

from .conftest import write_pictures

SIZE = 32


def tiny(**options: Any) -> Any:
    """A fine-tuned model: the digits' architecture with a head of three classes."""
    torch.manual_seed(7)
    net = create_model("vitfrost_digits", depth=2)
    net.head = torch.nn.Linear(64, 3)
    for name, value in options.items():
        setattr(net, name, value)
    return net


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(12, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.arange(12) % 3


class Pairs(Dataset[Any]):
    """A Dataset of (tensor, label)."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor):
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pixels[index], int(self.labels[index])


def test_a_fine_tuned_module_goes_the_whole_way_in_memory(pixels: torch.Tensor, labels: torch.Tensor, tmp_path: Path) -> None:
    net = tiny()
    before = copy.deepcopy(net.state_dict())
    model = vf.Model.of(net, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), class_names=["ant", "bee", "cat"])
    assert (model.classes, model.image_size, model.name) == (3, (SIZE, SIZE), "vitfrost_digits")
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    loader = DataLoader(Pairs(pixels, labels), batch_size=5)
    statistics = vf.calibrate(model, loader, vf.Calibrate(batch_size=4, similarity=True), progress=False)
    assert statistics.header.images == 12
    plan = vf.plan(statistics, vf.FreezeHeads(0.25), vf.Quantize(8, 32))
    small = vf.compress(model, plan, statistics=statistics, images=loader, repair=vf.Repair(images=8))
    assert isinstance(small, vf.Artifact)
    row = vf.evaluate(small, loader, reference=model, progress=False)
    assert (row.images, row.labeled, row.reference) == (12, True, "vitfrost_digits")
    small.save(tmp_path / "artifact")
    again = vf.Artifact.load(tmp_path / "artifact", build=tiny)
    assert torch.equal(again(pixels), small(pixels))
    assert again.class_names == ("ant", "bee", "cat")
    assert vf.evaluate(again, loader, reference=small, progress=False).agreement == 100
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training


def test_every_form_of_images_gives_the_same_statistics(pixels: torch.Tensor, labels: torch.Tensor) -> None:
    model = vf.Model.of(tiny())

    def generated() -> Iterator[torch.Tensor]:
        yield from pixels

    forms: dict[str, Any] = {
        "tensor": pixels,
        "list": list(pixels),
        "pairs": list(zip(pixels, labels, strict=True)),
        "batches": [pixels[:7], pixels[7:]],
        "dataset": Pairs(pixels, labels),
        "tensor dataset": TensorDataset(pixels, labels),
        "loader": DataLoader(Pairs(pixels, labels), batch_size=5),
        "loader without labels": DataLoader(TensorDataset(pixels), batch_size=5),
        "generator": generated(),
    }
    config = vf.Calibrate(limit=None, batch_size=4)
    found = {name: vf.calibrate(model, form, config, progress=False).content_hash for name, form in forms.items()}
    assert len(set(found.values())) == 1, found


def test_a_limit_draws_by_the_seed_where_there_is_an_index_and_takes_the_first_elsewhere(pixels: torch.Tensor) -> None:
    model = vf.Model.of(tiny())
    hashes = [
        vf.calibrate(model, images, vf.Calibrate(limit=4, seed=seed), progress=False).header.images_hash
        for images in (list(pixels), DataLoader(pixels, batch_size=3))  # type: ignore[arg-type]
        for seed in (0, 1)
    ]
    assert hashes[0] != hashes[1]
    assert hashes[2] == hashes[3]


def test_an_iterator_is_kept_where_it_has_to_pass_again(pixels: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = vf.Model.of(tiny())
    entries = 4 * 65 * 65
    several = vf.Calibrate(limit=None, batch_size=4, memory_limit=1.2e-9 * 300 * entries)
    with caplog.at_level(logging.INFO, logger="vitfrost"):
        kept = vf.calibrate(model, iter(list(pixels)), several, progress=False)
    assert kept.content_hash == vf.calibrate(model, pixels, vf.Calibrate(limit=None, batch_size=4), progress=False).content_hash
    passes = vf.calibrate(model, pixels, several, progress=False)
    assert passes.content_hash == kept.content_hash


def test_uint8_pixels_are_normalized_as_pictures_are(tmp_path: Path) -> None:
    from PIL import Image

    folder = write_pictures(tmp_path / "pictures", 4, size=SIZE)
    model = vf.Model.open("vitfrost_digits")
    files = sorted(folder.glob("*.png"))
    import numpy as np

    given = [torch.from_numpy(np.asarray(Image.open(file)).transpose(2, 0, 1).copy()) for file in files]
    pictures = [Image.open(file) for file in files]
    config = vf.Calibrate(limit=None, batch_size=4)
    whole = vf.calibrate(model, folder, config, progress=False)
    for images in (given, pictures):
        found = vf.calibrate(model, images, config, progress=False)
        assert all((found[name].sums == site.sums).all() for name, site in whole.sites.items())


@pytest.mark.parametrize(
    ("images", "what"),
    [
        ([torch.zeros(3, 8, 8)], r"image 0 is \[3, 8, 8\]; this model reads \[3, 32, 32\]"),
        ([torch.full((3, SIZE, SIZE), float("nan"))], "image 0 holds numbers that are not finite"),
        (["a.png"], "image 0 is a str"),
        ([], "there is no image"),
        ({"pixel_values": torch.zeros(1, 3, SIZE, SIZE)}, "a dict holds no images"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(images: Any, what: str) -> None:
    with pytest.raises(VitfrostError, match=what):
        vf.calibrate(vf.Model.open("vitfrost_digits"), images, progress=False)


def test_labels_are_checked(pixels: torch.Tensor, labels: torch.Tensor) -> None:
    model = vf.Model.of(tiny())
    with pytest.raises(VitfrostError, match="no labels and there is no reference"):
        vf.evaluate(model, pixels, progress=False)
    with pytest.raises(VitfrostError, match=r"labels up to 5, but vitfrost_digits has 3 classes"):
        vf.evaluate(model, list(zip(pixels, labels + 3, strict=True)), progress=False)
    with pytest.raises(VitfrostError, match="image 0 has none; give one for each"):
        vf.evaluate(model, [pixels[0], (pixels[1], 1)], progress=False)
    row = vf.evaluate(model, zip(pixels, labels, strict=True), progress=False)
    assert row.top1 == pytest.approx(100 * float((model(pixels).argmax(1) == labels).float().mean()), abs=1e-3)


def test_a_loader_that_shuffles_is_told_where_images_pass_twice(pixels: torch.Tensor) -> None:
    loader = DataLoader(pixels, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    one, other = vf.Model.of(tiny()), vf.Model.of(tiny(), mean=(0.1,) * 3)
    with pytest.raises(VitfrostError, match="does not shuffle"):
        vf.evaluate(one, loader, reference=other, progress=False)


class Renamed(VisionTransformer):
    """A subclass that changes nothing of the forward pass."""


class Scaled(VisionTransformer):
    """A subclass with a forward pass of its own."""

    def forward_features(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return 2 * super().forward_features(x)


class OwnBlock(Block):
    """A block with a forward pass of its own."""

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return super().forward(x)


NARROW = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4}


def test_a_subclass_of_a_supported_class_is_saved_and_loaded_with_build(pixels: torch.Tensor, tmp_path: Path) -> None:
    model = vf.Model.of(Renamed(**NARROW), name="mine")
    assert (model.name, model.registered, model.preprocessing.mean) == ("mine", False, (0.485, 0.456, 0.406))
    statistics = vf.calibrate(model, pixels, progress=False)
    small = vf.compress(model, vf.plan(statistics, vf.FreezeEntries(0.5), vf.Quantize(32, 32)), statistics=statistics)
    small.save(tmp_path / "artifact")
    with pytest.raises(VitfrostError, match=r"is made of a mine, which timm cannot make; give Artifact\.load\(folder, build=\.\.\.\)"):
        vf.Artifact.load(tmp_path / "artifact")
    loaded = vf.Artifact.load(tmp_path / "artifact", build=lambda: Renamed(**NARROW))
    assert torch.equal(loaded(pixels), small(pixels))
    assert vf.inspect(loaded)["macs_total"] == vf.inspect(model)["macs_total"]
    with pytest.raises(VitfrostError, match="do not fit the plan"):
        vf.Artifact.load(tmp_path / "artifact", build=lambda: Renamed(**NARROW | {"embed_dim": 64}))
    plain = vf.compress(model, vf.plan(statistics, vf.Quantize(32, 32)))
    with pytest.raises(VitfrostError, match="timm cannot make this mine"):
        vf.resize(plain, 64)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Scaled(**NARROW), "Scaled, which overrides forward_features of VisionTransformer"),
        (lambda: VisionTransformer(**NARROW, block_fn=OwnBlock), r"blocks\.0 is a OwnBlock, which overrides forward of Block"),
        (lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 2)), "Sequential has no attention layers"),
    ],
)
def test_a_refusal_names_the_true_reason(make: Any, reason: str) -> None:
    with pytest.raises(VitfrostError, match=reason):
        vf.Model.of(make())


def test_what_is_no_transformer_is_unsupported() -> None:
    with pytest.raises(UnsupportedModel, match="has no attention layers"):
        vf.Model.of(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), image_size=2)


@pytest.mark.usefixtures("unchecked")
def test_other_things_are_refused_in_one_line() -> None:
    with pytest.raises(VitfrostError, match="a int is no model"):
        vf.calibrate(3, "nowhere")  # type: ignore[arg-type]
    with pytest.raises(VitfrostError, match="a int holds no images"):
        vf.calibrate("vitfrost_digits", 3)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    net = tiny()
    with torch.no_grad():
        net.blocks[1].mlp.fc1.bias[3] = float("nan")
    with pytest.raises(VitfrostError, match=r"not finite at blocks\.1\.mlp\.fc1\.bias"):
        vf.Model.of(net)


def test_wrappers_and_half_precision_are_seen_through(pixels: torch.Tensor) -> None:
    plain = vf.Model.of(tiny())
    assert vf.Model.of(torch.nn.DataParallel(tiny())).state_hash == plain.state_hash
    half = vf.Model.of(tiny().to(torch.bfloat16))
    assert next(half.module.parameters()).dtype == torch.float32
    assert vf.calibrate(tiny(), pixels[:2], progress=False).header.model == plain.identity


def test_timm_makes_a_model_again_from_its_options() -> None:
    net = create_model("test_vit", num_classes=5, drop_path_rate=0.1)
    model = vf.Model.of(net)
    assert (model.registered, model.options, model.name) == (True, {"num_classes": 5}, "test_vit")
    other = vf.Model.of(create_model("test_vit", num_classes=5, class_token=False, global_pool="avg"))
    assert not other.registered


def test_reprs_are_short(shallow: Any, pixels: torch.Tensor) -> None:
    statistics = shallow.statistics
    plan = vf.plan(statistics)
    artifact = vf.compress(shallow.model, vf.plan(statistics, vf.FreezeEntries(0.1), vf.Quantize(32, 32)), statistics=statistics)
    row = vf.evaluate(shallow.model, shallow.pictures, config=vf.Evaluate(limit=4), progress=False)
    found = vf.inspect(shallow.model, plan=plan)
    for value in (statistics, statistics["blocks.0.attn"], plan, shallow.model, artifact, row, found):
        assert len(repr(value)) < 200, repr(value)
        assert repr(value).startswith(type(value).__name__)
        assert len(str(value)) < 200
    assert "2 sites, 12 images" in repr(statistics)


def test_statistics_are_arrays_and_pictures(shallow: Any) -> None:
    statistics = shallow.statistics
    site = statistics["blocks.1.attn"]
    assert site.entropy.shape == site.mean.shape == (1, 4, 65, 65)
    with pytest.raises(VitfrostError, match=r"there is no site 'blocks\.7\.attn'; there are 2, blocks\.0\.attn to blocks\.1\.attn"):
        statistics["blocks.7.attn"]
    figure = statistics.plot("blocks.1.attn", 2, picture=next(shallow.pictures.glob("*.png")))
    _, drawn = figure.axes[0].images
    assert drawn.get_array().shape == (8, 8)
    assert (drawn.get_array().reshape(-1) == site.mean[0, 2, 0, 1:]).all()
    assert statistics.plot("blocks.0.attn", 0, of="entropy").axes[0].images
    with pytest.raises(VitfrostError, match="has no head 4; its heads are 0 to 3"):
        statistics.plot("blocks.1.attn", 4)


def test_opening_touches_no_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    vf.Model.open("vitfrost_digits")
    vf.Model.open("vitfrost_digits", weights="random", seed=5)
    assert torch.equal(torch.rand(2), expected)
