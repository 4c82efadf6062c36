"""One layer of DeiT-S on an NVIDIA GPU: fused attention, and the forms of its frozen heads, by image size and batch.

    python benchmarks/frozen_gpu.py --json frozen_gpu.json

The peer is what freezing all heads of a layer replaces: the projections to queries and keys, and torch's fused attention. Each variant
takes tokens [B, N, 6 x 64] as values and gives mixed tokens; eight in a row are one run, so that what a call costs once is a small part of
it. The variants of one size and batch, eager and compiled apart, are interleaved in random order; times are wall time until the GPU is
done. Every form is first compared with the explicit maps in float32. Ratios are to the peer, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfrost.evaluation.results import device_environment, environment
from vitfrost.files import refuse_unwritable, write_json
from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.constant_heads.module import ConstantHeads
from vitfrost.timing.rounds import Slot, paired_ratio, timed_rounds

HEADS, WIDTH, PATCH, CHAIN = 6, 64, 16, 8
PEER = "fused attention"
TOLERANCE = 0.02
REPETITIONS, WARM_UP = 5, 2


class FusedAttention(nn.Module):
    """Queries and keys of the tokens, and attention over values that are there already."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key = nn.Linear(HEADS * WIDTH, 2 * HEADS * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k = (part.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for part in self.query_key(tokens).chunk(2, dim=2))
        return F.scaled_dot_product_attention(q, k, tokens.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)).transpose(1, 2).flatten(2)


class Frozen(nn.Module):
    """Constant heads, tokens first before and after."""

    def __init__(self, heads: ConstantHeads):
        super().__init__()
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        return self.heads(tokens.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)).transpose(1, 2).flatten(2)


class Repeated(nn.Module):
    """A layer `CHAIN` times."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        for _ in range(CHAIN):
            tokens = self.layer(tokens)
        return tokens


def constant_heads(side: int, window: int, device: str, dtype: torch.dtype) -> ConstantHeads:
    """Six heads with random local kernels, rows that sum to about one."""
    shape = Shape((side, side), 1)
    heads = ConstantHeads([("local", window)] * HEADS, shape, (1, shape.tokens, shape.tokens), WIDTH).eval()
    generator = torch.Generator().manual_seed(window)
    with torch.no_grad():
        for head in heads.constants():
            for name, parameter in head.named_parameters():
                level = 0.5 / window**2 if name == "kernel" else 1.0 if name == "row_scale" else 0.5 / shape.tokens
                parameter.copy_(level * (0.5 + torch.rand(parameter.shape, generator=generator)))
    return heads.to(device, dtype)


def variants(side: int, windows: list[int], device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """By name; the product, which costs the same for every window, once."""
    made: dict[str, nn.Module] = {PEER: FusedAttention().eval().to(device, dtype)}
    for window in windows:
        for form in constant_heads(side, window, device, dtype).forms():
            name = "matmul" if form == "matmul" else f"{form} {window} x {window}"
            if name not in made:
                heads = constant_heads(side, window, device, dtype)
                heads.use(form)
                heads.folded()
                made[name] = Frozen(heads)
    return made


@torch.inference_mode()
def error_of(layer: nn.Module, tokens: Tensor) -> float | None:
    """The largest difference from explicit maps in float32 over the first image, relative to the largest output; None for the peer."""
    if not isinstance(layer, Frozen):
        return None
    found = layer(tokens)[0].float().unflatten(1, (HEADS, WIDTH))
    difference, largest = 0.0, 0.0
    for place, head in enumerate(layer.heads.constants()):
        wanted = head.maps(None)[0].float() @ tokens[0, :, place * WIDTH : (place + 1) * WIDTH].float()
        difference = max(difference, float((found[:, place] - wanted).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    return difference / largest


def waiting(call: Callable[[], object], device: str) -> None:
    """Run something and wait for the GPU."""
    with torch.inference_mode():
        call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure(
    pixels: int, batch: int, compiled: bool, windows: list[int], rounds: int, device: str, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of one group, and what could not be run."""
    group = {"pixels": pixels, "batch": batch, "compiled": compiled}
    side = pixels // PATCH
    tokens = torch.randn(batch, side * side + 1, HEADS * WIDTH, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    runs: dict[str, Callable[[], None]] = {}
    errors: dict[str, float | None] = {}
    left_out = []
    for name, layer in variants(side, windows, device, dtype).items():
        try:
            errors[name] = error_of(layer, tokens)
            if (errors[name] or 0.0) > TOLERANCE:
                raise ValueError(f"its output is wrong: it differs by {errors[name]:.3f} of the largest number")
            chain: Any = Repeated(layer).eval()
            run = partial(waiting, partial(torch.compile(chain, dynamic=False) if compiled else chain, tokens), device)
            run()
        except Exception as error:  # compilers and drivers raise types of their own, and memory may not suffice
            left_out.append({**group, "variant": name, "why": f"{type(error).__name__}: {error}".splitlines()[0]})
            continue
        runs[name] = run
    slots = {name: Slot(run, REPETITIONS, lead_in=True) for name, run in runs.items()}
    timed = list(timed_rounds(slots, WARM_UP + rounds, seed=0))[WARM_UP:]
    seconds = {name: [statistics.median(one[name]) / CHAIN for one in timed] for name in runs}
    rows = []
    for name, found in seconds.items():
        milliseconds = float(f"{1e3 * statistics.median(found):.4g}")
        row: dict[str, Any] = {**group, "variant": name, "milliseconds": milliseconds, "error": errors[name]}
        if PEER in seconds:
            value, low, high = paired_ratio(found, seconds[PEER], seed=0)
            row |= {"to_peer": round(value, 4), "interval": [round(low, 4), round(high, 4)]}
        rows.append(row)
    del runs, slots
    gc.collect()
    torch.compiler.reset()
    return rows, left_out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixels", default="224,384,1024")
    parser.add_argument("--batch", default="1,64")
    parser.add_argument("--windows", default="3,7,15")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    if not options.device.startswith("cuda") or not torch.cuda.is_available():
        raise SystemExit(f"frozen_gpu.py needs an NVIDIA GPU and a torch for it; torch {torch.__version__} finds none here")
    refuse_unwritable(options.json)
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1 << 16
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for pixels in map(int, options.pixels.split(",")):
        for batch in map(int, options.batch.split(",")):
            for compiled in (False, True):
                windows = list(map(int, options.windows.split(",")))
                made, absent = measure(pixels, batch, compiled, windows, options.rounds, options.device, torch.bfloat16)
                rows, left_out = rows + made, left_out + absent
                for row in made:
                    ratio = f"{row['to_peer']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]" if "to_peer" in row else ""
                    how = "compiled" if compiled else "eager"
                    print(f"{pixels:5d} px  batch {batch:3d}  {how:8s}  {row['variant']:24s} {row['milliseconds']:9.4f} ms  {ratio}")
                for line in absent:
                    print(f"left out: {line}")
    versions = environment() | device_environment(options.device)
    write_json(options.json, {"environment": versions, "dtype": "bfloat16", "rounds": options.rounds, "rows": rows, "left_out": left_out})


if __name__ == "__main__":
    main()
