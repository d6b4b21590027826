"""Output of the verbs: tables and progress. Only this file asks whether a terminal is there."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

BETWEEN = 60.0  # seconds between two lines of progress, where there is no terminal
RECENT = 4  # lines of progress whose speed tells how long the rest takes: later parts may be slower


def screen(stderr: bool = False) -> Console:
    """The console on standard output, for results.

    It prints what it is given: words in brackets or between colons are no codes, and a long line is not cut.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def error_screen() -> Console:
    """The same on standard error, for progress, notes and errors."""
    return screen(stderr=True)


def on_terminal() -> bool:
    """Whether a person types the input."""
    return sys.stdin.isatty()


def prompted(prompt: str) -> str | None:
    """A line that a person types after a prompt, with the keys of readline where it is there; None at the end."""
    with suppress(ImportError):
        import readline  # noqa: F401  (to import it is to use it)
    try:
        if sys.stdout.isatty():
            return input(prompt)
        error_screen().print(prompt, end="")  # standard output is somebody's file
        return input()
    except EOFError:
        error_screen().print()
        return None


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> Text:
    """A plain table, as wide as its widest cells, with numbers aligned to the right."""
    numeric = [all(_is_number(row[at]) for row in rows) and bool(rows) for at in range(len(columns))]
    cells = [[_text(value) for value in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            blank = " " * (width - cell_len(cell))
            padded.append(blank + cell if right else cell + blank)
        lines.append("  ".join(padded).rstrip())
    made = Text(f"{title}\n" if title else "")
    made.append(lines[0], style="bold")
    return made.append("".join(f"\n{line}" for line in lines[1:]))


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Any]:
    """Show progress on standard error; the block receives `advance(done, note="", total=None)`.

    A terminal gets a bar; a file or a pipe gets a line every minute.
    """
    console = error_screen()
    if not console.is_terminal:
        yield _Lines(console, what, total).advance
        return
    name, note = (TextColumn(field) for field in ("{task.description}", "{task.fields[note]}"))
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, note="")
        yield lambda done, note="", total=None: progress.update(task, completed=done, note=note, total=total)


class _Lines:
    """Progress as lines, for output that nobody watches."""

    def __init__(self, console: Console, what: str, total: int | None):
        self._console, self._what, self._total = console, what, total
        self._begun = self._told = monotonic()
        self._seen: deque[tuple[float, float]] = deque(maxlen=RECENT)  # when, and what was done then

    def advance(self, done: float, note: str = "", total: int | None = None) -> None:
        now = monotonic()
        if total not in (None, self._total):  # something else is counted from now on
            self._total, self._begun = total, now
            self._seen.clear()
        if not self._seen or done < self._seen[0][1]:  # what was done before took no time
            self._seen.clear()
            self._seen.append((self._begun, done))
        if now - self._told < BETWEEN:
            return
        self._told = now
        share = f"{done:,.0f}" if self._total is None else f"{done:,.0f} of {self._total:,}"
        left, (since, before) = "", self._seen[0]
        if self._total is not None and done > before:
            seconds = (now - since) / (done - before) * (self._total - done)
            left = f", about {max(1, round(seconds / 60))} min left"
        if done > self._seen[-1][1]:  # a long update is shown several times
            self._seen.append((now, done))
        self._console.print(f"{self._what}: {share}{left} {note}".rstrip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or value in ("", "-")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("\n", "\\n")
