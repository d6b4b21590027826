"""Questions in the form of SQuAD (articles, paragraphs, questions; Rajpurkar et al. 2016) as one row a question."""

from collections.abc import Iterator
from typing import Any

from handscroll.base.errors import DataError
from handscroll.data.table.table import Ledger


def is_squad(value: Any) -> bool:
    """Whether a JSON value is a list of articles with paragraphs, alone or under `data`."""
    articles = value.get("data") if isinstance(value, dict) else value
    first = articles[0] if isinstance(articles, list) and articles else None
    return isinstance(first, dict) and isinstance(first.get("paragraphs"), list)


def squad_rows(value: Any, file: str, step: Ledger) -> Iterator[dict[str, Any]]:
    """A row for every question: id, title, context, question, answers, and what else the question holds.

    `answers` is a list of {"text", "answer_start"}. Where a start does not point at its text, the nearest place of the
    text is taken and counted as repaired; an answer that its context does not hold keeps no start (None), counted too.

    Raises:
        DataError: a paragraph has no context, or a question no text.
    """
    number = 0
    for article in value["data"] if isinstance(value, dict) else value:
        for paragraph in article.get("paragraphs") or []:
            context, title = paragraph.get("context"), article.get("title")
            if not isinstance(context, str):
                raise DataError(f"{file}: a paragraph of '{title or 'an article'}' has no 'context'; repair the file")
            for asked in paragraph.get("qas") or []:
                number += 1
                place = f"{file}, row {number}"
                if not isinstance(asked.get("question"), str):
                    raise DataError(f"{place}: the question has no text under 'question'; repair the file")
                rest = {name: inner for name, inner in asked.items() if name not in ("id", "question", "answers")}
                yield {
                    "id": asked.get("id"),
                    **({"title": title} if title is not None else {}),
                    "context": context,
                    "question": asked["question"],
                    "answers": [_placed(one, context, place, step) for one in asked.get("answers") or []],
                    **rest,
                }


def _placed(answer: Any, context: str, place: str, step: Ledger) -> dict[str, Any]:
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        raise DataError(f"{place}: an answer has no 'text'; repair the file")
    text, start = answer["text"], answer.get("answer_start")
    if isinstance(start, int) and start >= 0 and context.startswith(text, start):
        return {**answer}
    places, at = [], context.find(text)
    while text and at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    if not places:
        step.repair("answers that are not in their context and keep no start", place)
        return {**answer, "answer_start": None}
    step.repair("answers whose start did not point at them", place)
    wanted = start if isinstance(start, int) else 0
    return {**answer, "answer_start": min(places, key=lambda found: (abs(found - wanted), found))}
