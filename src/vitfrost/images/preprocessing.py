"""How pictures become what a model reads: a typed, plain description that every part passes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, Unpack

from ..errors import VitfrostError

CROP_MODES = ("center", "border", "squash")
LARGEST_SIDE, SMALLEST_CROP = 16384, 0.01
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Reading(TypedDict, total=False):
    """What a caller says of how pictures are read, in the place of what the model says (None: as it says)."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    crop_pct: float | None
    crop_mode: str | None
    interpolation: str | None


@dataclass(frozen=True)
class Preprocessing:
    """timm's data configuration, with one addition.

    input_size: channels, height and width in pixels.
    mean, std: of each color channel, in units of the full range; a pixel becomes (x / 255 - mean) / std.
    crop_pct: share of the resized picture that is kept. crop_mode: "center", "border" or "squash".
    whole_squares: a square picture smaller than what the center crop is cut from has been prepared for the model already; enlarging
    it only to cut its border off would undo that, so it is taken whole, resized straight to the input size.

    Raises VitfrostError for values that timm has no meaning for.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    crop_mode: str
    interpolation: str
    whole_squares: bool = False

    def __post_init__(self) -> None:
        kinds = {"input_size": int, "mean": float, "std": float}
        for name, kind in kinds.items():
            object.__setattr__(self, name, tuple(kind(value) for value in getattr(self, name)))
        object.__setattr__(self, "crop_pct", float(self.crop_pct))
        object.__setattr__(self, "whole_squares", bool(self.whole_squares))
        if len(self.input_size) != 3 or self.input_size[0] != 3 or min(self.input_size) < 1:
            raise VitfrostError(f"the input size {list(self.input_size)} is not (3, height, width); only RGB models are supported")
        if max(self.input_size) > LARGEST_SIDE:
            raise VitfrostError(f"the input size {list(self.input_size)} is out of range; give at most {LARGEST_SIDE} px")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise VitfrostError(f"the {name} has {len(getattr(self, name))} values; give three, for red, green and blue")
        if not all(1e-4 <= value <= 1e4 for value in self.std):
            raise VitfrostError(f"the std {list(self.std)} is out of range; give numbers above 0, in units of the full range")
        if not all(abs(value) <= 1e4 for value in self.mean):
            raise VitfrostError(f"the mean {list(self.mean)} is out of range; give numbers in units of the full range")
        if not SMALLEST_CROP <= self.crop_pct <= 1:
            least = f", {SMALLEST_CROP} or more" if self.crop_pct > 0 else ""
            raise VitfrostError(f"crop_pct {self.crop_pct} is out of range; give a number above 0 and at most 1{least}")
        for name, known in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in known:
                raise VitfrostError(f"{name} '{getattr(self, name)}' is unknown; choose one of {', '.join(known)}")

    @classmethod
    def from_plain(cls, config: Mapping[str, Any]) -> Preprocessing:
        """From timm's configuration or a file's; what else stands in it is left out. Raises KeyError where something is missing."""
        required = {field.name: config[field.name] for field in fields(cls) if field.name != "whole_squares"}
        kinds = {"input_size": int, "mean": float, "std": float}  # a file has lists, and 0 for 0.0
        required |= {name: tuple(map(kind, required[name])) for name, kind in kinds.items()} | {"crop_pct": float(required["crop_pct"])}
        return cls(**required, whole_squares=config.get("whole_squares", False))

    def plain(self) -> dict[str, Any]:
        """As JSON has it, enough to build the same again."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def changed(self, **reading: Unpack[Reading]) -> Preprocessing:
        """With other values where they are given. A crop that is given is made on every picture, whole squares included."""
        values: dict[str, Any] = {name: value for name, value in reading.items() if value is not None}
        values |= {name: tuple(values[name]) for name in ("mean", "std") if name in values}
        crops = "crop_pct" in values or "crop_mode" in values
        return replace(self, whole_squares=self.whole_squares and not crops, **values)

    def at(self, image_size: tuple[int, int]) -> Preprocessing:
        """For another height and width in pixels."""
        return replace(self, input_size=(self.input_size[0], *image_size))
