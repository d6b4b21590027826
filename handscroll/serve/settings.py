"""The settings of a server, and the limits that keep one request from harming the others."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from handscroll.base.config import Config

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Limits(Config):
    """What a request may be at most. Each refusal names the number that came and the one that is allowed."""

    body: Count = Field(default=16 << 20, description="bytes of a JSON body")
    values: Count = Field(
        default=250_000, description="commas of a JSON body; more if a context is more than half of it"
    )
    upload: Count = Field(default=100 << 20, description="bytes of an uploaded file")
    bodies: Count = Field(
        default=256 << 20,
        description="bytes of JSON bodies until they are parsed; one of several keys gets at most half",
    )
    uploads: Count = Field(
        default=1 << 30, description="bytes of all files that arrive at once; one of several keys gets at most half"
    )
    characters: Count = Field(default=64 << 20, description="characters of the text of an uploaded file")
    waiting: Count = Field(default=64, description="answers that are open at once, of all keys; more get 429")
    each: Count = Field(default=32, description="answers that are open at once, of one key")
    counting: Count = Field(
        default=16, description="counts of tokens and beginnings of readings, open at once, of one key"
    )
    watching: Count = Field(default=64, description="readings that one key follows at once")
    documents: Count = Field(default=1000, description="documents of one key")
    choices: Count = Field(default=64, description="answers of one request: prompts times n")
    texts: Count = Field(default=256, description="texts of one request for vectors")
    schema_bytes: Count = Field(default=64 << 10, description="bytes of a JSON schema or grammar")
    head_seconds: Seconds = Field(default=10, description="until the head of a request has arrived")
    body_seconds: Seconds = Field(default=60, description="until its body has, and longer for what has arrived")
    stalled_seconds: Seconds = Field(default=30, description="that a client may leave what was sent unread")
    extract_seconds: Seconds = Field(default=300, description="to turn an uploaded file into text")
    grace_seconds: Seconds = Field(default=30, description="for open answers when the server is told to stop")


class ModelSource(Config):
    """A model to serve: the `name` that requests give, its file or folder, and an adapter over it."""

    name: str
    source: str
    adapter: str = ""


class ServeSettings(Config):
    """All settings of a server.

    `memory` is the bytes of keys and values of each decoder (None: what its context needs, within what is free).
    `store` is the folder of documents and their readings. `hosts` and `origins` are accepted besides those of the
    machine itself.
    """

    models: tuple[ModelSource, ...] = Field(min_length=1)
    store: Path
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    memory: int | None = Field(default=None, ge=1)
    most: Count = 16  # answers that a decoder writes at once
    room: Count = 1024  # tokens that a reading keeps free for question and answer
    answer: Count = 1024  # tokens of an answer, where a request does not say
    readings: int = Field(default=20_000_000_000, ge=1)  # bytes of the readings of one key
    keys: Path | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str = "cpu"
    weights: str = ""
    limits: Limits = Limits()
