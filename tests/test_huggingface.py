"""Modules and folders of transformers and torchvision become timm's models, and give the outputs they gave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import FreezeHeads, Quantize
from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.images.preprocess import Preprocess
from vitfrost.model import Model
from vitfrost.vit.compat import import_timm
from vitfrost.vit.huggingface import class_names, convert
from vitfrost.vit.image_processor import reading

import_timm()  # before transformers, which imports torchvision

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
FEW = {**SMALL, "intermediate_size": 96}
SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": 32, "patch_size": 2, "window_size": 4}
# class, configuration, what it is told; what the model's outputs are compared with
MODELS: list[tuple[str, str, dict[str, Any], Callable[[Any], torch.Tensor]]] = [
    ("ViTForImageClassification", "ViTConfig", {**FEW, "num_labels": 5}, lambda out: out.logits),
    ("ViTModel", "ViTConfig", FEW, lambda out: out.last_hidden_state[:, 0]),
    ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {**FEW, "num_labels": 5}, lambda out: out.logits),
    ("DeiTForImageClassification", "DeiTConfig", {**FEW, "num_labels": 5}, lambda out: out.logits),
    ("Dinov2Model", "Dinov2Config", SMALL, lambda out: out.pooler_output),
    ("Dinov2Model", "Dinov2Config", {**SMALL, "use_swiglu_ffn": True}, lambda out: out.pooler_output),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", SMALL, lambda out: out.pooler_output),
    ("DINOv3ViTModel", "DINOv3ViTConfig", {**FEW, "num_register_tokens": 4}, lambda out: out.pooler_output),
    (
        "DINOv3ViTModel", "DINOv3ViTConfig",
        {**FEW, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
        lambda out: out.pooler_output,
    ),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {**SMALL, "num_register_tokens": 0}, lambda out: out.pooler_output),
    ("DINOv3ViTModel", "DINOv3ViTConfig", FEW, lambda out: out.pooler_output),
    (
        "DINOv3ViTModel", "DINOv3ViTConfig", {**FEW, "query_bias": False, "proj_bias": False, "mlp_bias": False},
        lambda out: out.pooler_output,
    ),
    ("SwinModel", "SwinConfig", {**SWIN, "qkv_bias": False}, lambda out: out.pooler_output),
    ("SwinForImageClassification", "SwinConfig", {**SWIN, "num_labels": 5}, lambda out: out.logits),
    ("SwinModel", "SwinConfig", SWIN, lambda out: out.pooler_output),
    ("SiglipVisionModel", "SiglipVisionConfig", FEW, lambda out: out.pooler_output),
    ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**FEW, "projection_dim": 16}, lambda out: out.image_embeds),
    ("CLIPVisionModel", "CLIPVisionConfig", FEW, lambda out: out.pooler_output),
]  # fmt: skip


def made(name: str, configuration: str, options: dict[str, Any]) -> Any:
    """A small module of transformers with weights that make maps and outputs vary; skips where transformers is not installed."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    module = getattr(transformers, name)(getattr(transformers, configuration)(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.5 + 0.2 * drawn)
    return module


@pytest.mark.parametrize(("name", "configuration", "options", "outputs"), MODELS, ids=lambda value: value if isinstance(value, str) else "")
@torch.no_grad()
def test_a_module_gives_the_same_outputs(
    name: str, configuration: str, options: dict[str, Any], outputs: Callable[[Any], torch.Tensor], tmp_path: Path
) -> None:
    module = made(name, configuration, options)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = outputs(module(pixels))
    model = Model.of(module)
    assert model.registered
    assert model.image_size == (32, 32)
    assert torch.allclose(model(pixels), expected, atol=1e-4 * float(expected.abs().max()))
    # its folder is a file of weights
    module.save_pretrained(tmp_path)
    again = Model.open(model.name, weights=tmp_path)
    assert again.state_hash == model.state_hash


def test_an_artifact_of_such_a_model_is_loaded_without_transformers(pictures: Path, tmp_path: Path) -> None:
    model = Model.of(made("ViTForImageClassification", "ViTConfig", {**FEW, "id2label": {0: "cat", 1: "dog"}}))
    assert model.class_names == ("cat", "dog")
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=2), progress=False)
    changed = vitfrost.compress(
        model, vitfrost.plan(statistics, FreezeHeads(0.5), Quantize(32, 32)), statistics=statistics, out=tmp_path / "artifact"
    )
    pixels = torch.randn(1, 3, 32, 32)
    loaded = Artifact.load(tmp_path / "artifact")
    assert torch.equal(loaded(pixels), changed(pixels))
    assert loaded.class_names == ("cat", "dog")


def test_a_module_whose_outputs_differ_is_refused() -> None:
    module = made("ViTModel", "ViTConfig", FEW)
    module.layernorm.register_forward_hook(lambda _, inputs, output: output * 2)
    with pytest.raises(UnsupportedModel, match=r"this ViTModel gives other outputs than timm's vit_base_patch16_224 with its weights"):
        Model.of(module)


def test_what_has_no_counterpart_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedModel, match=r"reads the class token and the mean of the patches.*give the model without it"):
        Model.of(made("Dinov2ForImageClassification", "Dinov2Config", {**SMALL, "num_labels": 5}))
    with pytest.raises(UnsupportedModel, match=r"of the type 'beit' of transformers is not supported; supported are ViT, DeiT"):
        convert({"model_type": "beit"}, {})


VISION = {"model_type": "clip", "vision_config": FEW}


@pytest.mark.parametrize(
    ("config", "state", "line"),
    [
        ({"model_type": "swin", "hidden_act": "relu"}, (), r"'relu' \(hidden_act\) of this Swin is not supported; timm's has gelu"),
        ({"model_type": "swin", "use_absolute_embeddings": True}, (), r"absolute positions \(use_absolute_embeddings\)"),
        ({"model_type": "swin", "layer_norm_eps": 1e-2}, (), r"layer_norm_eps 0.01 in its blocks alone.*give one with 1e-5"),
        ({"model_type": "dinov3_vit", "hidden_act": "relu"}, (), r"'relu' \(hidden_act\) of this DINOv3 is not supported; timm's has gelu"),
        ({"model_type": "dinov3_vit", "use_gated_mlp": True}, (), r"'gelu' \(hidden_act\) of this DINOv3 with gates .* timm's has silu"),
        ({**VISION, "model_type": "siglip"}, ("classifier.weight",), r"SigLIP reads the mean of the tokens.*module.vision_model"),
        (VISION, ("classifier.weight",), r"CLIP reads the mean of the patches.*module.vision_model"),
        ({"model_type": "siglip2_vision_model", "num_patches": 16}, (), r"NaFlex inputs.*num_patches in the place of image_size"),
        ({"model_type": "siglip2", "vision_config": {"num_patches": 16}}, (), r"NaFlex inputs"),
        ({"model_type": "vit", "num_channels": 1}, (), r"num_channels 1, and pictures are read as RGB; give a model of three"),
    ],
)
def test_configurations_without_counterpart_say_why(config: dict[str, Any], state: tuple[str, ...], line: str) -> None:
    with pytest.raises(UnsupportedModel, match=line):
        convert(config, {name: torch.zeros(2, 2) for name in state})


@pytest.mark.parametrize("width", [32, 640])
def test_a_projection_is_an_embedding_however_wide(width: int, tmp_path: Path) -> None:
    module = made("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**FEW, "projection_dim": width})
    module.save_pretrained(tmp_path)
    name = "vit_base_patch16_clip_224"
    for model in (Model.of(module), Model.open(name, weights=tmp_path)):
        assert (model.outputs, model.classes) == ("embedding", width)
    names = [f"class {number}" for number in range(width)]
    for model in (Model.of(module, class_names=names), Model.open(name, weights=tmp_path, class_names=names)):
        assert (model.outputs, model.classes) == ("classes", width)
    assert Model.open(name, weights=tmp_path, outputs="tokens").outputs == "tokens"


@pytest.mark.parametrize(
    ("name", "configuration", "options"),
    [
        ("Dinov2Backbone", "Dinov2Config", SMALL),
        ("DINOv3ViTBackbone", "DINOv3ViTConfig", FEW),
        ("Dinov2WithRegistersBackbone", "Dinov2WithRegistersConfig", SMALL),
    ],
)
def test_a_backbone_is_refused(name: str, configuration: str, options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=rf"this {name} gives a \w*BackboneOutput, .*; give the model itself"):
        Model.of(made(name, configuration, options))


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    module = made("ViTModel", "ViTConfig", FEW)
    module.config.return_dict = False
    with pytest.raises(UnsupportedModel, match=r"this ViTModel gives a tuple, .*; set its config.return_dict"):
        Model.of(module)
    module.forward = lambda pixels, more: pixels
    with pytest.raises(UnsupportedModel, match=r"this ViTModel cannot be run on pixels alone \(TypeError: .*missing 1 required"):
        Model.of(module)


def test_a_classifier_of_a_tower_is_not_a_text_tower() -> None:
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96, "vocab_size": 50}
    options = {"text_config": text, "vision_config": FEW}
    for family, reads in (("CLIP", "patches"), ("Siglip", "tokens")):
        module = made(f"{family}ForImageClassification", f"{family}Config", options)
        with pytest.raises(UnsupportedModel, match=rf"reads the mean of the {reads}.*give the model without it \(module.vision_model\)"):
            Model.of(module)
        assert Model.of(module.vision_model).outputs == "embedding"
        with pytest.raises(UnsupportedModel, match=rf"this {family}Model has a text tower too; give its vision model"):
            Model.of(made(f"{family}Model", f"{family}Config", options))


@pytest.mark.parametrize(
    ("config", "name", "line"),
    [
        ({"model_type": "swin", **SWIN, "mlp_ratio": 4}, "vit_tiny_patch16_224",
         r"timm's swin_tiny_patch4_window7_224 \(SwinTransformer\), and vit_tiny_patch16_224 is a VisionTransformer; give swin_tiny"),
        ({"model_type": "dinov3_vit", **FEW}, "vit_tiny_patch16_224", r"\(Eva\).* is a VisionTransformer; give vit_base_patch16_dinov3"),
        ({"model_type": "vit", **FEW, "hidden_act": "gelu"}, "vit_base_patch16_clip_224", r"another way; give vit_base_patch16_224"),
    ],
)  # fmt: skip
def test_the_name_of_another_architecture_is_refused(config: dict[str, Any], name: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"norm.weight": torch.zeros(48)}, tmp_path / "model.safetensors")
    with pytest.raises(VitfrostError, match=line):
        Model.open(name, weights=tmp_path)


@pytest.mark.parametrize("config", [{}, {"hidden_size": "x"}, {**FEW, "image_size": None}, {**FEW, "hidden_act": "gelu", "patch_size": []}])
def test_damaged_configurations_end_in_one_line(config: dict[str, Any]) -> None:
    with pytest.raises(VitfrostError, match="the configuration of type 'vit' does not go with its weights") as caught:
        convert({"model_type": "vit", **config}, {})
    assert "\n" not in str(caught.value)
    with pytest.raises(VitfrostError, match="the image processor is damaged"):
        reading({"image_mean": ["a"], "image_std": 3})


def test_torchvision() -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    module = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=96, num_classes=5).eval()
    nn.init.normal_(module.heads.head.weight)
    model = Model.of(module)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(pixels), module(pixels), atol=1e-5)
    larger = Model.of(module, image_size=48)
    assert larger.image_size == (48, 48)
    assert larger(torch.zeros(1, 3, 48, 48)).shape == (1, 5)


def test_torchvision_with_heads_of_your_own() -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    class Mine(VisionTransformer):
        pass

    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 48, "mlp_dim": 96, "num_classes": 5}
    pixels = torch.randn(2, 3, 32, 32)
    heads = (nn.Linear(48, 3), nn.Sequential(nn.Dropout(0.5), nn.Linear(48, 3)), nn.Identity())
    for kind, head, outputs in zip((VisionTransformer, Mine, Mine), heads, (3, 3, 48), strict=True):
        module = kind(32, 8, **sizes).eval()
        module.heads = head.eval()
        with torch.no_grad():
            said = Model.of(module)(pixels)
            assert said.shape == (2, outputs)
            assert torch.allclose(said, module(pixels), atol=1e-5)
    with pytest.raises(UnsupportedModel, match=r"heads.pre_logits, of representation_size"):
        Model.of(VisionTransformer(32, 8, **sizes, representation_size=32))
    module.heads = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 3))
    with pytest.raises(UnsupportedModel, match=r"this Mine has other heads than a linear layer \(heads.0, a LayerNorm, heads.1"):
        Model.of(module)

    class Other(VisionTransformer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    with pytest.raises(UnsupportedModel, match=r"this Other, which overrides forward of VisionTransformer, is not supported"):
        Model.of(Other(32, 8, **sizes))


def test_names_and_processors(tmp_path: Path) -> None:
    assert class_names({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) is None
    assert class_names({"id2label": {"1": "b", "0": "a", "10": "k"}}) == ("a", "b", "k")
    processor = {
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 256}, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    }  # fmt: skip
    assert reading(processor) == {"mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.875, "crop_mode": "center"}
    assert reading({"size": {"height": 224, "width": 224}}) == {"crop_pct": 1.0, "crop_mode": "squash"}
    from torchvision.models.vision_transformer import VisionTransformer

    module = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=48, mlp_dim=96, num_classes=5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    for given in (processor, tmp_path):
        read = Model.of(module, image_processor=given).preprocessing
        assert (read.mean, read.std, read.crop_pct, read.crop_mode) == ((0.5,) * 3, (0.25,) * 3, 0.875, "center")
    with pytest.raises(VitfrostError, match="a int is no image processor"):
        Model.of(module, image_processor=3)


@pytest.mark.parametrize(("number", "name"), [*enumerate(["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])])
def test_a_processor_says_how_pictures_are_resized(number: int, name: str) -> None:
    assert reading({"resample": number}) == reading({"resample": name}) == {"interpolation": name}


def test_a_picture_is_read_as_its_processor_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from torchvision.models.vision_transformer import VisionTransformer

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    module = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=48, mlp_dim=96, num_classes=5)
    square = {"size": {"height": 32, "width": 32}}
    processors = [
        transformers.ViTImageProcessor(**square, resample=2),
        transformers.ViTImageProcessor(**square, resample=3, rescale_factor=1 / 127.5),
        transformers.ViTImageProcessor(**square, do_rescale=False, image_mean=[127.5] * 3, image_std=[50.0] * 3),
        transformers.ViTImageProcessor(**square, rescale_factor=1 / 128, do_normalize=False),
        transformers.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=square["size"]),
        transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=square["size"], resample=2),
    ]
    for processor in processors:
        expected = processor(picture, return_tensors="pt")["pixel_values"][0]
        own = Model.of(module, image_processor=processor).preprocessing
        assert torch.allclose(Preprocess(own)(picture), expected, atol=2.1 / 255 / min(own.std)), processor
        processor.save_pretrained(tmp_path)
        assert Model.of(module, image_processor=tmp_path).preprocessing == own


def test_what_a_processor_says_of_size_and_range() -> None:
    assert reading({"size": 224}) == {"crop_pct": 1.0, "crop_mode": "squash"}
    assert reading({"size": 256, "crop_size": 224, "do_center_crop": True}) == {"crop_pct": 0.875, "crop_mode": "center"}
    assert reading({"do_resize": False, "resample": 0, "size": 40}) == {"crop_pct": 1.0, "crop_mode": "squash"}
    half = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    assert reading({**half, "rescale_factor": 0.00392156862745098}) == {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert reading({**half, "rescale_factor": 2 / 255})["mean"] == pytest.approx((0.25,) * 3)
    for processor, line in [
        ({"resample": 9}, r"resample 9 is unknown; give one of 0 \(nearest\)"),
        ({"rescale_factor": 0.5}, "multiplies pixels with 0.5 and has no image_mean and image_std; leave it out"),
        ({"rescale_factor": 0, **half}, "rescale_factor 0.0 is out of range"),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 32}, "crops pictures without resizing them"),
    ]:
        with pytest.raises(VitfrostError, match=line):
            reading(processor)
