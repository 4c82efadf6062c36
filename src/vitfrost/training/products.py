"""Products of a training step in fp32 on a processor, where torch's own choice is slow: linear layers and depthwise convolutions.

torch hands fp32 products to MKL, which leaves half of a processor of another maker idle, and a depthwise convolution of attention
maps to a kernel made for many channels. `fast_products` sends the first to oneDNN, and computes the second as sums of shifted
copies. Both stay fp32 with fp32 sums; only the order of the sums differs, so bits differ from torch's and not between runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import VitfrostError

_FEWEST_ROWS = 64  # a product of fewer rows costs less than a second call


def fast_products(wanted: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Within this context the forward pass, and the backward pass that belongs to it, use the products of this module.

    Nothing happens on another device than the CPU. Raises VitfrostError where torch was built without oneDNN.
    """
    if not wanted or device.type != "cpu":
        return nullcontext()
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        raise VitfrostError("products is onednn, but this torch was built without oneDNN; set products to torch")
    return _FastProducts()


class _FastProducts(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs and _plain(*args):
            return linear(*args)
        if func is F.conv2d and len(args) == 2 and _plain(*args) and _keeps_maps(*args, **kwargs):
            return depthwise(*args)
        return func(*args, **kwargs)


def _plain(*tensors: Tensor | None) -> bool:
    return all(one is None or (one.dtype == torch.float32 and one.device.type == "cpu") for one in tensors)


def _keeps_maps(maps: Tensor, weight: Tensor, **options: Any) -> bool:
    """Whether a convolution is depthwise, without bias, and pads so that its result is as large as its input."""
    side = weight.shape[-1]
    same = {"padding": side // 2, "groups": maps.shape[1]}
    return maps.ndim == 4 and weight.shape == (maps.shape[1], 1, side, side) and side % 2 == 1 and options == same


def linear(x: Float[Tensor, "*rows i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None) -> Float[Tensor, "*rows o"]:
    """x W^T + b as torch.nn.functional.linear has it."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) < _FEWEST_ROWS:
        with torch._C.DisableTorchFunction():
            return F.linear(x, weight, bias)
    result: Tensor = _Linear.apply(rows, weight, bias)
    return result.view(*x.shape[:-1], len(weight))


def _product(a: Float[Tensor, "m k"], b: Float[Tensor, "n k"], bias: Float[Tensor, " n"] | None = None) -> Float[Tensor, "m n"]:
    """A B^T + bias by oneDNN; either may be a transposed view."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = None
        if ctx.needs_input_grad[1]:  # the sum is long: oneDNN is faster with the narrower side as rows of the result
            outputs, inputs = weight.shape
            narrow = outputs <= inputs
            to_weight = _product(gradient.t(), x.t()) if narrow else _product(x.t(), gradient.t()).t()
        return to_x, to_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


def depthwise(maps: Float[Tensor, "b q n m"], weight: Float[Tensor, "q 1 k k"]) -> Float[Tensor, "b q n m"]:
    """Every map convolved with its head's kernel (k odd), zero-padded: conv2d with a group per head."""
    result: Tensor = _Depthwise.apply(maps, weight)
    return result


class _Depthwise(torch.autograd.Function):
    """Maps lie padded one after another, head by head, so that a shift in both directions is a shift of one long line of numbers."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        line = _padded(maps, weight.shape[-1])
        ctx.save_for_backward(line, weight)
        ctx.sizes = maps.shape
        return _correlated(line, weight, maps.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        line, weight = ctx.saved_tensors
        side = weight.shape[-1]
        padded = _padded(gradient, side)
        to_maps = _correlated(padded, weight.flip(2, 3), ctx.sizes) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_maps, None
        margin, shifts = _shifts(side, ctx.sizes[3])
        length = line.shape[1] - 2 * margin
        to_weight = torch.empty_like(weight)
        for head in range(len(weight)):
            inner = padded[head, margin : margin + length]
            dots = [torch.dot(line[head, margin + shift : margin + shift + length], inner) for shift in shifts]
            to_weight[head, 0] = torch.stack(dots).view(side, side)
        return to_maps, to_weight


def _shifts(side: int, columns: int) -> tuple[int, list[int]]:
    """How far a line begins before its first map, and where the neighbors of a number lie, row by row of the kernel."""
    reach, stride = side // 2, columns + side - 1
    shifts = [row * stride + column for row in range(-reach, reach + 1) for column in range(-reach, reach + 1)]
    return max(shifts), shifts


def _padded(maps: Tensor, side: int) -> Float[Tensor, "q line"]:
    images, heads, rows, columns = maps.shape
    reach = side // 2
    margin, _ = _shifts(side, columns)
    height, width = rows + 2 * reach, columns + 2 * reach
    line = maps.new_zeros(heads, 2 * margin + images * height * width)
    whole = line[:, margin : line.shape[1] - margin].view(heads, images, height, width)
    whole[:, :, reach : reach + rows, reach : reach + columns] = maps.transpose(0, 1)
    return line


def _correlated(line: Tensor, weight: Tensor, sizes: torch.Size) -> Tensor:
    images, heads, rows, columns = sizes
    side = weight.shape[-1]
    reach = side // 2
    margin, shifts = _shifts(side, columns)
    length = line.shape[1] - 2 * margin
    result = line.new_empty(heads, length)
    for head, kernel in enumerate(weight.reshape(heads, -1).tolist()):
        for place, (shift, factor) in enumerate(zip(shifts, kernel, strict=True)):
            source = line[head, margin + shift : margin + shift + length]
            if place:
                result[head].add_(source, alpha=factor)
            else:
                torch.mul(source, factor, out=result[head])
    whole = result.view(heads, images, rows + 2 * reach, columns + 2 * reach)
    return whole[:, :, reach : reach + rows, reach : reach + columns].transpose(0, 1).contiguous()
