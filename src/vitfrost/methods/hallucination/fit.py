"""Without training: which heads to compute, and the mix that makes the other heads' logits of theirs. Formulas only.

A softmax ignores a constant added to a row of logits, so everything here is in row-centered logits: what matters of h heads
over any number of images is their h x h matrix of second moments, which adds up over batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def head_moments(logits: Float[Tensor, "rows heads queries keys"]) -> Float[Tensor, "heads heads"]:
    """Sums of products of every two heads' row-centered logits, in float64; add them over batches."""
    logits = logits.double()
    flat = (logits - logits.mean(-1, keepdim=True)).transpose(0, 1).flatten(1)
    return flat @ flat.T


def correlations(moments: Float[Tensor, "heads heads"]) -> Float[Tensor, "heads heads"]:
    """Cosines between heads in [-1, 1], from `head_moments`; a head with constant rows resembles only itself."""
    scale = moments.diagonal().sqrt()
    cosines = moments / torch.outer(scale, scale).clamp(min=torch.finfo(moments.dtype).tiny)
    return cosines.clamp(-1, 1).fill_diagonal_(1)


@dataclass(frozen=True)
class HeadChoice:
    """Heads to compute (`kept`, ascending) and, for each of the others, the index in `kept` of the one it resembles most."""

    kept: tuple[int, ...]
    sources: tuple[int, ...]

    @property
    def others(self) -> tuple[int, ...]:
        """The heads to hallucinate, ascending."""
        return tuple(head for head in range(len(self.kept) + len(self.sources)) if head not in self.kept)

    @property
    def order(self) -> tuple[int, ...]:
        """All heads, computed ones first."""
        return self.kept + self.others


def choose_heads(similarities: Float[Tensor, "heads heads"], computed: int) -> HeadChoice:
    """Medoids of the heads (PAM: greedy build, then the best swap as long as one helps), with distance 1 - similarity.

    Deterministic: of equal steps the one with the lower head numbers is taken. A head that is the opposite of another is far
    from it, because a copy of its map would be wrong. Raises ValueError where `computed` does not lie in 1..heads.
    """
    heads = len(similarities)
    if not 1 <= computed <= heads:
        raise ValueError(f"{computed} of {heads} heads cannot be computed")
    distances = 1 - similarities.double()
    distances.fill_diagonal_(0)

    def cost(kept: list[int]) -> float:
        return float(distances[:, kept].amin(1).sum())

    kept: list[int] = []
    while len(kept) < computed:
        kept.append(min((head for head in range(heads) if head not in kept), key=lambda head: cost([*kept, head])))
    while True:
        others = [head for head in range(heads) if head not in kept]
        swaps = [sorted([*(k for k in kept if k != out), into]) for out in sorted(kept) for into in others]
        best = min(swaps, key=cost, default=kept)
        # a swap has to help by more than rounding, or equal choices would follow each other for ever
        if cost(best) >= cost(kept) - 1e-12:
            break
        kept = best
    kept = sorted(kept)
    sources = [int(distances[head, kept].argmin()) for head in range(heads) if head not in kept]
    return HeadChoice(tuple(kept), tuple(sources))


def unexplained_shares(
    moments: Float[Tensor, "heads heads"], kept: Sequence[int], mix: Float[Tensor, "hallucinated computed"]
) -> Float[Tensor, " hallucinated"]:
    """E|g - m s|^2 / E|g|^2 of every head that is not in `kept`, ascending: the share of its row-centered logits that `mix` leaves.

    A head without energy counts as explained.
    """
    kept, moments, mix = list(kept), moments.double(), mix.double()
    others = [head for head in range(len(moments)) if head not in kept]
    energy = moments.diagonal()[others]
    made = ((mix @ moments[kept][:, kept]) * mix).sum(1)
    residual = energy - 2 * (mix * moments[others][:, kept]).sum(1) + made
    return torch.where(energy > 0, residual / energy.clamp(min=torch.finfo(energy.dtype).tiny), 0.0)


def unexplained(moments: Float[Tensor, "heads heads"], kept: Sequence[int], ridge: float) -> float:
    """Sum over the other heads of what `fit_mix` of the heads `kept` leaves unexplained."""
    others = [head for head in range(len(moments)) if head not in kept]
    return float(unexplained_shares(moments, kept, _ridge_mix(moments.double(), list(kept), others, ridge)).sum())


def choose_explained(moments: Float[Tensor, "heads heads"], computed: int, ridge: float = 1e-3) -> HeadChoice:
    """The heads whose mixes leave the least of the others' logits unexplained: heads are dropped one by one, the one that costs least,
    and then swapped as long as that helps. Sources are the most similar computed heads.

    Deterministic: of equal steps the one with the lower head numbers is taken. Raises ValueError where `computed` does not lie in 1..heads.
    """
    heads = len(moments)
    if not 1 <= computed <= heads:
        raise ValueError(f"{computed} of {heads} heads cannot be computed")

    def cost(kept: list[int]) -> float:
        return unexplained(moments, kept, ridge)

    kept = list(range(heads))
    while len(kept) > computed:
        kept = min(([head for head in kept if head != out] for out in kept), key=cost)
    while True:
        others = [head for head in range(heads) if head not in kept]
        swaps = [sorted([*(k for k in kept if k != out), into]) for out in kept for into in others]
        best = min(swaps, key=cost, default=kept)
        if cost(best) >= cost(kept) - 1e-9:  # a swap has to help by more than rounding
            break
        kept = best
    similarities = correlations(moments.double())
    sources = [int(similarities[head, kept].argmax()) for head in range(heads) if head not in kept]
    return HeadChoice(tuple(kept), tuple(sources))


def fit_mix(moments: Float[Tensor, "heads heads"], choice: HeadChoice, ridge: float = 1e-3) -> Float[Tensor, "hallucinated computed"]:
    """The matrix W that makes the other heads' row-centered logits of the computed ones': argmin |G - W S|^2 + lambda |W|^2.

    `moments` from `head_moments`; lambda is `ridge` times the mean energy of a computed head. W = M_os (M_ss + lambda I)^-1,
    with the pseudo-inverse where computed heads depend on each other and `ridge` is 0. Raises ValueError for a negative `ridge`.
    """
    if ridge < 0:
        raise ValueError(f"a ridge of {ridge} is negative")
    return _ridge_mix(moments.double(), list(choice.kept), list(choice.others), ridge)


def _ridge_mix(moments: Tensor, kept: list[int], others: list[int], ridge: float) -> Tensor:
    own = moments[kept][:, kept]
    penalty = ridge * own.diagonal().mean() * torch.eye(len(kept), dtype=own.dtype, device=own.device)
    return moments[others][:, kept] @ torch.linalg.pinv(own + penalty, hermitian=True)


def fit_pairs(moments: Float[Tensor, "heads heads"], choice: HeadChoice) -> Float[Tensor, "hallucinated computed"]:
    """As `fit_mix`, with the one computed head (and its scalar) that leaves the least error for each of the others."""
    kept, others = list(choice.kept), list(choice.others)
    moments = moments.double()
    crossed = moments[others][:, kept]
    energy = moments.diagonal()[kept].clamp(min=torch.finfo(moments.dtype).tiny)
    best = (crossed.square() / energy).argmax(1, keepdim=True)
    return torch.zeros_like(crossed).scatter(1, best, (crossed / energy).gather(1, best))
