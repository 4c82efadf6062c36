"""Bits of single layers and heads in the file: the simulation's codes in the reference, and the reference's in the engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitfrost.configs import FreezeEntries, Hallucinate, Quantize
from vitfrost.deploy.native.eight_bits import bits_of, in_integers
from vitfrost.deploy.native.families import to_native
from vitfrost.deploy.native.format import ATTENTION, LINEAR, read_model
from vitfrost.errors import VitfrostError
from vitfrost.methods.quantize.modules import UniformMapQuantizer
from vitfrost.methods.quantize.repq import QuantizationSettings

from . import test_pvt, test_swin
from .reference import Reference
from .simulation import logits, noise, quantized_model, write
from .test_engine import close

pytestmark = pytest.mark.usefixtures("unchecked")
LAYERS = {"blocks.0.attn.qkv": (8, 4), "*.mlp.fc2": (3, 8), "head": (6, 5)}
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", 48, {"depth": 2, "embed_dim": 36, "num_heads": 3, "num_classes": 7}),
    "plain, uniform maps": ("vit_tiny_patch16_224", 48, {"depth": 1, "embed_dim": 36, "num_heads": 3, "num_classes": 7}),
    "swin": (test_swin.NAME, 24, test_swin.SMALL | {"depths": (1, 2)}),
    "pvt": (test_pvt.NAME, 32, test_pvt.SMALL),
}


def as_simulated(module: Any, path: Path) -> None:
    """The reference's logits are the simulation's."""
    wanted = logits(module, noise(module, 2))
    assert np.ptp(wanted) > 0.01
    assert np.abs(Reference(path).run(noise(module, 2).numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_every_family(engine: Any, family: str, tmp_path: Path) -> None:
    name, size, options = FAMILIES[family]
    settings = QuantizationSettings(4, 8, "strict", layers=("*.proj=8/8", "*.fc1=2/7"), heads=("*:1=3",))
    module: Any = quantized_model(name, size, options, settings)
    for block in module.blocks if family == "plain, uniform maps" else ():
        maps = block.attn.map_quantizer = UniformMapQuantizer.like(block.attn.map_quantizer)
        maps.scale, maps.zero_point = 0.2 / (2.0**maps.head_bits - 1), torch.zeros(3, 1, 1)
    path = write(module, tmp_path / "model.vfn")
    as_simulated(module, path)
    close(engine, path, noise(module, 2).numpy())
    attention = next(layer for layer in read_model(path).layers if layer.kind >= ATTENTION and layer.tensors[22:23] > (-1,))
    assert read_model(path).tensors[attention.tensors[22]].values.tolist() == [8, 3, 8][: attention.ints[3]]
    assert attention.ints[8:11] == (0, 0, 0)


def test_an_artifact_of_mixed_bits(engine: Any, shallow: Any, tmp_path: Path) -> None:
    quantize = Quantize(4, 8, "strict", layers=LAYERS, heads={"*": {0: 4, 3: 6, 2: 3}})
    made = shallow.compress(tmp_path / "made", FreezeEntries(0.3), Hallucinate(0.25, by="random", mix="copy", seed=1), quantize)
    path = write(in_integers(made, None), tmp_path / "model.vfn")
    as_simulated(made.module, path)
    close(engine, path, noise(made.module, 2).numpy())
    file = read_model(path)
    found = {(file.tensors[layer.tensors[0]].bits, layer.ints[2]) for layer in file.layers if layer.kind == LINEAR}
    assert found == {(4, 8), (8, 4), (3, 8), (6, 5)}
    assert bits_of(made) == "W4/A8 mixed"


def plain(**settings: Any) -> Any:
    """A plain ViT of W4/A4 and other bits."""
    return quantized_model(*FAMILIES["plain"], QuantizationSettings(4, 4, "strict", **settings))


def test_layers_in_floating_point_among_others(shallow: Any, tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match=r"the values of blocks.1.attn: they are in floating point, .*; plan with bits for all heads"):
        to_native(plain(heads=("blocks.1=32",)), "the model")
    for name in ("head", "patch_embed.proj", "blocks.0.mlp.fc2"):
        mend = f'plan with Quantize(..., layers={{"{name}": (8, 8)}}) and compress again'
        with pytest.raises(VitfrostError, match=f"{re.escape(name)}: its weights are in floating point, .*; {re.escape(mend)}$"):
            to_native(plain(layers=(f"{name}=32/8",)), "the model")
    made = shallow.compress(tmp_path / "made", Quantize(32, 32, layers={"head": (8, 8)}))
    with pytest.raises(VitfrostError, match=r"has some layers in few bits and others in floating point, .*Quantize\(weights=8"):
        in_integers(made, None)


def test_quantizers_of_a_head_that_differ() -> None:
    module = plain(heads=("*:0=8",))
    module.blocks[0].attn.key_quantizer.set_bits((4, 8, 4))
    with pytest.raises(VitfrostError, match=r"blocks.0.attn: queries, keys, values or maps have different bits, .*evaluate simulates it"):
        to_native(module, "the model")
