"""The compact feed-forward block: forms that agree, a start that is the factorised layer, and refusals in one line."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfrost.compaction.branches import ParallelLinear, mean_matrix
from vitfrost.compaction.cost import feed_forward_macs, feed_forward_parameters, rank_of
from vitfrost.compaction.factorise import factorise
from vitfrost.compaction.feed_forward import CompactFeedForward, CompactionOptions
from vitfrost.errors import VitfrostError

WIDTH, HIDDEN = 8, 24
OPTIONS = [
    CompactionOptions(branches=branches, norm=norm, expand=expand, identity=identity)
    for branches, norm, expand, identity in product((1, 2, 4), ("batch", "none"), (False, True), (False, True))
    if norm == "batch" or not identity
]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(options: CompactionOptions, seed: int, **form: str) -> CompactFeedForward:
    """A block whose every parameter and statistic is drawn."""
    block = CompactFeedForward(WIDTH, HIDDEN, options, **form).double()
    for index, (name, value) in enumerate(block.state_dict().items()):
        if value.is_floating_point():
            value.copy_(drawn(seed + index, *value.shape))
            if name.endswith("running_var"):
                value.abs_().add_(0.1)
    return block.eval()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_merged_block_computes_the_same(options: CompactionOptions, dtype: torch.dtype, tolerance: float) -> None:
    block, x = trained(options, 1).to(dtype), drawn(0, 3, 5, WIDTH).to(dtype)
    with torch.no_grad():
        expected = block(x)
        merged = copy.deepcopy(block).merge()
        assert (merged(x) - expected).abs().max() <= tolerance * expected.abs().max()
        assert merged(x).dtype == dtype
    assert not torch.equal(expected[0], expected[1])
    assert sum(p.numel() for p in merged.parameters()) == feed_forward_parameters(WIDTH, HIDDEN, block.rank)


def test_merging_again_changes_nothing() -> None:
    block = trained(CompactionOptions(), 1).merge()
    before = copy.deepcopy(block.state_dict())
    assert block.merge() is block
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_start_is_the_factorised_layer(options: CompactionOptions, calibrated: bool) -> None:
    fc1, bias1, fc2, bias2 = drawn(1, HIDDEN, WIDTH), drawn(2, HIDDEN), drawn(3, WIDTH, HIDDEN), drawn(4, WIDTH)
    x = drawn(5, 200, WIDTH)
    inputs = F.gelu(x @ fc1.T + bias1)
    known = {"second_moment": inputs.T @ inputs / len(x), "mean": inputs.mean(0)} if calibrated else {}
    factors = factorise(fc2, bias2, rank_of(options.ratio, WIDTH, HIDDEN), **known)
    expected = inputs @ (factors.up @ factors.down).T + factors.bias
    block = CompactFeedForward.from_feed_forward(fc1, bias1, factors, options, **known).eval()
    with torch.no_grad():
        assert torch.allclose(block(x), expected, rtol=1e-10, atol=1e-10)
        assert torch.allclose(copy.deepcopy(block).merge()(x), expected, rtol=1e-10, atol=1e-10)
        if calibrated:  # then batch statistics are those of the norms, so training starts at the same function
            assert torch.allclose(block.train()(x), expected, rtol=1e-4, atol=1e-4)


def test_branches_differ_at_the_start_by_the_noise_and_the_seed_decides() -> None:
    fc1, factors = drawn(1, HIDDEN, WIDTH), factorise(drawn(3, WIDTH, HIDDEN), None, 4)

    def branches(noise: float, seed: int) -> list[Tensor]:
        block = CompactFeedForward.from_feed_forward(fc1, None, factors, CompactionOptions(noise=noise), seed=seed)
        return [part.matrix().detach() for part in block.down.parts]

    first, second = branches(0.01, 1)
    assert 0.001 < float((first - second).norm() / first.norm()) < 0.1
    assert torch.equal(first, branches(0.01, 1)[0])
    assert not torch.equal(first, branches(0.01, 2)[0])
    assert torch.equal(*branches(0.0, 1))


@pytest.mark.parametrize("merged", [False, True])
def test_channel_first_is_a_convolutional_mlp(merged: bool) -> None:
    block = trained(CompactionOptions(), 1, layout="channels-first")
    tokens = trained(CompactionOptions(), 1)
    x = drawn(2, 2, WIDTH, 3, 5)
    (down, inner), (up, bias) = block.down.merged(), block.up.merged()
    h = F.gelu(F.conv2d(x, block.fc1.weight[:, :, None, None], block.fc1.bias))
    expected = F.conv2d(F.conv2d(h, down[:, :, None, None], inner), up[:, :, None, None], bias)
    block = block.merge() if merged else block
    assert torch.allclose(block(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(block(x), tokens(x.movedim(1, -1)).movedim(-1, 1), rtol=1e-10, atol=1e-10)


def test_weights_of_one_by_one_convolutions_are_taken_over() -> None:
    mlp = nn.Sequential(nn.Conv2d(WIDTH, HIDDEN, 1), nn.GELU(), nn.Conv2d(HIDDEN, WIDTH, 1)).double()
    fc1, fc2 = mlp[0], mlp[2]
    assert isinstance(fc1, nn.Conv2d)
    assert isinstance(fc2, nn.Conv2d)
    options = CompactionOptions(ratio=0.6)
    whole = factorise(fc2.weight.detach().flatten(1), fc2.bias.detach(), rank_of(0.6, WIDTH, HIDDEN))
    block = CompactFeedForward.from_feed_forward(fc1.weight, fc1.bias, whole, options, layout="channels-first").eval()
    x = drawn(1, 2, WIDTH, 3, 3)
    with torch.no_grad():
        fc2.weight.copy_((whole.up @ whole.down)[:, :, None, None])
        assert torch.allclose(block(x), mlp(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_reach_every_branch(options: CompactionOptions) -> None:
    block = trained(options, 1).train()
    block(drawn(0, 7, WIDTH)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        # the norm behind U takes out the mean, so a shift of V's branches has no effect while training
        still = options.norm == "batch" and name.startswith("down") and name.endswith("norm.bias")
        assert (parameter.grad.abs().max() > 1e-9) != still, name


def test_an_identity_averages_groups_or_repeats_channels() -> None:
    assert mean_matrix(6, 2).tolist() == [pytest.approx([1 / 3] * 3 + [0] * 3), pytest.approx([0] * 3 + [1 / 3] * 3)]
    assert mean_matrix(2, 4).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert torch.equal(mean_matrix(3, 3), torch.eye(3))


def test_the_other_form_is_refused_in_one_line_also_inside_a_model() -> None:
    options = CompactionOptions()
    training, inference = CompactFeedForward(WIDTH, HIDDEN, options), CompactFeedForward(WIDTH, HIDDEN, options, merged=True)
    with pytest.raises(VitfrostError, match="block is in training form, its layer in inference form; merge the trained layer first"):
        inference.load_state_dict(training.state_dict())
    outer = nn.ModuleDict({"mlp": training})
    with pytest.raises(VitfrostError, match=r"state of mlp is in inference form, its layer in training form; build .* merged=True"):
        outer.load_state_dict(nn.ModuleDict({"mlp": inference}).state_dict())
    inference.load_state_dict(copy.deepcopy(training).merge().state_dict())
    copy.deepcopy(training).merge().load_state_dict(inference.state_dict())
    training.load_state_dict(CompactFeedForward(WIDTH, HIDDEN, options).state_dict())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(VitfrostError, match=r"rank 6 \(ratio 0.75\) .* saves nothing; the largest useful rank is 5"):
        CompactFeedForward(WIDTH, HIDDEN, CompactionOptions(ratio=0.75))
    with pytest.raises(VitfrostError, match=r"5 branches .* give 1 to 4"):
        CompactFeedForward(WIDTH, HIDDEN, CompactionOptions(branches=5))
    with pytest.raises(VitfrostError, match="identity branch needs the norm batch"):
        CompactFeedForward(WIDTH, HIDDEN, CompactionOptions(norm="none", identity=True))
    with pytest.raises(VitfrostError, match="factors of rank 3 do not fit rank 4"):
        CompactFeedForward.from_feed_forward(
            drawn(1, HIDDEN, WIDTH), None, factorise(drawn(3, WIDTH, HIDDEN), None, 3), CompactionOptions()
        )
    block = CompactFeedForward(WIDTH, HIDDEN, CompactionOptions())
    with pytest.raises(VitfrostError, match="training batch of one token"):
        block(torch.zeros(1, 1, WIDTH))
    assert block.eval()(torch.zeros(1, 1, WIDTH)).shape == (1, 1, WIDTH)
    assert CompactFeedForward(WIDTH, HIDDEN, CompactionOptions(norm="none"))(torch.zeros(1, 1, WIDTH)).shape == (1, 1, WIDTH)


def test_one_token_counts_over_the_whole_batch() -> None:
    layer = ParallelLinear(4, 3, 2, "batch").train()
    assert layer(torch.randn(2, 4)).shape == (2, 3)
    with pytest.raises(VitfrostError, match="one token"):
        layer(torch.randn(1, 4))


def test_formulas_of_the_whole_block() -> None:
    assert feed_forward_parameters(WIDTH, HIDDEN) == sum(
        p.numel() for layer in (nn.Linear(8, 24), nn.Linear(24, 8)) for p in layer.parameters()
    )
    assert feed_forward_macs(5, WIDTH, HIDDEN) == 2 * 5 * 8 * 24
    assert feed_forward_macs(5, WIDTH, HIDDEN, 4) == 5 * (8 * 24 + 4 * (8 + 24))
