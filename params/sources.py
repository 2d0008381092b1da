"""Where published values come from: the model of `params/published/sources.yaml`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Source(BaseModel):
    """A publication, and what differs there from this benchmark's protocol."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: str = Field(min_length=1)
    url: str = Field(pattern=r"^https?://", description="a web address")
    year: int
    protocol: str = Field(min_length=1, description="one line: what differs from ours")


SOURCES = TypeAdapter(dict[str, Source])
