"""`handscroll explain`: which passages of a text that was read before caused an answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handscroll.cli.options import Adapter, Device, Plain, Weights, refuse_idle, say_cut, say_defaults, say_weights
from handscroll.cli.read import OwnerOption, StoreOption, model_of, say_kept
from handscroll.cli.records import folder_to_write
from handscroll.cli.screen import bar, error_screen, screen, table

if TYPE_CHECKING:
    from handscroll.explain.why import Explanation

SHOWN = 88  # characters of a passage in the table


def explain(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a saved reading.")],
    question: Annotated[str, typer.Argument(help="The question about it.")],
    answer: Annotated[str, typer.Option(help="The answer to explain. [the model's own]")] = "",
    passage: Annotated[int, typer.Option(help="Most tokens of a passage.")] = 64,
    tried: Annotated[int, typer.Option(help="Passages that are left out in turn, by attention.")] = 3,
    alternatives: Annotated[int, typer.Option(help="Other tokens shown at each place of the answer; 0: none.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the model's own answer.")] = 256,
    plain: Plain = False,
    template: Annotated[str, typer.Option(help="What follows the document, with {question} in it.")] = "",
    model: Annotated[str, typer.Option(help="The model, if it was moved since the reading.")] = "",
    store: StoreOption = None,
    owner: OwnerOption = "",
    device: Device = "cpu",
    weights: Weights = "",
    adapter: Adapter = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a self-contained explanation.html into this folder.", callback=folder_to_write),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the passages of reading NAME without which the answer to QUESTION becomes less likely."""
    from handscroll.cache.reading.store import Store
    from handscroll.explain.why import Explaining
    from handscroll.explain.why import explain as why
    from handscroll.generate.ask import Question

    refuse_idle(context, (not answer, ("max-tokens", "plain"), "leave out --answer, or this option"))
    values = {"passage": passage, "tried": tried, "alternatives": alternatives, "max_tokens": max_tokens}
    how = Explaining.parse(values, "explain")
    kept = Store(store, owner)
    about, _ = kept.named(name)
    lm = model_of(name, about, model, adapter, (device, weights))
    if not answer:
        say_defaults(lm, {"temperature": 0.0, "plain": plain})
    say_weights(weights)
    say_kept(name, about)
    asked = Question(name, question, template.replace("\\n", "\n"))
    with bar("looking", None) as advance:
        made = why(lm, asked, kept, answer, how, lambda done, total: advance(done, "", total), plain)
    say_cut(max_tokens)(made.finish)
    if report is not None:
        from handscroll.report.explanation import explanation_page
        from handscroll.report.page import write

        told = {"model": lm.source, "reading": f"{name}, {made.read:,} tokens", "passages": f"at most {passage} tokens"}
        page = write(explanation_page(made.record(), question, name, told), report / "explanation.html")
        (error_screen() if as_json else screen()).print(f"report: {page}")
    if as_json:
        typer.echo(json.dumps(made.record(), ensure_ascii=False))
        return
    _show(made)


def _show(made: "Explanation") -> None:
    say = screen().print
    say(made.answer.strip() + "\n")
    rows = []
    for one in sorted((one for one in made.marks if one.effect is not None), key=lambda one: -(one.effect or 0.0)):
        text = " ".join(one.text.split())
        short = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
        rows.append(["*" if one.marked else "", f"{one.effect:+.2f}", f"{one.attention:.1%}", f"{one.start:,}", short])
    if rows:
        say(table(["", "nats lost", "attention", "character", "passage"], rows))
    for step in made.steps:
        if step.others:
            others = ", ".join(f"{text!r} {share:.0%}" for text, share in step.others)
            say(f"{step.text!r} {step.probability:.0%}; {others}")
    agreement = "" if made.agreement is None else f"; attention and effect agree by {made.agreement:+.2f} (Spearman)"
    marked = len(made.causes)
    say(
        f"the answer has {made.likelihood:.2f} nats, {made.rests:.2f} fewer without the text, {made.together:.2f} "
        f"fewer without the {marked} marked passage{'s' * (marked != 1)}{agreement}",
    )
    say(f"[{made.read:,} tokens re-used, {made.looked:,} read to explain]")


def register(app: typer.Typer) -> None:
    app.command()(explain)
