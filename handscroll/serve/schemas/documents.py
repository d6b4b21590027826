"""Bodies of the endpoints for documents."""

from pydantic import Field

from handscroll.serve.schemas.body import Body


class ReadRequest(Body):
    """Which model reads a document."""

    model: str = Field(max_length=200)
