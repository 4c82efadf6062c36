"""Which heads are frozen whole, and to what: by hand on small statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from vitfrost.configs import FreezeHeads
from vitfrost.errors import VitfrostError
from vitfrost.map_sources.frozen import shape_of
from vitfrost.methods.constant_heads.constants import Shape, dense_of, uniform
from vitfrost.plans.freeze_heads import (
    candidates,
    choose_kind,
    chosen_heads,
    freezing_error,
    head_scores,
    structure_error,
    with_constants,
)
from vitfrost.plans.heads import HeadPlan, LayerPlan

COMPUTED = HeadPlan(source="computed")


@dataclass
class Site:
    """Statistics of a site, made by hand."""

    mean: np.ndarray
    variance: np.ndarray
    value_norm: np.ndarray
    allowed: np.ndarray | None = None
    entropy: Any = None
    sensitivity: Any = None

    @property
    def maps_shape(self) -> tuple[int, ...]:
        return self.mean.shape


def layer(heads: int = 3, tokens: int = 10, hallucinated: int = 0) -> LayerPlan:
    plans = [COMPUTED] * (heads - hallucinated) + [HeadPlan(source="hallucinated", like=0)] * hallucinated
    return LayerPlan(site="blocks.0.attn", maps=(1, heads, tokens, tokens), prefix_tokens=1, heads=tuple(plans))


def site(heads: int = 3, seed: int = 0) -> Site:
    rng = np.random.default_rng(seed)
    return Site(
        rng.dirichlet(np.ones(10), (1, heads, 10)).astype(np.float32),
        rng.uniform(0, 0.01, (1, heads, 10, 10)).astype(np.float32),
        rng.uniform(0.5, 1, (1, heads, 10)).astype(np.float32),
    )


def test_the_grid_has_the_images_proportions() -> None:
    assert shape_of(layer(tokens=7), (40, 60)) == Shape((2, 3), 1)
    assert shape_of(layer(tokens=10), (48, 48)) == Shape((3, 3), 1)
    reduced = LayerPlan(site="a", maps=(1, 1, 16, 4), heads=(COMPUTED,))
    assert shape_of(reduced, (64, 64)) is None
    windows = LayerPlan(site="a", maps=(8, 1, 16, 16), heads=(COMPUTED,))
    assert shape_of(windows, (64, 128)) == Shape((4, 4))


def test_errors_are_those_of_the_definition() -> None:
    known = site()
    wanted = (known.variance[:, 1] * known.value_norm[:, 1, None, :]).sum()
    assert freezing_error(known, 1) == pytest.approx(wanted, rel=1e-5)
    flat = np.full((1, 10, 10), 0.1)
    wanted = ((known.mean[:, 2] - 0.1) ** 2 * known.value_norm[:, 2, None, :]).sum()
    assert structure_error(flat, known, 2) == pytest.approx(wanted, rel=1e-5)


def test_the_cheapest_constant_within_the_budget_is_taken() -> None:
    shape, known = Shape((3, 3), 1), site()
    even = dense_of(uniform(shape, (3, 3)), shape)
    known.mean[:, 0] = even  # a 3 x 3 window holds it exactly
    assert choose_kind(FreezeHeads(), layer(), known, shape, 0)[0].window == 3
    strict = choose_kind(FreezeHeads(tolerance=0.0), layer(), known, shape, 1)
    assert (strict[0].constant, strict[1]) == ("dense", 0.0)
    loose, error = choose_kind(FreezeHeads(tolerance=1e9), layer(), known, shape, 1)
    assert loose.window == 3
    assert error > 0


def test_a_map_without_a_grid_is_dense() -> None:
    assert candidates(FreezeHeads(), None) == [("dense", None)]
    assert candidates(FreezeHeads(kind="local", window=5), Shape((9, 9))) == [("local", 5)]
    assert candidates(FreezeHeads(kind="toeplitz"), Shape((9, 9))) == [("toeplitz", None)]


def test_errors_add_up_and_others_are_averaged() -> None:
    known = site()
    summed, averaged = head_scores(known, "output-error", 0, 0), head_scores(known, "variance", 0, 0)
    assert summed[0] == pytest.approx(freezing_error(known, 0), rel=1e-5)
    assert averaged[1] == pytest.approx(known.variance[:, 1].mean(), rel=1e-5)
    with pytest.raises(VitfrostError, match="entropy"):
        head_scores(known, "luck", 0, 0)


def test_the_lowest_heads_of_the_model_are_frozen() -> None:
    scores = [np.array([3.0, 1.0, 9.0]), np.array([2.0, 8.0, 4.0])]
    layers = [layer(), layer().model_copy(update={"site": "blocks.1.attn"})]
    assert chosen_heads(scores, layers, FreezeHeads(ratio=0.5)) == [{0, 1}, {0}]
    assert chosen_heads(scores, layers, FreezeHeads(ratio=0.5, unit="layer")) == [{0, 1, 2}, set()]
    assert chosen_heads(scores, layers, FreezeHeads(ratio=0.0)) == [set(), set()]
    assert chosen_heads(scores, layers, FreezeHeads(ratio=1.0)) == [{0, 1, 2}, {0, 1, 2}]


def test_what_hallucinated_maps_are_made_of_stays() -> None:
    scores = [np.array([1.0, 2.0, 3.0])]
    assert chosen_heads(scores, [layer(hallucinated=1)], FreezeHeads(ratio=0.3334)) == [{0}]
    with pytest.raises(VitfrostError, match="only 1 can be frozen"):
        chosen_heads(scores, [layer(hallucinated=1)], FreezeHeads(ratio=0.7))


def test_plans_say_why() -> None:
    made = with_constants([layer()], [{1}], FreezeHeads(), {"blocks.0.attn": site()}, (48, 48), {(0, 1): "KL 0.002"})
    assert made[0].heads[0] == COMPUTED
    assert made[0].heads[1].why is not None
    assert made[0].heads[1].why.startswith("KL 0.002; structure adds ")
    assert (made[0].logit_heads, made[0].constant, made[0].order) == ((0, 2), (1,), (0, 2, 1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": "computed", "constant": "dense"}, "constant is 'dense', but a computed head has none"),
        ({"source": "frozen", "constant": "dense", "entries": 5}, "leave one of them out"),
        ({"source": "frozen", "constant": "local"}, "window is missing"),
        ({"source": "frozen", "constant": "toeplitz", "window": 3}, "only local ones"),
        ({"source": "frozen", "constant": "local", "window": 4}, "it should be odd"),
        ({"source": "frozen"}, "entries is 0"),
    ],
)
def test_lines_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HeadPlan.model_validate(fields)
