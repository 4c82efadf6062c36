"""One of two processes that normalize their parts of a batch together: `gloo_worker.py RANK STORE OUT`."""

from __future__ import annotations

import copy
import sys
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from vitfrost.configs import Compact
from vitfrost.errors import VitfrostError
from vitfrost.methods.low_rank.batch_norm import TokenBatchNorm
from vitfrost.methods.low_rank.projection import CompactProjection

CHANNELS, RANK, OUTPUTS = 6, 3, 5
SPLITS = {"unequal": (5, 3), "one token each": (1, 1), "none in one process": (0, 4)}
OPTIONS = Compact(branches=2, expand=True, identity=True)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm() -> TokenBatchNorm:
    """A norm whose parameters and statistics are drawn."""
    made = TokenBatchNorm(CHANNELS).double()
    for index, value in enumerate((made.weight.data, made.bias.data, made.running_mean, made.running_var)):
        value.copy_(drawn(100 + index, CHANNELS).abs())
    return made


def projection() -> CompactProjection:
    """A projection in training form whose weights are drawn."""
    made = CompactProjection(CHANNELS, OUTPUTS, RANK, OPTIONS).double()
    for index, parameter in enumerate(made.parameters()):
        parameter.data.copy_(drawn(200 + index, *parameter.shape))
    return made


def tokens(split: str) -> tuple[Tensor, Tensor]:
    """The joined batch and the weights of its outputs in the loss."""
    return 3 + drawn(1, sum(SPLITS[split]), CHANNELS), drawn(2, sum(SPLITS[split]), CHANNELS)


def two_steps(layer: torch.nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Two batches (the second twice as large): outputs, gradients and the state afterwards."""
    x = x.clone().requires_grad_()
    outputs = [layer(x), layer(2 * x)]
    sum((y * weights).sum() for y in outputs).backward()
    found = {"first": outputs[0], "second": outputs[1], "gradient of x": x.grad, **layer.state_dict()}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {name: value.detach().clone() for name, value in found.items()}


def one_step_of_projection(layer: Any, x: Tensor) -> dict[str, Tensor]:
    """The mean loss over a batch of images: output, gradients, state."""
    y = layer(x)
    (y.square().sum((1, 2)) * x[:, 0, 0]).mean().backward()
    inner = layer.module if isinstance(layer, DistributedDataParallel) else layer
    found = {"y": y, **inner.state_dict()} | {f"gradient of {name}": parameter.grad for name, parameter in inner.named_parameters()}
    return {name: value.detach().clone() for name, value in found.items()}


def far_from_zero(dtype: torch.dtype) -> Tensor:
    """Values whose mean is large beside their spread, as this type holds them."""
    return (drawn(3, 400, CHANNELS) + (10_000 if dtype == torch.float32 else 100)).to(dtype)


def refusal(count: int) -> str:
    try:
        TokenBatchNorm(CHANNELS)(torch.zeros(count, CHANNELS))
    except VitfrostError as error:
        return str(error)
    return ""


def main(rank: int, store: str, out: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found: dict[str, Any] = {}
    for name, counts in SPLITS.items():
        found[name] = two_steps(norm(), *(part.split(counts)[rank] for part in tokens(name)))
    found["evaluated"] = norm().eval()(tokens("unequal")[0].split(SPLITS["unequal"])[rank]).detach()
    images = drawn(4, 4, 7, CHANNELS)
    found["projection"] = one_step_of_projection(DistributedDataParallel(projection()), images.chunk(2)[rank])
    for dtype in (torch.float32, torch.bfloat16):
        layer = TokenBatchNorm(CHANNELS)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(far_from_zero(dtype).chunk(2)[rank])
        found[str(dtype)] = {"y": y.detach(), **copy.deepcopy(layer.state_dict())}
    found["refused"] = [refusal(1 - rank), refusal(0)]
    torch.save(found, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
