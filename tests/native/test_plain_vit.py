"""A written model computes what its simulation does: layer by layer the same codes, and the same logits but for the order of sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitfrost.configs import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize
from vitfrost.deploy.native import parts
from vitfrost.deploy.native.eight_bits import in_integers
from vitfrost.deploy.native.format import ATTENTION, LINEAR, read_model
from vitfrost.methods.constant_heads.module import ConstantHeads
from vitfrost.methods.quantize.modules import QuantizedLayer, UniformQuantizer
from vitfrost.methods.quantize.quantizers import uniform_codes

from .reference import Reference
from .simulation import exact, logits, noise, quantized, with_scales_of_heads, write

STRICT = Quantize(4, 4, "strict")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "deit_tiny_distilled_patch16_224"},
        {"reg_tokens": 3, "init_values": 0.3},
        {"global_pool": "avg", "fc_norm": True, "class_token": False, "size": (32, 48), "num_classes": 0},
        {"global_pool": "avg", "fc_norm": False, "qkv_bias": False},
        {"pre_norm": True, "no_embed_class": True, "num_heads": 4},
        {"act_layer": "gelu_tanh", "mlp_ratio": 2.5, "num_classes": 0, "global_pool": ""},
        {"act_layer": "quick_gelu", "final_norm": False},
        {"act_layer": "relu", "pos_embed": "none", "init_values": 1e-5},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [(4, 4), (8, 8)], ids=str)
def test_every_kind_of_plain_vit(options: dict[str, Any], bits: tuple[int, int], tmp_path: Path) -> None:
    module = quantized(*bits, **options)
    found = Reference(write(module, tmp_path / "model.vfn")).run(noise(module, 3).numpy())
    wanted = logits(module, noise(module, 3))
    assert np.ptp(wanted) > 0.01
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)


@pytest.mark.parametrize("bits", [(2, 8), (3, 3), (5, 6), (8, 2)], ids=str)
def test_every_number_of_bits(bits: tuple[int, int], tmp_path: Path) -> None:
    module = quantized(*bits)
    path = write(module, tmp_path / "model.vfn")
    wanted = logits(module, noise(module, 3))
    assert np.abs(Reference(path).run(noise(module, 3).numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)
    assert {tensor.bits for tensor in read_model(path).tensors} == {bits[0], 32}


# What `compress` can do to maps and layers; the second figure: how far logits may differ, as a share of their range. Constant maps are
# rounded to 8 bits in the file.
PLANS: dict[str, tuple[list[Any], float]] = {
    "frozen entries": ([FreezeEntries(0.3), STRICT], 1e-5),
    "frozen entries, all in one layer": ([FreezeEntries(0.6, scope="layer", bits=8), Quantize(8, 8, "strict")], 1e-5),
    "frozen entries with a grid for each head": ([FreezeEntries(0.3, grid="head"), STRICT], 1e-5),
    "frozen entries of 3 bits among maps of 8": ([FreezeEntries(0.3, bits=3), Quantize(8, 8, "strict")], 1e-5),
    "frozen heads": ([FreezeHeads(0.5, kind="dense"), STRICT], 0.3),
    "local heads": ([FreezeHeads(0.5, kind="local", window=3), Quantize(8, 8, "strict")], 0.03),
    "frozen layers": ([FreezeHeads(0.5, unit="layer"), Quantize(8, 8, "strict")], 0.03),
    "hallucinated heads": ([Hallucinate(0.5, by="first", mix="copy"), STRICT], 1e-5),
    "copies with a convolution of 5x5 over all tokens": (
        [Hallucinate(0.5, by="first", inter_map="copy", intra_map="5x5", prefix="include"), STRICT], 1e-5,
    ),
    "pairs without a convolution": ([Hallucinate(0.5, by="first", mix="copy", inter_map="pair", intra_map="none"), STRICT], 1e-5),
    "compact blocks": ([Compact(0.5), STRICT], 1e-5),
}  # fmt: skip


def disturbed(module: nn.Module) -> nn.Module:
    """With convolutions and biases of hallucinated heads that are not zero, as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "hallucination" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("plan", PLANS)
def test_every_map_source(shallow: Any, plan: str, tmp_path: Path) -> None:
    methods, tolerance = PLANS[plan]
    made = shallow.compress(tmp_path / "made", *methods)
    module = disturbed(made.module)
    found = Reference(write(in_integers(made, None), tmp_path / "model.vfn")).run(noise(module, 4).numpy())
    wanted = logits(module, noise(module, 4))
    assert np.abs(found - wanted).max() < tolerance * np.ptp(wanted)


def test_heads_of_all_sources_in_one_layer(shallow: Any, tmp_path: Path) -> None:
    made = shallow.compress(
        tmp_path / "made",
        Hallucinate(0.25, by="first", mix="copy"),
        FreezeHeads(0.25, kind="dense"),
        Compact(0.5),
        Quantize(8, 8, "strict"),
    )
    path = write(in_integers(made, None), tmp_path / "model.vfn")
    attention = [layer for layer in read_model(path).layers if layer.kind == ATTENTION]
    heads, computed, constant, hallucinated = ([layer.ints[place] for layer in attention] for place in (3, 5, 11, 12))
    assert [sum(each) for each in zip(computed, constant, hallucinated, strict=True)] == heads
    assert sum(constant) > 0
    assert sum(hallucinated) > 0
    wanted = logits(made.module, noise(made.module, 4))
    assert np.abs(Reference(path).run(noise(made.module, 4).numpy()) - wanted).max() < 0.03 * np.ptp(wanted)


def test_every_layer_has_the_codes_of_the_simulation_in_torch(tmp_path: Path) -> None:
    module = quantized(4, 4, init_values=0.5)
    reference = Reference(write(module, tmp_path / "model.vfn"))
    records = [layer for layer in reference.layers if layer["kind"] == LINEAR]
    seen: list[tuple[QuantizedLayer, torch.Tensor, torch.Tensor]] = []
    for layer in module.modules():
        if isinstance(layer, QuantizedLayer) and not layer.is_convolution:
            layer.register_forward_hook(lambda one, inputs, output: seen.append((one, inputs[0], output)))
    with torch.no_grad():
        module(noise(module, 2))
    assert len(seen) == len(records) - 1  # without the embedding of patches
    for (layer, given, output), record in zip(seen, records[1:], strict=True):
        quantizer: Any = layer.input_quantizer
        codes, _, _ = reference.linear_codes(record, given.double().numpy())
        wanted = uniform_codes(given, quantizer.scale, quantizer.zero_point, quantizer.bits).numpy()
        near = np.abs((given / quantizer.scale).numpy() % 1 - 0.5) < 1e-5
        assert np.array_equal(codes[~near], wanted[~near])
        assert np.array_equal(reference.named(record, 0), layer.codes.numpy())
        sums = reference.linear(index_of(reference, record), given.double().numpy())
        stretched = reference.named(record, 1) / layer.scale.numpy()  # LayerScale, where there is one
        assert np.allclose(sums, output.double().numpy() * stretched, atol=1e-4 * np.ptp(sums))


def index_of(reference: Reference, record: np.void) -> int:
    """The place of a layer's record."""
    return next(place for place in range(len(reference.layers)) if reference.layers[place].tobytes() == record.tobytes())


def test_constant_maps_are_met_within_half_a_step(shallow: Any, tmp_path: Path) -> None:
    made = shallow.compress(tmp_path / "made", FreezeHeads(0.5, kind="dense"), STRICT)
    reference = Reference(write(in_integers(made, None), tmp_path / "model.vfn"))
    constants = [module.maps()[0].detach().numpy() for module in made.module.modules() if isinstance(module, ConstantHeads)]
    records = [layer for layer in reference.layers if layer["kind"] == ATTENTION and layer["ints"][11]]
    for maps, record in zip(constants, records, strict=True):
        codes, scale, zero = (reference.named(record, place) for place in (9, 10, 11))
        assert np.abs((codes - zero[..., None]) * scale[..., None] - maps).max() <= 0.501 * scale.max()


@pytest.mark.parametrize("unit", ["head", "layer"])
def test_local_maps_of_many_tokens_are_kernels(shallow: Any, unit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shallow.compress(tmp_path / "made", FreezeHeads(0.5, unit=unit, kind="local", window=3), Quantize(8, 8, "strict"))
    whole = write(in_integers(made, None), tmp_path / "whole.vfn")
    monkeypatch.setattr(parts, "WHOLE_MAPS_TOKENS", 64)
    monkeypatch.setattr(parts, "LARGEST_WHOLE_MAPS_TOKENS", 64)
    path = write(in_integers(made, None), tmp_path / "model.vfn")
    assert path.stat().st_size < whole.stat().st_size
    wanted = logits(made.module, noise(made.module, 4))
    assert np.abs(Reference(path).run(noise(made.module, 4).numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)


def test_heads_may_have_scales_of_their_own(tmp_path: Path) -> None:
    module = with_scales_of_heads(quantized(4, 4))
    path = write(module, tmp_path / "model.vfn")
    file = read_model(path)
    for layer in (one for one in file.layers if one.kind == ATTENTION):
        assert [file.tensors[layer.tensors[place]].values.size for place in range(6)] == [2] * 6
    wanted = logits(module, noise(module, 3))
    assert np.abs(Reference(path).run(noise(module, 3).numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)


def test_maps_may_have_a_step_for_every_head(tmp_path: Path) -> None:
    module: Any = quantized(4, 4)
    for block in module.blocks:
        block.attn.map_quantizer.step = block.attn.map_quantizer.step * torch.tensor([1.0, 0.7]).view(2, 1, 1)
    file = read_model(write(module, tmp_path / "model.vfn"))
    steps = [file.tensors[layer.tensors[6]].values for layer in file.layers if layer.kind == ATTENTION]
    assert all(step.shape == (2,) and step[1] == pytest.approx(0.7 * step[0]) for step in steps)


def test_the_published_grid_of_maps_has_a_separate_zero(tmp_path: Path) -> None:
    module = quantized(4, 3, levels="published")
    for each in module.modules():
        if isinstance(each, UniformQuantizer):
            each.zero_point = each.zero_point.round()
    path = write(module, tmp_path / "model.vfn")
    assert {layer.ints[9] for layer in read_model(path).layers if layer.kind == ATTENTION} == {8}
    wanted = logits(module, noise(module, 3))
    assert np.abs(Reference(path).run(noise(module, 3).numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)


def test_maps_on_a_uniform_grid(tmp_path: Path) -> None:
    module: Any = quantized(4, 4)
    for block in module.blocks:
        block.attn.map_quantizer = UniformQuantizer(4)
        block.attn.map_quantizer.scale = torch.tensor(0.02)
    path = write(module, tmp_path / "model.vfn")
    assert {layer.ints[7] for layer in read_model(path).layers if layer.kind == ATTENTION} == {2}
    wanted = logits(module, noise(module, 3))
    assert np.abs(Reference(path).run(noise(module, 3).numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)


def test_weights_that_are_quantized_alone_read_tokens_in_8_bits(shallow: Any, tmp_path: Path) -> None:
    made = shallow.compress(tmp_path / "made", Quantize(4, 32))
    module = in_integers(made, noise(made.module, 8))
    path = write(module, tmp_path / "model.vfn")
    linears = [layer for layer in read_model(path).layers if layer.kind == LINEAR]
    assert {layer.ints[3] for layer in linears} == {1}
    wanted = logits(made.module, noise(made.module, 4))
    assert np.abs(Reference(path).run(noise(made.module, 4).numpy()) - wanted).max() < 0.05 * np.ptp(wanted)


def test_a_model_in_floating_point_is_written_in_8_bits(shallow: Any, tmp_path: Path) -> None:
    pixels = noise(shallow.model.module, 16)
    path = write(in_integers(shallow.model, pixels), tmp_path / "model.vfn")
    file = read_model(path)
    assert {tensor.bits for tensor in file.tensors} == {8, 32}
    assert {layer.ints[7] for layer in file.layers if layer.kind == ATTENTION} == {0}
    with torch.no_grad():
        wanted = exact(shallow.model.module)(pixels.double()).numpy()
    assert np.abs(Reference(path).run(pixels.numpy()) - wanted).max() < 0.05 * np.ptp(wanted)
