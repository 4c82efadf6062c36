"""What a model costs: multiply-accumulates and parameters by part, and what freezing maps saves of them.

Counts are per image. Multiply-accumulates cover matrix products and convolutions only, as the published figures do.
Shapes: N tokens, d width, H heads, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from ..errors import VitfrostError
from ..map_sources import SOURCES
from ..vit.attention import MapAttention
from ..vit.kinds import is_norm
from ..vit.sites import AttentionSite, LinearRole, LinearSite, ModelSites

MAC_PARTS = ("stem", "query_key_projection", "query_key_product", "hallucination", "map_value_product", "constant_maps", "other_maps",
             "value_output_projection", "spatial_reduction", "feed_forward", "convolution", "patch_merging", "head")  # fmt: skip
PARAMETER_PARTS = ("stem", "embeddings", "norms", "query_key_projection", "hallucination", "constant_maps", "other_maps",
                   "value_output_projection", "spatial_reduction", "feed_forward", "convolution", "patch_merging", "head")  # fmt: skip
# The parts that a layer's cost falls to, in shares of the projections that it stacks.
_PARTS_OF_ROLE: dict[LinearRole, tuple[str, ...]] = {
    "stem": ("stem",),
    "qkv": ("query_key_projection", "query_key_projection", "value_output_projection"),
    "query": ("query_key_projection",),
    "key": ("query_key_projection",),
    "key_value": ("query_key_projection", "value_output_projection"),
    "value": ("value_output_projection",),
    "proj": ("value_output_projection",),
    "spatial_reduction": ("spatial_reduction",),
    "fc1": ("feed_forward",),
    "fc2": ("feed_forward",),
    "convolution": ("convolution",),
    "reduction": ("patch_merging",),
    "head": ("head",),
}


def logit_macs(site: AttentionSite) -> int:
    """Multiply-accumulates of Q K^T at a site if all its heads have queries and keys; A V costs the same."""
    return site.entries * site.head_dim


def softmax_elements(sites: ModelSites) -> int:
    """Attention weights of one image that pass through a softmax (about five element operations each)."""
    return sum(site.entries for site in sites.attention)


def macs_by_part(model: nn.Module, sites: ModelSites) -> dict[str, int]:
    """Multiply-accumulates of one image by part (`MAC_PARTS`).

    `model` is a timm model as timm builds it, or with a plan's structure; `sites` are its sites.
    Swin's windows count with their padding. "convolution" are
    convolutions inside blocks (Next-ViT's, and PVT v2's in its feed-forward), "patch_merging" what leads from one stage to the next.
    """
    macs = dict.fromkeys(MAC_PARTS, 0)
    for site in sites.attention:
        logit_heads = site.heads if site.logit_heads is None else site.logit_heads
        macs["query_key_product"] += logit_macs(site) * (logit_heads - site.windowed) // site.heads
        macs["map_value_product"] += logit_macs(site) * (site.heads - site.mixed_apart - site.windowed) // site.heads
        for part, count in site.source_macs:
            macs[part] += count
    for linear in (*sites.linears, *sites.kept):
        _share(macs, linear, linear.tokens * model.get_parameter(f"{linear.name}.weight").numel())
    return macs


def _share(counts: dict[str, int], linear: LinearSite, cost: int) -> None:
    parts = _PARTS_OF_ROLE[linear.role]
    split = linear.split or (1,) * len(parts)
    for part, outputs in zip(parts, split, strict=True):
        counts[part] += cost * outputs // sum(split)


def parameters_by_part(model: nn.Module, sites: ModelSites) -> dict[str, int]:
    """Parameters by part (`PARAMETER_PARTS`); the parts add up to all parameters of the model.

    "hallucination" is what makes maps of other heads' maps, "constant_maps" the numbers of frozen heads' constants.
    "embeddings" are positions, class and register tokens, relative biases and layer scales; biases count with their layer.
    """
    counts = dict.fromkeys(PARAMETER_PARTS, 0)
    linears = {linear.name: linear for linear in (*sites.linears, *sites.kept)}
    in_maps: dict[nn.Module, str] = {}
    for attention in model.modules():
        if isinstance(attention, MapAttention):
            for source in SOURCES.values():
                made = attention.map_sources().get(source.module)
                in_maps |= {} if made is None else dict.fromkeys(made.modules(), source.cost)
    for path, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if path in linears:
            _share(counts, linears[path], own)
        else:
            counts[in_maps.get(module, "norms" if is_norm(module) else "embeddings")] += own
    return counts


@dataclass(frozen=True)
class FrozenSavings:
    """What frozen maps save per image, in multiply-accumulates.

    `dense_saved_macs`: Q K^T of wholly frozen heads, the only logits a dense machine need not compute.
    `ideal_saved_macs`: Q K^T of every frozen entry, the bound of a machine with free sparsity and known normalizers.
    """

    frozen_entries: int
    entries: int
    whole_heads: int
    dense_saved_macs: int
    ideal_saved_macs: int
    why: str


def frozen_savings(frozen: Mapping[str, Sequence[int]], sites: ModelSites, selectable: Mapping[str, int] | None = None) -> FrozenSavings:
    """Multiply-accumulates saved by freezing `frozen[site name][head]` entries of the maps (all windows together).

    The normalizer of a row needs all its logits, so an entry-wise frozen map saves nothing on dense hardware.
    `selectable`: entries per head of a site that are not cut off by a shift mask; all of them where a site is not named.
    Raises VitfrostError for unknown sites, other head counts, or more frozen entries than there are.
    """
    known = {site.name: site for site in sites.attention}
    entries = whole = dense = ideal = 0
    for name, counts in frozen.items():
        if name not in known:
            raise VitfrostError(f"the plan freezes entries at '{name}', which the model does not have; make a plan for this model")
        site = known[name]
        per_head = prod(site.maps_shape) // site.heads
        if len(counts) != site.heads or not all(0 <= count <= per_head for count in counts):
            raise VitfrostError(f"the plan's frozen entries at {name} do not fit {site.heads} heads of {per_head} entries each")
        complete = sum(count >= (selectable or {}).get(name, per_head) for count in counts)
        whole += complete
        dense += complete * per_head * site.head_dim
        entries += sum(counts)
        ideal += sum(counts) * site.head_dim
    return FrozenSavings(entries, softmax_elements(sites), whole, dense, ideal, _reason(entries, whole))


def _reason(entries: int, whole: int) -> str:
    if entries == 0:
        return "no entry is frozen"
    if whole == 0:
        return "no head is frozen wholly: a row's softmax needs all its logits, so every product of a dense machine remains"
    return f"only the logits of the {whole} wholly frozen heads can be left out; their Q and K projections are still computed"
