"""Bits of single layers and heads, through plans, commands, quantizers, artifacts and exports."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, Export, FreezeEntries, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.description import describe
from vitfrost.methods.quantize.layerwise import LayerOptions, LayerWise
from vitfrost.methods.quantize.modules import LogQuantizer, QuantizedLayer, UniformMapQuantizer
from vitfrost.methods.quantize.repq import QuantizationSettings, quantize_model
from vitfrost.methods.quantize.trainable import take, trainable
from vitfrost.model import Model
from vitfrost.plans.schema import Plan
from vitfrost.reporting.commands import plan_command
from vitfrost.reporting.summary import what_was_done
from vitfrost.vit.families import find_sites, install_map_attention

from .test_quantize_chain import compressed, pixels

pytestmark = pytest.mark.usefixtures("unchecked")
LAYERS = {"blocks.0.attn.qkv": (8, 8), "*.mlp.fc2": (4, 8), "head": (32, 6)}
HEADS = {"blocks.1.attn": {0: 8, 2: 8}, "blocks.0.attn:1": 3}


def quantize(method: str, **fields: Any) -> Quantize:
    return Quantize(4, 4, "strict", method, () if method == "fast" else None, **fields)


@pytest.mark.parametrize("method", ["repq", "fast"])
def test_the_same_bits_for_every_layer_and_head_are_those_of_the_whole(method: str) -> None:
    original = Model.open("vitfrost_digits", weights="random", options={"depth": 1}).module
    whole = QuantizationSettings(4, 4, "strict")
    single = QuantizationSettings(8, 3, "strict", layers=("*=4/4",), heads=("*=6", "*:0,1,2,3=4"))
    made = []
    for settings in (whole, single):
        model, sites = copy.deepcopy(original), find_sites(original)
        if method == "repq":
            quantize_model(model, sites, settings, pixels(4))
        else:
            install_map_attention(model)
            list(LayerWise(model, copy.deepcopy(original), sites, LayerOptions(settings), {}).run([pixels(1)]))
        made.append(model.state_dict())
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@torch.no_grad()
@pytest.mark.parametrize("any_base", [False, True])
def test_a_head_of_more_bits_takes_nothing_from_the_others(any_base: bool) -> None:
    """A uniform grid would suit it, and not them; bases are searched for them as if it were not there."""
    original = Model.open("vitfrost_digits").module
    maps: list[Any] = []
    for heads in (("*:0=8",), ()):
        model = copy.deepcopy(original)
        settings = QuantizationSettings(4, 4, "strict", heads=heads, any_base=any_base)
        install_map_attention(model)
        walk = LayerWise(model, copy.deepcopy(original), find_sites(original), LayerOptions(settings), {}).run([pixels(4)])
        next(each for each in walk if each == "blocks.0.attn.proj")
        maps.append(model.blocks[0].attn.map_quantizer)
    assert [type(each) for each in maps] == [LogQuantizer] * 2
    assert torch.equal(maps[0].step[1:], maps[1].step[1:])
    if any_base:
        assert float(maps[0].octave[0]) == 2
        assert torch.equal(maps[0].octave[1:], maps[1].octave[1:])


@pytest.fixture(scope="module", params=["repq", "fast"])
def mixed(request: Any, shallow: Any) -> Artifact:
    """Every kind of other bits."""
    from ..conftest import unchecked_shapes

    with unchecked_shapes():
        return compressed(shallow, quantize(request.param, layers=LAYERS, heads=HEADS), images=4)


@torch.no_grad()
def test_maps_of_one_head_at_a_time_have_its_bits(mixed: Artifact) -> None:
    attention: Any = mixed.module.get_submodule("blocks.1.attn")
    wanted = mixed.module(pixels(2))
    attention.observe(heads=lambda head, maps, values: None)
    assert torch.allclose(mixed.module(pixels(2)), wanted, atol=0.2 * float(wanted.abs().max()))  # a rounding may fall to another side
    attention.observe()


def test_every_layer_and_head_has_its_own_bits(mixed: Artifact) -> None:
    model: Any = mixed.module
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    bits = {name: (layer.bits, layer.input_quantizer.bits) for name, layer in layers.items()}
    assert bits["patch_embed.proj"] == (4, 8)
    assert (bits["blocks.0.attn.qkv"], bits["blocks.1.attn.qkv"], bits["blocks.1.mlp.fc2"], bits["head"]) == (
        (8, 8),
        (4, 4),
        (4, 8),
        (32, 6),
    )
    attention, generator = model.blocks[1].attn, torch.Generator().manual_seed(0)
    values = torch.randn(8, 4, 65, 16, generator=generator)
    maps = (5 * torch.randn(8, 4, 65, 65, generator=generator)).softmax(-1)
    for part, x in (("query", values), ("key", values), ("value", values), ("map", maps)):
        made = getattr(attention, f"{part}_quantizer")(x)
        counts = [len(made[:, head].unique()) for head in range(4)]
        assert max(counts[1], counts[3]) <= 16 < min(counts[0], counts[2])
        if part == "map":
            assert torch.equal(attention.map_quantizer(maps[:, 2:], [2, 3]), made[:, 2:])
    assert model.blocks[0].attn.value_quantizer.head_bits.flatten().tolist() == [4, 3, 4, 4]


@torch.no_grad()
def test_what_was_saved_is_loaded_and_told(mixed: Artifact, tmp_path: Path) -> None:
    module: Any = mixed.module
    if mixed.plan.quantize.method == "fast":
        attention = module.blocks[0].attn
        attention.map_quantizer = UniformMapQuantizer.like(attention.map_quantizer)
        attention.map_quantizer.scale, attention.map_quantizer.zero_point = torch.full((4, 1, 1), 1 / 300), torch.zeros(4, 1, 1)
    mixed.save(tmp_path / "made")
    loaded = Artifact.load(tmp_path / "made")
    assert torch.equal(loaded.module(pixels(4)), mixed.module(pixels(4)))
    assert loaded.plan == mixed.plan
    about = describe(loaded)
    assert (about.precision, about.kind, about.size_bytes) == ("W4/A4 mixed", "simulated", mixed.size_bytes)
    assert "head=32/6, blocks.1.attn:0,2=8, blocks.0.attn:1=3." in what_was_done(loaded.plan)
    with pytest.raises(VitfrostError, match="quantizes activations to 3 and 4 and 6 and 8 bits, which is simulated"):
        vitfrost.export(loaded, Export(), out=tmp_path / "onnx")


@torch.no_grad()
def test_single_bits_take_as_much_room_as_they_say(shallow: Any, tmp_path: Path) -> None:
    plans = (Quantize(4, 32), Quantize(4, 32, layers={"blocks.0.attn.qkv": (8, 32)}))
    sizes = [compressed(shallow, plan, source=None).save(tmp_path / f"{n}") / "model.safetensors" for n, plan in enumerate(plans)]
    weight = shallow.model.module.blocks[0].attn.qkv.weight
    assert sizes[1].stat().st_size - sizes[0].stat().st_size == weight.numel() // 2


@torch.no_grad()
def test_it_is_trained_from_what_it_computes(mixed: Artifact) -> None:
    twin = trainable(mixed.module)
    wanted = mixed.module(pixels(4))
    assert torch.allclose(twin(pixels(4)), wanted, atol=1e-3 * float(wanted.abs().max()))
    for module in twin.modules():
        if hasattr(module, "codes"):
            module.codes.add_(100.0)
    take(mixed.module, twin)
    most = {int(layer.codes.max()) for layer in mixed.module.modules() if isinstance(layer, QuantizedLayer) and layer.bits != 32}
    assert most == {15, 255}


@torch.no_grad()
def test_heads_keep_their_bits_where_they_change_places(shallow: Any, tmp_path: Path) -> None:
    methods = (FreezeEntries(0.2), Hallucinate(0.5, by="random", mix="copy", seed=1), Compact(0.5))
    made = compressed(
        shallow, *methods, quantize("repq", layers={"*.mlp.fc2": (8, 8)}, heads={"blocks.0.attn": 32, "blocks.1.attn": {0: 8}})
    )
    first, second = (block.attn for block in made.module.blocks)  # type: ignore[union-attr]
    assert first.value_quantizer is first.map_quantizer is None
    assert second.order != (0, 1, 2, 3)
    assert second.value_quantizer.head_bits.flatten().tolist() == [8 if head == 0 else 4 for head in second.order]
    assert made.module.get_submodule("blocks.0.mlp.fc2.down").bits == 8
    made.save(tmp_path / "made")
    assert torch.equal(Artifact.load(tmp_path / "made").module(pixels(4)), made.module(pixels(4)))


def test_a_plan_and_its_command_say_it(shallow: Any, call: Callable[..., Any], tmp_path: Path) -> None:
    shallow.statistics.save(tmp_path / "statistics.safetensors")
    made = vitfrost.plan(shallow.statistics, FreezeEntries(0.2), Quantize(4, 8, layers=LAYERS, heads=HEADS), out=tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == made
    assert "layer_bits: [blocks.0.attn.qkv=8/8, '*.mlp.fc2=4/8', head=32/6]" in (tmp_path / "plan.yaml").read_text()
    words = shlex.split(plan_command(made).replace("\\\n", " "))
    place = {"STATISTICS": tmp_path / "statistics.safetensors", "plan.yaml": tmp_path / "again.yaml"}
    assert call(*(place.get(word, word) for word in words[1:])).status == 0
    assert Plan.load(tmp_path / "again.yaml") == made


def test_names_of_nothing(shallow: Any, call: Callable[..., Any], tmp_path: Path) -> None:
    from vitfrost.runs.recipe import PlanPart

    with pytest.raises(VitfrostError, match=r"names blocks.9, but .* has no such attention layer; it has blocks.\*.attn"):
        vitfrost.plan(shallow.statistics, Quantize(4, 4, heads={"blocks.9": 8}))
    plan = vitfrost.plan(shallow.statistics, Quantize(4, 4, layers={"blocks.9": (8, 8)}))
    with pytest.raises(VitfrostError, match=r"Quantize.layers names blocks.9, but .* has no such linear layer; it has patch_embed.proj, "):
        vitfrost.compress(shallow.model, plan, images=shallow.pictures, config=Compress(0, 8))
    found = call("plan", "--model", "vitfrost_digits", "--weights", "random", "--layer-bits", "tail=8/8", "--out", tmp_path / "plan.yaml")
    assert found.status == 2
    assert "--layer-bits names tail, but vitfrost_digits has no such linear layer; it has patch_embed.proj, blocks.*.attn.qkv" in found.err
    part = PlanPart.model_validate({"layer_bits": {"head": [8, 8]}, "head_bits": ["*.attn:0=8"]})
    assert (part.quantize.layers, part.quantize.heads) == (("head=8/8",), ("*.attn:0=8",))
    assert part.options()["layer_bits"] == ["head=8/8"]
    assert "layer_bits" not in PlanPart().options()
