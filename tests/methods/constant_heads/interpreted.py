"""A process of its own in which Triton's interpreter runs the kernels on the CPU: triton must not have been imported before it is told.

It answers lines of JSON: what to do and with what, and the numbers that come of it. test_triton.py asks.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, nn

from vitfrost.methods.constant_heads.constants import Shape, dense_of
from vitfrost.methods.constant_heads.module import ConstantHeads

torch.set_num_threads(1)


def random_heads(grid: list[int], prefix: int, windows: list[int], width: int, seed: int) -> ConstantHeads:
    """Heads in the kernel's form with random constants of a map's size."""
    shape = Shape((grid[0], grid[1]), prefix)
    kinds: list[tuple[str, int | None]] = [("local", window) for window in windows]
    heads = ConstantHeads(kinds, shape, (1, shape.tokens, shape.tokens), width, form="triton")
    generator = torch.Generator().manual_seed(seed)
    for parameter in heads.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    return heads.eval()


def explicit(heads: ConstantHeads, values: Tensor) -> Tensor:
    """Every head's whole map times its values, in float64."""
    assert heads.shape is not None
    maps = [torch.from_numpy(dense_of(head.constant(), heads.shape)[0]) for head in heads.constants()]  # type: ignore[arg-type]
    return torch.stack([torch.einsum("qk,bkd->bqd", whole, values[:, place].double()) for place, whole in enumerate(maps)], dim=1)


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number that is wanted."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def apply(grid: list[int], prefix: int, windows: list[int], width: int, images: int, kind: str, before: int, seed: int) -> dict[str, Any]:
    """Values are of the last heads of a layer with `before` others, and lie behind queries and keys as projections leave them."""
    dtype = getattr(torch, kind)
    heads = random_heads(grid, prefix, windows, width, seed)
    assert heads.shape is not None
    generator = torch.Generator().manual_seed(seed + 1)
    rows = torch.randn(images, heads.shape.tokens, (2 + before + len(windows)) * width, generator=generator).to(dtype)
    values = rows.unflatten(2, (-1, width)).transpose(1, 2)[:, 2 + before :]
    wanted = explicit(heads, values)
    heads.folded()
    heads.to(dtype)
    with torch.inference_mode():
        found = heads(values)
    assert found.dtype == dtype
    return {"distance": distance(found, wanted), "folded": sorted(heads._folded)}


class Layer(nn.Module):
    """Projections around the heads, as in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = random_heads([3, 5], 1, [3, 5], 4, 0)
        self.before, self.after = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.heads(self.before(x).unflatten(2, (2, 4)).transpose(1, 2)).transpose(1, 2).flatten(2))


def compiled(backend: str) -> dict[str, Any]:
    """A compiled layer against itself in the form of a product."""
    layer, x = Layer().eval(), torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(2))
    layer.heads.folded()
    with torch.inference_mode():
        found = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)(x)
        layer.heads.use("matmul")
        return {"distance": distance(found, layer(x).double())}


def exported() -> dict[str, Any]:
    """An exported layer against itself, and the operators in its graph that are not PyTorch's own."""
    layer, x = Layer().eval(), torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        foreign = [str(node.target) for node in program.graph.nodes if "vitfrost" in str(node.target)]
        return {"distance": distance(program.module()(x), layer(x).double()), "foreign": foreign}


def trained() -> dict[str, Any]:
    """Which form runs where gradients are wanted, and how many constants got one."""
    heads = random_heads([3, 3], 1, [3], 4, 0)
    values = torch.randn(2, 1, 10, 4, requires_grad=True)
    heads(values).square().sum().backward()  # in evaluation, of the values
    reached = values.grad is not None and bool(values.grad.abs().sum() > 0)
    ran = sorted(heads._folded)
    heads.train()(values).square().sum().backward()
    return {"values": reached, "ran": ran, "constants": all(parameter.grad is not None for parameter in heads.parameters())}


def chosen() -> dict[str, Any]:
    """The forms that are tried where there is no GPU."""
    return {"forms": random_heads([3, 3], 1, [3], 4, 0).forms()}


ANSWERS = {"apply": apply, "compiled": compiled, "exported": exported, "trained": trained, "chosen": chosen}

for line in sys.stdin:
    asked = json.loads(line)
    answer = ANSWERS[asked.pop("what")](**asked)
    print(json.dumps(answer), flush=True)
