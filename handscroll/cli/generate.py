"""`handscroll generate`: continue a prompt and stream the text to the terminal."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.options import (
    Adapter,
    Beyond,
    Device,
    Dtype,
    Guard,
    Model,
    Plain,
    Temperature,
    TopP,
    Weights,
    given,
    one_cache,
    say_cache,
    say_cut,
    say_defaults,
    say_weights,
    text_or_input,
)
from handscroll.cli.screen import error_screen

if TYPE_CHECKING:
    from handscroll.generate.budget import Choice
    from handscroll.generate.constrain import Constraint
    from handscroll.generate.continuation import Continuation
    from handscroll.generate.draft import Drafts
    from handscroll.generate.settings import SamplingSettings, Settings
    from handscroll.lm import LM


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The prompt, or - for standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 256,
    temperature: Temperature = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the K likeliest tokens; 0 keeps all.")] = None,
    top_p: TopP = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the highest.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1, tokens already seen become less likely.")
    ] = None,
    plain: Plain = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling; equal seeds give equal text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    beyond: Beyond = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    adapter: Adapter = None,
    cache: Annotated[str, typer.Option(help="Cache policy (docs/generate.md). [full]")] = "",
    kv_budget: Annotated[str, typer.Option(help="Most bytes of keys and values: 2GiB, 500MB, 50%.")] = "",
    kv_guard: Guard = None,
    weights: Weights = "",
    samples: Annotated[int, typer.Option(help="Number of continuations; the prompt is read once.")] = 1,
    beams: Annotated[int, typer.Option(help="Number of beams; --samples best results are written.")] = 0,
    length_penalty: Annotated[float, typer.Option(help="Beams: divide scores by length to this power.")] = 1.0,
    lookup: Annotated[int, typer.Option(help="Draft the tokens that followed the last N tokens earlier.")] = 0,
    draft: Annotated[str, typer.Option(help="Draft with this smaller model of the same tokenizer.")] = "",
    json_schema: Annotated[Path | None, typer.Option(help="File with a JSON schema that the text must follow.")] = None,
    regex: Annotated[str, typer.Option(help="Regular expression that the text must match.")] = "",
    choice: Annotated[list[str] | None, typer.Option(help="A text to choose from; repeatable.")] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Write one JSON object with settings and results.")] = False,
    logprobs: Annotated[int | None, typer.Option(help="Add log-probabilities to --json, and the N likeliest.")] = None,
) -> None:
    """Continue --prompt with MODEL; only the new text goes to standard output."""
    from handscroll.cache.table import DEFAULT
    from handscroll.generate.budget import GUARD
    from handscroll.lm import load

    text = text_or_input(prompt)
    sampling: SamplingSettings = given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        plain=plain,
    )
    if logprobs is not None and not json_out:
        raise ConfigError("--logprobs appear only in the output of --json; add --json")
    _one_cache(cache, kv_budget, kv_guard, beams)
    lm = load(model, device, dtype, weights, adapter)
    asked, ends = _asked(lm, text, chat)
    cut = say_cut(max_tokens) if chat else None
    reports: list[str] = []
    drafts = _draft(lm, lookup, draft, dtype)
    settings: Settings = {
        **sampling,
        "beyond": beyond,
        "policy": cache or DEFAULT,
        "ends": ends,
        "constraint": _constraint(lm, json_schema, regex, choice),
        "draft": drafts,
    }
    taken = None
    if kv_budget:
        guard = GUARD if kv_guard is None else kv_guard
        taken = settings["kv_budget"] = lm.choose_cache(asked, kv_budget, max_tokens, guard, samples, drafts, beyond)
    if beams:
        if logprobs is not None:
            raise ConfigError(
                "--beams searches for the likeliest text and gives no --logprobs; leave out one of the two"
            )
        found = lm.beams(asked, beams, samples, length_penalty, **settings)
    elif length_penalty != 1.0:
        raise ConfigError("--length-penalty belongs to --beams: give --beams N too, or leave it out")
    elif samples != 1 or json_out or settings["constraint"] is not None:
        settings["on_report"] = reports.append
        found = lm.continuations(asked, samples, logprobs, **settings)
    else:
        settings["on_report"] = reports.append
        settings["on_finish"] = cut
        found = lm.stream(asked, **settings)
    _announce(cache, weights, taken)
    if not beams:
        say_defaults(lm, sampling)
    if json_out and isinstance(found, list):
        search = {"max_tokens": max_tokens, "beams": beams, "length_penalty": length_penalty}
        about = {"model": model, "prompt_tokens": len(asked)}
        drawn = lm.sampling(**sampling).model_dump(exclude={"ignore_eos"})
        about["settings"] = (search if beams else drawn) | {"dtype": str(lm.model.dtype).removeprefix("torch.")}
        kept = _kept(cache or DEFAULT, taken, reports)
        typer.echo(json.dumps(about | kept | _record(lm, found, drafts), ensure_ascii=False))
        return
    _write(found, samples, settings["constraint"], cut)
    if drafts is not None:
        error_screen().print(f"draft: {_counted(drafts)}")
    for report in reports:
        error_screen().print(f"--cache {cache if taken is None else taken.policy}: {report}")


def _asked(lm: "LM", text: str, chat: bool) -> tuple[list[int], frozenset[int] | None]:
    """The ids of the prompt: of a message in the chat template, of a text in the template itself, or of plain text.

    With them what ends the answer: None for the model's own end tokens.
    """
    from handscroll.generate.chat import Speaker

    if chat:
        speaker = Speaker(lm.tokenizer, where=lm.source)
        return speaker.render([{"role": "user", "content": text}]).ids, speaker.ends(lm.model)
    try:
        speaker = Speaker(lm.tokenizer)
        ids = speaker.rendered_already(text)
    except ConfigError:  # no template, or none that can be read
        return lm.encode(text), None
    said = (
        "the model has a chat template, and this prompt is continued as plain text: --chat asks it as a question"
        if ids is None
        else "the prompt is written in the model's chat template, so its special tokens are read as such"
    )
    error_screen().print(said)
    return (lm.encode(text), None) if ids is None else (ids, speaker.ends(lm.model))


def _one_cache(cache: str, kv_budget: str, kv_guard: float | None, beams: int) -> None:
    """Refuse cache settings that exclude each other."""
    one_cache(cache, kv_budget, kv_guard)
    if kv_budget and beams:
        raise ConfigError("--beams keeps the full cache: leave out --kv-budget, or --beams")


def _announce(cache: str, weights: str, choice: "Choice | None") -> None:
    """Print the approximate settings on standard error."""
    if cache:
        say_cache(cache, f"--cache {cache}")
    say_weights(weights)
    if choice is not None and choice.loss is not None:
        error_screen().print(f"approximate: --kv-budget: {choice.report()}")


def _kept(policy: str, choice: "Choice | None", reports: list[str]) -> dict[str, Any]:
    """The entry of --json for a cache other than the default."""
    from handscroll.cache.table import DEFAULT, kind_of

    if choice is not None:
        return {"cache": choice.record() | {"report": " ".join(reports)}}
    if policy == DEFAULT:
        return {}
    return {"cache": {"policy": policy, "exact": kind_of(policy).exact, "report": " ".join(reports)}}


def _write(
    found: Any, samples: int, constraint: "Constraint | None", told: Callable[[str], None] | None = None
) -> None:
    """Stream pieces, or write the texts, each below a line of its own if there are several.

    `told` hears why the text of beams ended, if it is the only one; a stream says that itself.
    """
    if not isinstance(found, list):
        for piece in found:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo("")
        return
    for number, item in enumerate(found, 1):
        if samples > 1:
            score = "" if item.score is None else f", score {item.score:.4f}"
            typer.echo(f"--- {number} of {len(found)} ({item.finish}{score})")
        typer.echo(item.text)
    if told is not None and samples == 1 and constraint is None:
        told(found[0].finish)
    cut = sum(item.finish == "length" for item in found) if constraint is not None else 0
    if cut:
        error_screen().print(f"{cut} of {len(found)} cut by --max-tokens before the text was complete")


def _constraint(lm: "LM", json_schema: Path | None, regex: str, choice: list[str] | None) -> "Constraint | None":
    from handscroll.generate.constrain import Constraint

    given = [
        name for name, value in (("--json-schema", json_schema), ("--regex", regex), ("--choice", choice)) if value
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other: give one of them")
    if json_schema is not None:
        try:
            schema = json_schema.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--json-schema {json_schema} cannot be read: {error}") from None
        return Constraint.schema(schema, lm.tokenizer)
    if regex:
        return Constraint.regex(regex, lm.tokenizer)
    return Constraint.choices(choice, lm.tokenizer) if choice else None


def _draft(lm: "LM", lookup: int, draft: str, dtype: str) -> "Drafts | None":
    from handscroll.generate.draft import Lookup
    from handscroll.lm import load

    if lookup and draft:
        raise ConfigError("--lookup and --draft both guess tokens: give one of them")
    if lookup:
        return Lookup(lookup)
    return lm.draft(load(draft, str(lm.model.device), dtype)) if draft else None


def _record(lm: "LM", found: "Sequence[Continuation]", drafts: "Drafts | None") -> dict[str, Any]:
    """The entries of --json for the continuations."""
    from handscroll.generate.continuation import told

    every = []
    for item in found:
        one: dict[str, Any] = {"text": item.text, "finish": item.finish, "tokens": list(item.tokens)}
        if item.score is not None:
            one["score"] = item.score
        if item.scored:
            one["logprobs"] = told(lm.tokenizer, item.tokens, item.scored)
        every.append(one)
    if drafts is None:
        return {"continuations": every}
    counts = drafts.acceptance
    return {"continuations": every, "draft": {**vars(counts), "rate": counts.rate}}


def _counted(drafts: "Drafts") -> str:
    counts = drafts.acceptance
    return (
        f"{counts.accepted} of {counts.drafted} guessed tokens accepted ({counts.rate:.0%}), {counts.forwards} forwards"
    )


def register(app: typer.Typer) -> None:
    app.command()(generate)
