"""`handscroll demo`: a guided tour with the bundled model and text, or with the user's own."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Annotated

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.extend import show, tell_of_tuning
from handscroll.cli.options import Encoding, Key, SkipPictures, reader
from handscroll.cli.screen import error_screen, screen, table

EVERY = 5.0  # seconds between two progress lines of one part


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, records and the lengthened model.")] = Path("demo"),
    model: Annotated[str | None, typer.Option(help="Your checkpoint. [the starter model]")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Your long text. [Python's standard library]")] = None,
    to: Annotated[int | None, typer.Option(help="Tokens of the new context. [8x the starter, 4x your model]")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of tuning steps; 0 skips the tuning.")] = None,
    needles: Annotated[bool, typer.Option(help="Measure needle retrieval.")] = True,
    key: Key = "",
    encoding: Encoding = "",
    skip_pictures: SkipPictures = False,
) -> None:
    """Show how a model fails beyond its context, lengthen it by every method, tune, prove, write report.html."""
    from handscroll.base.runs import write_file
    from handscroll.extend.story import STARTER, Plan, Texts, tell
    from handscroll.lm import load
    from handscroll.report import evaluation_page, write

    started = time.monotonic()
    if (out / "model").exists() or (out / "tuning").exists():
        raise ConfigError(f"--out {out} holds an earlier demo; remove it or choose another folder")
    texts = Texts.of_files(text, reader(key, encoding, skip_pictures)) if text else Texts.of_library()
    lm = load(model or STARTER, dtype="float32", weights="float")  # small steps need float32 weights
    goal = to or lm.model.config.trained * (4 if model else 8)
    plan = Plan(to=goal, needles=needles)
    if steps is not None:
        plan = replace(plan, tune_steps=steps)
    note = _Notes(started)
    story = tell(lm, texts, plan, out, note)
    records = story.records()
    write_file(out / "records.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
    trained = lm.model.config.trained
    title = f"{trained:,} to {goal:,} tokens"
    page = write(
        evaluation_page(records, trained=trained, title=title, provenance=_provenance(story)), out / "report.html"
    )
    _summary(story, trained, goal)
    seconds = time.monotonic() - started
    screen().print(f"\nreport   {page}\nmodel    {out / 'model'}  (an ordinary Hugging Face folder)")
    screen().print(f"took     {seconds:.0f} s")
    command = "handscroll" if which("handscroll") else os.path.relpath(sys.argv[0])
    screen().print(
        f"next     {command} generate {out / 'model'} --prompt 'def read(' --max-tokens 60\n"
        f"         {command} evaluate perplexity {out / 'model'} FILES --length {goal}\n"
        f"         {command} demo --model YOUR_MODEL --text YOUR_FILES\n"
        f"         {command} serve YOUR_MODEL    (a folder or a GGUF file; a page to read documents and ask them)",
    )


class _Notes:
    """Prints progress on standard error: each new part at once, its details at most every few seconds."""

    def __init__(self, started: float):
        self.started, self.part, self.last = started, "", 0.0
        self.lines = error_screen()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        part = text.split(" ", 1)[0]
        if part == self.part and now - self.last < EVERY:
            return
        self.part, self.last = part, now
        self.lines.print(f"[{now - self.started:4.0f} s] {text}")


def _summary(story, trained: int, goal: int) -> None:
    lines = screen()
    lines.print("")
    show(story.outcome)
    tell_of_tuning(story.after)
    rows = []
    parts = [(0, trained), (trained, goal)]
    for name in ("before", "sliding window", "after"):
        if name in story.curves:
            rows.append([name, *(story.curves[name].mean(first, last) for first, last in parts)])
    lines.print("")
    lines.print(table(["loss, nats per token", *(f"{a:,}-{b:,}" for a, b in parts)], rows))
    rows = []
    for name, record in story.needles.items():
        columns = list(zip(*record["accuracy"], strict=True))
        rows.append([name, *(f"{100 * sum(column) / len(column):.0f}%" for column in columns)])
    if rows:
        lengths = next(iter(story.needles.values()))["lengths"]
        lines.print("")
        lines.print(table(["needle found at", *(f"{length:,}" for length in lengths)], rows))


def _provenance(story) -> dict[str, str]:
    import torch

    from handscroll import __version__

    return {
        "model": story.before.source,
        "handscroll": __version__,
        "torch": torch.__version__,
        "method": story.outcome.winner.candidate.name,
        "text that chose": str(story.outcome.record()["text_sha256"])[:16],
        "text that proves": str(story.curves["after"].record(story.after)["text_sha256"])[:16],
    }


def register(app: typer.Typer) -> None:
    app.command()(demo)
