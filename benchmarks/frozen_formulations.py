"""Which formulation of a frozen layer's mixing runs fast: three heads alone, by the size of the image and the runtime.

    OMP_NUM_THREADS=1 python benchmarks/frozen_formulations.py --pixels 224,1024 --json frozen_formulations.json

Every formulation takes values [1, N, 3 x 64] and gives what the constant maps make of them (class token, rest and row scales left out:
they are the same small change to all). Those of one size are interleaved in random order; times are process CPU time of one thread,
medians. Outputs are checked against the product with the whole map before anything is timed, up to 384 px.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfrost.evaluation.results import environment
from vitfrost.files import write_json
from vitfrost.methods.constant_heads.constants import relative_positions
from vitfrost.timing.rounds import Slot, timed_rounds

HEADS, WIDTH = 3, 64


class Formulation(nn.Module):
    """Kernels [heads, k, k] over a grid of `side` x `side` patches."""

    kernels: Tensor

    def __init__(self, kernels: Tensor, side: int):
        super().__init__()
        self.side, self.size = side, kernels.shape[-1]
        self.register_buffer("kernels", kernels)

    def picture(self, values: Tensor) -> Tensor:
        return values.transpose(1, 2).reshape(-1, HEADS * WIDTH, self.side, self.side)

    def tokens(self, picture: Tensor) -> Tensor:
        return picture.flatten(2).transpose(1, 2)


class Product(Formulation):
    """The whole maps times the values."""

    maps: Tensor

    def __init__(self, kernels: Tensor, side: int):
        super().__init__(kernels, side)
        groups = torch.from_numpy(relative_positions((side, side), (self.size, self.size)))
        self.register_buffer("maps", torch.cat([kernels.flatten(1), torch.zeros(HEADS, 1)], dim=1)[:, groups])

    def forward(self, values: Tensor) -> Tensor:
        return (self.maps @ values.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)).transpose(1, 2).flatten(2)


class Depthwise(Formulation):
    """One grouped convolution, the kernel of a head repeated for its channels."""

    def forward(self, values: Tensor) -> Tensor:
        kernel = self.kernels[:, None].repeat_interleave(WIDTH, dim=0)
        return self.tokens(F.conv2d(self.picture(values), kernel, padding=self.size // 2, groups=HEADS * WIDTH))


class ChannelsInBatch(Formulation):
    """A convolution over the heads, their channels in the batch."""

    def forward(self, values: Tensor) -> Tensor:
        picture = values.transpose(1, 2).reshape(-1, HEADS, WIDTH, self.side, self.side).transpose(1, 2).flatten(0, 1)
        made = F.conv2d(picture, self.kernels[:, None], padding=self.size // 2, groups=HEADS)
        return made.unflatten(0, (-1, WIDTH)).transpose(1, 2).flatten(3).flatten(1, 2).transpose(1, 2)


class Separable(Formulation):
    """As many pairs of a column and a row as the kernels have rank."""

    columns: Tensor
    rows: Tensor

    def __init__(self, kernels: Tensor, side: int, rank: int):
        super().__init__(kernels, side)
        left, values, right = torch.linalg.svd(kernels)
        self.register_buffer("columns", (left[:, :, :rank] * values[:, None, :rank]).permute(2, 0, 1))
        self.register_buffer("rows", right[:, :rank].permute(1, 0, 2))

    def forward(self, values: Tensor) -> Tensor:
        picture, half, total = self.picture(values), self.size // 2, None
        for number in range(len(self.columns)):
            column, row = self.columns[number], self.rows[number]
            down = column[:, None, :, None].repeat_interleave(WIDTH, dim=0)
            along = row[:, None, None, :].repeat_interleave(WIDTH, dim=0)
            part = F.conv2d(picture, down, padding=(half, 0), groups=HEADS * WIDTH)
            part = F.conv2d(part, along, padding=(0, half), groups=HEADS * WIDTH)
            total = part if total is None else total + part
        assert total is not None
        return self.tokens(total)


class FusedAttention(nn.Module):
    """What freezing replaces, without its projections."""

    def forward(self, values: Tensor) -> Tensor:
        heads = values.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads * 1.01, heads * 0.99, heads).transpose(1, 2).flatten(2)


def formulations(side: int) -> dict[str, nn.Module]:
    """By name. Kernels have rank 2, so that two separable pairs are exact."""
    generator = torch.Generator().manual_seed(0)

    def kernels(size: int) -> Tensor:
        return torch.rand(HEADS, size, 2, generator=generator) @ torch.rand(HEADS, 2, size, generator=generator) / size**2

    whole = 2 * side - 1
    made: dict[str, nn.Module] = {"fused attention": FusedAttention(), "product with the whole map": Product(kernels(7), side)}
    for size in (3, 7, 15):
        made[f"depthwise convolution {size} x {size}"] = Depthwise(kernels(size), side)
    made["two separable pairs 7 x 7"] = Separable(kernels(7), side, 2)
    made["channels in the batch 7 x 7"] = ChannelsInBatch(kernels(7), side)
    if side <= 14:
        made["the whole Toeplitz kernel"] = Depthwise(kernels(whole), side)
    return made


def check(made: dict[str, nn.Module], values: Tensor, side: int) -> None:
    """Raise AssertionError unless every formulation is the product with its whole map."""
    for module in made.values():
        if isinstance(module, Formulation) and (side <= 24 or isinstance(module, Product)):
            torch.testing.assert_close(module(values), Product(module.kernels, side)(values), atol=1e-5, rtol=1e-4)


def runners(made: dict[str, nn.Module], values: Tensor) -> dict[str, Callable[[], Any]]:
    """A call for every formulation in PyTorch, and in OpenVINO where it is installed."""
    calls: dict[str, Callable[[], Any]] = {f"{name} | torch": partial(module, values) for name, module in made.items()}
    try:
        import openvino as ov
    except ImportError:
        return calls
    for name, module in made.items():
        graph = ov.convert_model(module, example_input=values)
        options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()
        calls[f"{name} | openvino"] = partial(request.infer, [values.numpy()])
    return calls


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixels", default="224,1024")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for pixels in map(int, options.pixels.split(",")):
            side = pixels // 16
            values = torch.randn(1, side * side, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))
            made = {name: module.eval() for name, module in formulations(side).items()}
            check(made, values, side)
            calls = runners(made, values)
            slots = {name: Slot(call, lead_in=True) for name, call in calls.items()}
            rounds = list(timed_rounds(slots, options.rounds, seed=0, clock=time.process_time))
            seconds = {name: [taken for one in rounds for taken in one[name]] for name in calls}
            found[str(pixels)] = {name: round(1e3 * float(np.median(taken)), 3) for name, taken in seconds.items()}
            for name, milliseconds in found[str(pixels)].items():
                print(f"{pixels:5d} px  {name:44s} {milliseconds:8.2f} ms")
    write_json(options.json, {"environment": environment(), "rounds": options.rounds, "milliseconds": found})


if __name__ == "__main__":
    main()
