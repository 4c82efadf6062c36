"""What the commands' options are called and say, and how they print."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..configs.base import options_of
from ..configs.model import Colors, Crop, ModelPart, read_pairs
from ..configs.words import metavar, read_size, spelled
from ..errors import VitfrostError
from ..outputs import OutputKind

if TYPE_CHECKING:
    from ..model import Model

ArtifactOrNone = Annotated[Positional[Path | None], arg(metavar="ARTIFACT", help="an artifact folder (or give --model)")]
Weights = Annotated[
    str | None, arg(metavar="FILE", help="safetensors or a plain state dict; 'random' for untrained weights; else timm's own")
]
Device = Annotated[str, arg(metavar="DEVICE", help="where the model runs: cpu, or cuda where there is a GPU")]
_OPTIONS = {option.field: option for option in options_of(ModelPart)}


def _model_flag(field: str) -> Any:
    option = _OPTIONS[field]
    return arg(name=option.flag.name, metavar=metavar(option), help=option.help, help_behavior_hint="")


@dataclass(frozen=True)
class ModelFlags:
    """Which model, and where it runs."""

    model: Annotated[str | None, _model_flag("name")] = None
    weights: Annotated[str | None, _model_flag("weights")] = None
    image_size: Annotated[str | None, _model_flag("image_size")] = None
    classes: Annotated[int | None, _model_flag("classes")] = None
    mean: Annotated[Colors | None, _model_flag("mean")] = None
    std: Annotated[Colors | None, _model_flag("std")] = None
    crop_pct: Annotated[float | None, _model_flag("crop_pct")] = None
    crop_mode: Annotated[Crop | None, _model_flag("crop_mode")] = None
    class_names: Annotated[str | None, _model_flag("class_names")] = None
    outputs: Annotated[OutputKind | None, _model_flag("outputs")] = None
    model_option: Annotated[tuple[str, ...], _model_flag("options")] = ()
    device: Device = "cpu"

    def given(self) -> list[str]:
        """The flags that were given, as they are typed, but for the model itself."""
        others = [each for each in fields(self) if each.name != "model" and getattr(self, each.name) != each.default]
        return [spelled(each.name.replace("_", "-")) for each in others]

    def open(self, artifact: Path | None = None, *, exports: bool = False, untrained: bool = False) -> Model:
        """The artifact, or the model that the flags name; without weights that download them, or `untrained`.

        Raises VitfrostError unless just one is named, and as `Model.open` does.
        """
        named = one_of(artifact, self.model)
        from ..model import Model, refuse_export

        if not exports:
            refuse_export(named)
        given = {name: value for name, value in asdict(self).items() if name not in ("model", "model_option")}
        given["image_size"] = None if self.image_size is None else read_size(self.image_size)
        if untrained and artifact is None and self.weights is None:
            given["weights"] = "random"
        return Model.open(named, options=read_pairs(self.model_option), **given)


Flags = Annotated[ModelFlags, arg(name="")]


def one_of(artifact: Path | None, model: str | None) -> str | Path:
    """The artifact or the name of the model; raises VitfrostError unless just one is given."""
    if (artifact is None) == (model is None):
        raise VitfrostError("give either an ARTIFACT folder or --model NAME")
    return artifact if artifact is not None else str(model)


def show(renderable: Any) -> None:
    """Print a table, as wide as the terminal; tables are made for 80 columns."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 80).print(renderable)


def announce_simulation(plan: Any) -> None:
    """Say in one line that a plan's model is simulated, and which exports refuse it therefore."""
    bits = plan.quantize.parts
    if bits.any_activations:
        how = "" if plan.quantize.levels == "strict" or plan.quantize.method != "repq" else " (plan with --levels strict)"
        print(
            f"PyTorch simulates activations of {bits.of_activations} bits; vitfrost export --format native runs them{how}, other formats "
            "refuse them; to deploy in int8 there, plan with --activation-bits 32"
        )
