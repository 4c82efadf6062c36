"""Frozen maps: whole heads are constants of a kind (methods.constant_heads.kinds), or single entries of computed maps are.

Single entries are merged into maps that are computed all the same, which passes/freeze_entries.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt, prod, sqrt
from typing import TYPE_CHECKING, Any

from ..errors import VitfrostError
from ..methods.constant_heads.constants import Shape
from ..methods.constant_heads.kinds import KINDS, ConstantKind
from ..plans.criteria import HeadArrays, SiteArrays
from ..vit.sites import AttentionSite
from .source import MapSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..plans.heads import HeadPlan, LayerPlan
    from ..plans.schema import Plan
    from ..statistics.record import Statistics


class Frozen(MapSource):
    """A head with a `constant` has no queries and keys; one with `entries` keeps them."""

    name = "frozen"
    fields = ("entries", "zeros", "constant", "window", "dilation")
    part = "constants"
    module = "constants"
    cost = "constant_maps"

    def keeps_logits(self, head: HeadPlan) -> bool:
        return head.constant is None

    def check_head(self, head: HeadPlan) -> None:
        if head.constant is not None and head.entries:
            raise ValueError(f"entries is {head.entries}, but constant freezes the whole head; leave one of them out")
        if not head.entries and head.constant is None:
            raise ValueError("entries is 0, but a frozen head has at least 1, or a constant; write one, or source: computed")
        windowed = head.constant is not None and KINDS[head.constant].has_window
        if windowed and head.window is None:
            raise ValueError(f"window is missing, and a {head.constant} constant has one")
        if head.window is not None and not windowed:
            names = " and ".join(kind.name for kind in KINDS.values() if kind.has_window)
            raise ValueError(f"window is {head.window}, but only {names} ones have one")
        if head.dilation is not None and (head.constant is None or not KINDS[head.constant].needs_grid):
            raise ValueError(f"dilation is {head.dilation}, but only kernels have taps that stand apart; leave it out")

    def check_layer(self, layer: LayerPlan) -> None:
        apart = {head.dilation for number in layer.constant if KINDS[(head := layer.heads[number]).constant or "dense"].needs_grid}
        if len(apart) > 1:
            raise ValueError("heads have kernels of different dilation, but a layer's are applied together; give them one")

    def part_of(self, head: HeadPlan) -> str | None:
        return "freeze" if head.constant is None else self.part

    def check_plan(self, head: HeadPlan, plan: Plan) -> None:
        super().check_plan(head, plan)
        if head.entries and plan.statistics is None:
            raise ValueError("source is 'frozen', but the plan has no statistics part; make it with vitfrost plan")
        if head.zeros and plan.freeze is not None and plan.freeze.ties != "strict":
            raise ValueError(f"zeros is {head.zeros}, but freeze.ties is '{plan.freeze.ties}'; zeros go with ties: strict")

    def needs_statistics(self, settings: Any) -> bool:
        return True

    def fit(self, layer: LayerPlan, plan: Plan, statistics: Statistics) -> list[Any]:
        if any(head.dilation is not None for head in layer.heads):
            raise VitfrostError(
                f"{layer.site}: kernels with a dilation come from resize and are not fitted to statistics; leave dilation out"
            )
        return constants_of(layer, statistics.sites[layer.site], plan.model.image_size)

    def make(self, site: AttentionSite, layer: LayerPlan, settings: Any, allowed: Tensor | None, fitted: Any) -> nn.Module:
        from ..methods.constant_heads.module import ConstantHeads

        try:
            made = ConstantHeads(
                kinds_of(layer), dilated(shape_of_site(site), layer), (site.windows, site.queries, site.keys), site.head_dim, allowed
            )
            if fitted is not None:
                for head, constant in zip(made.constants(), fitted, strict=True):
                    head.set(constant)
        except ValueError as error:
            raise VitfrostError(f"{layer.site}: {error}; write constant: dense for its heads, or plan again") from error
        return made

    def macs(self, site: AttentionSite, layer: LayerPlan, settings: Any) -> int:
        from ..methods.constant_heads.cost import constant_macs

        return constant_macs(dilated(shape_of_site(site), layer), site.maps_shape, site.head_dim, kinds_of(layer))


def kinds_of(layer: LayerPlan) -> list[tuple[str, int | None]]:
    """Kind and window of every constant head of a layer, in their order."""
    heads = [layer.heads[number] for number in layer.constant]
    return [(head.constant, head.window) for head in heads if head.constant is not None]


def dilated(shape: Shape | None, layer: LayerPlan) -> Shape | None:
    """The grid with the taps of a layer's kernels as far apart as its heads say."""
    apart = next((head.dilation for head in layer.heads if head.dilation is not None), 1)
    return shape if shape is None else replace(shape, dilation=apart)


def shape_of_site(site: AttentionSite) -> Shape | None:
    """The patch grid of a site's structured constants; None where queries and keys do not lie on one grid."""
    same = site.queries == site.keys and site.grid_of_keys == site.grid
    return Shape(site.grid, site.prefix_tokens) if same and site.queries == site.prefix_tokens + prod(site.grid) else None


def shape_of(layer: LayerPlan, image_size: Sequence[int]) -> Shape | None:
    """The patch grid of a layer's queries and keys, which has the image's proportions (a window's grid is square where it can be); None
    where there is none, as with spatially reduced keys."""
    windows, _, queries, keys = layer.maps
    patches = queries - layer.prefix_tokens
    if queries != keys or patches < 1:
        return None
    side = isqrt(patches)
    square = windows > 1 and side * side == patches
    height = side if square else max(round(sqrt(patches * image_size[0] / image_size[1])), 1)
    if patches % height or height * (width := patches // height) != patches:
        return None
    return Shape((height, width), layer.prefix_tokens)


def known_kind(name: str, shape: Shape | None) -> ConstantKind:
    """The kind of that name. Raises VitfrostError for one that needs a patch grid without one."""
    if shape is None and KINDS[name].needs_grid:
        raise VitfrostError(f"{name} constants need queries and keys on one patch grid, which these maps do not have; take dense ones")
    return KINDS[name]


def fitted(site: SiteArrays | HeadArrays, shape: Shape | None, head: int, kind: str, window: int | None) -> Any:
    """A head's constant of a kind, fitted to its mean maps, or to sums of them. Raises VitfrostError for a kind that needs a patch grid
    without one, and for one that needs every weight where there are sums."""
    if isinstance(site, HeadArrays):
        if shape is None:
            return known_kind(kind, shape).fit(site.mean_map(head), site.value_norm[:, head], None, window, site.allowed)
        if not KINDS[kind].of_sums:
            raise VitfrostError(
                f"{kind} constants take the mean of every weight, and the statistics are of whole heads; take local or toeplitz ones, or "
                'calibrate with Calibrate(detail="entries")'
            )
        return KINDS[kind].fit_sums(site.map_sums(head), shape, window)
    return known_kind(kind, shape).fit(site.mean[:, head], site.value_norm[:, head], shape, window, site.allowed)


def constants_of(layer: LayerPlan, site: SiteArrays | HeadArrays, image_size: Sequence[int]) -> list[Any]:
    """The fitted constants of a layer's frozen heads, in their order."""
    shape = shape_of(layer, image_size)
    return [fitted(site, shape, head, kind, window) for head, (kind, window) in zip(layer.constant, kinds_of(layer), strict=True)]
