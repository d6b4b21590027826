"""Bodies of /v1/chat/completions and of questions about a document."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from handscroll.serve.schemas.body import Body
from handscroll.serve.schemas.choosing import Choosing

MESSAGES = 10_000  # of a conversation


class Part(Body):
    """A part of a message: text."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """A message, as the template of the model reads it; other keys of it are handed to the template too."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1, max_length=64)
    content: str | list[Part] | None = None


class Speaking(Choosing):
    """What answers in turns have in common."""

    max_tokens: int | None = Field(default=None, ge=1, le=1 << 31)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 31, description="another name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="variables of the chat template")


Number = Annotated[str, Field(max_length=64)]
Numbers = Annotated[list[Number], Field(min_length=1, max_length=1000)] | Literal["all"]
Passages = Annotated[int, Field(ge=64, le=1 << 20)]


class Gathered(Body):
    """How documents are read: what "auto" does not read whole, it reads by passages that a search finds."""

    reading: Literal["whole", "auto", "passages"] | None = Field(default=None, description="whole, unless given")
    passages: Passages | None = Field(default=None, description="tokens of the passages that each question gets")


class ChatRequest(Speaking, Gathered):
    """An answer to messages, by the chat template of the model."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGES)
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128, description="handed to the template")
    tool_choice: Literal["auto", "none"] | None = None
    document: str | None = Field(default=None, max_length=64, description="a document that stands before the messages")
    documents: Numbers | None = Field(default=None, description="several documents, or all of one's own")


class Compared(Body):
    """What is told of a search beside the answer from the whole document."""

    passages: Passages | None = Field(default=None, description="tokens of the passages that the search passes on")
    explain: bool = Field(default=False, description="whether they hold what the answer from the whole rests on")


class AskRequest(Speaking, Gathered):
    """A question about one document. `history` are earlier questions and answers about it, in turns."""

    model: str = Field(default="", max_length=200, description="the model that has read it, unless there is one only")
    question: str = Field(min_length=1)
    history: list[ChatMessage] = Field(default_factory=list, max_length=MESSAGES)
    retrieval: Compared | None = Field(default=None, description="adds what a search would have seen")


class LibraryRequest(Speaking, Gathered):
    """A question about several documents, or all of one's own."""

    model: str = Field(default="", max_length=200, description="the first model that writes, unless given")
    documents: Numbers = Field(default="all", description="their ids")
    question: str = Field(min_length=1)
    history: list[ChatMessage] = Field(default_factory=list, max_length=MESSAGES)


class RetrievalRequest(Speaking, Compared):
    """A question about one document, answered from the whole and from what a search would have passed on.

    `answer` is the answer from the whole, if it is there already.
    """

    model: str = Field(default="", max_length=200, description="the model that has read it, unless there is one only")
    question: str = Field(min_length=1)
    history: list[ChatMessage] = Field(default_factory=list, max_length=MESSAGES)
    answer: str | None = Field(default=None, min_length=1)


class ExplainRequest(Body):
    """An answer about one document that is to be explained. `history` are the turns before its question."""

    model: str = Field(default="", max_length=200, description="the model that gave the answer")
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    history: list[ChatMessage] = Field(default_factory=list, max_length=MESSAGES)
    tried: int = Field(default=3, ge=0, le=64, description="passages that are left out in turn")
    passage: int = Field(default=64, ge=16, le=4096, description="the most tokens of a passage")
    alternatives: int = Field(default=3, ge=0, le=20, description="other tokens shown at each place of the answer")
