"""A head's map as a picture: where the class token looks, or the patches on average."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from ..errors import VitfrostError
from ..images.decode import UnusableFile, read_regular, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .record import Statistics

SHOWN = ("mean", "variance", "entropy")


def plot_head(
    statistics: Statistics, site: str, head: int, picture: str | Path | Image.Image | None = None, *, of: str = "mean", window: int = 0
) -> Figure:
    """A matplotlib figure of what a head looks at, over a picture where one is given; see `Statistics.plot`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if of not in SHOWN:
        raise VitfrostError(f"there is no '{of}' to show; give one of {', '.join(SHOWN)}")
    known = statistics[site]
    windows, heads, _, _ = known.maps_shape
    for what, number, count in (("head", head, heads), ("window", window, windows)):
        if not 0 <= number < count:
            raise VitfrostError(f"{site} has no {what} {number}; its {what}s are 0 to {count - 1}")
    about = next(each for each in statistics.header.sites if each["name"] == site)
    prefix, size = about.get("prefix_tokens", 0), statistics.header.model.image_size
    shown = over_keys(getattr(known, of)[window, head], prefix, size if windows == 1 else (1, 1))
    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    if picture is not None:
        below = picture if isinstance(picture, Image.Image) else _opened(picture)
        axes.imshow(np.asarray(below.convert("RGB")), extent=(0, 1, 1, 0))
    drawn = axes.imshow(shown, extent=(0, 1, 1, 0), alpha=1.0 if picture is None else 0.6, interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.8)
    reader = "class token" if prefix else "patches, mean"
    axes.set_title(f"{site}, head {head}: {of}, {reader}", fontsize=9)
    axes.set_axis_off()
    return figure


def _opened(path: str | Path) -> Image.Image:
    try:
        return to_rgb(Image.open(BytesIO(read_regular(Path(path)))))
    except (OSError, UnusableFile) as error:
        raise VitfrostError(f"the picture {path} cannot be read: {error}") from error


def over_keys(values: Float[np.ndarray, "queries keys"], prefix: int, image_size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """What the class token's row, else the mean over all rows, has for the keys that lie on a grid of the image's proportions.

    Raises VitfrostError for keys that lie on no such grid.
    """
    row = (values[0] if prefix else values.mean(0))[prefix:]
    height = round((len(row) * image_size[0] / image_size[1]) ** 0.5)
    if not height or len(row) % height:
        raise VitfrostError(f"{len(row)} keys lie on no grid over the picture, so this head's map cannot be shown")
    return row.reshape(height, -1)
