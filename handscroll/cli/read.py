"""`handscroll read`, `ask` and `readings`: read a text once and ask questions about it as often as you like."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.cli.options import (
    FILES,
    Adapter,
    Beyond,
    Device,
    Dtype,
    Encoding,
    Guard,
    Key,
    Model,
    Plain,
    SkipPictures,
    Temperature,
    Weights,
    given,
    one_cache,
    reader,
    say_cache,
    say_cut,
    say_defaults,
    say_weights,
    text_or_input,
)
from handscroll.cli.screen import bar, error_screen, screen, table

if TYPE_CHECKING:
    from handscroll.cache.reading.about import About
    from handscroll.lm import LM

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Folder of the readings. [~/.local/share/handscroll/readings]")
]
OwnerOption = Annotated[str, typer.Option(help="Owner of the readings; owners never see each other's.")]


def read(
    model: Model,
    texts: Annotated[list[str], typer.Argument(help=FILES)],
    save: Annotated[str, typer.Option(help="Name of the reading.")],
    room: Annotated[int, typer.Option(help="Tokens kept free for question and answer.")] = 1024,
    dtype: Dtype = "auto",
    weights: Weights = "",
    device: Device = "cpu",
    adapter: Adapter = None,
    store: StoreOption = None,
    owner: OwnerOption = "",
    limit: Annotated[float, typer.Option(help="Most GB of all readings; the least recently used go first.")] = 20.0,
    cache: Annotated[
        str, typer.Option(help="Cache policy: full, or int8 (half of bfloat16, approximate). [full]")
    ] = "",
    kv_budget: Annotated[str, typer.Option(help="Most bytes of keys and values: 2GiB, 500MB, 50%.")] = "",
    kv_guard: Guard = None,
    beyond: Beyond = False,
    pages: Annotated[
        bool, typer.Option("--pages", help="Write [page 7] into the text where a page or chapter begins.")
    ] = False,
    key: Key = "",
    encoding: Encoding = "",
    skip_pictures: SkipPictures = False,
    raw: Annotated[bool, typer.Option("--raw", help="Read plain text even if the model has a chat template.")] = False,
) -> None:
    """Read TEXTS with MODEL and save the reading under the name --save."""
    import torch

    from handscroll.cache.reading.store import Store
    from handscroll.cache.table import DEFAULT
    from handscroll.generate.budget import GUARD, Choice
    from handscroll.generate.prepare import choose_reading
    from handscroll.lm import load

    if limit <= 0:
        raise ConfigError(f"--limit {limit} GB holds nothing; give more than 0")
    one_cache(cache, kv_budget, kv_guard)
    found = reader(key, encoding, skip_pictures, whole_rows=True).read(texts)
    text = "\n\n".join(document.marked() if pages else document.text for document in found)
    lm = load(model, device, dtype, weights, adapter)  # only now: a file that cannot be read is told at once
    begun = None if raw else lm.opening(text)
    ids = lm.encode(text) if begun is None else begun.ids
    kept = Store(store, owner, int(limit * 1e9))
    say_weights(weights)
    policy: str | Choice = cache or DEFAULT
    say_cache(policy, f"--cache {cache}")
    if kv_budget:
        guard = GUARD if kv_guard is None else kv_guard
        policy = choose_reading(lm.model, lm.tokenizer, ids, room, kv_budget, guard)
        if policy.loss is not None:
            error_screen().print(f"approximate: --kv-budget: {policy.report()}")
    name = policy if isinstance(policy, str) else policy.policy
    known = partial(kept.kept, lm.identity(len(ids) + room, name), torch.tensor(ids))
    shared = known()
    with bar("reading", len(ids)) as advance:
        advance(shared)
        try:
            reading = lm.read(begun or ids, kept, save, room, beyond, policy, lambda done, _: advance(done))
        except KeyboardInterrupt:
            told = f"kept: {known():,} of {len(ids):,} tokens; the same command goes on from there"
            error_screen().print(told)
            raise
    about, _ = kept.named(save)
    how = "" if kept.document(save) is None else " in a user's turn of the model's chat template"
    earlier = f", {'all' if shared == len(ids) else f'{shared:,}'} of them from an earlier reading" if shared else ""
    what = f"{reading.length:,} tokens{how}{earlier}; {kept.size(about.number) / 1e6:,.0f} MB"
    screen().print(f"{save}: {what}. Ask: handscroll ask {save} QUESTION")


def ask(
    name: Annotated[str, typer.Argument(help="Name of a saved reading.")],
    question: Annotated[str, typer.Argument(help="The question, or - for standard input.")],
    model: Annotated[str, typer.Option(help="The model, if it was moved since the reading.")] = "",
    template: Annotated[str, typer.Option(help="What follows the document, with {question} in it.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 256,
    temperature: Temperature = None,
    plain: Plain = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling; equal seeds give equal text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    store: StoreOption = None,
    owner: OwnerOption = "",
    beyond: Beyond = False,
    again: Annotated[
        bool, typer.Option("--again", help="Read the text again if the reading no longer serves.")
    ] = False,
    device: Device = "cpu",
    weights: Weights = "",
    kv_budget: Annotated[
        str, typer.Option(help="Refuse if reading, question and answer take more bytes of keys and values than this.")
    ] = "",
    adapter: Adapter = None,
) -> None:
    """Answer QUESTION about the text of reading NAME; only the answer goes to standard output."""
    from handscroll.cache.reading.store import Store
    from handscroll.generate.ask import AskSettings

    kept = Store(store, owner)
    about, _ = kept.named(name)
    lm = model_of(name, about, model, adapter, (device, weights))
    text = text_or_input(question)
    settings: AskSettings = given(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        stop=stop or (),
        beyond=beyond,
        again=again,
        plain=plain,
        kv_budget=kv_budget or None,
        on_finish=say_cut(max_tokens),
    )
    say_defaults(lm, settings)
    say_weights(weights)
    say_kept(name, about)
    template = template.replace("\\n", "\n")
    for piece in lm.ask_stream(name, text, kept, template, **settings):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo("")


def model_of(name: str, about: "About", model: str, adapter: list[str] | None, how: tuple[str, str]) -> "LM":
    """The model that read `name`, or the one that is given in its place; `how` are its device and its weights.

    Raises:
        CheckpointError: the model is no longer where it was.
    """
    from handscroll.lm import load

    device, weights = how
    try:
        return load(model or about.source, device, about.identity.dtype, weights, adapter or about.adapters)
    except CheckpointError as error:
        if model or adapter:
            raise
        over = ", ".join(about.adapters)
        who = f"the model {about.source}" + (f" under the adapters {over}" if over else "")
        now = "they are now: with --model if the model was moved, or with --adapter if its adapters were"
        raise CheckpointError(
            f"'{name}' was read with {who}, which cannot be loaded: {error}. Say where "
            f"{now if over else 'it is now with --model'}"
        ) from None


def say_kept(name: str, about: "About") -> None:
    """Say on standard error that a reading is approximate, if it is."""
    policy = about.identity.policy
    say_cache(policy, f"'{name}' was read with --cache {policy}")


def readings(
    forget: Annotated[list[str] | None, typer.Option(help="Remove this reading; repeatable.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what no named reading needs.")] = False,
    store: StoreOption = None,
    owner: OwnerOption = "",
) -> None:
    """List the saved readings, or remove some."""
    from handscroll.cache.reading.store import Store

    kept = Store(store, owner)
    for name in forget or ():
        kept.forget(name)
    if prune:
        screen().print(f"{kept.prune() / 1e6:,.0f} MB removed")
    rows = []
    for name, (number, length) in kept.names().items():
        try:
            about, _ = kept.named(name)
            size, how = f"{kept.size(number) / 1e6:,.0f}", about.identity
            rows.append([name, f"{length:,}", size, how.dtype, how.policy, about.source])
        except ValueError:  # evicted
            rows.append([name, f"{length:,}", "evicted", "", "", number])
    title = f"{kept.nbytes / 1e6:,.0f} MB in {kept.folder}"
    screen().print(table(["reading", "tokens", "MB", "dtype", "cache", "model"], rows, title))


def register(app: typer.Typer) -> None:
    app.command()(read)
    app.command()(ask)
    app.command()(readings)
