"""`handscroll scores`: what the head of a model says of texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.options import Device, Dtype, text_or_input
from handscroll.cli.screen import screen, table

if TYPE_CHECKING:
    from handscroll.lm import LM

SHOWN = 60  # characters of a text
BEST = 5  # labels that are shown of many


def scores(
    model: Annotated[str, typer.Argument(help="A model with a head: a checkpoint folder or a hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; - reads one from standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="File with one text a line.")] = None,
    question: Annotated[
        str, typer.Option(help="Question or query, with which each text is read (answers, rerankers).")
    ] = "",
    windows: Annotated[
        bool, typer.Option("--windows", help="Read texts longer than the context in windows (approximate).")
    ] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the label of every token, not only names.")] = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Show what the head of MODEL says of TEXTS: scores of labels, names in a text, or an answer to a question."""
    from handscroll.lm import load

    names, given = _texts(texts or [], file)
    lm = load(model, device, dtype)
    head = lm.model.spec.head
    kind = "" if head is None else head.kind
    if tokens and kind != "tokens":
        raise ConfigError("--tokens is for heads that label tokens; leave it out")
    if kind == "answer":
        if not question:
            raise ConfigError("this model answers questions about a text: give --question")
        columns, rows = ("score", "answer", "from", "to"), _answers(lm, question, given, windows)
    elif kind == "tokens":
        if question:
            raise ConfigError("--question is for heads of whole texts and of answers; leave it out")
        columns, rows = ("score", "label", "text", "from", "to"), _tags(lm, given, windows, tokens)
    else:
        columns, rows = _labels(lm, given, question, windows)
    several = len(given) > 1
    shown = [(names[number], *row) if several else row for number, row in rows]
    screen().print(table(("text", *columns) if several else columns, shown))


def _texts(texts: list[str], file: Path | None) -> tuple[list[str], list[str]]:
    """The texts and their names: numbers, and lines of the file, of which empty ones are no texts."""
    names, found = [str(number) for number in range(len(texts))], [text_or_input(text) for text in texts]
    if file is not None:
        from handscroll.text.files import lines_of
        from handscroll.text.readers import read

        documents = list(read([str(file)]))
        for count, document in enumerate(documents, 1):
            place = "line" if len(documents) == 1 else f"document {count}, line"
            full = [(number, line) for number, line in lines_of([document.text]) if line.strip()]
            names += [f"{place} {number}" for number, _ in full]
            found += [line for _, line in full]
    if not found:
        raise DataError("no text was given: name texts, or give --file FILE with one a line")
    return names, found


def _labels(lm: "LM", texts: list[str], question: str, windows: bool) -> tuple[tuple[str, ...], Any]:
    """One row a text: its scores, or of many labels the likeliest."""
    pairs = [(question, text) for text in texts] if question else texts
    head = lm.model.spec.head
    plain = head is None or head.problem == "number"
    found = lm.scores(pairs, windows) if plain else lm.classify(pairs, windows)
    if len(lm.labels) <= BEST:
        rows = [
            (number, (*values, _short(text)))
            for number, (values, text) in enumerate(zip(found.tolist(), texts, strict=True))
        ]
        return (*lm.labels, "of"), rows
    rows = []
    for number, (values, text) in enumerate(zip(found, texts, strict=True)):
        best = values.topk(BEST)
        told = ", ".join(f"{lm.labels[at]} {value:.3f}" for value, at in zip(*(x.tolist() for x in best), strict=True))
        rows.append((number, (told, _short(text))))
    return ("likeliest labels", "of"), rows


def _tags(lm: "LM", texts: list[str], windows: bool, every: bool) -> list[tuple[int, tuple[Any, ...]]]:
    from handscroll.models.labels import entities

    rows = []
    for number, (text, tags) in enumerate(zip(texts, lm.tag(texts, windows), strict=True)):
        for tag in tags if every else entities(tags, text):
            rows.append((number, (tag.score, tag.label, tag.text, tag.start, tag.end)))
    return rows


def _answers(lm: "LM", question: str, texts: list[str], windows: bool) -> list[tuple[int, tuple[Any, ...]]]:
    found = ((number, lm.answers(question, text, windows=windows)[0]) for number, text in enumerate(texts))
    return [(number, (best.score, best.text, best.start, best.end)) for number, best in found]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def register(app: typer.Typer) -> None:
    app.command()(scores)
