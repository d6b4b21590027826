"""The forms in which sets of long tasks come as rows: recognised by their columns, and made into `Item`s.

Bai et al. 2023 and 2024 (LongBench, LongBench v2), Li et al. 2023 (LooGLE), An et al. 2023 (L-Eval), Zhong et al. 2021
(QMSum), Cobbe et al. 2021 (GSM8K), Suzgun et al. 2022 (BIG-Bench Hard); any other table by its columns. Every row gives
questions or is counted as left out with its reason.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.data.table.fields import Field, answers_of, match
from handscroll.data.table.read import read_table
from handscroll.data.table.table import Account, Ledger, Record, Table, columns_of
from handscroll.evaluate.questions.item import WHOLE, Item
from handscroll.evaluate.questions.judge import number_in
from handscroll.metrics.texts import language_of
from handscroll.text.files import Paths

Items = Iterator[Item]
CLASSES = 12  # most different answers of a set that are taken for names of classes

# The sets of LongBench: how each is asked and judged, and the most tokens of an answer there.
_LONGBENCH: Mapping[str, tuple[str, str, int]] = {
    **dict.fromkeys(("narrativeqa", "qasper", "dureader"), ("answer", "words", 128)),
    **dict.fromkeys(("multifieldqa_en", "multifieldqa_zh"), ("answer", "words", 64)),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), ("answer", "words", 32)),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "vcsum"), ("summary", "summary", 512)),
    "triviaqa": ("examples", "words", 32),
    "samsum": ("examples", "summary", 128),
    **dict.fromkeys(("trec", "lsht"), ("examples", "class", 64)),
    **dict.fromkeys(("passage_retrieval_en", "passage_retrieval_zh"), ("paragraph", "number", 32)),
    "passage_count": ("count", "number", 32),
    **dict.fromkeys(("lcc", "repobench-p"), ("code", "code", 64)),
}
_MARK = re.compile(r"<mask-\d+>")
_SPEAKERS = re.compile(r"\{(?:disfmarker|vocalsound|pause|nonvocalsound|gap)\}")


@dataclass(frozen=True)
class Form:
    """A form of rows: it `needs` these columns and has none of `lacks`; `says` is the mapping, as it is shown."""

    name: str
    needs: frozenset[str]
    says: str
    items: Callable[[Record], Items]
    lacks: frozenset[str] = frozenset()
    shows: Callable[[Record], bool] = lambda record: True  # what the first row must show besides

    def fits(self, columns: Sequence[str], first: Record) -> bool:
        return self.needs <= set(columns) and not self.lacks & set(columns) and self.shows(first)


@dataclass(frozen=True)
class Sheet:
    """One file: its form, the mapping of its columns, its questions, and the account of its rows."""

    file: str
    form: str
    says: str
    items: tuple[Item, ...]
    account: Account

    @property
    def documents(self) -> int:
        return len({item.document for item in self.items if item.document})


def read_sheets(paths: Paths, columns: Mapping[str, str] | None = None) -> list[Sheet]:
    """The questions of every file, in order. `columns` (field to column) reads the files as a plain table.

    Raises:
        DataError: a file cannot be read, has no form that is known, or gives no question.
    """
    table = read_table(paths)
    files = dict.fromkeys(record.file for record in table)
    sheets = [_sheet(table, file, columns) for file in files]
    named = [sheet.items[0].task for sheet in sheets]
    twice = {name for name in named if named.count(name) > 1}
    return [_told_apart(sheet) if sheet.items[0].task in twice else sheet for sheet in sheets]


def _told_apart(sheet: Sheet) -> Sheet:
    return replace(sheet, items=tuple(replace(item, task=f"{item.task} ({sheet.file})") for item in sheet.items))


def _sheet(table: Table, file: str, columns: Mapping[str, str] | None) -> Sheet:
    own = [record for record in table if record.file == file]
    names, step = columns_of(own), Ledger()
    form = None if columns else next((form for form in FORMS if form.fits(names, own[0])), None)
    if form is None:
        part = Table(tuple(own), names, Account(len(own)))
        form = _plain(part, columns or {})
    items: list[Item] = []
    for record in own:
        found = list(form.items(record))
        if not found:
            step.leave_out("rows that ask nothing, or have no answer", record.place)
        items += found
    if not items:
        raise DataError(f"{file}: read as {form.name} ({form.says}), but no row has a question with an answer")
    about = tuple(note for note in table.account.notes if note.startswith(file))
    return Sheet(file, form.name, form.says, tuple(_alike(items)), step.onto(Account(len(own), notes=about)))


def _alike(items: Sequence[Item]) -> list[Item]:
    """The items, short answers judged by what they are in the whole file: letters, numbers, names of classes."""
    if any(item.asks != "short" for item in items):
        return list(items)
    wanted = list(dict.fromkeys(item.wanted[0].strip() for item in items))
    if all(re.fullmatch(r"\([A-Z]\)", one) for one in wanted):
        return [replace(item, judge="letter", wanted=(item.wanted[0].strip("() "),)) for item in items]
    if all(number_in(one) is not None and re.fullmatch(r"[-+$]?[\d.,]+", one) for one in wanted):
        return [replace(item, judge="number", most=16) for item in items]
    if len(wanted) <= CLASSES:
        return [replace(item, judge="class", choices=tuple(wanted)) for item in items]
    return list(items)


def _text(record: Record, name: str) -> str:
    """The text under a name, "" where there is none (some files write the word none)."""
    value = record.get(name)
    return "" if not isinstance(value, str) or value.strip().casefold() in ("", "none", "null") else value


def _task(record: Record) -> str:
    return Path(record.file).name.partition(".")[0]


def _longbench(record: Record) -> Items:
    name = (_text(record, "dataset") or _task(record)).removesuffix("_e")
    asks, judge, most = _LONGBENCH.get(name, ("answer", "words", 64))
    document, question = _text(record, "context"), _text(record, "input")
    language = "zh" if record.get("language") == "zh" else language_of([document[:2000] + question])
    wanted = tuple(one for one in record.get("answers") or () if isinstance(one, str))
    if asks == "summary" and not question:
        question = WHOLE[language]
    if asks == "code":
        document, question = "", document + question
    classes = tuple(str(one) for one in record.get("all_classes") or ())
    if wanted and (document or question):
        yield Item(name, record.place, asks, judge, question, wanted, document, classes, (), language, most=most)


def _longbench2(record: Record) -> Items:
    choices = tuple(str(record.get(f"choice_{letter}")) for letter in "ABCD")
    right, question = _text(record, "answer").strip().upper(), _text(record, "question")
    if question and right in tuple("ABCD"):
        document = _text(record, "context")
        language = language_of([question])
        yield Item(_task(record), record.place, "choice", "letter", question, (right,), document, choices, (), language)


def _loogle(record: Record) -> Items:
    document, task = _text(record, "input"), _task(record)
    asked, language = _literal(record, "qa_pairs"), language_of([document[:4000]])
    summary = _text(record, "output")
    if not asked and summary and document:
        yield Item(task, record.place, "summary", "summary", WHOLE[language], (summary,), document, language=language)
    for number, pair in enumerate(asked, start=1):
        question, right = pair.get("Q"), pair.get("A")
        place = f"{record.place}, question {number}"
        if isinstance(right, Mapping):
            # The marks of a text in their order; one that the answers lack is not asked for.
            marks = tuple(mark for mark in dict.fromkeys(_MARK.findall(str(question))) if right.get(mark))
            wanted, how = tuple(str(right[mark]) for mark in marks), ("blanks", "blanks")
        else:
            marks, wanted, how = (), (str(right),), ("answer", "words")
        if question and right and wanted:
            yield Item(task, place, *how, str(question), wanted, document, (), marks, language)


def _literal(record: Record, name: str) -> list[dict[str, Any]]:
    """A list of objects that is written as JSON, or as Python writes it."""
    value = record.get(name)
    if isinstance(value, str):
        if not _text(record, name):
            return []
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise DataError(f"{record.place}: '{name}' is no list of questions ({error}); repair the row") from None
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise DataError(f"{record.place}: '{name}' is no list of objects with Q and A; repair the row")
    return value


def _leval(record: Record) -> Items:
    document, task = _text(record, "input"), _task(record)
    asked, right = (record.get(name) for name in ("instructions", "outputs"))
    if not isinstance(asked, list) or not isinstance(right, list) or len(asked) != len(right):
        raise DataError(f"{record.place}: instructions and outputs must be lists of one length; repair the row")
    exam = record.get("evaluation") == "exam"
    for number, (question, answer) in enumerate(zip(asked, right, strict=True), start=1):
        judge = "summary" if record.get("evaluation") == "rouge" else "words"
        if exam:
            judge = "letter" if re.fullmatch(r"\(?[A-D]\)?\.?", str(answer).strip()) else "words"
        asks = "summary" if judge == "summary" else "answer"
        wanted = str(answer).strip("(). ") if judge == "letter" else str(answer)
        place = f"{record.place}, question {number}"
        if question and wanted.strip():
            yield Item(task, place, asks, judge, str(question), (wanted,), document, language=language_of([question]))


def _qmsum(record: Record) -> Items:
    said = record.get("meeting_transcripts") or ()
    turns = [f"{one['speaker']}: {' '.join(_SPEAKERS.sub('', one['content']).split())}" for one in said]
    document, number = "\n".join(turns), 0
    for kind in ("general_query_list", "specific_query_list"):
        for pair in record.get(kind) or ():
            number += 1
            question, answer = str(pair.get("query") or ""), str(pair.get("answer") or "")
            place = f"{record.place}, question {number}"
            if question and answer.strip():
                yield Item(_task(record), place, "summary", "summary", question, (answer,), document)


def _worked(record: Record) -> Items:
    question, answer = _text(record, "question"), _text(record, "answer")
    if question and number_in(answer) is not None:
        # Marks of a calculator (<<2+3=5>>) are no part of what a model is to write.
        worked = re.sub(r"<<[^<>]*>>", "", answer)
        wanted = (answer.rpartition("####")[2].strip(),)
        yield Item(
            _task(record), record.place, "worked", "number", question, wanted, worked=worked,
            language=language_of([question]),
        )  # fmt: skip


def _bbh(record: Record) -> Items:
    question, target = _text(record, "input"), record.get("target")
    if question and isinstance(target, str) and target.strip():
        yield Item(_task(record), record.place, "short", "words", question, (target,), most=16)


def _summary(record: Record) -> Items:
    document, summary = _text(record, "document"), _text(record, "summary")
    if document and summary:
        language = language_of([summary])
        asked = WHOLE[language]
        yield Item(_task(record), record.place, "summary", "summary", asked, (summary,), document, language=language)


_FIELDS = (
    Field("question", ("query", "instruction", "problem")),
    Field("answer", ("answers", "output", "target", "outputs"), holds="any"),
    Field("document", ("context", "passage", "text", "article", "input"), False),
    Field("choices", ("options",), False, "any"),
)


def _plain(table: Table, columns: Mapping[str, str]) -> Form:
    """A table whose columns hold a question, its answer and mostly a document.

    Raises:
        DataError: question or answer has no column; the message names the forms that are known.
    """
    try:
        matched = match(table, _FIELDS, columns)
    except DataError as error:
        known = "; ".join(f"{form.name} ({', '.join(sorted(form.needs))})" for form in FORMS)
        raise DataError(f"{error}. Forms that are recognised by their columns: {known}") from None

    def items(record: Record) -> Items:
        value = {name: record.get(column) for name, column in matched.columns.items()}
        question, right = str(value["question"] or ""), value["answer"]
        document = value.get("document")
        choices = value.get("choices")
        choices = tuple(map(str, choices)) if isinstance(choices, list) else ()
        language = language_of([question])
        more = {"document": document if isinstance(document, str) else "", "choices": choices, "language": language}
        if choices and question and right is not None:
            yield Item(_task(record), record.place, "choice", "letter", question, (_letter(right, choices),), **more)
            return
        numbers = isinstance(right, int | float) and not isinstance(right, bool)
        wanted = (str(right),) if numbers else tuple(one["text"] for one in answers_of(right, "answer"))
        wanted = tuple(dict.fromkeys(one for one in wanted if one.strip()))
        if question and wanted:
            yield Item(_task(record), record.place, "answer", "words", question, wanted, **more)

    return Form("questions", frozenset(), str(matched), items)


def _letter(right: Any, choices: Sequence[str]) -> str:
    """The letter of the right choice, which is given as a letter, a number from 0, or its words.

    Raises:
        DataError: it is none of the choices.
    """
    if isinstance(right, int) and 0 <= right < len(choices):
        return chr(65 + right)
    text = str(right).strip("(). ")
    letters = [chr(65 + at) for at in range(len(choices))]
    if text in choices:
        return letters[choices.index(text)]
    if text.upper() in letters:
        return text.upper()
    raise DataError(f"the right choice is {str(right)[:40]!r}: give a letter up to {letters[-1]}, or a choice")


FORMS: tuple[Form, ...] = (
    Form(
        "LongBench v2",
        frozenset({"context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer"}),
        "document <- context, question <- question, choices <- choice_A to choice_D, answer <- answer",
        _longbench2,
    ),
    Form(
        "LongBench",
        frozenset({"input", "context", "answers"}),
        "document <- context, question <- input, answers <- answers, kind <- dataset, classes <- all_classes",
        _longbench,
    ),
    Form(
        "LooGLE",
        frozenset({"input", "qa_pairs"}),
        "document <- input, questions <- qa_pairs (Q, A), summary <- output",
        _loogle,
    ),
    Form(
        "L-Eval",
        frozenset({"input", "instructions", "outputs"}),
        "document <- input, questions <- instructions, answers <- outputs, metric <- evaluation",
        _leval,
    ),
    Form(
        "QMSum",
        frozenset({"meeting_transcripts", "specific_query_list"}),
        "document <- meeting_transcripts, questions <- general_query_list and specific_query_list",
        _qmsum,
    ),
    Form("summaries", frozenset({"document", "summary"}), "document <- document, summary <- summary", _summary),
    Form(
        "BIG-Bench Hard",
        frozenset({"input", "target"}),
        "question <- input, answer <- target",
        _bbh,
        frozenset({"context", "document", "question"}),
    ),
    Form(
        "worked answers",
        frozenset({"question", "answer"}),
        "question <- question, answer <- answer (the number after ####)",
        _worked,
        frozenset({"context", "document", "input", "passage", "text", "choices"}),
        lambda record: "####" in _text(record, "answer"),
    ),
)
