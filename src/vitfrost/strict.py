"""The base of what is written into files: unknown fields are named, values do not change, and what is wrong is said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import field_path, shown

Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]


class Strict(BaseModel):
    """Refuses fields that it does not know, numbers that are not finite, and changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"{str(key)[:60]} is not known here; the fields are {', '.join(cls.model_fields)}")
        return data


def describe(error: ValidationError, names: Mapping[str, str] | None = None) -> str:
    """The first problem in one line: field path, value, what is allowed. `names` renames fields to a caller's options."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path = field_path(_without_kinds(first["loc"]))
    path = (names or {}).get(path, path)
    if first["type"] == "value_error":
        text = f"{path}.{first['ctx']['error']}" if path else str(first["ctx"]["error"])
    elif first["type"] == "missing":
        text = f"{path} is missing"
    else:
        text = f"{path or 'it'} is {shown(first['input'])}; {first['msg'].replace('Input', 'it')}"
    more = len({_without_kinds(problem["loc"]) for problem in problems}) - 1
    return text + (f" (and {more} more {'problems' if more > 1 else 'problem'})" if more else "")


def _without_kinds(location: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where a value is, without the kinds that pydantic tried where several are allowed."""
    return tuple(part for part in location if not (isinstance(part, str) and part.startswith(("constrained-", "tuple[", "list["))))
