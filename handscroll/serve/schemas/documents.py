"""Bodies of the endpoints for documents."""

from pydantic import Field

from handscroll.serve.schemas.body import Body
from handscroll.serve.schemas.chat import Numbers


class ReadRequest(Body):
    """Which model reads a document."""

    model: str = Field(max_length=200)


class SearchRequest(Body):
    """What is looked for in some documents, or in all of one's own."""

    query: str = Field(min_length=1, max_length=10_000)
    documents: Numbers = Field(default="all", description="their ids")
    count: int = Field(default=10, ge=1, le=100, description="passages at most")
