"""How much the outputs depend on what a layer gives to prefix tokens and to patches: the Fisher information, from one backward pass.

With probabilities p and signs e, v = sqrt(p) e - p sum(sqrt(p) e) has E[v v^T] = diag(p) - p p^T, the Fisher information of the logits, so
the squared gradient of v . logits is on average that of the KL divergence's curvature. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...vit.sites import ModelSites

LEAST = 1e-4  # of the prefix's weight, for patches that the outputs hardly depend on


def token_weights(
    model: nn.Module, sites: ModelSites, batches: Sequence[Float[Tensor, "_ 3 height width"]], seed: int
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
                logits = model(pixels.clone().requires_grad_())
                root = logits.detach().softmax(-1).sqrt()
                signed = root * (torch.randint(0, 2, root.shape, generator=generator).to(root) * 2 - 1)
                torch.autograd.backward([logits], [signed - root.square() * signed.sum(-1, keepdim=True)])
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
