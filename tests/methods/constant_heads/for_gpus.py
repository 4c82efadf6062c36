"""A process of its own that makes what a GPU would run, without one, and prints it as JSON; test_triton.py reads it.

`kernels`: both kernels compiled to machine code of two processors. `graph`: what torch.compile sees of the operator on tensors that are
only said to be on a GPU.
"""

from __future__ import annotations

import json

import torch
import triton
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vitfrost.methods.constant_heads import triton_kernels as ours
from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.constant_heads.module import ConstantHeads

SIZES = {"PREFIX": 1, "WIDTH": 48, "BLOCK": 64, "PIECES": 1}
OF_SUMS = SIZES | {"TOKENS": 197, "PIECE": ours.PIECE, "ROWS": ours.ROWS}
OF_MIX = SIZES | {"GRID_HEIGHT": 14, "GRID_WIDTH": 14, "KERNEL_HEIGHT": 7, "KERNEL_WIDTH": 5}
NUMBERS = ("image_stride", "token_stride", "images", "heads")


def kernels() -> list[dict[str, object]]:
    """Size of the machine code of both kernels, by processor."""
    found = []
    for processor, kind, (down, along, warps) in ((80, "fp16", ours.TILES[0]), (90, "bf16", ours.TILES[1])):
        for kernel, sizes in ((ours._sums, OF_SUMS), (ours._mix_jit, OF_MIX | {"TILE_HEIGHT": down, "TILE_WIDTH": along})):
            names = kernel.arg_names
            types = {name: "i32" if name in NUMBERS else "*fp32" if name == "sums" else f"*{kind}" for name in names}
            types |= dict.fromkeys(sizes, "constexpr")
            aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if types[name].startswith("*") or "stride" in name}
            source = ASTSource(kernel, types, {(names.index(name),): size for name, size in sizes.items()}, aligned)
            made = triton.compile(source, target=GPUTarget("cuda", processor, 32), options={"num_warps": warps})
            found.append({"kernel": kernel.__name__, "processor": processor, "bytes": len(made.asm["cubin"])})
    return found


class Driver:
    """Says for which processor to compile, as the driver of a GPU does."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def graph() -> dict[str, object]:
    """The operators of a compiled layer, and what the kernels are taken to write."""
    triton.runtime.driver.set_active(Driver())
    shape = Shape((4, 5), 1)
    heads = ConstantHeads([("local", 3), ("local", 5)], shape, (1, 21, 21), 16, form="triton").eval()
    found: list[str] = []

    def read(module: torch.fx.GraphModule, _: object) -> object:
        nodes = [node for node in module.graph.nodes if node.op == "call_function"]
        found.extend(str(node.target) for node in nodes if "view" not in str(node.target) and "transpose" not in str(node.target))
        found.extend(f"writes {node.args[1]}" for node in nodes if str(node.target) == "<built-in function getitem>")
        return module.forward

    class Layer(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return heads(values.unflatten(2, (2, 16)).transpose(1, 2))

    heads.folded("triton")
    with FakeTensorMode(), torch.inference_mode():
        parts = heads._folded["triton"]
        heads._folded = {"triton": {name: torch.empty(part.shape, dtype=torch.bfloat16, device="cuda") for name, part in parts.items()}}
        values = torch.empty(3, 21, 32, dtype=torch.bfloat16, device="cuda")
        made = torch.compile(Layer(), backend=aot_autograd(fw_compiler=read), fullgraph=True, dynamic=False)(values)
    return {"operators": found, "shape": list(made.shape), "folded": sorted(heads._folded)}


print(json.dumps({"kernels": kernels(), "graph": graph()}))
