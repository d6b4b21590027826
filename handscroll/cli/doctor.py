"""`handscroll doctor`: what is wrong in a checkpoint or a runtime, how it shows and how to mend it."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError, nearest
from handscroll.cli.options import FILES, Device, Dtype, refuse_idle
from handscroll.cli.records import OneJson
from handscroll.cli.screen import bar, screen, table

if TYPE_CHECKING:
    from handscroll.doctor.across import Apart
    from handscroll.doctor.finding import Diagnosis
    from handscroll.doctor.runtime import Runtime

RUNTIMES = ("handscroll", "transformers")
KEY = "OPENAI_API_KEY"


def doctor(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="Checkpoint folder, GGUF file or hub id; with --endpoint its tokenizer, if it is here."),
    ] = "",
    runtime: Annotated[str, typer.Option(help="What runs MODEL: handscroll or transformers.")] = "handscroll",
    endpoint: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, such as .../v1.")] = "",
    name: Annotated[str, typer.Option(help="Name of the model at the endpoint. [the first listed]")] = "",
    longest: Annotated[int, typer.Option(help="Longest prompt that an endpoint is sent, in tokens.")] = 8192,
    against: Annotated[str, typer.Option(help="Another model or address: say where the two part, by position.")] = "",
    against_runtime: Annotated[str, typer.Option(help="What runs the other one: handscroll or transformers.")] = "",
    length: Annotated[int, typer.Option(help="Tokens for --against.", min=2)] = 1024,
    text: Annotated[list[str] | None, typer.Option(help=f"Text for --against. [a built-in passage] {FILES}")] = None,
    only: Annotated[str, typer.Option(help="Checks to make, separated by commas. [all]")] = "",
    skip: Annotated[str, typer.Option(help="Checks to leave out, separated by commas.")] = "",
    dtype: Dtype = "auto",
    device: Device = "cpu",
    json_out: OneJson = None,
) -> None:
    """Find what is wrong in a model or its runtime; the exit status is 1 where something is."""
    from handscroll.doctor.examine import chosen, diagnose

    _refuse_idle(context, endpoint, against)
    names = chosen(_listed(only), _listed(skip))
    one = _endpoint(model, endpoint, name, longest) if endpoint else _opened(model, runtime, dtype, device)
    if against:
        how = against_runtime or runtime
        other = _endpoint(model, against, "", longest) if _address(against) else _opened(against, how, dtype, device)
        parted = _parted(one, other, length, text)
        _keep([parted.record()], json_out)
        if parted.first is not None:
            raise typer.Exit(1)
        return
    with bar("checks", len(names)) as advance:
        done = iter(range(len(names)))
        found = diagnose(one, names, told=lambda check: advance(next(done), note=check))
    show(found)
    _keep([found.record()], json_out)
    if found.status:
        raise typer.Exit(found.status)


def show(found: "Diagnosis") -> None:
    """The diagnosis as a page for a terminal: a line a check, then each fault in full."""
    seconds = sum(one.seconds for one in found.checks)
    screen().print(f"{found.source} in {found.runtime}: {len(found.checks)} checks in {seconds:.1f} s\n")
    for one in found.checks:
        if one.seen is not None:
            mark, style = ("WRONG", "bold red") if one.seen.faults else ("healthy", "")
            screen().print(f"{mark:<13} {one.name:<17} {one.seen.what}", style=style)
            for note in one.seen.notes:
                screen().print(f"{'':<13} {'':<17} note: {note}")
    for why in dict.fromkeys(one.why for one in found.of("unexamined")):
        names = ", ".join(one.name for one in found.of("unexamined") if one.why == why)
        screen().print(f"not examined  {names}: {why}", style="dim")
    if rest := [one.name for one in found.of("absent")]:
        screen().print(f"does not apply: {', '.join(rest)}")
    for one in found.of("wrong"):
        assert one.seen is not None
        for fault in one.seen.faults:
            screen().print(f"\n{one.name}: {fault.what}", style="bold")
            screen().print(f"  it shows: {fault.shows}\n  to mend:  {fault.mend}")
    wrong, healthy, unexamined = (len(found.of(one)) for one in ("wrong", "healthy", "unexamined"))
    screen().print(f"\n{wrong} wrong, {healthy} healthy, {unexamined} not examined")


def _refuse_idle(context: typer.Context, endpoint: str, against: str) -> None:
    server = _address(against)
    here = not endpoint or (against and not server)
    refuse_idle(
        context,
        (against, ("length", "text", "against-runtime"), "give --against too"),
        (not against, ("only", "skip"), "--against makes no checks, so leave it out"),
        (endpoint, ("name",), "give --endpoint too"),
        (endpoint or server, ("longest",), "give the address of a server (--endpoint or --against) too"),
        (not server, ("against-runtime",), "a server runs the other model, so leave it out"),
        (here, ("runtime", "dtype", "device"), "servers run all models, so leave it out"),
    )


def _parted(one: "Runtime", other: "Runtime", length: int, text: list[str] | None) -> "Apart":
    from handscroll.doctor.across import compare
    from handscroll.doctor.probes import probe

    ids = probe(one, length)
    if text:
        if one.words is None:
            raise ConfigError("--text needs a tokenizer: name the model's folder")
        from handscroll.text.readers import Reader

        whole = one.words.encode("\n".join(document.text for document in Reader().read(text)))
        ids = tuple(whole[:length])
        screen().print(f"the first {len(ids):,} of {len(whole):,} tokens of the text")
    found = compare(one, other, ids)
    rows = [[f"{b.first:,}-{b.last - 1:,}", f"{b.mean:.2e}", f"{b.worst:.2e}"] for b in found.ranges]
    screen().print(table(["tokens", "mean |difference|", "largest"], rows, "log-probabilities, nats"))
    losses = " and ".join(f"{loss:.3f}" for loss in found.losses)
    screen().print(f"{found.says}; losses {losses} nats a token")
    return found


def _opened(model: str, runtime: str, dtype: str, device: str) -> "Runtime":
    if runtime not in RUNTIMES:
        raise ConfigError(f"unknown runtime '{runtime}': {nearest(runtime, RUNTIMES)}")
    if not model:
        raise ConfigError("no model was given: name a checkpoint folder or a GGUF file, or give --endpoint")
    from handscroll.models.locate import locate

    path = locate(model)
    if runtime == "transformers":
        from handscroll.doctor.runtimes.theirs import opened

        return opened(path, "float32" if dtype == "auto" else dtype, device)
    from handscroll.doctor.runtimes.ours import loaded
    from handscroll.lm import load

    return loaded(load(path, device, dtype), path)


def _endpoint(model: str, address: str, name: str, longest: int) -> "Runtime":
    from handscroll.doctor.runtimes.endpoint import Endpoint

    words: Any = None
    if model:
        from handscroll.doctor.runtimes.ours import OurWords
        from handscroll.models.locate import locate
        from handscroll.text.tokenizer import Tokenizer

        words = OurWords(Tokenizer.load(locate(model)), locate(model))
    return Endpoint(address, name, words, os.environ.get(KEY, ""), longest)


def _address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _keep(records: list[dict[str, Any]], json_out: Path | None) -> None:
    if json_out is None:
        return
    from handscroll.base.runs import write_file

    write_file(json_out, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records).encode())
    screen().print(f"record: {json_out}")


def register(app: typer.Typer) -> None:
    app.command()(doctor)
