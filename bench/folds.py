"""Every question of TREC judged once, by a model that did not learn from it: MiniLM with all weights, in folds.

python -m bench.folds ../shared/data --minilm FOLDER [--take 0,1,2,3,4] [--threads 1]

The data has no test part of TREC, and a tenth of it (`bench.labels`) has 545 questions, too few to tell 0.92 from 0.94.
Here the rows are cut into `--folds` parts that have the same shares of labels, with near copies in one part; each part
is judged by models that were made from the others: TF-IDF and logistic regression, and MiniLM with the settings of
`bench.labels`, which keeps the weights that are best on rows held out from what it learns from. `--take` makes some of
the folds, so that two processes can share the work (begin the second when the first one learns); the table is of all
that are done in --work.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.kept import claim
from bench.labels import DATA, HELD_OUT, SAID, rows_of, tfidf, tuned, write_rows
from handscroll.data.table.read import read_table
from handscroll.data.table.split import split
from handscroll.metrics.table import compare, measure

TREC = DATA["trec"]
WAYS = ("tfidf", "full")


def prepare(work: Path, data: Path, folds: int) -> None:
    """The files `train.csv` and `test.csv` of each fold: the fold's own rows are for the test, all others to learn."""
    table = read_table([str(data / TREC.train)], TREC.names)
    shares = {f"fold-{number}": 1 / folds for number in range(1, folds)}
    parts = split(table, shares, 0, "label").tables
    tests = [parts["train"], *(parts[name] for name in shares)]
    for number, test in enumerate(tests):
        folder = work / f"fold-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        own = {record.place for record in test}
        write_rows([record for record in table if record.place not in own], TREC, folder / "train.csv")
        write_rows(test, TREC, folder / "test.csv")


def make(options: argparse.Namespace, number: int) -> None:
    """What each way says of the rows of one fold."""
    folder = options.work / f"fold-{number}"
    train, test = folder / "train.csv", folder / "test.csv"
    for way in WAYS:
        path = folder / f"{way}.said.json"
        settings = {"folds": options.folds, "model": options.minilm if way == "full" else ""}
        claim(path, settings)
        if path.exists():
            continue
        print(f"fold {number}, {way}", flush=True)
        said = tfidf(TREC, train, test) if way == "tfidf" else tuned(options, way, 0, folder, train, test)
        path.write_text(json.dumps(said), encoding="utf-8")


def table(work: Path, folds: Sequence[int], resamples: int = 1000) -> str:
    """The scores over all rows of the folds that are done, in Markdown."""
    done = [n for n in folds if all((work / f"fold-{n}" / f"{way}.said.json").exists() for way in WAYS)]
    truth: list[str] = []
    said: dict[str, list[str]] = {way: [] for way in WAYS}
    single = []
    for number in done:
        folder = work / f"fold-{number}"
        own = rows_of(folder / "test.csv")[1]
        truth += own
        for way in WAYS:
            said[way] += json.loads((folder / f"{way}.said.json").read_text(encoding="utf-8"))
        right = sum(a == b for a, b in zip(said["full"][-len(own) :], own, strict=True))
        single.append(f"{right / len(own):.3f}")
    lines = [f"{len(done)} of {len(folds)} folds are done", "| system | accuracy | macro F1 | n |", "|---|---|---|---|"]
    for way in WAYS if done else ():
        scores = measure(["accuracy", "f1-macro"], truth, said[way], resamples=resamples)
        cells = [f"{scores[m].value:.3f} {scores[m].interval}" for m in ("accuracy", "f1-macro")]
        lines.append(f"| {SAID[way]} | {' | '.join(cells)} | {len(truth):,} |")
    if done:
        more = compare(["accuracy"], truth, said["full"], said["tfidf"], resamples=resamples)["accuracy"].difference
        lines.append(f"MiniLM against the baseline: {more.value:+.3f} {more.interval}; by fold: {', '.join(single)}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2, or another encoder")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--take", default="", help="folds to make now, such as 0,1,2; by default all of them")
    parser.add_argument("--epochs", type=float, help="in place of those of bench.labels")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/folds"))
    options = parser.parse_args()
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
    claim(settled, {"folds": options.folds, "epochs": options.epochs})
    if not settled.exists():
        prepare(options.work, options.data, options.folds)
        settled.write_text("cut into folds\n", encoding="utf-8")
    for number in options.take:
        make(options, number)
    print(table(options.work, range(options.folds)))


if __name__ == "__main__":
    main()
