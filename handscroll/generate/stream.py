"""Turns token ids into text as they arrive: in whole characters, without stop strings, in linear time."""

from collections.abc import Iterable, Sequence
from typing import Protocol

BROKEN = "\ufffd"  # decoders write it for bytes that are not a character, or not yet
# A UTF-8 character has up to four bytes, so three of them may wait for the last. Byte-level decoders show an unfinished
# character as one U+FFFD, and byte-fallback decoders show one for each byte.
WAITING = 3
TAIL, WINDOW, LIMIT = 8, 32, 256


class Decodes(Protocol):
    """The only method that is needed from a tokenizer (`text/tokenizer.py`)."""

    def decode(self, ids: Iterable[int]) -> str: ...


class TextStream:
    """Incremental detokenisation of one row.

    The joined pieces of `push` and `finish` are `decode(prompt + new)` without `decode(prompt)`, cut before the first
    stop string. Spaces that some decoders strip at the start of a text are therefore kept. Each push decodes a window
    of the last few tokens, so n tokens cost O(n).

    >>> stream = TextStream(tokenizer, stop=("END",))  # doctest: +SKIP
    >>> [stream.push(i) for i in tokenizer.encode("你好 END")], stream.stopped  # doctest: +SKIP
    (['', '', '你', '', '', '好', ' ', '', '', ''], 'END')

    Limits: decoders must be local, as those of language models are: a token may only join its neighbours' bytes and
    lose its space at the start. A byte-fallback decoder turns a whole run of byte tokens into U+FFFD if one character
    in it is broken; characters of the run that were already given are not taken back. Characters are code points:
    emoji of several code points may arrive in parts.
    """

    def __init__(self, tokenizer: Decodes, prompt: Sequence[int] = (), stop: Sequence[str] = ()):
        assert all(stop), "an empty stop string"
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window = self._tail(list(prompt))
        self._text = self._decode(self._window)
        self._given = self._text[: len(self._text) - _unfinished(self._text)]  # the part of the text that was passed on
        self._echo = len(self._text) - len(self._given)  # number of U+FFFD that the prompt's own text may already show
        self._pending = 0  # tokens at the end of the window that have given no text yet
        self._buffer = ""  # characters that may be the beginning of a stop string
        self.stopped: str | None = None

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character or a stop string may be unfinished."""
        if self.stopped is not None:
            return ""
        text = self._decode([*self._window, token])
        if text == self._text and not self._decode([token, token]):
            return ""  # the decoder skips it (special tokens): the window would only grow
        self._window.append(token)
        self._text, self._pending = text, self._pending + 1
        if not text.startswith(self._given):
            # The byte run is broken so far. Unless it can still become whole, begin again after the given text.
            if text.endswith(BROKEN) and self._pending <= WAITING + 1:
                return ""
            self._begin_again()
        piece = self._text[len(self._given) : len(self._text) - _unfinished(self._text)]
        if piece:
            self._given += piece
            self._pending = 0
        if len(self._window) > WINDOW:
            self._shorten()
        return self._until_stop(self._without_echo(piece), final=False)

    def finish(self) -> str:
        """End the text and return the part held back; unfinished characters show as U+FFFD."""
        if self.stopped is not None:
            return ""
        if not self._text.startswith(self._given):
            self._begin_again()
        piece, self._given = self._text[len(self._given) :], self._text
        return self._until_stop(self._without_echo(piece), final=True)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids) if ids else ""

    def _begin_again(self) -> None:
        """Reduce the window to the tokens that have given no text yet."""
        self._window = self._window[-self._pending :] if self._pending else []
        self._text, self._given = self._decode(self._window), ""

    def _tail(self, ids: list[int]) -> list[int]:
        """The last few ids; if possible they decode to some text and begin with a whole character."""
        size = TAIL
        while size < len(ids) and not self._decode(ids[-size:]):
            size *= 2
        for start in range(size, size + WAITING + 1):
            text = self._decode(ids[-start:])
            if text and not text.startswith(BROKEN):
                return ids[-start:]
        return ids[-size:]

    def _shorten(self) -> None:
        """Drop the old part of the window if the rest decodes as it did within the window."""
        held = len(self._text) - len(self._given)
        tail = self._tail(self._window)
        text = self._decode(tail)
        # The first character may differ: it can be incomplete, or have lost its space.
        same = len(text) > held + 1 and self._text.endswith(text[1:])
        if same or len(self._window) > LIMIT:  # past the limit the text is broken anyway: stay linear
            self._window, self._text, self._given = tail, text, text[: max(0, len(text) - held)]

    def _without_echo(self, piece: str) -> str:
        """Drop U+FFFD from the end of the prompt that did not become the beginning of a character."""
        same = min(self._echo, len(piece) - len(piece.lstrip(BROKEN)))
        self._echo = self._echo - same if same == len(piece) else 0
        return piece[same:]

    def _until_stop(self, piece: str, final: bool) -> str:
        """Pass `piece` on, hold back a possible beginning of a stop string, and end at a complete one.

        The stop string that is complete first decides, so the result does not depend on how tokens cut the text.
        """
        if not self._stop:
            return piece
        self._buffer += piece
        found = [(self._buffer.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in self._buffer]
        if found:
            end, _, self.stopped = min(found)
            ready, self._buffer = self._buffer[: end - len(self.stopped)], ""
            return ready
        held = 0 if final else max(_overlap(self._buffer, stop) for stop in self._stop)
        cut = len(self._buffer) - held
        ready, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return ready


def _unfinished(text: str) -> int:
    """The number of characters at the end of `text` that further bytes may still change."""
    return min(WAITING, len(text) - len(text.rstrip(BROKEN)))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
