"""Bodies of the endpoints for vectors and for counting tokens."""

from typing import Annotated, Any, Literal

from pydantic import Field

from handscroll.evaluate.brief import LEAST
from handscroll.serve.schemas.body import Body
from handscroll.serve.schemas.chat import MESSAGES, ChatMessage, Gathered, Numbers


class EmbeddingRequest(Body):
    """Vectors of texts. What is longer than the encoder reads is refused, unless `windows` reads it in windows."""

    model: str = Field(max_length=200)
    input: (
        Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=1 << 20, description="only the width that the encoder has")
    prompt: str | None = Field(default=None, max_length=100, description="name of one of the encoder's prompts")
    windows: bool | None = None


class CountRequest(Gathered):
    """A text, or messages as the model's template writes them, to be counted in the model's tokens."""

    model: str = Field(max_length=200)
    text: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=MESSAGES)
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128)
    document: str | None = Field(default=None, max_length=64)
    documents: Numbers | None = None


class TokeniseRequest(CountRequest):
    """The same, with the tokens."""


class DetokeniseRequest(Body):
    """Token ids whose text is wanted."""

    model: str = Field(max_length=200)
    tokens: list[Annotated[int, Field(ge=0, lt=1 << 31)]] = Field(max_length=1 << 20)


class ReportRequest(Body):
    """What is measured of a model: needles in texts of up to `longest` tokens, and the loss by position there."""

    longest: int | None = Field(default=None, ge=LEAST, le=1 << 20)
    needles: int = Field(default=2, ge=1, le=16, description="at each length and depth")
    document: str | None = Field(default=None, max_length=64, description="the text; without it, one that ships")
