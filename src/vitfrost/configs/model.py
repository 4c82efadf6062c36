"""Which model is meant by a name, and what it is given: the model part of recipes, and the model flags of every command."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from ..outputs import OutputKind
from .base import PYTHON_ONLY, Flag, Positive, config

Crop = Literal["center", "squash", "border"]
Colors = tuple[float, float, float]


@config
class ModelPart:
    """A timm model, with weights and a head of your own if you like."""

    name: Annotated[str, Flag("model", "NAME")]
    """A timm model name, such as deit_tiny_patch16_224."""
    weights: Annotated[str | None, Flag(metavar="FILE")] = None
    """Safetensors, or a checkpoint with a state dict (averaged weights first, FILE#KEY for others; prefixes taken off); 'random' for
    untrained weights; else timm's own."""
    image_size: Annotated[int | tuple[int, int] | None, Flag(metavar="PX")] = None
    """Input size in pixels, or height x width (256x128), if not the model's own."""
    classes: Annotated[Positive | None, Flag(metavar="COUNT")] = None
    """Number of classes; that of the weights' head if not given."""
    mean: Annotated[Colors | None, Flag(metavar="R G B")] = None
    """Mean of red, green and blue that pixels are normalized with, in units of the full range; else the model's own."""
    std: Annotated[Colors | None, Flag(metavar="R G B")] = None
    """Standard deviation that pixels are normalized with, likewise."""
    crop_pct: Annotated[float | None, Field(gt=0, le=1), Flag(metavar="SHARE")] = None
    """Share of the resized picture that is kept; else the model's own."""
    crop_mode: Crop | None = None
    """How the crop is made; 'squash' resizes both sides to the input size."""
    class_names: Annotated[str | None, Flag(metavar="FILE")] = None
    """Text file with the names of the classes, one a line, in order; ImageNet's are known."""
    outputs: OutputKind | None = None
    """What the outputs are: `classes`, an `embedding`, or `tokens`, those of the last layer instead of a pooled vector. If not given, an
    embedding without a classifier and of towers that were trained to meet a text (CLIP), else classes."""
    options: Annotated[dict[str, Any], Flag("model-option", "KEY=VALUE")] = Field(default_factory=dict)
    """Further options of timm's model, such as depth=6 or global_pool=avg."""
    whole_squares: Annotated[bool, PYTHON_ONLY] = False
    """Take square pictures that are smaller than what the crop is cut from whole (see docs/options.md), although a crop is asked for;
    without a crop here the model does so anyway."""

    def settings(self) -> dict[str, Any]:
        """What tells a run's stages whether they were made of the same model; fields that later versions added only where they are set."""
        data = asdict(self)
        since = ("classes", "mean", "std", "class_names", "options", "outputs")
        return {name: value for name, value in data.items() if name not in since or value}


def read_pairs(words: tuple[str, ...]) -> dict[str, Any]:
    """Options out of KEY=VALUE words; values are read as YAML reads them. Raises VitfrostError for a word without a key."""
    import yaml

    from ..errors import VitfrostError

    pairs: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise VitfrostError(f"--model-option is '{word}'; give KEY=VALUE, such as depth=6")
        pairs[key] = yaml.safe_load(value)
    return pairs
