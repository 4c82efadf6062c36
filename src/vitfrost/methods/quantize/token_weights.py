"""How much the outputs depend on what a layer gives to prefix tokens and to patches: the Fisher information, from one backward pass.

The squared gradient of v . outputs, with v a random factor of the curvature of the outputs' distance (see methods.output_distance), is on
average that curvature; of logits it is the Fisher information. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...outputs import OutputKind
from ...vit.sites import ModelSites
from ..output_distance import curvature_factor, random_signs

LEAST = 1e-4  # of the prefix's weight, for patches that the outputs hardly depend on


def token_weights(
    model: nn.Module,
    sites: ModelSites,
    batches: Sequence[Float[Tensor, "_ 3 height width"]],
    seed: int,
    outputs: OutputKind = "classes",
) -> dict[str, tuple[float, float]]:
    """What the row of a prefix token counts, and that of a patch, with mean one over all rows, by layer.

    Layers of models without prefix tokens are not in it.
    """
    prefixes = {site.name.rpartition(".")[0]: (site.prefix_tokens, site.queries) for site in sites.attention if site.prefix_tokens}
    sums: dict[str, list[float]] = {}
    seen: dict[str, Tensor] = {}
    handles: list[Any] = []

    def keep(name: str, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.requires_grad_()
        output.retain_grad()
        seen[name] = output
        return output

    counts: dict[str, tuple[int, int]] = {}
    for linear in sites.linears:
        block = next((name for name in prefixes if linear.name.startswith(f"{name}.")), None)
        if block is not None:
            counts[linear.name] = prefixes[block]
            handles.append(model.get_submodule(linear.name).register_forward_hook(partial(keep, linear.name)))
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.enable_grad():
            for pixels in batches if counts else ():
                found = model(pixels.clone().requires_grad_())
                signs = random_signs(found.detach(), generator)
                torch.autograd.backward([found], [curvature_factor(outputs, found.detach(), signs)])
                for name, output in seen.items():
                    assert output.grad is not None
                    by_token = output.grad.double().square().sum(-1).mean(0)
                    prefix = counts[name][0]
                    old = sums.setdefault(name, [0.0, 0.0])
                    old[0] += float(by_token[:prefix].mean())
                    old[1] += float(by_token[prefix:].mean())
                seen.clear()
                model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _scaled(first, rest, *counts[name]) for name, (first, rest) in sums.items() if first + rest > 0}


def _scaled(first: float, rest: float, prefix: int, tokens: int) -> tuple[float, float]:
    rest = max(rest, LEAST * first)
    mean = (prefix * first + (tokens - prefix) * rest) / tokens
    return first / mean, rest / mean
