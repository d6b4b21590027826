"""Constrained decoding: allows only tokens after which the text can still become a choice, a match or a document.

The grammars and the sets of allowed tokens are those of the library llguidance (`pip install handscroll[constrain]`).
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor

from handscroll.base.errors import ConfigError, DataError
from handscroll.text.spelling import spelling
from handscroll.text.tokenizer import Tokenizer

# White space between the parts of a JSON document: a space, or an indented new line. Without a bound, a small model can
# write newlines for ever.
SPACE = r"( |\n {0,12})?"
# Without this option, the library allows only its own spelling where a single text can follow.
OPTIONS = '%llguidance {"no_forcing": true}\n'


_engines: WeakKeyDictionary[Tokenizer, tuple[int, Any]] = WeakKeyDictionary()
_PLACE = re.compile(r"^(at )?\d+\(\d+\): ")  # the place in a grammar that the user never sees


class Constraint:
    """A grammar compiled for the tokens of one tokenizer. `choices`, `regex` or `schema` make one; rows share it.

    The grammar applies to the text of the new tokens alone. Any tokens that spell the text are allowed, not only those
    that the tokenizer would choose, and one token may hold parts of several pieces of the grammar. If the text is
    complete but may also continue, the model chooses between a further token and its end token; a model without an end
    token continues. If nothing can follow, the row is `complete`.

    Limits: texts cut by `max_tokens` do not follow the grammar. A grammar cannot require characters that the tokenizer
    cannot write.
    """

    def __init__(self, grammar: str, tokenizer: Tokenizer, about: str):
        """Compile `grammar`, written in llguidance's variant of Lark; `about` names it in messages.

        Raises:
            ConfigError: the library is not installed or does not understand the grammar, or no text fits the grammar.
        """
        self.about = about
        _check_text(grammar, about)
        self._library = _library()
        self.words, engine = _engine(self._library, tokenizer)
        _, found = self._library.LLMatcher.validate_grammar_with_warnings(OPTIONS + grammar, engine)
        if found:  # warnings too: each names something that would be ignored
            raise ConfigError(f"{about} cannot be used: {_reason(found[0])}")
        self._begin = self._library.LLMatcher(engine, OPTIONS + grammar, log_level=0)
        first = self._begin.deep_copy()
        if not any(first.compute_logit_bias()[: self.words]) or first.is_error():
            raise ConfigError(f"{about} allows no text that these tokens can write; correct it")

    @classmethod
    def choices(cls, choices: Sequence[str], tokenizer: Tokenizer) -> Self:
        """Allow one of the given texts, word for word.

        Raises:
            ConfigError: there are no choices, or a choice is empty or cannot be written by the tokenizer.
        """
        if not choices or "" in choices:
            raise ConfigError("choices must be one or more texts that are not empty")
        letters = set().union(*(word for word in spelling(tokenizer) if word is not None and len(word) == 1))
        for choice in choices:
            _check_text(choice, f"the choice {choice!r}")
            # Either every byte has its own token, or encoding and decoding must give the text back.
            own = set(choice.encode()) <= letters
            if not own and tokenizer.decode(tokenizer.encode("a" + choice, special=False)) != "a" + choice:
                raise ConfigError(f"the choice {choice!r} has characters that this tokenizer cannot write")
        rules = " | ".join(json.dumps(choice, ensure_ascii=False).replace("\x7f", r"\u007f") for choice in choices)
        return cls(f"start: {rules}", tokenizer, f"the list of {len(choices)} choices")

    @classmethod
    def regex(cls, pattern: str, tokenizer: Tokenizer) -> Self:
        r"""Allow a text that the pattern matches as a whole.

        The syntax is that of Rust's `regex` crate (no look-around, no back references); `.` is any character except
        a newline, and \d \w \s are Unicode's classes (\w contains more signs than Python's).
        """
        about = f"the regular expression {pattern!r}"
        _check_text(pattern, about)
        inside = _library().regex_to_lark(pattern, "")
        return cls(f"start: /{inside}/", tokenizer, about)

    @classmethod
    def schema(cls, schema: dict[str, Any] | str, tokenizer: Tokenizer) -> Self:
        """Allow a JSON document that is valid under a JSON schema (a dict, or its text).

        Properties come in the order of the schema. Keywords that the library does not know are refused, never ignored.
        """
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the JSON schema is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"a JSON schema is an object, not {json.dumps(found)[:40]}")
        _check_text(json.dumps(found, ensure_ascii=False), "the JSON schema")
        text = json.dumps({**found, "x-guidance": {"whitespace_pattern": SPACE}})
        return cls(f"start: %json {text}", tokenizer, "the JSON schema")

    def start(self, vocab: int, ends: Collection[int]) -> "Progress":
        """The state of a row before its first token; `ends` are the end tokens of the model, which has `vocab` tokens.

        Raises:
            ConfigError: the model has fewer tokens than the tokenizer.
        """
        if vocab < self.words:
            raise ConfigError(
                f"{self.about} was compiled for a tokenizer of {self.words} tokens, the model has {vocab}: "
                "compile it with the model's own tokenizer"
            )
        return Progress(self._begin.deep_copy(), self, vocab, ends)


class Progress:
    """The state of one row in its grammar."""

    def __init__(self, matcher: Any, constraint: Constraint, vocab: int, ends: Collection[int]):
        self._matcher = matcher
        self._constraint = constraint
        self._vocab = vocab
        self._ends = list(ends)

    def allowed(self) -> Bool[Tensor, "V"]:
        """The mask of the tokens that may come next.

        Raises:
            DataError: no token of the vocabulary writes the text that the grammar requires.
        """
        words = self._constraint.words
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) != 0
        allowed = torch.zeros(self._vocab, dtype=torch.bool)
        allowed[:words] = bias[:words]
        allowed[self._ends] = bool(bias[words])  # even if an end token has a text
        if self._matcher.is_error() or not bool(allowed.any()):
            reason = self._matcher.get_error().partition("\n")[0]
            why = (
                "no token of this vocabulary writes what must come next"
                if reason in ("", "NoExtensionBias")
                else reason
            )
            raise DataError(f"{self._constraint.about} led to a dead end: {why}")
        return allowed

    def advance(self, token: int) -> None:
        """Advance by an allowed token that is not an end token."""
        taken = self._matcher.consume_token(token)
        assert taken, self._matcher.get_error()

    @property
    def complete(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()


def _check_text(text: str, about: str) -> None:
    """Refuse half a surrogate pair, which no tokenizer can write (ConfigError)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{about} holds half a surrogate pair, which is not text; remove it") from None


def _reason(found: str) -> str:
    """What the library says of a grammar: its first line, and of a regular expression the line that says the reason."""
    first, *rest = found.splitlines()
    why = [line.removeprefix("error: ") for line in rest if line.startswith("error: ")]
    return " ".join([_PLACE.sub("", first), *why])


def _engine(library: Any, tokenizer: Tokenizer) -> tuple[int, Any]:
    """The number of words of a tokenizer and its tokens in the library, made once: they take seconds."""
    if tokenizer not in _engines:
        words = spelling(tokenizer)
        while words and words[-1] is None:  # a model may have no row for added tokens at the end
            words.pop()
        made = library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(words)))
        _engines[tokenizer] = len(words), made
    return _engines[tokenizer]


class _Vocabulary:
    """The tokens in the form of the library: bytes by id, and one further id that stands for every end token."""

    def __init__(self, words: Sequence[bytes | None]):
        self.tokens = [b"" if word is None else word for word in words] + [b"<end>"]
        self.eos_token_id = len(words)
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]
        self._letters = {word: n for n, word in reversed(list(enumerate(words))) if word is not None and len(word) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return [self._letters[data[n : n + 1]] for n in range(len(data)) if data[n : n + 1] in self._letters]


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "constrained decoding needs the library llguidance: pip install 'handscroll[constrain]'"
        ) from None
    return llguidance
