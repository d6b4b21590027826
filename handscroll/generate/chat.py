"""`Chat`: messages in, the assistant's answer out, by the template of the model; what was read before is kept.

Every turn renders all messages again and reads only what differs from the text so far. So the tokens are those of the
template, also where it rewrites earlier turns (many drop what was thought); then more is read, and a note says so.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.generate.chooser import NewToken
from handscroll.generate.constrain import Constraint
from handscroll.generate.conversation import Conversation
from handscroll.generate.decode import decode
from handscroll.generate.prefill import shared_beginning
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.generate.settings import ChatSettings
from handscroll.generate.stream import Decodes
from handscroll.models.model import Model
from handscroll.text.chat.messages import Message, checked, plain
from handscroll.text.chat.script import Script
from handscroll.text.chat.seal import Seal
from handscroll.text.chat.template import ChatTemplate, template_in
from handscroll.text.chat.thinking import Piece, Thinking
from handscroll.text.special import ROLES
from handscroll.text.tokenizer import Tokenizer

LEAST = 16  # tokens that an answer may have at least where the context leaves fewer than `max_tokens`


class Rendered(NamedTuple):
    """Messages as the model reads them: token ids, and the same as text."""

    ids: list[int]
    text: str


class Reply(str):
    """An answer: a text that also knows what was thought before it, and how it came about.

    `finish` is "eos" (the model ended its turn), "length", "stop" or "complete" (the constraint allows no more).
    `prompt` is the number of tokens of the rendered messages, of which `reused` had been read before; `tokens` were
    generated. `logprob` is the sum of their natural log-probabilities, 0 unless it was asked for (`scored`).
    """

    thinking: str
    finish: str
    prompt: int
    reused: int
    tokens: int
    logprob: float


class Speaker:
    """Renders messages for one model: its template, its special tokens, and what ends a turn.

    Args:
        template: a name among the model's templates, or the source of another one.
        where: the model, as errors name it.

    Raises:
        ConfigError: the model has no chat template, or none of that name.
    """

    def __init__(self, tokenizer: Tokenizer, template: str = "", where: str = "the model", tools: bool = False):
        own = "{%" in template or "{{" in template
        source = template if own else template_in(tokenizer.settings, template, tools)
        if source is None:
            raise ConfigError(
                f"{where} has no chat template (chat_template.jinja, tokenizer_config.json or the metadata of a GGUF "
                "file), as models without instruction tuning have none: let it continue a text (handscroll generate, "
                "chat --raw), or give the template of its authors"
            )
        self.tokenizer = tokenizer
        self.template = ChatTemplate(source, _named_tokens(tokenizer))
        self._seal = Seal(tokenizer)

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None, now: datetime | None = None
    ) -> Rendered:
        """The messages up to where the answer begins; special tokens in them stay ordinary text.

        The errors are those of `ChatTemplate.render`, and DataError for something that is no message.
        """
        script = self._script(checked(messages), variables, now)
        text = script.text(len(messages), answer=True)
        return Rendered(script.ids(text), script.shown(text))

    def script(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None, now: datetime | None = None
    ) -> Script:
        """A conversation that has its answers already, as the template writes it turn by turn.

        Raises:
            DataError: something is no message.
        """
        return self._script(checked(messages, answered=True), variables, now)

    def _script(
        self, messages: list[dict[str, Any]], variables: Mapping[str, Any] | None, now: datetime | None
    ) -> Script:
        given = plain(dict(variables or {}), "a variable of the template")
        return Script(self.template, self._seal, messages, given, now or datetime.now())

    def rendered_already(self, text: str) -> list[int] | None:
        """The ids of a text that is written in the template itself: it begins and ends as a rendered message does.

        Only for a text of the person who asks: all special tokens in it count.
        """
        asked = "\ue0ff"
        try:
            before, _, after = self.template.render([{"role": "user", "content": asked}]).partition(asked)
        except ValueError:
            return None
        known = self.tokenizer.written
        first = min((before.index(token) + len(token) for token in known if token in before), default=0)
        opens = first and text.startswith(before[:first])
        closes = any(token in after for token in known) and text.endswith(after)
        return self.tokenizer.encode(text, special=False, parse=True) if opens and closes else None

    def ends(self, model: Model) -> frozenset[int]:
        """The tokens that end an answer: the model's own, and the one with which the template ends a turn."""
        known = {"role": "user", "content": "Hello"}
        answer = "\ue0ff"
        try:
            text = self.template.render([known, {"role": "assistant", "content": answer}], answer=False)
        except ValueError:  # it wants other messages than these, and says nothing about its ends
            return frozenset(model.config.eos)
        after = text.partition(answer)[2].lstrip()
        found = sorted((token for token in self.tokenizer.written if after.startswith(token)), key=len)
        return frozenset(model.config.eos) | {self.tokenizer.written[token] for token in found[-1:]}

    def listening(self, rendered: Rendered) -> tuple[Thinking, Decodes]:
        """How an answer to `rendered` is taken in: what tells its thinking apart, and what decodes it.

        The marks of the thinking are written out even where they are special tokens.
        """
        thinking = Thinking(self.template.source, rendered.text)
        return thinking, _Shown(self.tokenizer, (thinking.open, thinking.close))


@dataclass(eq=False)
class Chat:
    """One chat with a model; `LM.chat` keeps one, and `LM.chatting` makes one.

    `now` is the time that templates may write. Unless it is given, it is that of a conversation's first turn and stays
    so, and the text before a turn remains as it was read. `on_note` is called when more is read again than a new turn
    needs.
    """

    speaker: Speaker
    talk: Conversation
    on_note: Callable[[str], None] | None = None
    now: datetime | None = None
    busy: bool = False  # whether an answer is being given
    _last: list[Message] = field(default_factory=list)  # the messages of the turn before
    _begun: datetime | None = None  # when the conversation began to which they belong

    def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        variables: Mapping[str, Any] | None = None,
        constraint: Constraint | None = None,
        beyond: bool = False,
        fit: bool = False,
        scored: bool = False,
    ) -> "Answer":
        """Begin the answer to `messages`; impossible requests are refused here.

        With `fit`, max_tokens shrinks to what the context leaves. With `scored`, the reply tells its log-probability.

        Raises:
            DataError: the messages are none, or the template refuses them. CapacityError: they do not fit into the
                context or the memory. ConfigError: the template fails.
        """
        now = self.now or self._time(messages)
        rendered = self.speaker.render(messages, variables, now)
        self._left_out(messages, rendered)
        if fit and not beyond:
            sampling = sampling.model_copy(update={"max_tokens": self._room(rendered, sampling.max_tokens)})
        ends = None if sampling.ignore_eos else self.speaker.ends(self.talk.model)
        logprobs = 0 if scored else None
        request = Request(rendered.ids, sampling, logprobs=logprobs, constraint=constraint, ends=ends, beyond=beyond)
        thinking, shown = self.speaker.listening(rendered)
        last = len(self._last)
        goes_on = 0 < last < len(messages) and list(messages[:last]) == self._last
        before = self.talk.ids if goes_on else []
        answer = Answer(self, rendered, self.talk.reply(request, shown), thinking, before)
        self._last, self._begun = list(messages), now
        return answer

    def note(self, text: str) -> None:
        if self.on_note is not None:
            self.on_note(text)

    def _time(self, messages: Sequence[Message]) -> datetime:
        """When the conversation began: now, unless it goes on from the turn before, or takes it back."""
        common = min(len(self._last), len(messages))
        same = list(messages[:common]) == self._last[:common]
        return self._begun if same and self._begun is not None else datetime.now()

    def _room(self, rendered: Rendered, wanted: int) -> int:
        count, context = len(rendered.ids), self.talk.model.config.context
        if count + LEAST > context:
            raise CapacityError(
                f"the conversation has {count:,} tokens, and the model's context is {context:,}: take back a turn, "
                "begin a new conversation, or lengthen the model (handscroll extend)"
            )
        return min(wanted, context - count)

    def _left_out(self, messages: Sequence[Message], rendered: Rendered) -> None:
        """Say which messages the template does not write."""
        for number, message in enumerate(messages):
            content = message.get("content")
            said = content.strip() if isinstance(content, str) and message["role"] in ("system", "user") else ""
            if said and said not in rendered.text:
                self.note(f"the template leaves out or changes message {number} ({message['role']})")


class Answer:
    """An answer as it arrives: iterate over its pieces, once; then `reply` is the whole.

    A reader who stops early leaves a conversation that goes on from what was said so far. `before` is the text of the
    turns before.
    """

    def __init__(
        self,
        chat: Chat,
        rendered: Rendered,
        tokens: Iterator[NewToken],
        thinking: Thinking,
        before: Sequence[int],
    ):
        self._chat, self._tokens, self._thinking, self._before = chat, tokens, thinking, before
        self.rendered, self.finish, self.count, self.logprob = rendered, "", 0, 0.0
        self._texts: dict[bool, list[str]] = {False: [], True: []}
        chat.busy = True

    def __iter__(self) -> Generator[Piece]:
        try:
            for token in self._tokens:
                if not self.count:
                    self._read_again()
                self.count += 1
                self.finish = token.finish or ""
                self.logprob += 0.0 if token.scored is None else token.scored.logprob
                for piece in self._thinking.push(token.text, final=token.finish is not None):
                    self._texts[piece.thinking].append(piece.text)
                    yield piece
        finally:
            self._chat.busy = False

    @property
    def reply(self) -> Reply:
        """What was said so far."""
        made = Reply("".join(self._texts[False]))
        made.thinking, made.finish = "".join(self._texts[True]), self.finish
        made.prompt, made.reused, made.tokens = len(self.rendered.ids), self._chat.talk.reused, self.count
        made.logprob = self.logprob
        return made

    def whole(self, pieces: Iterable[str]) -> Reply:
        """The reply, once all its `pieces` have arrived."""
        for _ in pieces:
            pass
        return self.reply

    def _read_again(self) -> None:
        """Say how much of the turns before is read again, and why."""
        before, now, reused = self._before, self.rendered.ids, self._chat.talk.reused
        if len(before) - reused <= 1:  # the last token of an answer may not have been read yet
            return
        shared = shared_beginning(before, now)
        if shared > reused + 1:
            why = "the cache cannot be cut back to where the new text differs"
        else:
            decode = self._chat.speaker.tokenizer.decode
            same = decode(now[shared:], special=True).startswith(decode(before[shared:], special=True))
            why = "other tokens write the same text" if same else "the template writes them otherwise now"
        self._chat.note(f"{len(before) - reused:,} of {len(before):,} tokens before this turn are read again: {why}")


def begin(chat: Chat, messages: Sequence[Message], sampling: Sampling, settings: ChatSettings) -> Answer:
    """Begin an answer with the settings of `LM.chat`; the errors are those of `Chat.answer`."""
    variables, tools = dict(settings.get("variables") or {}), settings.get("tools")
    if tools is not None:
        variables["tools"] = list(tools)
    chat.on_note = chat.talk.on_note = settings.get("on_note")
    fit, beyond = "max_tokens" not in settings, settings.get("beyond", False)
    return chat.answer(messages, sampling, variables, settings.get("constraint"), beyond, fit)


def answered(
    model: Model, speaker: Speaker, request: Request, rendered: Rendered, on_thinking: Callable[[str], None] | None
) -> Iterator[str]:
    """What the model says to a request, piece by piece, without its thinking; the errors are those of `decode`."""
    thinking, shown = speaker.listening(rendered)
    steps = decode(model, [request], shown)
    pieces = (piece for step in steps for one in step for piece in thinking.push(one.text, one.finish is not None))
    return said(pieces, on_thinking)


def said(pieces: Iterable[Piece], on_thinking: Callable[[str], None] | None) -> Iterator[str]:
    """The texts of an answer; those of the thinking go elsewhere."""
    for piece in pieces:
        if not piece.thinking:
            yield piece.text
        elif on_thinking is not None:
            on_thinking(piece.text)


class _Shown:
    """Decodes as a tokenizer does, but writes the given marks out even if they are special tokens."""

    def __init__(self, tokenizer: Tokenizer, marks: Iterable[str]):
        self._tokenizer = tokenizer
        self._marks = {tokenizer.written[mark]: mark for mark in marks if mark in tokenizer.written}

    def decode(self, ids: Iterable[int]) -> str:
        if not self._marks:
            return self._tokenizer.decode(ids)
        parts, run = [], []
        for number in ids:
            if number in self._marks:
                parts += [self._tokenizer.decode(run), self._marks[number]]
                run = []
            else:
                run.append(number)
        return "".join([*parts, self._tokenizer.decode(run)])


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens by the names that templates use."""
    found = {}
    for role in ROLES:
        key, guess = f"{role}_token", role in ("bos", "eos", "pad")
        token = tokenizer.settings.get(key)
        if key not in tokenizer.settings and guess and (number := getattr(tokenizer, role)) is not None:
            token = tokenizer.token(number)
        name = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(name, str):
            found[key] = name
    return found
