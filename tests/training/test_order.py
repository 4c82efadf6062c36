from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.errors import VitfrostError
from vitfrost.training.order import batches_of_rank, epoch_order, item_seeds, uniforms

SEEDS = st.integers(0, 2**63)
EPOCHS = st.integers(0, 10_000)


@given(st.integers(0, 300), SEEDS, EPOCHS)
def test_an_epochs_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(order, epoch_order(n, seed, epoch))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert len({epoch_order(1000, 0, epoch)[0] for epoch in range(20)}) > 15


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 100), SEEDS, st.booleans())
def test_a_global_batch_does_not_depend_on_its_split(batch: int, world: int, extra: int, seed: int, drop_last: bool) -> None:
    whole = batch * world
    n = whole + extra
    one = list(batches_of_rank(n, whole, 0, 1, seed, 3, drop_last))
    several = [list(batches_of_rank(n, batch, rank, world, seed, 3, drop_last)) for rank in range(world)]
    for number, expected in enumerate(one):
        parts = [mine[number] for mine in several if number < len(mine)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert sum(len(part) for mine in several for part in mine) == (n - n % whole if drop_last else n)
    assert not drop_last or {len(part) for mine in several for part in mine} == {batch}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 0, 1, 0, 0), "batch size must be at least 1, not 0"),
        ((10, 1, 0, 0, 0, 0), "number of processes must be at least 1"),
        ((10, 1, 2, 2, 0, 0), "rank 2 is not one of 2"),
        ((10, 6, 0, 2, 0, 0), "10 images are fewer than one batch of 12"),
        ((10, 1, 0, 1, -1, 0), "seed -1 is negative"),
        ((10, 1, 0, 1, 0, -2), "epoch -2 is negative"),
    ],
)
def test_what_cannot_be_batched_is_said_at_once(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(VitfrostError, match=message):
        batches_of_rank(*arguments)


def test_uniforms_are_the_published_numbers_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    drawn = uniforms(torch.tensor([1234567]), 5)
    assert drawn.dtype == torch.float32
    assert drawn[0].tolist() == [(number >> 40) / 2**24 for number in published]


@given(SEEDS, EPOCHS, st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True))
def test_an_item_keeps_its_numbers_in_any_company(seed: int, epoch: int, positions: list[int]) -> None:
    seeds = item_seeds(seed, epoch, np.array(positions))
    assert len(set(seeds.tolist())) == len(positions)
    assert torch.equal(seeds, item_seeds(seed, epoch, torch.tensor(positions)))
    drawn = uniforms(seeds, 7, stream=2)
    assert ((drawn >= 0) & (drawn < 1)).all()
    for place, position in enumerate(positions):
        alone = item_seeds(seed, epoch, np.array([position]))
        assert torch.equal(uniforms(alone, 3, stream=2)[0], drawn[place, :3])


def test_uniforms_are_uniform_and_streams_independent() -> None:
    seeds = item_seeds(5, 1, np.arange(20_000))
    drawn = torch.cat([uniforms(seeds, 3), uniforms(seeds, 3, stream=1), uniforms(item_seeds(5, 2, np.arange(20_000)), 2)], 1).numpy()
    deviation = 1 / np.sqrt(12 * len(drawn))
    assert np.abs(drawn.mean(0) - 0.5).max() < 5 * deviation
    counts = np.stack([np.histogram(column, 16, (0, 1))[0] for column in drawn.T])
    assert ((counts - len(drawn) / 16) ** 2 / (len(drawn) / 16)).sum(1).max() < 50  # chi-squared, 15 degrees: p about 1e-5
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 5 / np.sqrt(len(drawn))
    assert np.abs(np.corrcoef(drawn[:-1].T, drawn[1:].T)[:8, 8:]).max() < 5 / np.sqrt(len(drawn))  # neighbors in position
