"""The base of what is written into files: unknown fields are named, values do not change, and what is wrong is said in one line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
