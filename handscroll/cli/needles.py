"""`handscroll evaluate needle` and `length`: which needles a model finds, and how long a text may be."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.options import LOADING, Loading, Model, numbers, with_loading
from handscroll.cli.records import Json, Report, keep
from handscroll.cli.screen import bar, error_screen, screen, table

if TYPE_CHECKING:
    from handscroll.evaluate.needle import NeedleGrid
    from handscroll.lm import LM

Text = Annotated[list[str] | None, typer.Option("--text", help="Haystack files. [Python's standard library]")]
Language = Annotated[str, typer.Option("--language", help="Language of the needles: en, or zh (with --text).")]
Needles = Annotated[int, typer.Option("--needles", help="Needles that stand together; each is asked for.")]
Distractors = Annotated[
    int, typer.Option("--distractors", help="Sentences of the same form about other keys, in the shortest text.")
]
KeepIn = Annotated[
    Path | None, typer.Option("--keep", help="Keep outcomes in this file; a stopped run resumes from it.")
]


@with_loading
def needle(
    model: Model,
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens, separated by commas.")],
    depths: Annotated[str, typer.Option(help="Needle depths from 0 (first) to 1 (last).")] = "0,0.25,0.5,0.75,1",
    samples: Annotated[int, typer.Option(help="Samples per cell of the grid.")] = 20,
    needles: Needles = 1,
    distractors: Distractors = 0,
    haystacks: Annotated[int, typer.Option(help="Different pieces of the text, dealt out to the samples.")] = 4,
    language: Language = "en",
    text: Text = None,
    each: Annotated[bool, typer.Option("--each", help="Read every cell by itself: slower, the same cells.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of keys, values and places.")] = 0,
    loading: Loading = LOADING,
    keep_in: KeepIn = None,
    json_out: Json = None,
    report: Report = None,
) -> None:
    """Measure key retrieval over a grid of length x depth; each prompt has exactly the stated number of tokens."""
    from handscroll.evaluate.needle import NeedleGrid, needle_grid

    values = {"lengths": numbers(lengths, int, "--lengths"), "depths": numbers(depths, float, "--depths")}
    values |= {"samples": samples, "seed": seed, "needles": needles, "distractors": distractors}
    values |= {"haystacks": haystacks, "language": language, "alone": each}
    grid = NeedleGrid.parse(values, "evaluate needle")
    lm, filler = _loaded(model, grid, text, loading)
    with bar("readings", None) as advance:
        record = needle_grid(lm, filler, grid, "needle", lambda done, total: advance(done, total=total), keep_in)
    rows = [
        [f"{depth:g}", *(f"{100 * value:.0f}%" for value in row)]
        for depth, row in zip(grid.depths, record["accuracy"], strict=True)
    ]
    columns = ["depth", *(f"{length:,}" for length in grid.lengths)]
    screen().print(table(columns, rows, f"{model}: {record['samples']} trials a cell, exact answers"))
    shift = max(abs(one["at"] - one["depth"]) for one in record["outcomes"])
    screen().print(
        f"{record['tokens']:,} tokens were read, for {record['tokens_alone']:,} of {record['cells']} cells one by one; "
        f"needles stand at {len(record['places'])} places, at most {shift:.2f} from the depth asked for"
    )
    keep([record], json_out, report)


@with_loading
def length(
    model: Model,
    lengths: Annotated[str, typer.Option(help="Prompt lengths to search among, separated by commas.")],
    threshold: Annotated[float, typer.Option(help="Share of the needles that a model must find.")] = 0.85,
    strata: Annotated[int, typer.Option(help="Parts of the depth; a round asks once in each.")] = 5,
    rounds: Annotated[int, typer.Option(help="Most rounds at one length.")] = 20,
    error: Annotated[float, typer.Option(help="Probability that the verdict may be wrong.")] = 0.05,
    needles: Needles = 1,
    distractors: Distractors = 0,
    language: Language = "en",
    text: Text = None,
    seed: Annotated[int, typer.Option(help="Seed of keys, values and places.")] = 0,
    loading: Loading = LOADING,
    keep_in: KeepIn = None,
    json_out: Json = None,
    report: Report = None,
) -> None:
    """Search the longest length at which a model finds its needles, with as few texts as the verdict needs."""
    from handscroll.evaluate.length import LengthSearch
    from handscroll.evaluate.needle import NeedleGrid
    from handscroll.evaluate.probing import effective_length

    found = numbers(lengths, int, "--lengths")
    values = {"lengths": found, "threshold": threshold, "strata": strata, "rounds": rounds, "error": error}
    settings = LengthSearch.parse(values | {"seed": seed}, "evaluate length")
    form = {"lengths": found, "needles": needles, "distractors": distractors, "language": language}
    grid = NeedleGrid.parse(form, "evaluate length")
    lm, filler = _loaded(model, grid, text, loading)
    with bar("rounds", None) as advance:
        done = 0

        def on_round(test: Any) -> None:
            nonlocal done
            done += 1
            advance(done, note=f"{test.length:,} tokens: {test.share:.0%} found by round {test.rounds}")

        record = effective_length(lm, filler, settings, grid, on_round, keep_in)
    rows = [_test_row(test) for test in record["tests"]]
    screen().print(table(["length", "found", "share", "at least", "at most", "verdict"], rows, f"{model}: needles"))
    screen().print(_verdict(record))
    screen().print(
        f"{record['tokens']:,} tokens were read; a grid of {strata} depths and {rounds} samples reads "
        f"{record['tokens_grid']['shared']:,}, or {record['tokens_grid']['alone']:,} cell by cell"
    )
    keep([record], json_out, report)


def _loaded(model: str, grid: "NeedleGrid", text: list[str] | None, loading: Loading) -> "tuple[LM, list[int]]":
    """The model and the tokens of the haystack."""
    from handscroll.evaluate.haystack import haystack, largest

    if grid.language != "en" and not text:
        raise ConfigError(f"--language {grid.language} needs a haystack in that language: give --text FILES")
    how = loading.reader()
    if text:
        how.check(text)
    lm = loading.model(model)
    longest = max(grid.lengths)
    most = largest(longest)
    filler = haystack(lm.tokenizer, text, longest, most + 1, how)
    if len(filler) > most:
        error_screen().print(f"the haystack is the first {most:,} tokens of the text")
    return lm, filler[:most]


def _test_row(test: dict[str, Any]) -> list[str]:
    verdict = f"{'passes' if test['passes'] else 'fails'}{'' if test['sure'] else ' (close)'}"
    shares = [f"{100 * test[name]:.0f}%" for name in ("share", "low", "high")]
    return [f"{test['length']:,}", f"{test['hits']} of {test['trials']}", *shares, verdict]


def _verdict(record: dict[str, Any]) -> str:
    shortest, longest = record["lengths"][0], record["lengths"][-1]
    told = {None: f"below {shortest:,}", longest: f"{longest:,} or more"}
    effective = told.get(record["effective"], f"{record['effective'] or 0:,}")
    sure = f"{1 - record['error']:.0%} sure: "
    low = "nothing passes" if record["low"] is None else f"passes at {record['low']:,}"
    above = next((length for length in record["lengths"] if length > (record["high"] or 0)), None)
    high = "fails nowhere" if above is None else f"fails at {above:,}"
    return f"effective length {effective} tokens ({sure}{low}, {high})"


def register(group: typer.Typer) -> None:
    for verb in (needle, length):
        group.command()(verb)
