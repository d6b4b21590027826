"""Every training row judged once, by models that did not learn from it: ways of `bench.labels`, in folds.

python -m bench.folds ../shared/data --minilm FOLDER [--only sst2] [--ways full,last] [--take 0,1,2] [--threads 1]

The data has no test part of TREC, and a tenth of it (`bench.labels`) has 545 questions, too few to tell 0.92 from 0.94.
Nor do the rows that a run holds out tell settings apart; that is chosen here, and not on test rows. The training rows
are cut into `--folds` parts that have the same shares of labels, with near copies in one part; each part is judged by
models that were made from the others, with the settings of `bench.labels`. Its ways but `final` and `peer` keep the
weights that are best on rows held out from what a model learns from. `--take` makes some of the folds, so that two
processes can share the work (begin the second when the first one learns); the table is of all that are done in --work.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from bench.kept import claim
from bench.labels import DATA, HELD_OUT, SAID, Data, peer, rows_of, tfidf, tuned, write_rows
from handscroll.data.table.read import read_table
from handscroll.data.table.split import split
from handscroll.metrics.table import compare, measure

WAYS = ("tfidf", "head", "lora", "full", "last", "final", "peer")


def prepare(one: Data, work: Path, data: Path, folds: int) -> None:
    """The files `train.csv` and `test.csv` of each fold: the fold's own rows are for the test, all others to learn."""
    table = read_table([str(data / one.train)], one.names)
    shares = {f"fold-{number}": 1 / folds for number in range(1, folds)}
    parts = split(table, shares, 0, "label").tables
    tests = [parts["train"], *(parts[name] for name in shares)]
    for number, test in enumerate(tests):
        folder = work / f"fold-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        own = {record.place for record in test}
        write_rows([record for record in table if record.place not in own], one, folder / "train.csv")
        write_rows(test, one, folder / "test.csv")


def make(options: argparse.Namespace, number: int) -> None:
    """What each way says of the rows of one fold."""
    folder = options.work / f"fold-{number}"
    train, test = folder / "train.csv", folder / "test.csv"
    for way in options.ways:
        path = folder / f"{way}.said.json"
        settings = {"folds": options.folds, "model": "" if way == "tfidf" else options.minilm}
        claim(path, settings)
        if path.exists():
            continue
        print(f"fold {number}, {way}", flush=True)
        if way == "tfidf":
            said = tfidf(DATA[options.only], train, test)
        else:
            said = (peer if way == "peer" else tuned)(options, way, 0, folder, train, test)
        path.write_text(json.dumps(said), encoding="utf-8")


def table(work: Path, folds: Sequence[int], ways: Sequence[str], resamples: int = 1000) -> str:
    """The scores over all rows of the folds that are done, in Markdown, and each way against the one before it."""
    done = [n for n in folds if all((work / f"fold-{n}" / f"{way}.said.json").exists() for way in ways)]
    truth: list[str] = []
    said: dict[str, list[str]] = {way: [] for way in ways}
    single: dict[str, list[str]] = {way: [] for way in ways}
    for number in done:
        folder = work / f"fold-{number}"
        own = rows_of(folder / "test.csv")[1]
        truth += own
        for way in ways:
            given = json.loads((folder / f"{way}.said.json").read_text(encoding="utf-8"))
            said[way] += given
            single[way].append(f"{sum(a == b for a, b in zip(given, own, strict=True)) / len(own):.3f}")
    lines = [f"{len(done)} of {len(folds)} folds are done", "| system | accuracy | macro F1 | n |", "|---|---|---|---|"]
    for way in ways if done else ():
        scores = measure(["accuracy", "f1-macro"], truth, said[way], resamples=resamples)
        cells = [f"{scores[m].value:.3f} {scores[m].interval}" for m in ("accuracy", "f1-macro")]
        lines.append(f"| {SAID[way]} | {' | '.join(cells)} | {len(truth):,} |")
    for before, way in pairwise(ways) if done else ():
        more = compare(["accuracy"], truth, said[way], said[before], resamples=resamples)["accuracy"]
        against = f"{SAID[way]} - {SAID[before]}: {more.difference.value:+.3f} {more.difference.interval}"
        lines.append(f"{against}, p = {more.p:.3f}; by fold: {', '.join(single[way])}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2, or another encoder")
    parser.add_argument("--only", default="trec", choices=[*DATA], help="the data set; by default trec")
    parser.add_argument("--ways", default="tfidf,full", help=f"of {', '.join(WAYS)}; by default tfidf,full")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--take", default="", help="folds to make now, such as 0,1,2; by default all of them")
    parser.add_argument("--epochs", type=float, help="in place of those of bench.labels")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/folds"))
    options = parser.parse_args()
    options.ways = options.ways.split(",")
    if wrong := [one for one in options.ways if one not in WAYS]:
        parser.error(f"--ways has {wrong[0]}: the ways are {', '.join(WAYS)}")
    if options.folds < 2:
        parser.error(f"--folds is {options.folds}: give 2 or more")
    options.take = [int(one) for one in options.take.split(",")] if options.take else [*range(options.folds)]
    if wrong := [one for one in options.take if not 0 <= one < options.folds]:
        parser.error(f"--take has {wrong[0]}: the folds are 0 to {options.folds - 1}")
    options.held_out = HELD_OUT
    return options


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    settled = options.work / "rows"
    claim(settled, {"data": options.only, "folds": options.folds, "epochs": options.epochs})
    if not settled.exists():
        prepare(DATA[options.only], options.work, options.data, options.folds)
        settled.write_text("cut into folds\n", encoding="utf-8")
    for number in options.take:
        make(options, number)
    print(table(options.work, range(options.folds), options.ways))


if __name__ == "__main__":
    main()
