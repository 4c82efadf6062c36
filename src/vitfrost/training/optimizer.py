"""Optimizer, learning rate and moving average, all timm's; the learning rate is a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import VitfrostError
from ..methods.constant_heads.module import HeadConstant
from ..methods.low_rank.branches import ParallelLinear
from ..vit.compat import import_timm
from .recipe import OptimizerPart, SchedulePart

import_timm()
from timm.layers import DropPath, PatchDropout  # noqa: E402  (timm must be imported through the guard)
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler  # noqa: E402
from timm.scheduler.scheduler import Scheduler  # noqa: E402


def build_optimizer(model: nn.Module, part: OptimizerPart) -> torch.optim.Optimizer:
    """timm's optimizer of that name; biases, norms and what the model names are not decayed. Raises VitfrostError for an unknown one."""
    options: dict[str, Any] = {} if part.betas is None else {"betas": part.betas}
    if part.layer_decay is not None:
        options["layer_decay"] = part.layer_decay
    try:
        optimizer = create_optimizer_v2(model, opt=part.name, lr=part.lr, weight_decay=part.weight_decay, **options)
    except (AssertionError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise VitfrostError(f"optimizer {part.name} cannot be made: {error}; timm.optim.list_optimizers() lists the names") from error
    if part.constants_rate != 1:
        _rate_apart(optimizer, _map_entries(model), part.constants_rate)
    for number, rate in enumerate(part.branch_rates):
        if rate != 1:
            _rate_apart(optimizer, _branch(model, number), rate)
    return optimizer


def _branch(model: nn.Module, number: int) -> list[nn.Parameter]:
    """The parameters of one learned branch of all compact projections; none where they have fewer."""
    layers = [module for module in model.modules() if isinstance(module, ParallelLinear) and number < module.count]
    return [parameter for layer in layers for parameter in layer.branches[number].parameters()]


def _map_entries(model: nn.Module) -> list[nn.Parameter]:
    """What frozen heads' maps consist of, but for the row scales: numbers of about 1 / tokens, where weights are about 1 / sqrt(width)."""
    heads = [module for module in model.modules() if isinstance(module, HeadConstant)]
    return [parameter for head in heads for name, parameter in head.named_parameters() if name != "row_scale"]


def _rate_apart(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], rate: float) -> None:
    """Move parameters into groups of their own whose learning rate timm's schedules hold at `rate` times what it would be."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        apart = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if not apart:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        options = {name: value for name, value in group.items() if name != "params"}
        optimizer.add_param_group(options | {"params": apart, "lr_scale": rate * group.get("lr_scale", 1.0)})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def total_steps(part: SchedulePart, steps_per_epoch: int) -> int:
    """Length of the training in steps."""
    return part.steps if part.steps is not None else (part.epochs or 0) * steps_per_epoch


def build_schedule(optimizer: torch.optim.Optimizer, part: SchedulePart, lr: float, steps_per_epoch: int) -> Scheduler:
    """The schedule per step: call `step_update(step)` before each of the steps 0, 1, ...

    The warm-up is linear, from lr / (w + 1) at step 0 to lr at step w.
    """
    steps = total_steps(part, steps_per_epoch)
    warmup = math.ceil(part.warmup * (1 if part.steps is not None else steps_per_epoch))
    common: dict[str, Any] = {"warmup_t": warmup, "warmup_lr_init": lr / (warmup + 1), "t_in_epochs": False}
    if part.name == "constant":
        return StepLRScheduler(optimizer, decay_t=steps + 1, decay_rate=1.0, warmup_prefix=False, **common)
    if part.name == "linear":
        return PolyLRScheduler(optimizer, t_initial=steps, power=1.0, lr_min=part.min_lr, **common)
    return CosineLRScheduler(optimizer, t_initial=steps, lr_min=part.min_lr, **common)


def stop_dropping(model: nn.Module) -> None:
    """From now on nothing is dropped: dropout, stochastic depth and the dropping of patches stay in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | DropPath | PatchDropout):
            module.eval()
