"""Groups of the optimizer and what the schedule makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.constant_heads.module import ConstantHeads
from vitfrost.methods.low_rank.branches import ParallelLinear
from vitfrost.training.optimizer import build_optimizer, build_schedule
from vitfrost.training.recipe import OptimizerPart, SchedulePart


class Frozen(nn.Module):
    """A layer with two frozen heads, one dense and one local, between two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.constants = ConstantHeads([("dense", None), ("local", 3)], Shape((3, 3), 1), (1, 10, 10), 4)


def rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    """The learning rate of every parameter; each must stand in exactly one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(parameter)], group["lr"]) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.0}, {"layer_decay": 0.5}, {"name": "sgd"}])
def test_constants_learn_at_their_own_rate_through_the_whole_schedule(options: dict[str, object]) -> None:
    model = Frozen()
    plain = build_optimizer(model, OptimizerPart(lr=0.1, **options))  # type: ignore[arg-type]
    slow = build_optimizer(model, OptimizerPart(lr=0.1, constants_rate=0.01, **options))  # type: ignore[arg-type]
    schedules = [build_schedule(each, SchedulePart(steps=20, warmup=2), 0.1, 20) for each in (plain, slow)]
    for step in (0, 1, 2, 10, 19):
        for schedule in schedules:
            schedule.step_update(step)
        before, after = rates(plain, model), rates(slow, model)
        for name, rate in before.items():
            entries = name.startswith("constants.") and not name.endswith("row_scale")
            assert after[name] == pytest.approx(0.01 * rate if entries else rate)


def test_a_step_moves_a_maps_entries_by_its_rate() -> None:
    model = Frozen()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerPart(lr=1e-2, weight_decay=0.0, constants_rate=0.1))
    build_schedule(optimizer, SchedulePart(name="constant", steps=5), 1e-2, 5).step_update(0)
    sum((parameter * torch.arange(1.0, parameter.numel() + 1).view_as(parameter)).sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    moved = {name: float((parameter.detach() - before[name]).abs().max()) for name, parameter in model.named_parameters()}
    assert moved["values.weight"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["constants.heads.0.map"] == pytest.approx(1e-3, rel=1e-3)
    assert moved["constants.heads.1.row_scale"] == pytest.approx(1e-2, rel=1e-3)


def test_branches_learn_at_rates_of_their_own() -> None:
    model = nn.Sequential(ParallelLinear(6, 4, 3, "none", expand=True), nn.Linear(4, 4))
    optimizer = build_optimizer(model, OptimizerPart(lr=0.1, branch_rates=(1.0, 0.5)))
    build_schedule(optimizer, SchedulePart(name="constant", steps=5), 0.1, 5).step_update(0)
    found = rates(optimizer, model)
    assert {round(rate, 6) for name, rate in found.items() if name.startswith("0.branches.1.")} == {0.05}
    assert {round(rate, 6) for name, rate in found.items() if not name.startswith("0.branches.1.")} == {0.1}
    with pytest.raises(ValueError, match="greater than 0"):
        OptimizerPart(lr=0.1, branch_rates=(0.0,))
