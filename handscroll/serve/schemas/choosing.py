"""The settings that choose the tokens of an answer, which chats and completions share."""

from typing import Annotated, Any

from pydantic import Field

from handscroll.serve.schemas.body import Body, StreamOptions
from handscroll.serve.schemas.formats import Format

BIASES = 1024  # tokens that a request may favour or disfavour
Neutral = Annotated[float, Field(ge=0, le=0)]  # fields of OpenAI's interface that are not supported: only their 0 is
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Choosing(Body):
    """How tokens are chosen. What is left out comes from the checkpoint's own recommendations."""

    model: str = Field(max_length=200)
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 (greedy), or from 1e-10 to 2")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1 << 31)
    min_p: float | None = Field(default=None, ge=0, lt=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    presence_penalty: Neutral | None = Field(default=None, description="not supported: 0 only")
    frequency_penalty: Neutral | None = Field(default=None, description="not supported: 0 only")
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63, description="equal seeds give equal text")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = (
        Field(default=None, max_length=BIASES, description="added to the logits of tokens, by id")
    )
    n: int | None = Field(default=None, ge=1, le=128, description="answers to each prompt")
    response_format: Format | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(
        default=None, max_length=256, description="what one user's requests read, others never use"
    )

    @property
    def count(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def chosen(self) -> dict[str, Any]:
        """The settings of `Sampling` that were given."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
