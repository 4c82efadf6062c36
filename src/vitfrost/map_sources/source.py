"""What a source of attention maps is, and which ones there are.

Shapes: rows = images times windows, F heads of the source, N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..vit.sites import AttentionSite

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..plans.heads import HeadPlan, LayerPlan
    from ..plans.schema import Plan
    from ..statistics.record import Statistics


class MapSource:
    """One source: what a plan says of its heads, what they need, what makes their maps, and what that costs.

    name: `source:` in a head's line. fields: which others of the line's fields such a head has. part: the part of the plan with its
    configuration; config: the configuration's class where that stands under `sources:` instead. module: the name of its module in an
    attention layer, and so in the keys of a state; cost: the part that its multiply-accumulates and parameters belong to (see
    evaluation.cost). of_logits: maps are made of the logits that the layer's other heads have; of_queries: heads keep
    their queries and keys, and the module makes outputs [rows, F, N, D] of scaled queries, keys and values, and `maps` of whole logits;
    else outputs of the heads' own values.
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = ()
    part: ClassVar[str | None] = None
    config: ClassVar[type | None] = None
    module: ClassVar[str] = ""
    cost: ClassVar[str] = "other_maps"
    of_logits: ClassVar[bool] = False
    of_queries: ClassVar[bool] = False

    def keeps_logits(self, head: HeadPlan) -> bool:
        """Whether such a head has queries and keys."""
        return False

    def check_head(self, head: HeadPlan) -> None:
        """Raise ValueError, beginning with a field, for a line that makes no sense."""

    def check_layer(self, layer: LayerPlan) -> None:
        """Raise ValueError where a layer with such heads makes no sense."""

    def part_of(self, head: HeadPlan) -> str | None:
        """The part of the plan that this head's line needs."""
        return self.part

    def check_plan(self, head: HeadPlan, plan: Plan) -> None:
        """Raise ValueError, beginning with a field of the head, where the plan lacks what the head needs."""
        part = self.part_of(head)
        if part is not None and getattr(plan, part) is None:
            raise ValueError(f"source is '{self.name}', but the plan has no {part} part; make it with vitfrost plan")

    def needs_statistics(self, settings: Any) -> bool:
        """Whether its heads cannot be made without the statistics that the plan was made from."""
        return False

    def fit(self, layer: LayerPlan, plan: Plan, statistics: Statistics) -> Any:
        """What `make` takes from the statistics for a layer; None: nothing."""
        return None

    def make(self, site: AttentionSite, layer: LayerPlan, settings: Any, allowed: Tensor | None, fitted: Any) -> nn.Module:
        """The module of the layer's heads: outputs [rows, F, N, D] of their values [rows, F, M, D], and a method `maps` that gives
        [1 or windows, F, N, M]; with `of_logits`, maps [rows, g + F, N, M] of the logits [rows, g, N, M] of the heads that have some.

        `settings`: the source's configuration in the plan. `allowed`: the pairs [windows, N, M] that a shift mask leaves (None: all).
        `fitted`: of `fit`; None to load a state, to count, or to train from scratch. Raises VitfrostError for a layer without such maps.
        """
        raise NotImplementedError(f"{self.name} heads have no module")

    def macs(self, site: AttentionSite, layer: LayerPlan, settings: Any) -> int:
        """Multiply-accumulates per image of the module."""
        return 0


SOURCES: dict[str, MapSource] = {}


def register(source: MapSource) -> None:
    """Make a source known by its name to plans and artifacts. Raises ValueError for a name that is taken."""
    if source.name in SOURCES:
        raise ValueError(f"there is a source of maps named {source.name} already")
    SOURCES[source.name] = source
