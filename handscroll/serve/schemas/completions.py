"""Body of /v1/completions."""

from typing import Annotated

from pydantic import Field

from handscroll.serve.schemas.choosing import Choosing

DEFAULT = 16  # tokens, as in OpenAI's interface
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(Choosing):
    """The continuation of one or several texts, or of token ids."""

    prompt: str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)]
    suffix: str | None = Field(default=None, description="what stands behind the hole that is filled (code models)")
    max_tokens: int | None = Field(default=None, ge=0, le=1 << 31, description="16 unless given; 0 only with echo")
    echo: bool | None = Field(default=None, description="the prompt stands before the answer, with its logprobs")
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: Annotated[int, Field(ge=1, le=1)] | None = Field(default=None, description="not supported: 1 only")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and isinstance(given[0], int):
            return [given]  # type: ignore[list-item]
        return list(given)  # type: ignore[arg-type]

    @property
    def limit(self) -> int:
        """The most new tokens."""
        return DEFAULT if self.max_tokens is None else self.max_tokens
