"""`handscroll batch`: answer a file of requests together; answers are saved in order, all that are ready at once."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.options import Adapter, Beyond, Device, Dtype, Model, Plain, Weights, say_defaults, say_weights
from handscroll.cli.screen import bar, error_screen, screen

if TYPE_CHECKING:
    from handscroll.generate.engine.engine import Engine
    from handscroll.text.tokenizer import Tokenizer


def batch(
    model: Model,
    requests: Annotated[Path, typer.Argument(help='JSON lines, such as {"prompt": ...} or {"messages": [...]}.')],
    out: Annotated[Path, typer.Option(help="File of the answers; a killed run resumes from it.")],
    memory: Annotated[float | None, typer.Option(help="GB of memory for keys and values. [1]")] = None,
    kv_budget: Annotated[
        str, typer.Option(help="The same as a size, such as 2GiB; N% refers to one request of the whole context.")
    ] = "",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Make answers independent of neighbours, bit for bit.")
    ] = False,
    beyond: Beyond = False,
    plain: Plain = False,
    ray: Annotated[
        str,
        typer.Option(help="Answer on a Ray cluster: HOST:PORT, auto, or local (this machine alone; docs/engine.md)."),
    ] = "",
    workers: Annotated[int | None, typer.Option(help="With --ray: engines. [one a machine]")] = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    adapter: Adapter = None,
    weights: Weights = "",
) -> None:
    """Answer every line of REQUESTS with MODEL. All lines are checked before the first is answered."""
    from handscroll.base.records import read_records
    from handscroll.generate.defaults import Defaults
    from handscroll.generate.engine.batch import answer, identity, read_requests
    from handscroll.generate.engine.cluster import Cluster
    from handscroll.generate.prepare import context_bytes
    from handscroll.lm import load

    if memory is not None and kv_budget:
        raise ConfigError("--memory and --kv-budget both limit the keys and values: leave out one of the two")
    if memory is not None and not 0 < memory < float("inf"):
        raise ConfigError(f"--memory {memory} GB holds nothing; give more than 0")
    if workers is not None and not (ray and workers > 0):
        raise ConfigError(f"--workers {workers}: give the number of engines of a cluster, and --ray its address")
    loaded = {"device": device, "dtype": dtype, "weights": weights, "adapter": adapter}
    lm = load(model, **loaded)
    room = context_bytes(lm.model, kv_budget) if kv_budget else int((memory or 1.0) * 1e9)
    engine = lm.engine(room, deterministic=deterministic)
    asked = read_requests(requests, engine, lm.tokenizer, beyond, Defaults() if plain else lm.defaults)
    say_defaults(lm, {"plain": plain})
    say_weights(weights)
    cluster: Cluster | None = None
    if ray:
        where = str(Path(model).resolve()) if Path(model).exists() else model
        start = partial(worker_engine, where, loaded, room, deterministic)
        cluster = Cluster(ray, start, identity(engine), workers, beyond, device.startswith("cuda"))
    with bar("answering", len(asked)) as advance:
        kept = answer(asked, engine, lm.tokenizer, out, advance, cluster)
    if cluster is not None and cluster.died:
        error_screen().print(
            f"{len(cluster.died)} workers died, and what they had not answered was asked again: {cluster.died[0]}",
        )
    failed = [record["line"] for record in read_records(out) if "error" in record]
    if failed:
        lines = ", ".join(map(str, failed[:10])) + (" and more" if len(failed) > 10 else "")
        error_screen().print(f"{len(failed)} lines could not be answered ({lines}); {out} says why")
    screen().print(f"{out}: {len(asked) - len(failed)} answers" + (f", {kept} of them from before" if kept else ""))


def worker_engine(model: str, loaded: dict[str, Any], room: int, deterministic: bool) -> "tuple[Engine, Tokenizer]":
    """The engine of a worker of a cluster, made in the process of the worker."""
    from handscroll.lm import load

    lm = load(model, **loaded)
    return lm.engine(room, deterministic=deterministic), lm.tokenizer


def register(app: typer.Typer) -> None:
    app.command()(batch)
