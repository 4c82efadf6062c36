"""What the commands' options are called and say, and how they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from ..errors import VitfrostError

Crop = Literal["center", "squash", "border"]
ArtifactOrNone = Annotated[Positional[Path | None], arg(metavar="ARTIFACT", help="an artifact folder (or give --model)")]
Model = Annotated[str | None, arg(metavar="NAME", help="a timm model name, such as deit_tiny_patch16_224")]
Weights = Annotated[
    str | None, arg(metavar="FILE", help="safetensors or a plain state dict; 'random' for untrained weights; else timm's own")
]
Size = Annotated[int | None, arg(metavar="PX", help="input size, if not the model's own")]
CropShare = Annotated[float | None, arg(metavar="SHARE", help="share of the resized image that is kept; else the model's own")]
Device = Annotated[str, arg(metavar="DEVICE", help="where the model runs: cpu, or cuda where there is a GPU")]
CropMode = Annotated[Crop | None, arg(help="how the crop is made; 'squash' resizes both sides to the input size")]


def one_of(artifact: Path | None, model: str | None) -> str | Path:
    """The artifact or the name of the model; raises VitfrostError unless just one is given."""
    if (artifact is None) == (model is None):
        raise VitfrostError("give either an ARTIFACT folder or --model NAME")
    return artifact if artifact is not None else str(model)


def opened(
    artifact: Path | None,
    model: str | None,
    weights: str | None,
    image_size: int | None,
    crop_pct: float | None,
    crop_mode: Crop | None,
) -> Any:
    """The model that is named."""
    from ..models import open_model

    return open_model(one_of(artifact, model), weights, image_size, crop_pct=crop_pct, crop_mode=crop_mode)


def show(renderable: Any) -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(renderable)
