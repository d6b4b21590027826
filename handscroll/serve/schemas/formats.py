"""Which form an answer must have: a JSON schema, any JSON object, a grammar, an expression or one of some texts."""

from typing import Annotated, Any, Literal

from pydantic import Field

from handscroll.serve.schemas.body import Body


class Text(Body):
    """Any text."""

    type: Literal["text"]


class JsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A JSON schema; the answer is always valid under it, so `strict` changes nothing."""

    name: str = Field(default="", max_length=100)
    description: str | None = Field(default=None, max_length=4096)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class BySchema(Body):
    """A JSON document that is valid under a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ByGrammar(Body):
    """A text of a grammar in llguidance's variant of Lark."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1)


class ByExpression(Body):
    """A text that a regular expression matches as a whole."""

    type: Literal["regex"]
    regex: str = Field(min_length=1, max_length=4096)


class ByChoice(Body):
    """One of some texts."""

    type: Literal["choice"]
    choices: list[Annotated[str, Field(min_length=1, max_length=4096)]] = Field(min_length=1, max_length=1024)


Format = Annotated[
    Text | JsonObject | BySchema | ByGrammar | ByExpression | ByChoice,
    Field(discriminator="type"),
]
