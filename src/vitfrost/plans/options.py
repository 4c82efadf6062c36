"""The parts of a plan out of a caller's options; what is wrong is said in the options' own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import VitfrostError
from ..strict import describe
from .structure import CompactPlan, HallucinatePlan

HALLUCINATE_NAMES = {"share": "hallucinate", "by": "hallucinate_by", "bias": "map_bias"}
COMPACT_NAMES = {"ratio": "compact", "init": "compact_init", "blocks": "compact_blocks", "norm": "branch_norm"}

Part = TypeVar("Part", bound=BaseModel)


def checked(part: type[Part], fields: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Part:
    """A part of a plan out of a caller's options. Raises VitfrostError that calls the fields by the options' `names`."""
    try:
        return part.model_validate(dict(fields))
    except ValidationError as error:
        raise VitfrostError(describe(error, names)) from error


def hallucinate_part(asked: float | Mapping[str, Any] | HallucinatePlan, by: str = "medoids") -> HallucinatePlan:
    """The part that a share, or its fields, ask for. Heads are chosen `by` unless the fields say how. Raises VitfrostError."""
    if isinstance(asked, HallucinatePlan):
        return asked
    return checked(HallucinatePlan, {"by": by} | (dict(asked) if isinstance(asked, Mapping) else {"share": asked}), HALLUCINATE_NAMES)


def compact_part(asked: float | Mapping[str, Any] | CompactPlan) -> CompactPlan:
    """The part that a ratio, or its fields, ask for. Raises VitfrostError."""
    if isinstance(asked, CompactPlan):
        return asked
    return checked(CompactPlan, asked if isinstance(asked, Mapping) else {"ratio": asked}, COMPACT_NAMES)
