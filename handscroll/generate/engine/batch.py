"""A file of requests answered by the engine into a file of answers, which a run that was killed goes on with.

One JSON object a line. A request is a "prompt" and, if wanted, the settings of `Sampling` and a "priority"; an answer
is its line's number, what it answers (a hash), text, tokens, finish and log-probability, in the order of the requests.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from handscroll.base.errors import ConfigError, DataError, HandscrollError
from handscroll.base.records import RecordWriter, read_records
from handscroll.generate.engine.engine import Engine
from handscroll.generate.engine.request import Request
from handscroll.generate.sample import Sampling
from handscroll.generate.stream import TextStream
from handscroll.models.fingerprint import fingerprint
from handscroll.text.tokenizer import Tokenizer

AHEAD = 64  # requests that are handed to the engine before they are answered
SHOWN = 5  # bad lines that a refusal quotes


class Line(Sampling):
    """One line of the file of requests."""

    prompt: str
    priority: int = 0


class Asked(NamedTuple):
    """A line with its number, counted from 1, and the ids of its prompt."""

    number: int
    line: Line
    ids: list[int]

    @property
    def sampling(self) -> Sampling:
        return Sampling(**self.line.model_dump(include=set(Sampling.model_fields)))


def read_requests(path: Path, engine: Engine, tokenizer: Tokenizer, beyond: bool = False) -> list[Asked]:
    """All lines of a file, checked: each can be answered by the engine.

    Raises:
        DataError: the file cannot be read or has no line, or some lines cannot be answered; names them and says why.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"requests {path} cannot be read: {error.strerror}; give a file of JSON lines") from None
    found: list[Asked] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, start=1):
        where = f"line {number}"
        try:
            parsed = Line.parse(_object(line), where)
            ids = tokenizer.encode(parsed.prompt)
            engine.check(ids, parsed, beyond=beyond, number=number)
            found.append(Asked(number, parsed, ids))
        except HandscrollError as error:
            wrong.append(str(error) if where in str(error) else f"{where}: {error}")
    if wrong:
        more = "" if len(wrong) <= SHOWN else f"\nand {len(wrong) - SHOWN} lines more"
        raise DataError(
            f"{path}: {len(wrong)} of {len(lines)} lines cannot be answered, and nothing was run:\n"
            + "\n".join(wrong[:SHOWN])
            + more
        )
    if not found:
        raise DataError(f'{path} has no line; write one JSON object a line, such as {{"prompt": "Once upon a time"}}')
    return found


def answer(
    requests: Sequence[Asked],
    engine: Engine,
    tokenizer: Tokenizer,
    out: Path,
    beyond: bool = False,
    on_answer: Callable[[int], None] = lambda done: None,
) -> int:
    """Answer all requests into `out`, durably and in order; returns how many answers were there before.

    `on_answer(done)` is called after every answer that was written.

    Raises:
        ConfigError: `out` holds answers to other requests, or of another model. CheckpointError: the disk refused.
    """
    model = f"{fingerprint(engine.model)} {engine.model.dtype} {engine.deterministic}"
    hashes = [hashlib.sha256(f"{model} {one.line.model_dump_json()}".encode()).hexdigest()[:16] for one in requests]
    kept = _kept(out, requests, hashes)
    waiting = list(zip(requests, hashes, strict=True))[kept:][::-1]
    open_ = _Open(engine, tokenizer, beyond)
    done = kept
    with RecordWriter(out) as writer:
        while waiting or open_.answers:
            while waiting and len(open_.answers) < AHEAD:
                open_.add(*waiting.pop())
            if ready := open_.ready():
                for record in ready:
                    writer.append(record)
                writer.sync()
                done += len(ready)
                on_answer(done)
            else:
                engine.step()
    return kept


@dataclass(eq=False)
class _Answer:
    asked: Asked
    digest: str
    request: Request
    text: TextStream
    pieces: list[str]

    def record(self) -> dict[str, Any]:
        return {
            "line": self.asked.number,
            "request": self.digest,
            "text": "".join([*self.pieces, self.text.finish()]),
            "tokens": len(self.request.answer),
            "finish": self.request.finish,
            "logprob": sum(self.request.logprobs),
        }


@dataclass(eq=False)
class _Open:
    """Answers that are being written, in the order of their lines."""

    engine: Engine
    tokenizer: Tokenizer
    beyond: bool
    answers: list[_Answer] = field(default_factory=list)

    def add(self, asked: Asked, digest: str) -> None:
        begun = self.engine.check(asked.ids, asked.line, beyond=self.beyond)
        text, pieces = TextStream(self.tokenizer, begun, asked.line.stop), []

        def push(token: int) -> bool:
            pieces.append(text.push(token))
            return text.stopped is not None

        request = self.engine.submit(asked.ids, asked.sampling, asked.line.priority, on_token=push, beyond=self.beyond)
        self.answers.append(_Answer(asked, digest, request, text, pieces))

    def ready(self) -> list[dict[str, Any]]:
        """What can be written now: the answers up to the first that is not finished."""
        count = next((n for n, one in enumerate(self.answers) if one.request.finish is None), len(self.answers))
        found, self.answers = self.answers[:count], self.answers[count:]
        return [one.record() for one in found]


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object, got {type(found).__name__}")
    return found


def _kept(out: Path, requests: Sequence[Asked], hashes: Sequence[str]) -> int:
    """How many answers `out` has; a last line that was cut off does not count."""
    if not out.exists():
        return 0
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give a file for the answers")
    records = list(read_records(out))
    for record, one, digest in zip(records, requests, hashes, strict=False):
        if (record.get("line"), record.get("request")) != (one.number, digest):
            raise ConfigError(
                f"{out} holds an answer to another request, model or mode than line {one.number}; "
                "give another file, or remove this one"
            )
    if len(records) > len(requests):
        raise ConfigError(f"{out} holds {len(records)} answers to {len(requests)} requests; give another file")
    return len(records)
