"""What bodies of requests have in common: strict types, no unknown fields."""

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """A body: values are not converted, numbers are finite, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream holds besides the answer."""

    include_usage: bool = Field(default=False, description="a last piece with the numbers of tokens")
