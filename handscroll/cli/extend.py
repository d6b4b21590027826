"""`handscroll extend`: lengthen a checkpoint's context."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.options import Device, Encoding, Key, Model, SkipPictures, reader, refuse_idle
from handscroll.cli.records import keep
from handscroll.cli.screen import bar, error_screen, screen, table

# options that need another one
TUNING = ("steps", "rows", "lora", "no-end", "lr", "precision", "strategy", "offload", "force")
NEEDED = {"tune": TUNING, "search": ("generations",), "compare": ("seeds", "needles")}


def extend(
    context: typer.Context,
    model: Model,
    to: Annotated[int, typer.Option(help="Tokens of the new context.")],
    out: Annotated[Path, typer.Option(help="Folder for the lengthened checkpoint; must not exist.")],
    method: Annotated[str, typer.Option(help="auto, all (own methods too), or a name (docs/extend.md).")] = "auto",
    text: Annotated[list[str] | None, typer.Option(help="Text for the choice. [written by the model]")] = None,
    guard: Annotated[float, typer.Option(help="Largest rise of the loss on short text, in nats per token.")] = 0.1,
    factors: Annotated[Path | None, typer.Option(help="JSON file with long_factor and short_factor.")] = None,
    measured: Annotated[int, typer.Option(help="Tokens that each finalist reads, about.")] = 8192,
    search: Annotated[bool, typer.Option("--search", help="Search LongRoPE's factors (longrope, auto, all).")] = False,
    generations: Annotated[int, typer.Option(help="Generations of the search.")] = 12,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare all methods with several seeds, and report to OUT.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Seeds of the comparison.")] = 3,
    needles: Annotated[int, typer.Option(help="Needles at each length and depth of the comparison; 0: none.")] = 4,
    tune: Annotated[list[str] | None, typer.Option(help="Files of long text for the tuning.")] = None,
    steps: Annotated[int, typer.Option(help="Number of tuning steps.")] = 100,
    rows: Annotated[int, typer.Option(help="Rows of the new length per tuning step.")] = 4,
    lora: Annotated[int, typer.Option(help="Rank of the LoRA tuning; 0 tunes all weights.")] = 0,
    no_end: Annotated[bool, typer.Option("--no-end", help="Do not end tuning texts with the end token.")] = False,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the tuning. [1e-4; LoRA 1e-3]")] = None,
    precision: Annotated[str, typer.Option(help="Precision of the tuning: float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the choice of text and of the tuning order.")] = 0,
    device: Device = "cpu",
    strategy: Annotated[str, typer.Option(help="Memory strategy of the tuning (docs/strategies.md).")] = "auto",
    offload: Annotated[
        str, typer.Option(help="Where a chunked strategy keeps its tensors: none, host or disk.")
    ] = "none",
    force: Annotated[
        bool, typer.Option("--force", help="Tune even if the planner predicts that it will not fit.")
    ] = False,
    key: Key = "",
    encoding: Encoding = "",
    skip_pictures: SkipPictures = False,
) -> None:
    """Lengthen MODEL to --to tokens and write an ordinary Hugging Face folder.

    With --method auto each candidate is measured on long and on short text, and the table is printed.
    """
    from handscroll.evaluate.perplexity import measurable
    from handscroll.extend.compare import Comparing
    from handscroll.extend.extend import extension
    from handscroll.extend.remembered import Remembered
    from handscroll.extend.search import Search
    from handscroll.extend.tune import TuneSettings
    from handscroll.lm import LM, load
    from handscroll.nn.quantised import quantised
    from handscroll.train.start import trained_from

    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ConfigError(f"--out {out} exists; choose a new folder, so that nothing is overwritten")
    settings = None
    if tune:
        values: dict[str, Any] = {"files": tuple(tune), "steps": steps, "rows": rows, "lr": lr, "seed": seed}
        values |= {"key": key or None, "encoding": encoding or None, "skip_pictures": skip_pictures}
        values["end"] = not no_end
        values |= {"precision": precision, "lora": {"rank": lora, "alpha": 2.0 * lora} if lora else None}
        values |= {"memory": {"strategy": strategy, "offload": offload}, "force": force}
        settings = TuneSettings.parse(values, "extend --tune")
    searching = Search.parse({"generations": generations, "seed": seed}, "extend --search") if search else None
    comparing = Comparing.parse({"seeds": seeds, "needles": needles}, "extend --compare") if compare else None
    rules = [(context.params[need], names, f"give --{need} too, or leave it out") for need, names in NEEDED.items()]
    refuse_idle(context, *rules)
    given = None if factors is None else _read_factors(factors)
    how = reader(key, encoding, skip_pictures)
    for files in (text, tune):
        if files:
            how.check(files)
    lm = trained_from(model, load(model, device))

    def floats() -> LM:  # what is tuned and saved: quantised weights serve for measuring alone, where they are faster
        return trained_from(model, load(model, device, "float32" if tune else "auto", weights="float"))

    remember = out.with_name(out.name + ".measuring")
    with bar("extending", None) as advance, _kept(remember):
        result = extension(
            lm,
            to,
            method,
            text=text,
            reader=how,
            factors=given,
            guard=guard,
            measured=measured,
            search=searching,
            compare=comparing,
            tune=settings,
            folder=out.with_name(out.name + ".tuning"),
            remember=remember,
            seed=seed,
            progress=lambda note, done, total: advance(done, note, total or None),
            on_record=lambda record: advance(record["step"], f"tuning: loss {record['loss']:.4f}", steps),
            on_plan=lambda told: error_screen().print(told),
            into=floats if tune or quantised(lm.model) else None,
        )
    show_all(result)
    tell_of_tuning(result.lm)
    result.lm.save(out)
    if result.comparison is not None:
        _report(result.comparison, out)
    Remembered(remember, lm).forget()
    screen().print(f"{model}: {lm.context:,} -> {to:,} tokens by {result.candidate.name}; written to {out}")
    if result.lm.provenance["read_by"] != "any library":
        screen().print(
            "only Handscroll reads this folder: other libraries do not know its position method and refuse to load it",
        )
    choice = result.outcome or result.comparison
    if choice is not None and not choice.guarded:
        error_screen().print(
            "warning: the best method hurts short text past the guard; tune (--tune FILES) or keep both checkpoints",
            style="bold yellow",
        )
    if measurable(result.lm.model):
        screen().print(f"proof: handscroll evaluate perplexity {out} FILES --length {to}")


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """On an interruption say where it goes on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if told := str(stopped) or (f"kept: what was measured, in {folder}" if folder.exists() else ""):
            error_screen().print(f"{told}; the same command goes on from there")
        raise


def _read_factors(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--factors {path} cannot be read ({error}); give a JSON file") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--factors {path}: expected an object with 'long_factor' and 'short_factor'")
    return values


def show_all(result: Any) -> None:
    """Print what was measured for a lengthening."""
    if result.found is not None:
        best, seed = result.found.best, result.found.seed
        screen().print(
            f"search: {result.found.genomes:,} lists of factors; {best.long:.3f} nats per token past the trained "
            f"length, against {seed.long:.3f} of {seed.candidate.method}, the best to begin with",
        )
    if result.outcome is not None:
        show(result.outcome)
    if result.comparison is not None:
        show_comparison(result.comparison)


def show(outcome: Any) -> None:
    """Print the table of a bake-off."""
    rows = [[row.candidate.name, _or(row.long), _or(row.short), row.behind, row.verdict] for row in outcome.rows]
    trained, real, near = outcome.goal.trained, len(outcome.samples[0].ids), outcome.near
    heads = ["method", f"loss {trained:,}-{real:,}", f"loss below {near:,}", "behind", "verdict"]
    title = f"nats per token; {outcome.read:,} tokens read; the model as it is: {outcome.base:.3f} below {near:,}"
    screen().print(table(heads, rows, title))


def show_comparison(comparison: Any) -> None:
    """Print the table of a comparison, and how sure its ranking is."""
    trained, real = comparison.goal.trained, len(comparison.samples[0].ids)
    heads = ["method", f"loss {trained:,}-{real:,}", "95 %", "short text", "needles", "first in", "tokens", "seconds"]
    rows = []
    for line in comparison.lines:
        one, found = line.standing, "-" if line.found is None else f"{line.found:.0%}"
        ends = "-" if line.low is None else f"{line.low:.3f}-{line.high:.3f}"
        sure = "-" if line.first is None else f"{line.first:.0%}"
        rows.append([one.candidate.name, one.long, ends, f"{one.rise:+.3f}", found, sure, line.tokens])
        rows[-1].append(f"{line.seconds:.1f}")
    seeds = f"{comparison.settings.seeds} seeds, {len(comparison.samples)} windows of {real:,} tokens"
    screen().print(table(heads, rows, f"nats per token; {seeds}; short text: {comparison.base:.3f} as it is"))
    for before, after in zip(comparison.lines, comparison.lines[1:], strict=False):
        if before.ahead is not None:
            first, second = before.standing.candidate.method, after.standing.candidate.method
            screen().print(f"{first} beats {second} in {before.ahead:.1%} of resamples")
    for note in comparison.notes:
        screen().print(note)


def _or(value: float | None) -> Any:
    return "-" if value is None else value


def _report(comparison: Any, out: Path) -> None:
    """Write the records of a comparison and their page into the folder of the checkpoint."""
    from handscroll.report import evaluation_page, write

    records = comparison.records()
    write(evaluation_page(records, title=f"Ways to lengthen {comparison.model}"), out / "comparison.html")
    screen().print(f"comparison: {out / 'comparison.html'}")
    keep(records, out / "comparison.jsonl", None)


def tell_of_tuning(lm: Any) -> None:
    """Print whether the tuning improved the loss on the text of the choice and was kept, or was undone."""
    tuned = lm.provenance.get("tuned", {})
    if "kept" in tuned:
        verdict = "kept" if tuned["kept"] else "undone: it made the text that chose worse (lower --lr, more --rows)"
        losses = f"{tuned['loss_untuned']:.3f} -> {tuned['loss']:.3f} nats per token"
        screen().print(f"tuning: {tuned['steps']} steps, {losses}; {verdict}")


def register(app: typer.Typer) -> None:
    app.command()(extend)
