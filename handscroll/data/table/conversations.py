"""Rows of every usual form to conversations and to preferences: recognised row by row, counted form by form."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, Generic, TypeVar

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.data.table.table import Account, Ledger, Record, Table
from handscroll.data.table.turns import LISTS, Message, tools_of, turn_list, written_turns

ASKED = ("instruction", "prompt", "question", "query", "input")
ANSWERED = ("output", "completion", "answer", "response", "reply", "target")
_MORE = ("input", "context")
_READ = tuple(dict.fromkeys((*LISTS, *ASKED, *ANSWERED, *_MORE, "system", "system_prompt", "history", "instances")))
_FIELDS = ("prompt", "answer", "input", "system", "messages", "chosen", "rejected")
_FORMS = {"messages": "messages", "conversations": "ShareGPT", "conversation": "ShareGPT"}


@dataclass(frozen=True)
class Conversation:
    """The messages of one conversation (`role`, `content`, and what OpenAI's form adds), and the tools it offers."""

    messages: tuple[Message, ...]
    place: str
    form: str
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Preference:
    """What was said before, and two ways to go on: `chosen` is the better one. Each ends with the assistant's turn."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    place: str
    form: str


@dataclass(frozen=True)
class Unread:
    """In how many rows a key of a turn, or a column that other rows would be read from, stands and is not read."""

    keys: Counter[str]
    columns: Counter[str]

    def besides(self, values: Mapping[str, Any], *read: str) -> None:
        """Count the columns of a row that hold something and are not among those that were `read`."""
        left = [name for name in _READ if name not in read and not _blank(values.get(name))]
        self.columns.update(left)


Item = TypeVar("Item", Conversation, Preference)


@dataclass(frozen=True)
class Found(Generic[Item]):
    """What the rows of a table hold, how many have each form, and the account of the rows."""

    items: tuple[Item, ...]
    forms: Mapping[str, int]
    account: Account

    def __str__(self) -> str:
        forms = ", ".join(f"{count:,} {form}" for form, count in self.forms.items())
        return f"{len(self.items):,} recognised: {forms}\n{self.account}"


def conversations(
    table: Table, given: Mapping[str, str] | None = None, skip_unfit: bool = False, unanswered: bool = False
) -> Found[Conversation]:
    """A conversation of every row (of every instance, in rows of Self-Instruct).

    Recognised, in this order: what `given` names; preferences (the chosen one is taken); a list of turns under
    messages, conversations, turns, dialogue (`turns.py: turn_list`); `instances` of Self-Instruct; columns of asked
    and answered texts: Alpaca (instruction, input, output), prompt and completion, question and answer; `input` or
    `context` follows the question after a blank line, `system` and `history` (pairs) come before it.

    given: which columns are meant (prompt, answer, input, system, messages): for columns with other names.
    unanswered: a row in which nobody answers, or whose answer is blank, is a conversation too, to be answered.

    Raises:
        ConfigError: `given` names another field.
        DataError: a row fits no form, and such rows are not skipped.
    """
    return _found(table, given, skip_unfit, partial(_conversations, unanswered=unanswered))


def preferences(table: Table, given: Mapping[str, str] | None = None, skip_unfit: bool = False) -> Found[Preference]:
    """A preference of every row: `chosen` and `rejected` as texts of HH-RLHF, as messages, or as answers to `prompt`.

    What both begin with is the prompt.

    Raises:
        ConfigError: `given` names another field.
        DataError: a row fits no form, and such rows are not skipped.
    """
    return _found(table, given, skip_unfit, _preferences)


def asked(messages: Sequence[Message]) -> str:
    """What the user says or, where no user speaks, what stands before the first answer."""
    turns = [one for one in messages if one["role"] == "user"]
    turns = turns or list(takewhile(lambda one: one["role"] != "assistant", messages))
    return " ".join(one["content"] for one in turns)


def by_row(table: Table, found: Iterable[tuple[str, Sequence[Message]]]) -> list[str]:
    """What is asked in each row of a table, from the place and the messages of every conversation in it.

    A row that holds no conversation has no text.
    """
    texts: dict[str, list[str]] = {}
    for place, messages in found:
        if text := asked(messages):
            texts.setdefault(place, []).append(text)
    return [" ".join(texts.get(record.place, ())) for record in table]


def _found(table: Table, given: Mapping[str, str] | None, skip_unfit: bool, read: Any) -> Found[Any]:
    given = dict(given or {})
    wrong = next((name for name in given if name not in _FIELDS), None)
    if wrong is not None:
        raise ConfigError(f"a conversation has no field '{wrong}': {nearest(wrong, _FIELDS)}")
    for name, column in given.items():
        if all(record.get(column) is None for record in table):
            raise DataError(f"{name} <- {column}: there is no column '{column}': {nearest(column, table.columns)}")
    step, items, unread = Ledger(), [], Unread(Counter(), Counter())
    for record in table:
        rest = {name: value for name, value in record.values.items() if name not in given.values()}
        values = rest | {name: record.get(column) for name, column in given.items()}
        try:
            made = list(read(values, frozenset(given), record, unread))
        except DataError as error:
            if not skip_unfit:
                raise DataError(
                    f"{record.place}: {error}; its columns are {', '.join(record.values)}. Repair the row, name its "
                    "columns (--map prompt=..., --map answer=...), or leave such rows out, counted (--skip-unfit; "
                    "skip_unfit = true in a recipe)"
                ) from None
            step.leave_out(f"rows of no known form: {error}", record.place)
            continue
        items += made
        for _ in made[1:]:
            step.add("further instances of a row", record.place)
    for what, counts in (("keys of turns", unread.keys), ("columns", unread.columns)):
        if counts:
            shown = ", ".join(f"{name} ({count:,} rows)" for name, count in counts.items())
            step.note(f"{what} that are not read: {shown}")
    account = step.onto(table.account)
    if not items:
        raise DataError(f"no row is left:\n{account}")
    return Found(tuple(items), Counter(one.form for one in items), account)


def _conversations(
    values: dict[str, Any], given: frozenset[str], record: Record, unread: Unread, unanswered: bool
) -> Iterator[Conversation]:
    tools = tuple(tools_of(values))
    for form, messages in _messages(values, given, record, unread, unanswered):
        yield Conversation(tuple(_sound(messages, unanswered)), record.place, form, tools)


def _messages(
    values: dict[str, Any], given: frozenset[str], record: Record, unread: Unread, unanswered: bool
) -> Iterator[tuple[str, list[Message]]]:
    if "chosen" in values and "rejected" in values and not {"prompt", "messages"} & given:
        preference = next(_preferences(values, given, record, unread))
        yield f"{preference.form}, the chosen", [*preference.prompt, *preference.chosen]
        return
    named = next(
        (name for name in LISTS if isinstance(values.get(name), list) and not {"prompt", "answer"} & given), None
    )
    if named is not None:
        turns = turn_list(values[named])
        if turns is None:
            raise DataError(f"'{named}' is no list of turns with a speaker and a text")
        unread.keys.update(turns[1])
        system = _system(values, turns[0])
        unread.besides(values, named, *_system_read(values, system))
        yield _FORMS.get(named, "turns"), [*system, *turns[0]]
        return
    instances = values.get("instances")
    if isinstance(instances, list) and isinstance(values.get("instruction"), str):
        if not instances:
            raise DataError("'instances' is empty")
        for one in instances:
            yield "Self-Instruct", _asked({**values, **one, "instances": None}, given, unread, unanswered)[1]
        return
    yield _asked(values, given, unread, unanswered)


def _asked(
    values: dict[str, Any], given: frozenset[str], unread: Unread, unanswered: bool
) -> tuple[str, list[Message]]:
    """(form, messages) of a question and an answer in columns of their own."""
    asked = "prompt" if "prompt" in given else next((name for name in ASKED if values.get(name)), None)
    answered = _answered(values, given, unanswered)
    if asked is None or (answered is None and not unanswered):
        what = f"no question ({', '.join(ASKED)})" if asked is None else f"no answer ({', '.join(ANSWERED)})"
        raise DataError(f"{what}, and no list of turns ({', '.join(LISTS)})")
    question = values[asked]
    answer = values[answered] if answered is not None else [] if isinstance(question, list) else ""
    form = {"instruction": "Alpaca", "prompt": f"prompt/{answered}"}.get(asked, f"{asked}/{answered}")
    form = form if answered is not None else f"{asked} without an answer"
    if isinstance(question, list) and isinstance(answer, list):  # both as messages
        turns = turn_list([*question, *answer])
        if turns is None:
            raise DataError(f"'{asked}' and '{answered}' are no messages")
        system = _system(values, turns[0])
        unread.besides(values, asked, str(answered), *_system_read(values, system))
        return form, [*system, *turns[0]]
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(
            f"'{asked}' is a {type(question).__name__} and '{answered}' a {type(answer).__name__}, not texts"
        )
    more = ["input"] if "input" in given else [name for name in _MORE if name != asked]
    held = {name: one for name in more if isinstance(one := values.get(name), str) and one.strip()}
    texts = [question, *held.values()]
    messages = [{"role": "user", "content": "\n\n".join(texts)}]
    messages += [] if answered is None else [{"role": "assistant", "content": answer}]
    system = _system(values, messages)
    unread.besides(values, asked, str(answered), *held, "history", *_system_read(values, system))
    return form, [*system, *_history(values), *messages]


def _answered(values: dict[str, Any], given: frozenset[str], unanswered: bool) -> str | None:
    """The column of the answer; a blank answer is none where rows may be without one."""
    names = ("answer",) if "answer" in given else ANSWERED
    if unanswered:
        return next((name for name in names if not _blank(values.get(name))), None)
    return next((name for name in names if "answer" in given or values.get(name) is not None), None)


def _blank(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _system(values: dict[str, Any], messages: Sequence[Message]) -> list[Message]:
    system = values.get("system") or values.get("system_prompt")
    if not isinstance(system, str) or (messages and messages[0]["role"] == "system"):
        return []
    return [{"role": "system", "content": system}]


def _system_read(values: dict[str, Any], system: Sequence[Message]) -> tuple[str, ...]:
    """The column from which what the system says was read, if it was."""
    return ("system" if values.get("system") else "system_prompt",) if system else ()


def _history(values: dict[str, Any]) -> list[Message]:
    pairs = values.get("history") or []
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair) for pair in pairs
    ):
        raise DataError("'history' is no list of pairs of texts")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _sound(messages: list[Message], unanswered: bool = False) -> list[Message]:
    """
    Raises:
        DataError: nobody answers, an answer is empty, or nothing stands before the first.
    """
    roles = [message["role"] for message in messages]
    if "assistant" not in roles and not (unanswered and "user" in roles):
        raise DataError("no turn is the assistant's, so there is nothing to learn")
    if set(roles) == {"assistant"}:
        raise DataError("every turn is the assistant's, so nothing is answered")
    for number, message in enumerate(messages, start=1):
        if not message["content"].strip() and not message.get("tool_calls") and message["role"] != "tool":
            raise DataError(f"turn {number} ({message['role']}) is empty")
    return messages


def _preferences(values: dict[str, Any], given: frozenset[str], record: Record, unread: Unread) -> Iterator[Preference]:
    chosen, rejected = values.get("chosen"), values.get("rejected")
    if chosen is None or rejected is None:
        raise DataError("no two answers ('chosen' and 'rejected')")
    written = [written_turns(one) if isinstance(one, str) else None for one in (chosen, rejected)]
    if written[0] is not None and written[1] is not None:
        form, sides = "HH-RLHF", [written[0], written[1]]
    elif isinstance(chosen, str) and isinstance(rejected, str):
        form, sides = "prompt/chosen/rejected", [[{"role": "assistant", "content": one}] for one in (chosen, rejected)]
    else:
        turns = [turn_list(one) for one in (chosen, rejected)]
        if turns[0] is None or turns[1] is None:
            raise DataError("'chosen' and 'rejected' are neither texts nor lists of turns")
        form, sides = "messages, chosen/rejected", [turns[0][0], turns[1][0]]
    before = _before(values, written[0] is not None)
    asked = () if written[0] is not None else ("prompt" if "prompt" in values else "question",)
    system = (
        before[:1] if before and before[0]["content"] in (values.get("system"), values.get("system_prompt")) else ()
    )
    unread.besides(values, *asked, *_system_read(values, system))
    sides = [_sound(side if side[: len(before)] == before else [*before, *side]) for side in sides]
    shared = next((at for at, (one, two) in enumerate(zip(*sides, strict=False)) if one != two), min(map(len, sides)))
    prompt, better, worse = sides[0][:shared], sides[0][shared:], sides[1][shared:]
    if not better or not worse or not prompt:
        raise DataError("chosen and rejected are the same" if prompt else "chosen and rejected share no beginning")
    if better[-1]["role"] != "assistant" or worse[-1]["role"] != "assistant":
        raise DataError("the last turn of chosen or rejected is not the assistant's")
    yield Preference(tuple(prompt), tuple(better), tuple(worse), record.place, form)


def _before(values: dict[str, Any], written: bool) -> list[Message]:
    prompt = values.get("prompt", values.get("question"))
    if prompt is None or written:
        return _system(values, []) if not written else []
    if isinstance(prompt, str):
        said = written_turns(prompt) or [{"role": "user", "content": prompt}]
        return [*_system(values, said), *said]
    turns = turn_list(prompt)
    if turns is None:
        raise DataError("'prompt' is neither a text nor a list of turns")
    return [*_system(values, turns[0]), *turns[0]]
