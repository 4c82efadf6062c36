"""An exported folder computes what the model does, says what it is, and appears only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vitfrost
from vitfrost.configs import Compact, Export, FreezeEntries, FreezeHeads, Hallucinate, Quantize
from vitfrost.deploy.export import export_graph
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.description import describe
from vitfrost.files import sha256_of_file
from vitfrost.methods.constant_heads.module import ConstantHeads
from vitfrost.model import Model, as_model
from vitfrost.plans.schema import HeadPlan
from vitfrost.runtime import open_export
from vitfrost.vit.attention import MapAttention
from vitfrost.vit.families import install_map_attention

KEYS = {
    "kind", "version", "format", "precision", "model", "classes", "preprocessing", "plan_hash", "plan", "seeds", "calibration",
    "weight_range", "attention", "graph", "ranges", "macs", "needs", "sha256", "versions", "parity", "checked",
}  # fmt: skip


def logits_differ(loaded: Model, folder: Path, batches: tuple[int, ...] = (1, 2, 5)) -> float:
    """The largest difference to the model over batches of several sizes, on pixels of their own."""
    session = open_export(folder, threads=1)
    worst = 0.0
    for images in batches:
        pixels = torch.randn(images, 3, *loaded.image_size, generator=torch.Generator().manual_seed(images))
        with torch.no_grad():
            worst = max(worst, float((loaded.module(pixels) - torch.from_numpy(session.run(pixels.numpy()))).abs().max()))
    return worst


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_the_graph_computes_the_models_logits_for_any_batch(exported: dict[str, Path], form: str) -> None:
    folder, loaded = exported[form], as_model("vitfrost_digits")
    about = json.loads((folder / "export.json").read_text())
    assert set(about) == KEYS
    assert (about["kind"], about["version"], about["format"], about["precision"]) == ("vitfrost export", 1, form, "fp32")
    assert about["model"] == loaded.identity.model_dump(mode="json")
    assert {path.name for path in folder.iterdir()} == {"export.json", *about["sha256"]}
    assert all(sha256_of_file(folder / name) == digest for name, digest in about["sha256"].items())
    assert (about["parity"]["images"], about["parity"]["batches"], about["parity"]["pixels"]) == (4, [1, 3], "random")
    assert about["parity"]["max_abs_difference"] <= about["parity"]["tolerance"] < 1e-2
    assert about["graph"] == "lean"
    assert logits_differ(loaded, folder) < 1e-4


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_swin_with_our_attention_exports(form: str, tmp_path: Path) -> None:
    loaded = small("swin_tiny_patch4_window7_224", 56, depths=(2,), num_heads=(3,))  # the second layer shifts its windows
    install_map_attention(loaded.module)
    folder = vitfrost.export(loaded, Export(form), out=tmp_path / "out")  # type: ignore[arg-type]
    assert logits_differ(loaded, folder, (1, 3)) < 1e-5


class Bessel(nn.Module):
    """An operator that torch traces and ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_does_not_have_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    loaded = small("vit_tiny_patch16_224", 32, depth=1)
    loaded.module.norm = Bessel()
    with pytest.raises(VitfrostError, match=r'cannot be written as ONNX: \w+Error .*bessel_j0.*; try Export\(format="openvino"\)$'):
        vitfrost.export(loaded, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def small(name: str, image_size: int | tuple[int, int] | None = None, **options: Any) -> Model:
    return Model.open(name, weights="random", image_size=image_size, options={"num_classes": 7, **options})


# One with fewer keys than queries, one without; in version 1 the last has the class token.
TWO_STAGES = {"depths": (1, 1), "embed_dims": (32, 64), "num_heads": (1, 2), "mlp_ratios": (4, 4), "sr_ratios": (4, 1)}


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        ("deit_tiny_distilled_patch16_224", 32, {"depth": 2}),
        ("vit_tiny_patch16_224", (32, 48), {"depth": 2, "global_pool": "avg"}),
        ("swin_tiny_patch4_window7_224", 56, {"depths": (1, 1), "num_heads": (3, 6)}),
        ("pvt_v2_b0", 64, TWO_STAGES),
        ("vitfrost_pvt_tiny", 64, TWO_STAGES),
        ("nextvit_small", 64, {"depths": (1, 1, 5, 1)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_family_exports(name: str, image_size: int | tuple[int, int], options: dict[str, Any], tmp_path: Path) -> None:
    loaded = small(name, image_size, **options)
    folder = vitfrost.export(loaded, Export("openvino"), out=tmp_path / "out")
    assert logits_differ(loaded, folder, (1, 3)) < 1e-5


TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        ("beit_base_patch16_224", 32, TINY),
        ("vit_relpos_base_patch16_224", 32, TINY),
        ("vit_srelpos_small_patch16_224", 32, TINY),
        ("test_maxvit", 64, {}),
        ("hiera_tiny_224", 64, {"stages": (1, 1, 1, 1), "embed_dim": 16}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_originals_whose_attention_onnx_has_no_form_of_export(name: str, image_size: int, options: dict[str, Any], tmp_path: Path) -> None:
    loaded = small(name, image_size, **options)
    assert logits_differ(loaded, vitfrost.export(loaded, Export("onnx"), out=tmp_path / "out"), (1, 3)) < 1e-5
    if name.startswith("beit"):
        int8 = Export("onnx", "int8", graph="plain", ranges="dynamic")
        assert logits_differ(loaded, export_graph(loaded, int8, tmp_path / "int8", time_only=True), (1, 3)) < 0.1
    assert not any(isinstance(module, MapAttention) for module in loaded.module.modules())


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        ("swin_tiny_patch4_window7_224", 56, {"depths": (1,), "num_heads": (3,)}),
        ("pvt_v2_b0", 64, TWO_STAGES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_families_have_lean_int8_graphs_too(
    name: str, image_size: int, options: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    loaded = small(name, image_size, **options)
    config = Export("onnx", "int8", calibration_images=8)
    folder = export_graph(loaded, config, tmp_path / "out", pictures, time_only=True)  # the logits of untrained weights are tiny
    about = json.loads((folder / "export.json").read_text())
    assert about["graph"] == "lean"
    assert b"MatMulIntegerToFloat" in (folder / "model.onnx").read_bytes()
    assert about["parity"]["correlation"] > 0.97


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_hallucinated_heads_and_compact_blocks_export(shallow: Any, tmp_path: Path, form: str) -> None:
    made = shallow.compress(tmp_path / "made", Hallucinate(0.5, by="first", mix="copy"), Compact(0.5))
    folder = vitfrost.export(tmp_path / "made", Export(form), out=tmp_path / "out")
    assert logits_differ(made, folder) < 1e-4
    about = json.loads((folder / "export.json").read_text())
    assert about["plan_hash"] == made.plan_hash
    assert (about["plan"]["hallucinated_heads"], about["plan"]["compact_blocks"]) == (4, 2)
    assert about["macs"] < describe(shallow.model).macs


def test_entry_wise_frozen_maps_export_with_a_warning(shallow: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = shallow.compress(tmp_path / "made", FreezeEntries(0.3, bits=32))
    folder = vitfrost.export(made, out=tmp_path / "out")
    (warning,) = [record for record in caplog.records if record.name == "vitfrost.deploy.export"]
    assert warning.levelname == "WARNING"
    assert "entry-wise frozen maps save no time" in warning.message
    assert logits_differ(made, folder) < 1e-4


def test_weights_of_four_bits_export_as_they_dequantize(shallow: Any, tmp_path: Path) -> None:
    made = shallow.compress(tmp_path / "made", Quantize(4, 32))
    folder = vitfrost.export(made, Export("openvino"), out=tmp_path / "out")
    assert logits_differ(made, folder) < 1e-4
    assert json.loads((folder / "export.json").read_text())["plan"]["weight_bits"] == 4


def test_simulated_activations_are_refused(prepared: Any, call: Callable, tmp_path: Path) -> None:
    ended = call("export", prepared.artifact, "--format", "onnx", "--precision", "fp32", "--out", tmp_path / "out")
    assert ended.status == 2
    assert "quantizes activations to 4 bits, which is simulated" in ended.err
    assert "--activation-bits 32" in ended.err
    assert not list(tmp_path.iterdir())


class Other(torch.nn.Module):
    """A model that does something else once it is traced."""

    def __init__(self, model: torch.nn.Module, offset: float):
        super().__init__()
        self.model, self.offset = model, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) + (self.offset if torch.compiler.is_exporting() else 0.0) * torch.ones(10).cumsum(0)


@pytest.mark.parametrize(("offset", "message"), [(1.0, "logits differ by 1.00e"), (float("nan"), "not finite")])
def test_a_graph_with_other_logits_leaves_nothing(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float, message: str
) -> None:
    loaded = shallow.model
    about = describe(loaded)
    monkeypatch.setattr("vitfrost.deploy.export.describe", lambda _: about)  # the wrapper is no family of models
    with pytest.raises(VitfrostError, match=message):
        vitfrost.export(replace(loaded, module=Other(loaded.module, offset)), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "onnx", "--precision", "int8"), "give images (--images DIR), or ranges dynamic"),
        (("--format", "openvino", "--precision", "int8", "--ranges", "dynamic"), "--ranges is 'dynamic', which is of int8 in ONNX Runtime"),
        (("--format", "onnx", "--precision", "int8", "--attention", "int8"), "ONNX Runtime's int8 covers layers with weights only"),
        (("--format", "onnx", "--precision", "fp32", "--graph", "thin"), "'thin' is none of lean, plain"),
        (("--format", "onnx", "--precision", "bf16"), "which is of OpenVINO; give --format openvino, or --precision fp32"),
        (("--format", "native", "--precision", "bf16"), "give --format openvino, or leave --precision out"),
        (
            ("--format", "onnx", "--precision", "fp32", "--calibration-images", "0"),
            "--calibration-images is 0; it should be greater than or equal to 1",
        ),
        (("--format", "onnx", "--precision", "fp32", "--images", "nowhere"), "no image folder nowhere"),
    ],
)
def test_bad_options_are_one_line(call: Callable, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    ended = call("export", "--model", "vitfrost_digits", *words, "--out", tmp_path / "out")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    assert not list(tmp_path.iterdir())


def test_a_folder_with_content_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VitfrostError, match="not empty"):
        vitfrost.export("vitfrost_digits", out=tmp_path)


def test_an_export_is_no_model_to_compress(exported: dict[str, Path]) -> None:
    with pytest.raises(VitfrostError, match="can only be evaluated and run"):
        vitfrost.inspect(exported["onnx"])


def test_bf16_says_what_the_processor_computes_in(shallow: Any, tmp_path: Path) -> None:
    folder = vitfrost.export(shallow.model, Export("openvino", "bf16"), out=tmp_path / "out")
    about = json.loads((folder / "export.json").read_text())
    session = open_export(folder, threads=1)
    assert about["precision"] == "bf16"
    assert about["checked"]["precision"] == session.precision
    assert session.precision in ("bf16", "fp32")
    assert open_export(folder, threads=1, precision_hint="fp32").precision == "fp32"
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    assert np.isfinite(session.run(pixels)).all()


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_frozen_heads_run_as_products_and_convolutions(form: str, tmp_path: Path) -> None:
    """Two layers: all heads of one frozen to a convolution, one head of the other to a product of its whole map."""
    loaded = small("vit_tiny_patch16_224", 160, depth=2)
    plan = vitfrost.plan(loaded, FreezeHeads(0.5, "layer", kind="local", window=3))
    mixed = (HeadPlan(source="computed"), HeadPlan(source="frozen", constant="toeplitz"), HeadPlan(source="computed"))
    layers = (plan.layers[0], plan.layers[1].model_copy(update={"heads": mixed}))
    artifact = vitfrost.compress(loaded, plan.model_copy(update={"layers": layers}))
    forms = [module.form for module in artifact.module.modules() if isinstance(module, ConstantHeads)]
    assert forms == ["convolution", "matmul"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in artifact.module.modules():
            if isinstance(module, ConstantHeads):
                for parameter in module.parameters():
                    parameter.copy_(torch.rand(parameter.shape, generator=generator) / 50)
    folder = vitfrost.export(artifact, Export(form), out=tmp_path / "out")
    assert logits_differ(artifact, folder, (1, 3)) < 1e-4
    assert json.loads((folder / "export.json").read_text())["macs"] == describe(artifact).macs
