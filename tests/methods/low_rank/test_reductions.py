"""Both modules in every block of NextViT, convolution blocks too, and in PVT: derived reductions, counted on models that are built."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Counter = Callable[..., tuple[int, float]]


def reductions(count: Counter, name: str, *form: object) -> list[float]:
    return [100 * (1 - now / was) for now, was in zip(count(name, *form), count(name), strict=True)]


@pytest.mark.parametrize(
    ("size", "hallucinated", "ratio", "everywhere", "expected"),
    [
        ("small", True, None, True, (2.9, 1.5)),
        ("small", True, 0.5, True, (13.3, 11.2)),
        ("small", True, 0.25, True, (25.1, 21.9)),
        ("small", False, 0.5, True, (10.4, 9.8)),
        ("small", True, 0.5, False, (5.5, 3.2)),
        ("small", True, 0.25, False, (9.4, 5.9)),
        ("base", True, 0.5, True, (13.3, 11.7)),
        ("large", True, 0.5, True, (13.3, 12.0)),
    ],
)
def test_reductions_of_nextvit(
    count: Counter, size: str, hallucinated: bool, ratio: float | None, everywhere: bool, expected: tuple[float, float]
) -> None:
    assert reductions(count, f"nextvit_{size}", hallucinated, ratio, everywhere) == pytest.approx(expected, abs=0.07)


@pytest.mark.parametrize(
    ("size", "hallucinated", "ratio", "expected"),
    [
        ("tiny", True, None, (5.5, 3.5)),
        ("tiny", True, 0.75, (7.2, 7.7)),
        ("tiny", True, 0.5, (14.8, 17.9)),
        ("tiny", True, 0.25, (22.4, 28.2)),
        ("tiny", False, 0.5, (9.3, 14.5)),
        ("small", True, 0.5, (15.2, 18.3)),
        ("small", False, 0.5, (9.7, 14.5)),
        ("medium", True, 0.5, (14.8, 17.9)),
    ],
)
def test_reductions_of_pvt(count: Counter, size: str, hallucinated: bool, ratio: float | None, expected: tuple[float, float]) -> None:
    assert reductions(count, f"vitfrost_pvt_{size}", hallucinated, ratio) == pytest.approx(expected, abs=0.07)
