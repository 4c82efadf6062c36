"""What a model gives: an embedding, tokens or classes, and where that is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.features import features_of
from vitfrost.model import Model
from vitfrost.vit.outputs import embedding_widths

from ..models import random_model

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
DINO, CLIP = "vit_small_patch14_dinov2", "vit_base_patch16_clip_quickgelu_224"


def dino(**given: object) -> Model:
    return Model.open(DINO, weights="random", image_size=56, options=SMALL, **given)


def test_towers_give_embeddings_and_classifiers_classes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vitfrost")
    clip = Model.open(CLIP, weights="random", image_size=32, options=SMALL)
    assert (clip.outputs, clip.classes) == ("embedding", 512)
    assert "its 512 outputs are taken as an embedding" in caplog.text
    assert Model.open(CLIP, weights="random", image_size=32, options=SMALL, outputs="classes").outputs == "classes"
    assert Model.open(CLIP, weights="random", image_size=32, options=SMALL, classes=10).outputs == "classes"
    assert random_model("deit_tiny_patch16_224", 32, depth=1, embed_dim=48).outputs == "classes"
    assert (dino().outputs, dino().classes) == ("embedding", 0)
    assert embedding_widths("vit_base_patch16_clip_224") == {512}  # its default weights are of a classifier
    assert "an embedding of 512 numbers" in repr(clip)


def test_tokens_are_what_the_last_norm_puts_out(tmp_path: Path) -> None:
    pooled = dino()
    tokens = dino(outputs="tokens")
    pixels = torch.randn(2, 3, 56, 56)
    assert tokens.outputs == "tokens"
    assert torch.equal(tokens(pixels), pooled.module.forward_features(pixels))
    assert torch.equal(tokens(pixels)[:, 0], pooled(pixels))
    assert tokens.state_hash == pooled.state_hash
    clip = random_model(CLIP, 32, **SMALL)  # with a classifier whose weights are left out
    save_file(clip.module.state_dict(), tmp_path / "clip.safetensors")
    cut = Model.open(CLIP, weights=tmp_path / "clip.safetensors", image_size=32, options=SMALL, outputs="tokens")
    small = torch.randn(2, 3, 32, 32)
    assert torch.equal(cut(small), clip.module.forward_features(small))


def test_what_a_model_cannot_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match="has no classifier, so its outputs are no classes"):
        dino(outputs="classes")
    with pytest.raises(VitfrostError, match="gives one vector for an image, no tokens"):
        Model.of(dino().module, outputs="tokens")
    with pytest.raises(VitfrostError, match=r"is distilled: .*; leave outputs tokens out and give 0 classes"):
        Model.open("deit_tiny_distilled_patch16_224", weights="random", image_size=32, outputs="tokens")
    distilled = Model.open("deit_tiny_distilled_patch16_224", weights="random", image_size=32, classes=0, options={"depth": 1})
    found = features_of(distilled, torch.zeros(2, 3, 32, 32))
    assert found.patches is not None
    assert (found.patches.shape, found.grid) == ((2, 4, 192), (2, 2))
    model = random_model("vit_base_patch16_224", 32, **SMALL, global_pool="avg")
    save_file(model.module.state_dict(), tmp_path / "mean.safetensors")
    with pytest.raises(VitfrostError, match="has its last norm after pooling"):
        Model.open("vit_base_patch16_224", weights=tmp_path / "mean.safetensors", image_size=32, options=SMALL, outputs="tokens")


def test_a_module_in_memory_says_it_by_itself() -> None:
    assert (Model.of(dino().module).outputs, Model.of(dino().module).classes) == ("embedding", 0)
    assert Model.of(dino(outputs="tokens").module).outputs == "tokens"
    own = dino().module
    own.head = nn.Linear(48, 7)
    assert (Model.of(own).outputs, Model.of(own).classes) == ("classes", 7)
    assert Model.of(own, outputs="embedding").outputs == "embedding"


@pytest.mark.parametrize("outputs", ["embedding", "tokens"])
def test_an_artifact_keeps_it(outputs: str, tmp_path: Path) -> None:
    model = dino(outputs=outputs)
    vitfrost.plan(model, vitfrost.FreezeHeads(0.5, unit="layer")).save(tmp_path / "plan.yaml")
    made = vitfrost.compress(model, tmp_path / "plan.yaml", out=tmp_path / "artifact")
    loaded = Artifact.load(tmp_path / "artifact")
    pixels = torch.randn(2, 3, 56, 56)
    assert loaded.outputs == outputs
    assert torch.equal(loaded(pixels), made(pixels))
    classes = Model.open(CLIP, weights="random", image_size=32, options=SMALL, outputs="classes")
    vitfrost.compress(classes, vitfrost.plan(classes, vitfrost.FreezeHeads(0.5, unit="layer")), out=tmp_path / "classes")
    assert Artifact.load(tmp_path / "classes").outputs == "classes"
    assert Model.open(tmp_path / "classes", outputs="embedding").outputs == "embedding"
