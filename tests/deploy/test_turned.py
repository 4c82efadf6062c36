"""Models whose stream is turned by a layer of its own, exported: the same outputs, and products with signs that stay in floating point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compress, Export, Quantize
from vitfrost.deploy.graph import inference_form, to_openvino, trace, with_float_weights
from vitfrost.deploy.int8 import attention_products, sign_products
from vitfrost.model import Model
from vitfrost.runtime import open_export

from ..conftest import unchecked_shapes
from ..models import random_model

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
PRODUCTS = 8  # two turns; H and its transpose take two products each


def images(count: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))


def made(model: Model, bits: tuple[int, int]) -> Artifact:
    quantize = Quantize(*bits, method="fast", steps=("rotation",))
    return vitfrost.compress(model, vitfrost.plan(model, quantize), images=images(12), config=Compress(0, 12))


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """A tower of CLIP without projection, its weights of 8 bits."""
    with unchecked_shapes():
        return made(random_model("vit_base_patch16_clip_224.openai", 32, **SMALL), (8, 32))


@torch.no_grad()
@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("graph", ["plain", "lean"])
def test_graphs_give_the_same_features(artifact: Artifact, form: Any, graph: Any, tmp_path: Path) -> None:
    folder = vitfrost.export(artifact, Export(form, graph=graph), out=tmp_path / "out")
    pixels = torch.stack(images(3, 1))
    found, wanted = open_export(folder, threads=1).run(pixels.numpy()), artifact.module(pixels).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()), rtol=1e-4)


@pytest.mark.parametrize("ranges", ["static", "dynamic"])
def test_turns_stay_in_floating_point_in_8_bits_of_onnx(artifact: Artifact, ranges: Any, tmp_path: Path) -> None:
    import onnx

    given = images(12) if ranges == "static" else None
    config = Export("onnx", "int8", ranges=ranges, graph="plain", **({} if given is None else {"calibration_images": 8}))
    folder = vitfrost.export(artifact, config, out=tmp_path / "out", images=given)
    graph = onnx.load(folder / "model.onnx").graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    left = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    assert len(left) == PRODUCTS
    assert all((np.abs(constants[node.input[1]]) == 1).all() for node in left)
    assert json.loads((folder / "export.json").read_text())["parity"]["correlation"] > 0.98


def test_turns_are_found_in_graphs_of_openvino(artifact: Artifact) -> None:
    program = trace(with_float_weights(inference_form(artifact)), (32, 32), "the model")
    graph = to_openvino(program, (32, 32), "the model")
    found = sign_products(graph)
    assert len(found) == PRODUCTS
    assert not set(found) & set(attention_products(graph))


def test_8_bits_of_openvino(artifact: Artifact, tmp_path: Path) -> None:
    folder = vitfrost.export(artifact, Export("openvino", "int8", calibration_images=8), out=tmp_path / "out", images=images(12))
    assert json.loads((folder / "export.json").read_text())["parity"]["correlation"] > 0.98
