"""The person's side of `handscroll chat`: lines in, answers out, and commands that begin with a slash."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from handscroll.base.errors import ConfigError, DataError, HandscrollError, nearest
from handscroll.base.runs import write_file
from handscroll.cli.screen import error_screen, on_terminal, prompted

if TYPE_CHECKING:
    from handscroll.generate.chat import Chat, Reply
    from handscroll.generate.sample import Sampling

LONG = '"""'  # around a text of several lines


class Ends(Exception):
    """The person wants to leave."""


@dataclass(eq=False)
class Session:
    """One chat of a person with a model.

    `document` stands before the next message of the person: `reading`, a text that was read before the chat began, or
    files. An answer goes to standard output; thinking, notes and counts go to standard error.
    """

    chat: "Chat"
    sampling: "Sampling"
    variables: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    reading: str = ""
    begun: int = 0  # messages of `messages` that /clear keeps
    files: set[Path] = field(default_factory=set)  # that this chat was saved to or loaded from
    _placed: dict[int, str] = field(default_factory=dict)  # the document in a message, by the id of that message

    def __post_init__(self) -> None:
        self.document = self.reading

    def run(self, lines: Iterator[str]) -> None:
        """Answer every message; on a terminal an error ends only the turn."""
        for line in messages_in(lines):
            try:
                if line.startswith("/") and not line.startswith("//"):
                    self.command(line)
                else:
                    self.say(line.removeprefix("/") if line.startswith("//") else line)
            except Ends:
                return
            except HandscrollError as error:
                if not on_terminal():
                    raise
                note(f"error: {error}", "red")

    def say(self, text: str) -> None:
        """Send a message and show the answer; if it cannot be answered, it is taken back."""
        asked = {"role": "user", "content": f"{self.document}\n\n{text}" if self.document else text}
        self._answered([*self.messages, asked])
        self._placed[id(asked)], self.document = self.document, ""

    def command(self, line: str) -> None:
        """Run a line such as "/system Be brief."."""
        name, _, rest = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            raise ConfigError(
                f"unknown command '/{name}': {nearest(name, COMMANDS)}. /help lists them; a message that begins with "
                "a slash is written with two"
            )
        COMMANDS[name][1](self, rest.strip())

    def _answered(self, messages: Sequence[dict[str, Any]]) -> None:
        answer = self.chat.answer(messages, self.sampling, self.variables, fit=True)
        self.messages = list(messages)
        stopped, thought = False, False
        try:
            with closing(iter(answer)) as pieces:
                for piece in pieces:
                    if thought and not piece.thinking:
                        note("")
                    thought = piece.thinking
                    show(piece.text, thought)
        except KeyboardInterrupt:
            stopped = True
        except HandscrollError:
            self.messages = list(messages[:-1])
            raise
        typer.echo("")
        reply = answer.reply
        told: dict[str, Any] = {"role": "assistant", "content": str(reply)}
        self.messages.append(told | ({"reasoning_content": reply.thinking} if reply.thinking else {}))
        note(self._counts(reply, stopped))

    def _counts(self, reply: "Reply", stopped: bool) -> str:
        used, context = reply.prompt + reply.tokens, self.chat.talk.model.config.context
        counts = (
            f"{reply.prompt:,} tokens: {reply.reused:,} re-used, {reply.prompt - reply.reused:,} read; "
            f"{reply.tokens:,} new"
        )
        full = " (the context is full)" if used >= context else " (--max-tokens)"
        end = "stopped" if stopped else f"cut{full}" if reply.finish == "length" else ""
        return f"[{counts}{'; ' if end else ''}{end}]"

    # The commands.

    def help(self, _: str) -> None:
        for name, (about, _run) in COMMANDS.items():
            if about:
                note(f"/{name:<8} {about}")
        note(f"A text of several lines stands between {LONG} and {LONG}. Ctrl-C stops an answer, Ctrl-D leaves.")

    def system(self, text: str) -> None:
        """Set the system prompt, or show it."""
        has = bool(self.messages) and self.messages[0]["role"] == "system"
        if not text:
            note(self.messages[0]["content"] if has else "there is no system prompt of your own")
            return
        rest = self.messages[1:] if has else self.messages
        self.messages, self.begun = [{"role": "system", "content": text}, *rest], 1
        note("the system prompt holds from the next message on" + ("; all turns are read again" if rest else ""))

    def clear(self, _: str) -> None:
        gone = self.document != self.reading or any(one not in ("", self.reading) for one in self._placed.values())
        self.messages, self.document = self.messages[: self.begun], self.reading
        self._placed.clear()
        kept = ["the system prompt is kept"] if self.begun else []
        kept += ["the document of --reading stands before your next message"] if self.reading else []
        kept += ["documents of /file are gone"] if gone else []
        note("; ".join(["the conversation begins anew", *kept]))

    def undo(self, _: str) -> None:
        """Take the last exchange back; a document in it stands before the next message again."""
        placed = self._back()[1]
        self.document = "\n\n".join(filter(None, (placed, self.document)))
        again = "; the document stands before your next message" if placed else ""
        note(f"taken back; {len(self.messages) - self.begun} messages are left{again}")

    def retry(self, _: str) -> None:
        """Answer the last message again."""
        asked, placed = self._back()
        if self.sampling.temperature:
            self.sampling = self.sampling.model_copy(update={"seed": self.sampling.seed + 1})
        else:
            note("decoding is greedy, so the answer will be the same; /set temperature 0.8 changes that")
        try:
            self._answered([*self.messages, asked])
        except HandscrollError:
            self.document = "\n\n".join(filter(None, (placed, self.document)))
            raise
        self._placed[id(asked)] = placed

    def save(self, path: str) -> None:
        """Write the messages as JSON, as `lm.chat` takes them. A file that is not of this chat stays as it is."""
        if not path:
            raise ConfigError("/save needs a file: /save talk.json")
        file = Path(path).resolve()
        if file.exists() and file not in self.files:
            raise ConfigError(f"{path} is there already and is not of this chat: name a new file")
        write_file(file, (json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n").encode())
        self.files.add(file)
        note(f"{len(self.messages)} messages are in {path}")

    def load(self, path: str) -> None:
        """Go on with saved messages."""
        self.messages = load_messages(path)
        self.begun = int(bool(self.messages) and self.messages[0]["role"] == "system")
        self.files.add(Path(path).resolve())
        self._placed.clear()
        note(f"{len(self.messages)} messages of {path}; the next one goes on from there")

    def file(self, path: str) -> None:
        """Put a document before the next message."""
        from handscroll.text.readers import read

        if not path:
            raise ConfigError("/file needs a file: /file report.txt")
        text = "\n\n".join(document.text for document in read([path]))
        self.document = f"{self.document}\n\n{text}" if self.document else text
        note(f"{len(text):,} characters stand before your next message")

    def context(self, _: str) -> None:
        """Show the window, and how much of it is used."""
        talk, whole = self.chat.talk, self.chat.talk.model.config.context
        turns = sum(message["role"] == "assistant" for message in self.messages)
        used = len(talk.ids)
        note(f"{used:,} of {whole:,} tokens used ({used / whole:.1%}), {whole - used:,} left; {turns} turns")
        note(f"{talk.tokens_read:,} tokens were read and written in all; cache: {self._cache()}")

    def _cache(self) -> str:
        talk = self.chat.talk
        return "exact" if talk.choice is None else f"approximate, {talk.choice.report()}"

    def set(self, rest: str) -> None:
        """Change a setting of the sampling, or a variable of the template."""
        name, _, value = rest.partition(" ")
        if not name:
            values = self.sampling.model_dump(exclude={"ignore_eos"}) | self.variables
            note(", ".join(f"{key} {one}" for key, one in values.items()))
        elif name in type(self.sampling).model_fields:
            given = (value,) if name == "stop" else variable(value)
            self.sampling = type(self.sampling).parse(self.sampling.model_dump() | {name: given}, "/set")
        else:
            self.variables[name] = variable(value)
            note(f"the template is given {name} = {self.variables[name]!r}")

    def leave(self, _: str) -> None:
        raise Ends

    def _back(self) -> tuple[dict[str, Any], str]:
        """Remove everything from the last message of the person on; that message, and the document in it."""
        places = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise ConfigError("there is no message to take back yet")
        asked = self.messages[places[-1]]
        self.messages = self.messages[: places[-1]]
        return asked, self._placed.pop(id(asked), "")


COMMANDS: dict[str, tuple[str, Callable[[Session, str], None]]] = {
    "help": ("this list", Session.help),
    "system": ("TEXT: set the system prompt; without TEXT, show it", Session.system),
    "clear": ("forget all turns", Session.clear),
    "undo": ("take back your last message and its answer", Session.undo),
    "retry": ("answer your last message again", Session.retry),
    "context": ("show how much of the window is used", Session.context),
    "file": ("PATH: put a document before your next message", Session.file),
    "save": ("FILE: write the conversation (JSON)", Session.save),
    "load": ("FILE: go on with a saved conversation", Session.load),
    "set": ("NAME VALUE: a setting (temperature, max_tokens, seed, ...) or a variable of the template", Session.set),
    "exit": ("leave (also /quit, /bye)", Session.leave),
    "quit": ("", Session.leave),
    "bye": ("", Session.leave),
}


def messages_in(lines: Iterator[str]) -> Iterator[str]:
    """The messages of a person: lines, and what stands between two long marks; empty ones are skipped."""
    for line in lines:
        text = line.strip()
        if text.startswith(LONG):
            parts = [text.removeprefix(LONG)]
            while not parts[-1].endswith(LONG) and (more := next(lines, None)) is not None:
                parts.append(more.rstrip("\n"))
            text = "\n".join(parts).removesuffix(LONG).strip("\n")
        if text.strip():
            yield text


def load_messages(path: str | Path) -> list[dict[str, Any]]:
    """A saved conversation.

    Raises:
        DataError: the file cannot be read, or holds no list of messages.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path or 'no file'}: no saved conversation ({error}); /save writes one") from None
    fine = isinstance(found, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in found
    )
    if not fine:
        raise DataError(f'{path} holds no list of messages such as {{"role": "user", "content": ...}}')
    return found


def variable(text: str) -> Any:
    """A value as it is written: true, false, a number, or a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def typed() -> Iterator[str]:
    """Lines that a person types after a prompt, until Ctrl-D; lines of standard input where there is no terminal.

    Ctrl-C takes back the line that is being typed, and never the conversation.
    """
    if not on_terminal():
        yield from sys.stdin
        return
    while True:
        try:
            line = prompted("> ")
        except KeyboardInterrupt:  # it was meant for an answer that has just ended, or for the line
            note("\nCtrl-D or /exit leaves")
            continue
        if line is None:
            return
        yield line


def show(text: str, thinking: bool) -> None:
    """Some text of an answer: what is only thought goes to standard error."""
    if thinking:
        error_screen().print(text, end="", style="dim")
        return
    typer.echo(text, nl=False)
    sys.stdout.flush()


def note(text: str, style: str = "dim") -> None:
    error_screen().print(text, style=style)
