"""Which heads to window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..configs import WindowHeads
from ..errors import VitfrostError
from ..map_sources.frozen import shape_of
from ..map_sources.outside import mass_outside
from .criteria import HeadArrays, SiteArrays
from .heads import HeadPlan, LayerPlan
from .select import share


def windowed_by_mass(
    layers: Sequence[LayerPlan], settings: WindowHeads, sites: Mapping[str, SiteArrays | HeadArrays], image_size: Sequence[int]
) -> list[LayerPlan]:
    """The layers with the share of all heads windowed whose mass outside the window is least, among those that are computed.

    Raises VitfrostError where there are too few.
    """
    masses: dict[tuple[int, int], float] = {}
    for place, layer in enumerate(layers):
        shape = shape_of(layer, image_size)
        if layer.maps[0] == 1 and shape is not None and not layer.hallucinated:
            for head in (number for number, line in enumerate(layer.heads) if line.source == "computed"):
                masses[place, head] = mass_outside(sites[layer.site], shape, head, settings.window)
    assert settings.ratio is not None
    count = share(settings.ratio, sum(layer.maps[1] for layer in layers))
    if count > len(masses):
        raise VitfrostError(f"WindowHeads.ratio is {settings.ratio}, that is {count} heads, but only {len(masses)} can be; give less")
    chosen = sorted(masses, key=lambda key: (masses[key], key))[:count]
    made = []
    for place, layer in enumerate(layers):
        lines = list(layer.heads)
        for head in (head for number, head in chosen if number == place):
            why = f"{100 * masses[place, head]:.1f} % of the mass outside"
            lines[head] = HeadPlan(source="windowed", window=settings.window, why=why)
        made.append(LayerPlan.model_validate(layer.model_dump() | {"heads": [line.model_dump() for line in lines]}))
    return made
