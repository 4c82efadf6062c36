"""The compact projection: forms that agree, a start that is the factorized layer, and refusals in one line."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vitfrost.configs import Compact
from vitfrost.errors import VitfrostError
from vitfrost.methods.low_rank.factorize import factorize
from vitfrost.methods.low_rank.projection import CompactProjection
from vitfrost.methods.quantize.modules import QuantizedLayer, UniformQuantizer

INPUTS, OUTPUTS, RANK = 24, 8, 4
OPTIONS = [
    Compact(branches=branches, norm=norm, expand=expand, identity=identity)
    for branches, norm, expand, identity in product((1, 2, 3, 4), ("batch", "none"), (False, True), (False, True))
    if norm == "batch" or not identity
]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(options: Compact, seed: int, inputs: int = INPUTS, outputs: int = OUTPUTS, rank: int = RANK, **form: Any):
    """A projection in training form whose every parameter and statistic is drawn, in eval mode."""
    made = CompactProjection(inputs, outputs, rank, options, **form).double()
    for index, (name, value) in enumerate(made.state_dict().items()):
        if value.is_floating_point():
            value.copy_(drawn(seed + index, *value.shape))
            if name.endswith("running_var"):
                value.abs_().add_(0.1)
    return made.eval()


@given(
    st.sampled_from(OPTIONS),
    st.integers(1, 13),
    st.integers(1, 13),
    st.data(),
    st.sampled_from(["tokens", "channels-first"]),
    st.booleans(),
    st.sampled_from([(torch.float64, 1e-10), (torch.float32, 1e-5)]),
)
def test_the_merged_projection_computes_the_same(options, inputs, outputs, data, layout, bias, precision) -> None:
    dtype, tolerance = precision
    rank = data.draw(st.integers(1, min(inputs, outputs)), label="rank")
    form = {"inputs": inputs, "outputs": outputs, "rank": rank, "layout": layout, "bias": bias}
    made = trained(options, data.draw(st.integers(0, 99), label="seed"), **form).to(dtype)
    x = drawn(0, *((2, inputs, 3, 5) if layout == "channels-first" else (2, 3, inputs))).to(dtype)
    with torch.no_grad():
        expected = made(x)
        merged = copy.deepcopy(made).merge()
        assert merged.merged
        assert (merged(x) - expected).abs().max() <= tolerance * expected.abs().max()
        assert (merged(x).dtype, merged.training) == (dtype, False)
    assert (made.inputs, made.outputs, made.rank, made.layout, made.merged) == (inputs, outputs, rank, layout, False)
    kept = rank * (inputs + outputs) + (outputs if bias or options.norm == "batch" else 0)
    assert sum(p.numel() for p in merged.parameters()) == kept
    fresh = CompactProjection(inputs, outputs, rank, options, layout=layout, bias=bias, merged=True)
    fresh.to(dtype).load_state_dict(merged.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(x), merged(x))


def test_merging_again_changes_nothing() -> None:
    made = trained(Compact(), 1).merge()
    before = copy.deepcopy(made.state_dict())
    assert set(before) == {"down.weight", "up.weight", "up.bias"}
    assert made.merge() is made
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_start_is_the_factorized_layer(options: Compact, calibrated: bool) -> None:
    layer = nn.Linear(INPUTS, OUTPUTS).double()
    inputs = F.gelu(drawn(5, 200, 6) @ drawn(1, 6, INPUTS) + drawn(2, INPUTS))
    known = {"second_moment": inputs.T @ inputs / len(inputs), "mean": inputs.mean(0)} if calibrated else {}
    factors = factorize(layer.weight, layer.bias, RANK, **known)
    expected = inputs @ (factors.up @ factors.down).T + factors.bias
    made = CompactProjection.from_factors(factors, options, like=layer, **known).eval()
    direct = CompactProjection.from_factors(factors, options, like=layer, merged=True)
    with torch.no_grad():
        assert torch.allclose(made(inputs), expected, rtol=1e-10, atol=1e-10)
        assert torch.allclose(copy.deepcopy(made).merge()(inputs), expected, rtol=1e-10, atol=1e-10)
        assert torch.allclose(direct(inputs), expected, rtol=1e-10, atol=1e-10)
        if calibrated:  # then batch statistics are those of the norms, so training starts at the same function
            assert torch.allclose(made.train()(inputs), expected, rtol=1e-4, atol=1e-4)


def test_branches_differ_at_the_start_by_the_noise_and_the_seed_decides() -> None:
    layer = nn.Linear(INPUTS, OUTPUTS)
    factors = factorize(layer.weight, layer.bias, RANK)

    def branches(noise: float, seed: int) -> list[Tensor]:
        made = CompactProjection.from_factors(factors, Compact(noise=noise), like=layer, seed=seed)
        return [part.matrix().detach() for part in made.down.parts]

    first, second = branches(0.01, 1)
    assert 0.001 < float((first - second).norm() / first.norm()) < 0.1
    assert torch.equal(first, branches(0.01, 1)[0])
    assert not torch.equal(first, branches(0.01, 2)[0])
    assert torch.equal(*branches(0.0, 1))


@pytest.mark.parametrize("merged", [False, True])
def test_channel_first_is_two_convolutions(merged: bool) -> None:
    made, tokens = trained(Compact(), 1, layout="channels-first"), trained(Compact(), 1)
    x = drawn(2, 2, INPUTS, 3, 5)
    (down, inner), (up, bias) = made.down.merged(), made.up.merged()
    expected = F.conv2d(F.conv2d(x, down[:, :, None, None], inner), up[:, :, None, None], bias)
    made = made.merge() if merged else made
    assert torch.allclose(made(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(made(x), tokens(x.movedim(1, -1)).movedim(-1, 1), rtol=1e-10, atol=1e-10)
    assert [isinstance(layer, nn.Conv2d) for layer in (made.down, made.up)] == [merged, merged]


@pytest.mark.parametrize("merged", [False, True])
def test_it_takes_layout_dtype_and_mode_of_the_layer_it_replaces(merged: bool) -> None:
    for layer in (nn.Linear(INPUTS, OUTPUTS).bfloat16().eval(), nn.Conv2d(INPUTS, OUTPUTS, 1).double()):
        factors = factorize(layer.weight.flatten(1), layer.bias, OUTPUTS)
        made = CompactProjection.from_factors(factors, Compact(), like=layer, merged=merged)
        assert made.layout == ("channels-first" if isinstance(layer, nn.Conv2d) else "tokens")
        assert {value.dtype for value in made.state_dict().values() if value.is_floating_point()} == {layer.weight.dtype}
        assert (made.merged, made.training) == (merged, layer.training)
    with torch.no_grad():  # at full rank, what was taken over is the layer itself
        x = drawn(1, 2, INPUTS, 3, 3)
        assert torch.allclose(made.eval()(x), layer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", ["tokens", "channels-first"])
def test_both_layers_can_be_quantized(layout: str) -> None:
    made = trained(Compact(), 1, layout=layout).merge().float()
    x = drawn(2, *((2, 7, INPUTS) if layout == "tokens" else (2, INPUTS, 3, 5))).float()
    expected = made(x)
    for part in ("down", "up"):
        layer = made.get_submodule(part)
        quantized = QuantizedLayer(layer, 8, UniformQuantizer(8))
        quantized.set_weight(layer.weight)
        quantized.input_quantizer.calibrating = True
        setattr(made, part, quantized)
    made(x)  # ranges of the inputs
    for part in ("down", "up"):
        made.get_submodule(part).input_quantizer.calibrating = False
    error = (made(x) - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    again = copy.deepcopy(made)
    again.load_state_dict(made.state_dict())
    with pytest.raises(VitfrostError, match="is in inference form, its layer in training form"):
        trained(Compact(), 1, layout=layout).load_state_dict(made.state_dict())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", ["tokens", "channels-first"])
def test_gradients_reach_every_branch(options: Compact, layout: str) -> None:
    made = trained(options, 1, layout=layout).train()
    made(drawn(0, 7, INPUTS, 1, 1).squeeze() if layout == "tokens" else drawn(0, 7, INPUTS, 1, 1)).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        # the norm behind U takes out the mean, so a shift of V's branches has no effect while training
        still = options.norm == "batch" and name.startswith("down") and name.endswith("norm.bias")
        assert (parameter.grad.abs().max() > 1e-9) != still, name


def test_the_other_form_is_refused_in_one_line_that_names_the_layer() -> None:
    sizes, options = (INPUTS, OUTPUTS, RANK), Compact()
    training, inference = CompactProjection(*sizes, options), CompactProjection(*sizes, options, merged=True)
    with pytest.raises(VitfrostError, match="projection is in training form, its layer in inference form; merge the trained layer first"):
        inference.load_state_dict(training.state_dict())
    outer = nn.ModuleDict({"mlp": nn.ModuleDict({"fc2": training})})
    with pytest.raises(VitfrostError, match=r"state of mlp\.fc2 is in inference form, its layer in training form; build .* merged=True"):
        outer.load_state_dict(nn.ModuleDict({"mlp": nn.ModuleDict({"fc2": inference})}).state_dict())
    inference.load_state_dict(copy.deepcopy(training).merge().state_dict())
    copy.deepcopy(training).merge().load_state_dict(inference.state_dict())
    training.load_state_dict(CompactProjection(*sizes, options).state_dict())


def test_what_cannot_work_is_refused() -> None:
    options = Compact()
    for rank in (0, OUTPUTS + 1):
        with pytest.raises(VitfrostError, match=f"from 24 to 8 channels has no factors of rank {rank}; give 1 to 8"):
            CompactProjection(INPUTS, OUTPUTS, rank, options)
    with pytest.raises(VitfrostError, match=r"Compact\.branches is 5; it should be less than or equal to 4"):
        CompactProjection(INPUTS, OUTPUTS, RANK, Compact(branches=5))
    with pytest.raises(VitfrostError, match=r"Compact\.identity is true, which needs norm"):
        CompactProjection(INPUTS, OUTPUTS, RANK, Compact(norm="none", identity=True))
    bare, factors = nn.Linear(INPUTS, OUTPUTS, bias=False), factorize(drawn(1, OUTPUTS, INPUTS), drawn(2, OUTPUTS), RANK)
    with pytest.raises(VitfrostError, match="factors with a bias do not fit a layer without one"):
        CompactProjection.from_factors(factors, Compact(norm="none"), like=bare)
    with pytest.raises(VitfrostError, match=r"factors of a weight \(8, 24\) do not fit a layer with a weight \(8, 23\)"):
        CompactProjection.from_factors(factors, options, like=nn.Linear(INPUTS - 1, OUTPUTS))
    with pytest.raises(VitfrostError, match="not a plain 1 x 1 convolution"):
        CompactProjection.from_factors(factors, options, like=nn.Conv2d(INPUTS, OUTPUTS, 3))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_layer_without_bias_is_met_as_well(norm: Any) -> None:
    bare, inputs = nn.Linear(INPUTS, OUTPUTS, bias=False).double(), drawn(1, 50, INPUTS)
    factors = factorize(bare.weight, None, RANK)
    made = CompactProjection.from_factors(factors, Compact(norm=norm), like=bare).eval()
    expected = inputs @ (factors.up @ factors.down).T
    for form in (made, copy.deepcopy(made).merge(), CompactProjection.from_factors(factors, Compact(), like=bare, merged=True)):
        assert torch.allclose(form(inputs), expected, rtol=1e-10, atol=1e-10)


def test_one_token_has_no_variance() -> None:
    made = CompactProjection(INPUTS, OUTPUTS, RANK, Compact())
    with pytest.raises(VitfrostError, match=r"training batch of one token .* give more tokens, or set norm to none"):
        made(torch.zeros(1, 1, INPUTS))
    assert made(torch.randn(2, 1, INPUTS)).shape == (2, 1, OUTPUTS)
    assert made.eval()(torch.zeros(1, 1, INPUTS)).shape == (1, 1, OUTPUTS)
    assert CompactProjection(INPUTS, OUTPUTS, RANK, Compact(norm="none"))(torch.zeros(1, 1, INPUTS)).shape == (1, 1, OUTPUTS)
