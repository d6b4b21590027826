"""`handscroll evaluate`: loss by position, needle retrieval, and the cost of cache policies."""

from typing import Annotated, Any

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli import needles, views
from handscroll.cli.exposure import exposure
from handscroll.cli.harness import ANY, harness
from handscroll.cli.options import FILES, LOADING, Loading, Model, numbers, with_loading
from handscroll.cli.questions import tasks
from handscroll.cli.records import Json, Report
from handscroll.cli.records import keep as _keep
from handscroll.cli.ruler import ruler
from handscroll.cli.screen import bar, screen, table

evaluations = typer.Typer(
    help="Measure a checkpoint: loss by position, needles, cache policies, long tasks.", no_args_is_help=True
)


@evaluations.command()
@with_loading
def perplexity(
    model: Model,
    files: Annotated[list[str], typer.Argument(help=FILES)],
    length: Annotated[int, typer.Option(help="Tokens per window; may exceed the trained length.", min=2)],
    windows: Annotated[int, typer.Option(help="Number of windows to measure.", min=1)] = 8,
    reference: Annotated[int | None, typer.Option(help="Tokens of the sliding-window reference; 0 skips it.")] = None,
    block: Annotated[int | None, typer.Option(help="Positions per block of the curve.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of windows.")] = 0,
    loading: Loading = LOADING,
    json_out: Json = None,
    report: Report = None,
) -> None:
    """Measure the exact loss by position over windows of FILES, and that of a window of the trained length."""
    from handscroll.evaluate.perplexity import default_block, measure
    from handscroll.evaluate.samples import windows as cut

    if reference and not 2 <= reference < length:
        raise ConfigError(
            f"--reference {reference}: the sliding window takes at least 2 tokens and fewer than --length {length}; 0 "
            "leaves it out"
        )
    texts = list(loading.reader().read(files))
    lm = loading.model(model)
    samples = cut(texts, lm.tokenizer, length, windows, seed)
    _report_unknown(lm.tokenizer, samples)
    window = min(lm.trained, length) if reference is None else reference
    with bar("exact", len(samples)) as advance:
        curves = [measure(lm, samples, "exact", progress=lambda done, total: advance(done))]
    if window and window < length:
        with bar(f"sliding window of {window}", len(samples)) as advance:
            curves.append(measure(lm, samples, "sliding window", window, lambda done, total: advance(done)))
    records = [curve.record(lm, block) for curve in curves]
    size = default_block(length) if block is None else block
    rows = [
        [f"{first:,}-{min(first + size, length) - 1:,}", *(record["loss"][number] for record in records)]
        for number, first in enumerate(range(0, length, size))
    ]
    names = ["positions", *(f"{c.label} (nats)" for c in curves)]
    screen().print(table(names, rows, f"{model}: {len(samples)} windows of {length:,} tokens"))
    for record in records:
        screen().print(f"{record['label']}: mean {record['mean']:.4f} nats, perplexity {record['perplexity']:.2f}")
    _keep(records, json_out, report)


@evaluations.command()
@with_loading
def policies(
    model: Model,
    files: Annotated[list[str], typer.Argument(help=FILES)],
    length: Annotated[int, typer.Option(help="Tokens per window; 0 takes the context, at most 512.", min=0)] = 0,
    budgets: Annotated[str, typer.Option(help="Percentages of the tokens that may stay.")] = "50,25,12.5",
    policies: Annotated[str, typer.Option(help="Policies, separated by commas. [all approximate ones]")] = "",
    windows: Annotated[int, typer.Option(help="Number of windows of the text.", min=1)] = 8,
    samples: Annotated[int, typer.Option(help="Needles at each depth; sums use five times as many.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the choice of windows.")] = 0,
    loading: Loading = LOADING,
    json_out: Json = None,
    report: Report = None,
) -> None:
    """Compare freed bytes and losses of the cache policies on FILES with the exact cache."""
    from handscroll.evaluate.policies import PolicyGrid, policy_table
    from handscroll.evaluate.samples import windows as cut

    texts = list(loading.reader().read(files))
    lm = loading.model(model)
    lm.model.spec.require("a cache policy", forward=True)
    values: dict[str, Any] = {"length": length or min(lm.context, 512), "samples": samples}
    values["budgets"] = numbers(budgets, float, "--budgets")
    if policies:
        values["policies"] = policies.split(",")
    grid = PolicyGrid.parse(values, "evaluate policies")
    rows = len(grid.rows())
    found = cut(texts, lm.tokenizer, grid.length, windows, seed)
    _report_unknown(lm.tokenizer, found)
    with bar("policies", rows) as advance:
        record = policy_table(lm, found, grid, lambda done, total: advance(done))
    columns = ["policy", "budget", "freed", "of promised", "KL mean", "worst", "same", "loss"]
    columns += ["needle", "copying", "sums", "answers alike"]
    title = f"{model}: {len(found)} windows of {grid.length:,} tokens, {record['dtype']}; KL and loss in nats per token"
    screen().print(table(columns, [_policy_row(row) for row in record["rows"]], title))
    if None in [record["rows"][0][name] for name in ("needle", "copying", "sums")]:
        screen().print("-: not measurable, because the exact cache fails too")
    _keep([record], json_out, report)


def register(app: typer.Typer) -> None:
    evaluations.command()(tasks)
    evaluations.command(context_settings=ANY)(harness)
    evaluations.command()(ruler)
    evaluations.command()(exposure)
    for module in (needles, views):
        module.register(evaluations)
    app.add_typer(evaluations, name="evaluate")


def _policy_row(row: dict[str, Any]) -> list[str]:
    def share(name: str, form: str = ".0%") -> str:
        return "-" if row[name] is None else format(row[name], form)

    name = row["policy"].partition(":")[0]
    sizes = [share("budget", ".1%"), share("freed", ".1%"), share("kept_promise")]
    far = [f"{row['kl']:.1e}", f"{row['worst']:.1e}", share("same", ".1%"), f"{row['loss']:+.3f}"]
    return [name, *sizes, *far, *(share(task) for task in ("needle", "copying", "sums", "answers_alike"))]


def _report_unknown(tokenizer: Any, samples: Any) -> None:
    unknown = sum(tokenizer.unknown(sample.ids) for sample in samples)
    total = sum(len(sample.ids) for sample in samples)
    if unknown:
        screen().print(f"note: {unknown:,} of {total:,} tokens stand for text the tokenizer does not know")
