"""What the header of a statistics file says of a model's sites, with types and bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..strict import Count, Positive


class _Part(BaseModel):
    """Fields that later versions may add to."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Site(_Part):
    name: str
    heads: Positive
    maps: Annotated[list[Annotated[int, Field(ge=1, le=2**24)]], Field(min_length=4, max_length=4)]
    prefix_tokens: Count = 0

    @model_validator(mode="after")
    def _heads_of_maps(self) -> _Site:
        if self.maps[1] != self.heads or self.prefix_tokens > self.maps[2]:
            raise ValueError(f"heads are {self.heads} and prefix_tokens {self.prefix_tokens}, which do not go with maps {self.maps}")
        return self


class _FeedForward(_Part):
    name: str
    width: Positive
    hidden: Positive
    block: str = ""


class SiteHeader(_Part):
    """The part of a header that sites, plans and figures are made from."""

    sites: Annotated[list[_Site], Field(min_length=1)]
    precision: Literal["fp32", "quantized"]
    observed: Literal["before", "after"]
    images: Positive
    skipped: Count
    images_hash: Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")]
    seed: Count | None
    limit: Positive | None
    feed_forward: list[_FeedForward] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _different_names(cls, data: Any) -> Any:
        for part in ("sites", "feed_forward"):
            listed = data.get(part) if isinstance(data, dict) else None
            names = [site.get("name") for site in listed if isinstance(site, dict)] if isinstance(listed, list) else []
            if len(set(map(str, names))) < len(names):
                raise ValueError(f"{part} name one twice")
        return data
