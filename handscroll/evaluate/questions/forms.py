"""The forms in which sets of long tasks come as rows: recognised by their columns, and made into `Item`s.

Bai et al. 2023 and 2024 (LongBench, LongBench v2), Li et al. 2023 (LooGLE), An et al. 2023 (L-Eval), Zhong et al. 2021
(QMSum), Cobbe et al. 2021 (GSM8K), Suzgun et al. 2022 (BIG-Bench Hard); any other table by its columns. Every row gives
questions or is counted as left out with its reason, and so is every question of a row that holds several. A value of
another kind than its column holds (a list where a text belongs) is an error that names the row.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.data.table.fields import Field, answers_in, match, text_in
from handscroll.data.table.read import read_table
from handscroll.data.table.table import Account, Count, Ledger, Record, Table, columns_of
from handscroll.evaluate.questions.item import LETTERS, WHOLE, Item
from handscroll.evaluate.questions.judge import number_in
from handscroll.metrics.texts import language_of
from handscroll.text.files import Paths

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
class Empty:
    """A question inside a row that has no words, no answer or no document."""

    place: str


Items = Iterator[Item | Empty]


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
    """One file: its form, the mapping of its columns, its questions, and the account of its rows.

    `empty` counts questions that rows hold beside others, and that are not asked.
    """

    file: str
    form: str
    says: str
    items: tuple[Item, ...]
    account: Account
    empty: tuple[Count, ...] = ()

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
    names, step, inside = columns_of(own), Ledger(), Ledger()
    form = None if columns else next((form for form in FORMS if form.fits(names, own[0])), None)
    if form is None:
        part = Table(tuple(own), names, Account(len(own)))
        form = _plain(part, columns or {})
    items: list[Item] = []
    for record in own:
        found = list(form.items(record))
        asked = [one for one in found if isinstance(one, Item)]
        if not asked:
            step.leave_out("rows that ask nothing, or lack the answer or the text", record.place)
        for one in found:
            if isinstance(one, Empty):
                inside.leave_out("questions inside rows that lack words, answer or text", one.place)
        items += asked
    if not items:
        raise DataError(f"{file}: read as {form.name} ({form.says}), but no row has a question with an answer")
    about = tuple(note for note in table.account.notes if note.startswith(file))
    items = _classes(_alike(items), file, step)
    account = step.onto(Account(len(own), notes=about))
    return Sheet(file, form.name, form.says, tuple(items), account, inside.onto(Account(0)).left_out)


def _classes(items: Sequence[Item], file: str, step: Ledger) -> list[Item]:
    """The items; where a row names no classes, they are those that its file names, or answers with."""
    known: dict[str, dict[str, None]] = {}
    for item in items:
        if item.judge == "class":
            known.setdefault(item.task, {}).update(dict.fromkeys((*item.choices, *item.wanted)))
    found, noted = list[Item](), set[str]()
    for item in items:
        if item.judge == "class" and not item.choices:
            item = replace(item, choices=tuple(known[item.task]))
            if item.task not in noted:
                noted.add(item.task)
                step.note(f"{file}: {item.task}: rows without classes get the {len(item.choices)} of the whole file")
        found.append(item)
    return found


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
    value = text_in(record.get(name), record.place, name)
    return "" if value.strip().casefold() in ("", "none", "null") else value


def _document(record: Record, name: str) -> str:
    """The text under a name; a list of texts becomes one, with an empty line between them."""
    value = record.get(name)
    if not isinstance(value, list):
        return _text(record, name)
    return "\n\n".join(text_in(one, record.place, f"{name}, number {at}") for at, one in enumerate(value, start=1))


def _objects(value: Any, place: str, name: str, keys: str) -> list[Mapping[str, Any]]:
    """A list of objects; no value is none.

    Raises:
        DataError: it is anything else.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise DataError(f"{place}: '{name}' is no list of objects with {keys}; repair the row")
    return value


def _task(record: Record) -> str:
    return Path(record.file).name.partition(".")[0]


def _longbench(record: Record) -> Items:
    name = (_text(record, "dataset") or _task(record)).removesuffix("_e")
    asks, judge, most = _LONGBENCH.get(name, ("answer", "words", 64))
    document, question = _document(record, "context"), _text(record, "input")
    language = "zh" if record.get("language") == "zh" else language_of([document[:2000] + question])
    wanted = answers_in(record.get("answers"), record.place, "answers")
    if asks == "summary" and not question:
        question = WHOLE[language]
    if asks == "code":
        document, question = "", document + question
    classes = answers_in(record.get("all_classes"), record.place, "all_classes")
    if wanted and (document or question):
        yield Item(name, record.place, asks, judge, question, wanted, document, classes, (), language, most=most)


def _longbench2(record: Record) -> Items:
    choices = tuple(text_in(record.get(f"choice_{letter}"), record.place, f"choice_{letter}") for letter in "ABCD")
    right, question = _text(record, "answer").strip().upper(), _text(record, "question")
    document = _document(record, "context")
    if document and question and right in tuple("ABCD"):
        language = language_of([question])
        yield Item(_task(record), record.place, "choice", "letter", question, (right,), document, choices, (), language)


def _loogle(record: Record) -> Items:
    document, task = _document(record, "input"), _task(record)
    asked, language = _literal(record, "qa_pairs"), language_of([document[:4000]])
    summary = _text(record, "output")
    if not asked and summary and document:
        yield Item(task, record.place, "summary", "summary", WHOLE[language], (summary,), document, language=language)
    for number, pair in enumerate(asked, start=1):
        place = f"{record.place}, question {number}"
        question, right = text_in(pair.get("Q"), place, "Q"), pair.get("A")
        if isinstance(right, Mapping):
            # The marks of a text in their order; one that the answers lack is not asked for.
            marks = tuple(mark for mark in dict.fromkeys(_MARK.findall(question)) if right.get(mark))
            wanted, how = tuple(text_in(right[mark], place, mark) for mark in marks), ("blanks", "blanks")
        else:
            marks, wanted, how = (), answers_in(right, place, "A"), ("answer", "words")
        if document and question and wanted:
            yield Item(task, place, *how, question, wanted, document, (), marks, language)
        else:
            yield Empty(place)


def _literal(record: Record, name: str) -> list[Mapping[str, Any]]:
    """A list of objects that is written as JSON, or as Python writes it."""
    value = record.get(name)
    if isinstance(value, str):
        if not _text(record, name):
            return []
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise DataError(f"{record.place}: '{name}' is no list of questions ({error}); repair the row") from None
    return _objects(value, record.place, name, "Q and A")


def _leval(record: Record) -> Items:
    document, task = _document(record, "input"), _task(record)
    asked, right = (record.get(name) for name in ("instructions", "outputs"))
    if not isinstance(asked, list) or not isinstance(right, list) or len(asked) != len(right):
        raise DataError(f"{record.place}: instructions and outputs must be lists of one length; repair the row")
    exam = record.get("evaluation") == "exam"
    for number, (said, answer) in enumerate(zip(asked, right, strict=True), start=1):
        place = f"{record.place}, question {number}"
        question, wanted = text_in(said, place, "instructions"), text_in(answer, place, "outputs")
        judge = "summary" if record.get("evaluation") == "rouge" else "words"
        if exam:
            judge = "letter" if re.fullmatch(r"\(?[A-D]\)?\.?", wanted.strip()) else "words"
        asks = "summary" if judge == "summary" else "answer"
        wanted = wanted.strip("(). ") if judge == "letter" else wanted
        if document and question and wanted.strip():
            yield Item(task, place, asks, judge, question, (wanted,), document, language=language_of([question]))
        else:
            yield Empty(place)


def _qmsum(record: Record) -> Items:
    turns, number = list[str](), 0
    said = _objects(record.get("meeting_transcripts"), record.place, "meeting_transcripts", "speaker and content")
    for turn, one in enumerate(said, start=1):
        place = f"{record.place}, turn {turn}"
        if absent := [name for name in ("speaker", "content") if one.get(name) is None]:
            raise DataError(f"{place}: no '{absent[0]}'; repair the row")
        speaker, content = (text_in(one[name], place, name) for name in ("speaker", "content"))
        turns.append(f"{speaker}: {' '.join(_SPEAKERS.sub('', content).split())}")
    document = "\n".join(turns)
    for kind in ("general_query_list", "specific_query_list"):
        for pair in _objects(record.get(kind), record.place, kind, "query and answer"):
            number += 1
            place = f"{record.place}, question {number}"
            question, answer = (text_in(pair.get(name), place, name) for name in ("query", "answer"))
            if document and question and answer.strip():
                yield Item(_task(record), place, "summary", "summary", question, (answer,), document)
            else:
                yield Empty(place)


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
    question, target = _text(record, "input"), text_in(record.get("target"), record.place, "target")
    if question and target.strip():
        yield Item(_task(record), record.place, "short", "words", question, (target,), most=16)


def _summary(record: Record) -> Items:
    document, summary = _document(record, "document"), _text(record, "summary")
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

    of = matched.columns

    def items(record: Record) -> Items:
        question, right = text_in(record.get(of["question"]), record.place, of["question"]), record.get(of["answer"])
        document = _document(record, of["document"]) if "document" in of else ""
        choices = _choices(record, of["choices"]) if "choices" in of else ()
        language = language_of([question])
        if choices and question and right is not None:
            wanted = (_letter(right, choices, record.place),)
            yield Item(
                _task(record), record.place, "choice", "letter", question, wanted, document, choices, language=language
            )
            return
        wanted = answers_in(right, record.place, of["answer"])
        if question and wanted:
            yield Item(_task(record), record.place, "answer", "words", question, wanted, document, language=language)

    return Form("questions", frozenset(), str(matched), items)


def _choices(record: Record, name: str) -> tuple[str, ...]:
    """The choices of a question: a list, or an object with their letters in order; none where there is no value.

    Raises:
        DataError: they are anything else, or more than there are letters.
    """
    value = record.get(name)
    if value is None or value == "":
        return ()
    if isinstance(value, Mapping) and list(value) == list(LETTERS[: len(value)]):
        value = list(value.values())
    if not isinstance(value, list) or len(value) > len(LETTERS):
        raise DataError(
            f"{record.place}: '{name}' is a {type(value).__name__} that begins with {str(value)[:40]!r}; choices are a "
            'list of up to 26 texts, or {"A": ..., "B": ...}'
        )
    return tuple(text_in(one, record.place, f"{name}, number {at}") for at, one in enumerate(value, start=1))


def _letter(right: Any, choices: Sequence[str], place: str) -> str:
    """The letter of the right choice, which is given as a letter, a number from 0, or its words.

    Raises:
        DataError: it is none of the choices.
    """
    if isinstance(right, int) and not isinstance(right, bool) and 0 <= right < len(choices):
        return LETTERS[right]
    text = str(right).strip("(). ")
    letters = LETTERS[: len(choices)]
    if text in choices:
        return letters[choices.index(text)]
    if text.upper() in tuple(letters):
        return text.upper()
    raise DataError(f"{place}: the right choice is {str(right)[:40]!r}: give a letter up to {letters[-1]}, or a choice")


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
        lambda record: "####" in str(record.get("answer")),
    ),
)
