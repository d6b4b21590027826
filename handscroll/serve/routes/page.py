"""The page: static files, which everybody may fetch. What they show is asked of the interface, with the key."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi import Path as Given

from handscroll.serve.errors import ApiError
from handscroll.serve.policy import policy

router = APIRouter()
FOLDER = Path(__file__).parents[1] / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}


class Static(NamedTuple):
    """A file of the page."""

    content: bytes
    kind: str
    tag: str


@cache
def files() -> dict[str, Static]:
    """The files of the page by their names, read once: no request reaches another file."""
    found = {}
    for file in sorted(FOLDER.rglob("*")):
        if file.suffix in KINDS:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.relative_to(FOLDER).as_posix()] = Static(content, KINDS[file.suffix], tag)
    return found


@router.get("/", include_in_schema=False)
@policy("open")
async def page(request: Request) -> Response:
    """The page for people."""
    return _sent(request, files()["index.html"])


@router.get("/page/{name:path}", include_in_schema=False)
@policy("open")
async def part(name: Annotated[str, Given(max_length=200)], request: Request) -> Response:
    """A script, a style or a picture of it."""
    found = files().get(name)
    if found is None:
        raise ApiError(404, "the page has no such file", "not_found")
    return _sent(request, found)


def _sent(request: Request, found: Static) -> Response:
    """The file, or only the word that the browser has it already."""
    headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.kind, headers=headers)
