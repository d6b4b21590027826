"""`handscroll evaluate views` and `leak`: what a mean loss hides, and whether packed documents see each other."""

from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.options import FILES, LOADING, Adapter, Device, Dtype, Loading, Model, numbers, with_loading
from handscroll.cli.records import Json, Report, keep
from handscroll.cli.screen import bar, screen, table


@with_loading
def views(
    model: Model,
    files: Annotated[list[str], typer.Argument(help=FILES)],
    length: Annotated[int, typer.Option(help="Tokens per window; may exceed the trained length.", min=3)],
    windows: Annotated[int, typer.Option(help="Number of windows to measure.", min=1)] = 8,
    short: Annotated[int, typer.Option(help="Tokens of the short context. [an eighth of the window]")] = 0,
    near: Annotated[
        str, typer.Option(help="Near contexts beyond which text is asked for its worth. [1/2, 1/4, 1/8 of the window]")
    ] = "",
    scored: Annotated[int, typer.Option(help="Tokens at the end of a window that --near scores. [an eighth]")] = 0,
    alpha: Annotated[float, typer.Option(help="Nats that a key token gains from the whole context.")] = 2.0,
    beta: Annotated[float, typer.Option(help="Log-probability that a key token reaches with it.")] = -2.0,
    run: Annotated[int, typer.Option(help="Tokens of a repeated run.")] = 8,
    keys: Annotated[
        Path | None, typer.Option(help="Take the key tokens of this record (--json) of the same text.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of windows and of the other order.")] = 0,
    loading: Loading = LOADING,
    keep_in: Annotated[
        Path | None, typer.Option("--keep", help="Keep windows in this file; a stopped run resumes from it.")
    ] = None,
    json_out: Json = None,
    report: Report = None,
) -> None:
    """Show whether a model uses its context: key tokens, worth of far text, repeated text, each document."""
    from handscroll.evaluate.samples import windows as cut
    from handscroll.evaluate.views import ViewSettings, loss_views

    values: dict[str, Any] = {"short": short or max(2, length // 8), "scored": scored or max(1, length // 8)}
    values["near"] = numbers(near, int, "--near") if near else _halves(length, values["scored"])
    settings = ViewSettings.parse(values | {"alpha": alpha, "beta": beta, "run": run, "seed": seed}, "evaluate views")
    texts = list(loading.reader().read(files))
    lm = loading.model(model)
    samples = cut(texts, lm.tokenizer, length, windows, seed)
    given = None if keys is None else _keys(keys, samples)
    with bar("windows", len(samples)) as advance:
        made = loss_views(lm, samples, settings, given, lambda done, total: advance(done), keep_in)
    record = made.record(lm, "views")
    _show(record, model)
    keep([record], json_out, report)


def leak(
    model: Model,
    documents: Annotated[int, typer.Option(help="Documents in the packed row.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of the longest document.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the documents.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    adapter: Adapter = None,
    json_out: Json = None,
) -> None:
    """Test that documents in one packed row change nothing of each other's logits and losses."""
    from handscroll.evaluate.leak import drawn, leak_record, ours
    from handscroll.lm import load
    from handscroll.objectives.settings import objective_from

    lm = load(model, device, dtype, adapter=adapter)
    name = "masked" if lm.model.spec.both_ways else "causal"
    texts = drawn(lm.model.config.vocab, documents, tokens, lm.tokenizer.special, seed)
    packing = ours(lm.model, objective_from(name).objective(lm.model), sum(map(len, texts)))
    record = leak_record(str(model), packing, texts, name)
    for one in record["said"]:
        screen().print(one)
    if not record["leaks"]:
        sizes = ", ".join(map(str, record["documents"]))
        screen().print(f"no leak: documents of {sizes} tokens in one row, each changed, change nothing of the others")
    keep([record], json_out, None)
    if record["leaks"]:
        raise typer.Exit(1)


def _halves(length: int, scored: int) -> list[int]:
    """The near contexts that are asked for where none is given; says which of them are too short or too long."""
    from handscroll.evaluate.beyond import LEAST, farthest

    wanted = [length >> n for n in range(1, 4)]
    taken = [k for k in wanted if LEAST <= k <= farthest(length, scored)]
    if left := [f"{k:,}" for k in wanted if k not in taken]:
        why = f"because they leave fewer than {LEAST} tokens near or far in windows of {length:,}"
        screen().print(f"note: text beyond {', '.join(left)} tokens is not measured, {why}")
    return taken


def _show(record: dict[str, Any], model: str) -> None:
    told, short = record["long_ppl"], record["short"]
    title = f"{model}: {record['windows']} windows of {record['length']:,} tokens"
    if told["given"]:
        why, keyed = "--keys gives none", "given by --keys"
    else:
        why = f"beyond {short:,} tokens nothing gains so much"
        keyed = f"which gain over {told['alpha']:g} nats from more than {short:,} tokens"
    if told["value"] is None:
        screen().print(f"LongPPL: none, as there are no key tokens ({why})")
    else:
        many = f"{told['count']:,} key tokens ({told['share']:.2%})"
        screen().print(f"LongPPL {told['value']:.2f}{_ends(told)} over {many}, {keyed}")
    rows = [[f"{one['near']:,}", *(_signed(one, name) for name in ("shuffled", "other"))] for one in record["beyond"]]
    if rows:
        what = f"{title}; nats a token that text beyond k saves"
        screen().print(table(["beyond k", "against another order", "against another text"], rows, what))
        screen().print(f"order helps: {_used(record)}")
    repeats = record["repeats"]
    parts = [(name, repeats[name]) for name in ("fresh", "repeated")]
    parts += [(f"repeated {one['from']:,}-{one['to']:,} back", one) for one in repeats["by_distance"]]
    rows = [
        [name, f"{one['count']:,}", _loss(one["loss"]), _ends(one).strip(), _loss(one["short"])] for name, one in parts
    ]
    columns = ["tokens", "count", "loss", "95 %", f"with {short:,}"]
    screen().print(table(columns, rows, f"repeated: ends a run of {repeats['run']} tokens that stood before"))
    rows = [
        [f"{Path(one['source']).name}@{one['offset']:,}", _loss(one["mean"]), *map(_loss, one["quarters"])]
        for one in record["documents"]
    ]
    screen().print(table(["window", "loss", "quarter 1", "2", "3", "4"], rows, "each window"))


def _used(record: dict[str, Any]) -> str:
    """Beyond how many tokens the order of the text helps."""
    from handscroll.evaluate.beyond import FEWEST

    if record["windows"] < FEWEST:
        return f"no verdict, because {FEWEST} windows are the fewest for one"
    return "no k: far text helps nowhere for sure" if record["used"] is None else f"beyond {record['used']:,} tokens"


def _signed(one: dict[str, Any], name: str) -> str:
    if name not in one:
        return "-"
    return f"{one[name]:+.3f}{_ends({'low': one[f'{name}_low'], 'high': one[f'{name}_high']})}"


def _ends(one: dict[str, Any]) -> str:
    return "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _keys(path: Path, samples: Any) -> list[list[int]]:
    from handscroll.base.records import read_records
    from handscroll.evaluate.samples import fingerprint

    found = [record for record in read_records(path) if record.get("kind") == "views"]
    if len(found) != 1:
        raise ConfigError(f"--keys {path} holds {len(found)} records of views; give a file with one")
    if found[0]["text_sha256"] != fingerprint(samples):
        raise DataError(f"--keys {path} is of other windows: give the same files, length, windows and seed")
    return found[0]["keys"]


def register(group: typer.Typer) -> None:
    for verb in (views, leak):
        group.command()(verb)
