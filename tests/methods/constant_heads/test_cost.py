"""Costs by hand."""

from __future__ import annotations

from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.constant_heads.cost import constant_macs, convolution_macs, head_cost
from vitfrost.methods.constant_heads.kinds import KINDS

GRID = Shape((14, 14), 1)
MAPS = (1, 197, 197)


def test_numbers_stored() -> None:
    assert KINDS["dense"].stored(MAPS, GRID) == 38_809
    assert KINDS["toeplitz"].stored(MAPS, GRID) == 1 + 729 + 196 + 197 + 196
    assert KINDS["local"].stored(MAPS, GRID, 7) == 1 + 49 + 196 + 197 + 196
    assert KINDS["toeplitz"].stored((64, 49, 49), Shape((7, 7)), masked=True) == 1 + 169 + 64 * 49  # a scale per window and query


def test_a_convolution_is_linear_in_the_tokens() -> None:
    small, large = Shape((32, 32)), Shape((64, 64))
    assert convolution_macs(large, 64, (7, 7)) == 4 * convolution_macs(small, 64, (7, 7)) == 64 * 4096 * 51


def test_small_maps_are_products_and_large_ones_convolutions() -> None:
    assert head_cost("local", GRID, MAPS, 64, 7, False).macs == 197 * 197 * 64
    large = Shape((64, 64), 1)
    assert head_cost("local", large, (1, 4097, 4097), 64, 7, False).macs == convolution_macs(large, 64, (7, 7))
    assert head_cost("toeplitz", large, (1, 4097, 4097), 64, None, False).macs == 4097 * 4097 * 64


def test_cheaper_kinds_cost_less() -> None:
    kinds: list[tuple[str, int | None]] = [("local", 3), ("local", 7), ("toeplitz", None), ("dense", None)]
    costs = [head_cost(kind, GRID, MAPS, 64, window, False).total for kind, window in kinds]
    assert costs == sorted(costs)


def test_heads_of_a_layer_are_applied_together() -> None:
    large = Shape((64, 64), 1)
    maps = (1, 6, 4097, 4097)
    assert constant_macs(large, maps, 64, [("local", 3), ("local", 7)]) == 2 * convolution_macs(large, 64, (7, 7))
    assert constant_macs(large, maps, 64, [("local", 3), ("toeplitz", None)]) == 2 * 4097 * 4097 * 64
