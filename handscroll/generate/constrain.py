"""Constrained decoding: only tokens after which the text can still become a choice, a match or a JSON document.

The grammars and the sets of allowed tokens are those of the library llguidance (`pip install handscroll[constrain]`).
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from handscroll.base.errors import ConfigError, DataError
from handscroll.text.spelling import spelling
from handscroll.text.tokenizer import Tokenizer

# White space between the parts of a JSON document: a space, or a new line indented. Unbounded, a small model can go on
# with newlines for ever.
SPACE = r"( |\n {0,12})?"
# Where only one text can follow, the library would allow one spelling of it alone, chosen by its own tokenizer.
OPTIONS = '%llguidance {"no_forcing": true}\n'


_PLACE = re.compile(r"^at \d+\(\d+\): ")  # in a grammar that the user never sees


class Constraint:
    """A grammar compiled for the tokens of one tokenizer. Made by `choices`, `regex` or `schema`; rows share it.

    The text of the new tokens, and nothing around it, follows the grammar. Any tokens that spell it are allowed, not
    only those that the tokenizer would choose, and one token may hold parts of several pieces of the grammar. Where
    the text is whole but may also go on, the model chooses between that and its end token; without an end token it goes
    on. Where nothing can follow, the row is `complete`.

    Limits: texts cut by `max_tokens` do not follow the grammar. Characters that the tokenizer cannot write cannot
    be demanded.
    """

    def __init__(self, grammar: str, tokenizer: Tokenizer, about: str):
        """`grammar` in llguidance's variant of Lark; `about` names it in messages.

        Raises:
            ConfigError: the library is not installed, does not understand the grammar, or no text fits it.
        """
        self.about = about
        self._library = _library()
        words = spelling(tokenizer)
        self.words = len(words)
        engine = self._library.LLTokenizer(self._library.TokenizerWrapper(_Vocabulary(words)))
        _, found = self._library.LLMatcher.validate_grammar_with_warnings(OPTIONS + grammar, engine)
        if found:  # a warning too: it is about something that would be ignored
            raise ConfigError(f"{about} cannot be used: {_PLACE.sub('', found[0]).splitlines()[0]}")
        self._begin = self._library.LLMatcher(engine, OPTIONS + grammar, log_level=0)
        first = self._begin.deep_copy()
        if not any(first.compute_logit_bias()[: self.words]) or first.is_error():
            raise ConfigError(f"{about} allows no text at all that these tokens can write; correct it")

    @classmethod
    def choices(cls, choices: Sequence[str], tokenizer: Tokenizer) -> Self:
        """One of the given texts, word for word.

        Raises:
            ConfigError: no choices, an empty one, or one that the tokenizer cannot write.
        """
        if not choices or "" in choices:
            raise ConfigError("choices must be one or more texts that are not empty")
        letters = set().union(*(word for word in spelling(tokenizer) if word is not None and len(word) == 1))
        for choice in choices:
            # Every byte has a token of its own, or the tokenizer's own tokens must give the text back.
            own = set(choice.encode()) <= letters
            if not own and tokenizer.decode(tokenizer.encode("a" + choice, special=False)) != "a" + choice:
                raise ConfigError(f"the choice {choice!r} has characters that this tokenizer cannot write")
        rules = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return cls(f"start: {rules}", tokenizer, f"the list of {len(choices)} choices")

    @classmethod
    def regex(cls, pattern: str, tokenizer: Tokenizer) -> Self:
        r"""A text that the pattern matches as a whole.

        The syntax is that of Rust's `regex` crate (no look-around, no back references); `.` is any character but a
        newline, and \d \w \s are Unicode's classes (\w has more signs in it than Python's).
        """
        inside = _library().regex_to_lark(pattern, "")
        return cls(f"start: /{inside}/", tokenizer, f"the regular expression {pattern!r}")

    @classmethod
    def schema(cls, schema: dict[str, Any] | str, tokenizer: Tokenizer) -> Self:
        """A JSON document that is valid under a JSON schema (a dict, or its text).

        Properties come in the order of the schema. Keywords that the library does not know are refused, never ignored.
        """
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
        except json.JSONDecodeError as error:
            raise ConfigError(f"the JSON schema is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"a JSON schema is an object, not {json.dumps(found)[:40]}")
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
    """How far one row is in its grammar."""

    def __init__(self, matcher: Any, constraint: Constraint, vocab: int, ends: Collection[int]):
        self._matcher = matcher
        self._constraint = constraint
        self._vocab = vocab
        self._ends = list(ends)

    def allowed(self) -> Bool[Tensor, "V"]:
        """Which tokens may come next.

        Raises:
            DataError: none, since no token of the vocabulary writes what the grammar demands.
        """
        words = self._constraint.words
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) != 0
        allowed = torch.zeros(self._vocab, dtype=torch.bool)
        allowed[:words] = bias[:words]
        allowed[self._ends] = bool(bias[words])  # also where an end token has a text of its own
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
        """Take an allowed token that is no end token."""
        taken = self._matcher.consume_token(token)
        assert taken, self._matcher.get_error()

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()


class _Vocabulary:
    """The tokens as the library wants them: bytes by id, and one further id that stands for every end token."""

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
