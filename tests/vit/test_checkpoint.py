"""Weights in the forms in which training scripts leave them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.vit.checkpoint import read_weights
from vitfrost.vit.load import create_model

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return create_model("vitfrost_digits", depth=1, num_classes=7, seed=3).state_dict()


def other(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


FORMS: dict[str, tuple[Callable[[State], Any], str | None]] = {
    "plain": (lambda s: s, None),
    "model": (lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3}, "'model' taken; not used: optimizer, epoch"),
    "with arguments": (lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1)}, "'state_dict' taken; not used: args"),
    "averaged beside": (lambda s: {"model": other(s), "model_ema": s}, "'model_ema' taken; not used: model"),
    "timm's": (lambda s: {"state_dict": other(s), "state_dict_ema": s}, "'state_dict_ema' taken; not used: state_dict"),
    "nested": (lambda s: {"model_ema": {"module": s, "decay": 0.9}}, "'model_ema.module' taken"),
    "parallel": (lambda s: prefixed(s, "module."), "without the prefix 'module.'"),
    "compiled": (lambda s: prefixed(s, "module._orig_mod."), "without the prefix 'module._orig_mod.'"),
    "wrapped": (lambda s: {"state_dict": prefixed(s, "model.")}, "'state_dict' taken, without the prefix 'model.'"),
    "torch's average": (lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(5)}, "without the prefix 'module.'"),
}


def test_a_key_names_other_weights(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import numpy as np

    content = {"state_dict": state, "state_dict_ema": other(state), "metric": np.float64(3), "epoch": np.int64(4), "seen": np.bool_(True)}
    torch.save(content, tmp_path / "last.pth.tar")
    with caplog.at_level(logging.INFO, logger="vitfrost"):
        found = read_weights(f"{tmp_path}/last.pth.tar#state_dict")
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert "'state_dict' taken; not used: state_dict_ema, metric" in caplog.text
    with pytest.raises(VitfrostError, match="no weights under model; its keys are state_dict, state_dict_ema, metric"):
        read_weights(f"{tmp_path}/last.pth.tar#model")


ODD: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": torch.Tensor.to_sparse,
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "meta": lambda tensor: tensor.to("meta"),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "expanded": lambda tensor: torch.zeros(1).expand(10**12),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_end_in_one_line(state: State, tmp_path: Path, kind: str) -> None:
    torch.save(state | {"norm.weight": ODD[kind](state["norm.weight"])}, tmp_path / "weights.pth")
    with pytest.raises(VitfrostError, match=r"norm\.weight|not a readable weights file"):
        read_weights(tmp_path / "weights.pth")


def test_a_compressed_archive_is_refused(state: State, tmp_path: Path) -> None:
    import zipfile

    torch.save(state | {"norm.weight": torch.zeros(10**6)}, tmp_path / "weights.pth")
    with zipfile.ZipFile(tmp_path / "weights.pth") as whole, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(VitfrostError, match="it is compressed"):
        read_weights(tmp_path / "bomb.pth")


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_and_the_line_says_which(state: State, tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    made, said = FORMS[form]
    torch.save(made(state), tmp_path / "checkpoint.pth")
    with caplog.at_level(logging.INFO, logger="vitfrost"):
        found = read_weights(tmp_path / "checkpoint.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert (caplog.text == "") if said is None else (said in caplog.text)


@pytest.mark.parametrize("kind", ["projector", "two"])
def test_weights_under_a_prefix_beside_others_are_found(state: State, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    beside = {"head.mlp.0.weight": torch.zeros(3, 3)} if kind == "projector" else prefixed(other(state), "student.")
    save_file(prefixed(state, "teacher.backbone.") | beside, tmp_path / "dino.safetensors")
    with caplog.at_level(logging.INFO, logger="vitfrost"):
        key = "" if kind == "projector" else "#teacher"
        opened = Model.open("vitfrost_digits", weights=f"{tmp_path}/dino.safetensors{key}", options={"depth": 1})
    assert opened.classes == 7
    assert all(torch.equal(tensor, state[name]) for name, tensor in opened.module.state_dict().items())
    if kind == "projector":
        assert "weights under the prefix 'teacher.backbone.' taken; not used: head.mlp.0.weight" in caplog.text
        return
    with pytest.raises(VitfrostError, match=r"holds the model's weights several times; .*#KEY .* one of student., teacher.backbone."):
        Model.open("vitfrost_digits", weights=tmp_path / "dino.safetensors", options={"depth": 1})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_the_head_tells_the_classes(state: State, tmp_path: Path, kind: torch.dtype) -> None:
    save_file({name: tensor.to(kind) for name, tensor in state.items()}, tmp_path / "half.safetensors")
    model = Model.open("vitfrost_digits", weights=tmp_path / "half.safetensors", options={"depth": 1})
    assert (model.classes, model.options) == (7, {"depth": 1, "num_classes": 7})
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert torch.equal(model.module.state_dict()["head.weight"], state["head.weight"].to(kind).float())


def test_what_is_not_finite_is_refused_by_name(state: State, tmp_path: Path) -> None:
    torch.save({"model": state | {"norm.bias": torch.full((64,), float("inf"))}}, tmp_path / "broken.pth")
    with pytest.raises(VitfrostError, match=r"broken\.pth are not finite at norm\.bias") as caught:
        read_weights(tmp_path / "broken.pth")
    assert "\n" not in str(caught.value)


def test_no_code_is_run(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "hook": Path}, tmp_path / "code.pth")
    with pytest.raises(VitfrostError, match="not a readable weights file"):
        read_weights(tmp_path / "code.pth")


def test_positions_of_another_grid_are_resized_with_a_line(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, logger="vitfrost"):
        model = Model.open("vitfrost_digits", weights=tmp_path / "w.safetensors", image_size=48, options={"depth": 1})
    assert model.image_size == (48, 48)
    assert "position embeddings of 8 x 8 patches are resized to 12 x 12" in caplog.text
