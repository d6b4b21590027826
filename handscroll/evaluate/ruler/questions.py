"""Questions about documents that a user gives, for the two question-answering tasks of RULER."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.data.table.fields import answers_in, text_in
from handscroll.data.table.read import read_table


@dataclass(frozen=True)
class Item:
    """A question, its right answers, and the numbers of the documents that hold them."""

    question: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions over a set of documents. `skipped` questions had no answer and are left out."""

    items: Sequence[Item]
    documents: Sequence[str]
    name: str
    skipped: int = 0

    def record(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr((item.question, item.answers, [self.documents[n] for n in item.documents])).encode())
        return {
            "source": self.name,
            "questions": len(self.items),
            "documents": len(self.documents),
            "skipped": self.skipped,
            "sha256": digest.hexdigest(),
        }


def asked_of(files: Sequence[str | Path], several: bool) -> Asked:
    """The questions in files: `several` documents each (HotpotQA's form), or one (SQuAD's form).

    In SQuAD's form a row has context, question and answers. In HotpotQA's form a file is a list, or has an object a
    line, with question, answer and context ([title, [sentence, ...]], ...). Questions without an answer are counted.

    Raises:
        DataError: a file cannot be read or has no such questions.
    """
    items: list[Item] = []
    numbers: dict[str, int] = {}
    skipped = 0

    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    rows = _hotpot(files) if several else _squad(files)
    for question, answers, contexts in rows:
        if not answers:
            skipped += 1
            continue
        items.append(Item(question, tuple(dict.fromkeys(answers)), tuple(number(text) for text in contexts)))
    name = ", ".join(map(str, files))
    if not items:
        raise DataError(f"{name}: no question has an answer ({skipped} have none)")
    return Asked(items, list(numbers), name, skipped)


def _squad(files: Sequence[str | Path]) -> list[tuple[str, list[str], list[str]]]:
    table = read_table([str(file) for file in files])
    missing = [name for name in ("context", "question", "answers") if name not in table.columns]
    if missing:
        raise DataError(f"{', '.join(map(str, files))}: no column {', '.join(missing)}; a question needs all three")
    found = []
    for row in table.records:
        question, context = (_words(row.values.get(name), row.place, name) for name in ("question", "context"))
        found.append((question, _answers(row.values.get("answers"), row.place), [context]))
    return found


def _words(value: Any, place: str, name: str) -> str:
    """A text that says something.

    Raises:
        DataError: it is blank, or no text.
    """
    if found := text_in(value, place, name).strip():
        return found
    raise DataError(f"{place}: no {name}; repair the row, or leave it out")


def _answers(value: Any, place: str) -> list[str]:
    return [one.strip() for one in answers_in(value, place, "answers")]


def _hotpot(files: Sequence[str | Path]) -> list[tuple[str, list[str], list[str]]]:
    found = []
    for file in files:
        place = str(file)
        try:
            text = Path(file).read_text(encoding="utf-8")
            whole = text.lstrip().startswith("[")
            rows = json.loads(text) if whole else [json.loads(one) for one in text.splitlines() if one.strip()]
            for number, row in enumerate(rows, start=1):
                place = f"{file}, row {number}"
                contexts = [f"{title}\n{''.join(parts)}".strip() for title, parts in row["context"]]
                found.append((_words(row["question"], place, "question"), _answers(row.get("answer"), place), contexts))
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from None
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place}: {error!r}; a question over several documents is an object with question, answer and context "
                "([title, [sentence, ...]], ...)"
            ) from None
    return found
