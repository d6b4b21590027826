"""The process that turns an uploaded file into text: `python -m handscroll.serve.documents.extract FILE SECONDS`.

A file may come from anywhere, so it is opened where a crash, a loop or a flood of memory ends this process alone
(`text/readers.py` has limits of its own against packed files that grow). It writes one JSON object.
"""

import json
import logging
import resource
import signal
import sys
from pathlib import Path
from typing import Any

MEMORY = 4 << 30  # bytes of address space
FILES = 1 << 30  # bytes of a file that it may write: a temporary one


class _Notes(logging.Handler):
    """Keeps what the readers say."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(arguments: list[str]) -> None:
    file, seconds = Path(arguments[0]), int(arguments[1])
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    signal.alarm(seconds)
    sys.stdout.buffer.write(json.dumps(extracted(file)).encode())


def extracted(file: Path) -> dict[str, Any]:
    """The text of a file, its places and what was left out of it; or the error."""
    from handscroll.base.errors import HandscrollError
    from handscroll.serve.documents.rows import row
    from handscroll.text.readers import Reader

    notes = _Notes()
    logging.getLogger("handscroll.files").addHandler(notes)
    try:
        found = list(Reader(whole_rows=True).read([file]))
    except HandscrollError as error:
        return {"error": _named(str(error).removeprefix(f"{file}: "), file)}
    if len(found) == 1:
        places = [list(place) for place in found[0].places]
        text = found[0].text
    else:  # lines or rows, each a document of its own
        text, places = "", []
        for one in found:
            places.append([len(text), row(one.source.rpartition(":")[2])])
            text += one.text + "\n\n"
    return {"text": text, "places": places, "notes": [_named(line, file) for line in notes.lines]}


def _named(message: str, file: Path) -> str:
    """A message in which the file has no path."""
    return message.replace(str(file), "the file").replace(str(file.resolve()), "the file")


if __name__ == "__main__":
    main(sys.argv[1:])
