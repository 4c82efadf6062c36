"""Mixes across heads and convolutions within a map, each against an explicit computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfrost.configs import Hallucinate
from vitfrost.configs.methods import InterMap
from vitfrost.methods.hallucination.mix import COPY_SHARE, HeadMix, MapConvolution, renormalize

PREFIX, GRID = 2, (3, 4)
TOKENS = PREFIX + 12


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("inter", ["linear", "copy", "pair"])
def test_every_mix_starts_as_a_copy(inter: InterMap) -> None:
    mix, maps = HeadMix(3, [2, 0, 2], Hallucinate(0.5, inter_map=inter)).double(), drawn(1, 2, 3, 4, 5)
    assert torch.equal(mix(maps), maps[:, [2, 0, 2]])
    assert torch.equal(mix.matrix().double(), F.one_hot(torch.tensor([2, 0, 2]), 3).double())


@pytest.mark.parametrize("inter", ["linear", "copy", "pair"])
def test_the_mix_is_the_matrix_plus_a_constant_per_map(inter: InterMap) -> None:
    mix, maps = HeadMix(3, [2, 0], Hallucinate(0.5, inter_map=inter)).double(), drawn(1, 2, 3, 4, 5)
    for parameter in mix.parameters():
        parameter.data = drawn(2, *parameter.shape)
    bias = torch.zeros(2) if mix.bias is None else mix.bias
    expected = torch.stack([sum(mix.matrix()[j, i] * maps[:, i] for i in range(3)) + bias[j] for j in range(2)], dim=1)
    assert torch.allclose(mix(maps), expected, rtol=1e-13, atol=1e-13)


def test_after_the_softmax_a_mix_is_convex_and_starts_close_to_what_it_is_given() -> None:
    mix = HeadMix(3, [1, 0], Hallucinate(0.5, space="post-softmax")).double()
    assert torch.allclose(mix.matrix()[0, 1], torch.tensor(COPY_SHARE + (1 - COPY_SHARE) / 3, dtype=torch.float64))
    mix.set_mix(torch.tensor([[2.0, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    assert torch.allclose(mix.matrix(), torch.tensor([[0.5, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64), atol=0.01)
    mix.weight.data = drawn(3, 2, 3)
    assert mix.matrix().min() > 0
    assert torch.allclose(mix.matrix().sum(1), torch.ones(2, dtype=torch.float64))


def test_pair_keeps_the_largest_entry_and_copy_the_head_of_the_largest() -> None:
    given = torch.tensor([[0.5, -2.0, 1.0]])
    pair, copy = (HeadMix(3, [0], Hallucinate(0.5, inter_map=kind)) for kind in ("pair", "copy"))
    pair.set_mix(given)
    copy.set_mix(given)
    assert pair.matrix().tolist() == [[0.0, -2.0, 0.0]]
    assert copy.matrix().tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize("intra", ["3x3", "5x5", "key-grid"])
@pytest.mark.parametrize("prefix", ["skip", "include"])
def test_the_convolution_starts_at_zero_and_leaves_out_what_it_should(intra: str, prefix: str) -> None:
    options = Hallucinate(0.5, intra_map=intra, prefix=prefix)
    layer, maps = MapConvolution(2, options, PREFIX, GRID).double(), drawn(1, 3, 2, TOKENS, TOKENS)
    assert torch.equal(layer(maps), maps)
    layer.weight.data = drawn(2, *layer.weight.shape)
    changed = (layer(maps) != maps).all(0).all(0)
    rows = torch.arange(TOKENS) >= (PREFIX if prefix == "skip" else 0)
    columns = torch.arange(TOKENS) >= (PREFIX if prefix == "skip" or intra == "key-grid" else 0)
    assert torch.equal(changed, torch.outer(rows, columns))


def test_on_the_key_grid_each_query_sees_its_keys_as_a_picture() -> None:
    layer, maps = MapConvolution(2, Hallucinate(0.5, intra_map="key-grid"), PREFIX, GRID).double(), drawn(1, 1, 2, TOKENS, TOKENS)
    layer.weight.data = drawn(2, *layer.weight.shape)
    out = layer(maps)
    for head in range(2):
        for query in range(PREFIX, TOKENS):
            picture = maps[0, head, query, PREFIX:].view(1, 1, *GRID)
            expected = picture + F.conv2d(picture, layer.weight[head : head + 1], padding=1)
            assert torch.allclose(out[0, head, query, PREFIX:], expected.flatten(), rtol=1e-12, atol=1e-12)


def test_a_convolution_does_not_mix_heads() -> None:
    layer, maps = MapConvolution(2, Hallucinate(0.5, intra_map="5x5")).double(), drawn(1, 1, 2, 6, 9)
    layer.weight.data = drawn(2, *layer.weight.shape)
    other = maps.clone()
    other[:, 0] += drawn(3, 6, 9)
    assert torch.equal(layer(maps)[:, 1], layer(other)[:, 1])
    assert not torch.equal(layer(maps)[:, 0], layer(other)[:, 0])


def test_rows_with_nothing_left_become_uniform() -> None:
    maps = torch.tensor([[[[-1.0, 3.0, 1.0, 0.0], [-1.0, -2.0, 0.0, -3.0]]]])
    assert renormalize(maps).tolist() == [[[[0.0, 0.75, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]]]]
    maps.requires_grad_()
    renormalize(maps)[..., 1].sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
