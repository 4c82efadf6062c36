"""How far a changed model's outputs are from the original's: the one place that searches, quantizers and sensitivity ask.

Of classes it is KL(original || changed) of the softmax outputs in nats. Of features, where a softmax over channels means nothing, it is the
relative error |changed - original|^2 / |original|^2 of an image, all tokens together; of vectors of equal length that is twice the cosine
distance. Shapes: B images; outputs are [B, classes], [B, C] or [B, ..., C]. Formulas only.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..outputs import OutputKind

SMALLEST = 1e-12  # of squared lengths, for outputs that are all zero


def distances(
    kind: OutputKind, original: Float[Tensor, images * outputs], changed: Float[Tensor, images * outputs]
) -> Float[Tensor, " images"]:
    """The distance of every image's outputs, at least 0, in the type of the arguments; gradients flow through both."""
    if kind == "classes":
        aim = original.log_softmax(-1)
        return (aim.exp() * (aim - changed.log_softmax(-1))).sum(-1)
    return (changed - original).flatten(1).square().sum(1) / _squares(original)


def curvature_factor(
    kind: OutputKind, outputs: Float[Tensor, images * outputs], signs: Float[Tensor, images * outputs]
) -> Float[Tensor, images * outputs]:
    """v of random signs e with E[v v^T] = F, where a small change d of the outputs has the distance 1/2 d^T F d.

    Of classes F is the Fisher information diag(p) - p p^T, and v = sqrt(p) e - p sum(sqrt(p) e). Of features F is 2 / |original|^2 times
    the identity, and v = sqrt(2) e / |original|. So the squared gradient of v . outputs is on average that of the distance's curvature.
    """
    if kind == "classes":
        root = outputs.softmax(-1).sqrt()
        signed = root * signs
        return signed - root.square() * signed.sum(-1, keepdim=True)
    return signs * (2 / _squares(outputs)).sqrt().view(-1, *[1] * (outputs.ndim - 1))


def _squares(outputs: Tensor) -> Float[Tensor, " images"]:
    return outputs.flatten(1).square().sum(1).clamp_min(SMALLEST)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Ones and minus ones in the shape of `like`."""
    return torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1
