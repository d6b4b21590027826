"""Tasks whose answers are texts, on real data: a tuned model beside simple baselines and the same model prompted.

    python -m bench.generation prepare DATA FOLDER      writes the rows of every job from a folder of public data
    python -m bench.generation run NAME MODEL FOLDER    baselines, prompting and, where the job has a recipe, tuning
    python -m bench.generation run NAME MODEL FOLDER WAY ...    only these ways of prompting

`run` prints one line a system and metric and appends the same to FOLDER/NAME.scores.jsonl. A job takes at most about 25
minutes on two cores. Scores of another model or of other rows need another FOLDER. FOLDER is also where the recipes in
recipes/tasks run: `cd FOLDER; handscroll finetune RECIPE`.
"""

import ast
import gzip
import hashlib
import json
import random
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from time import monotonic
from typing import Any

from bench.kept import claim
from handscroll.base.config import read_recipe
from handscroll.base.errors import nearest
from handscroll.data.table.read import read_table
from handscroll.lm import load
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import Settings, compare
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.generative import Generative
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.task import Example, Prediction, task_from

RECIPES = Path(__file__).parents[1] / "recipes" / "tasks"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A task on one data set: its settings, ways of prompting, and shots."""

    task: Mapping[str, Any]
    ways: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"zero-shot": {}})
    shots: int = 0
    recipe: bool = True


ZH = {"language": "zh"}
SUMMARY = {
    "whole": {},
    "map-reduce": {"strategy": "map-reduce"},
    "refine": {"strategy": "refine"},
}
READINGS = {
    "whole": {},
    "4 blocks": {"reading": "blocks", "blocks": 4},
    "16 blocks": {"reading": "blocks", "blocks": 16},
    "map-rerank": {"reading": "map-rerank", "block": 1024},  # as many tokens at once as 4 blocks
}
JOBS = {
    "classical": Job(
        {"name": "translate", **ZH, "source_language": "文言文", "target_language": "现代汉语", "max_tokens": 80},
        shots=4,
    ),
    "tatoeba": Job(
        {"name": "translate", **ZH, "source_language": "英文", "target_language": "中文", "max_tokens": 64},
        shots=4,
    ),
    "crosswoz": Job({"name": "dialogue", **ZH, "max_tokens": 64}, shots=1),
    "medquad": Job({"name": "instruct", "max_tokens": 128}, shots=2),
    "stdlib": Job({"name": "complete", "lines": 30, "most": 1}, {"zero-shot": {}, "its first line": {"stop": ("\n",)}}),
    "spans": Job({"name": "summarise", "max_tokens": 96}, shots=1),
    "peps": Job({"name": "summarise", "piece": 768, "perplexity": False}, ways=SUMMARY, recipe=False),
    "qmsum": Job({"name": "summarise", "piece": 1536, "perplexity": False}, ways=SUMMARY, recipe=False),
    "vcsum": Job({"name": "summarise", **ZH, "piece": 1536, "perplexity": False}, ways=SUMMARY, recipe=False),
    "loogle": Job({"name": "answer", "max_tokens": 32}, ways=READINGS, recipe=False),
    "far": Job({"name": "answer", "max_tokens": 32}, ways=READINGS, recipe=False),
}
FAR, LONG = (
    40_000,
    80_000,
)  # characters: evidence stands beyond the first (8,192 tokens of Qwen)
OTHER = "take another FOLDER"
ORIGIN, ALIKE = "origin", 80  # what a row is of; so many characters tell that two dialogues are one


def prepare(data: Path, folder: Path) -> None:
    """Write NAME.train.jsonl and NAME.test.jsonl for every job and recipe; the same rows every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, tests, most) in _sets(data).items():
        if most:
            random.Random(name).shuffle(rows)
        test, train = parted(rows, tests, most)
        _write(folder / f"{name}.test.jsonl", test)
        if most:
            _write(folder / f"{name}.train.jsonl", train)
        _say(f"{name}: {len(test)} test rows, {len(train)} training rows")


def parted(rows: Rows, tests: int, most: int) -> tuple[Rows, Rows]:
    """The first rows to test with, and those after them to learn from, without those of the same origin as a test row
    (a meeting, a dialogue that begins alike), which is left out of what is written."""
    held = {row[ORIGIN] for row in rows[:tests] if ORIGIN in row}
    train = [row for row in rows[tests:] if row.get(ORIGIN) not in held][:most]
    test, train = ([{key: row[key] for key in row if key != ORIGIN} for row in part] for part in (rows[:tests], train))
    return test, train


def _sets(data: Path) -> dict[str, tuple[Rows, int, int]]:
    """The rows of every job, how many are tested, and how many are learned from at most."""
    classical = [
        {"source": one[0], "translation": one[1]}
        for one in _tabs(data / "parallel/classical_to_modern_zh.tsv.gz")
        if 10 <= len(one[0]) <= 40 and len(one[1]) <= 60
    ]
    english = {one[0]: one[1] for one in _tabs(data / "parallel/tatoeba_en_zh.tsv.gz") if len(one[0]) >= 20}
    tatoeba = [{"source": source, "translation": target} for source, target in english.items()]
    with zipfile.ZipFile(data / "dialogue/crosswoz_val.json.zip") as packed:
        woz = json.loads(packed.read("val.json")).values()
    crosswoz = [
        {"messages": [{"role": turn["role"], "content": turn["content"]} for turn in one["messages"]]} for one in woz
    ]
    medquad = [
        {"prompt": one["instruction"], "answer": one["output"]}
        for one in _lines(data / "sft/medquad_2300.jsonl.gz")
        if len(one["output"]) <= 500
    ]
    code = list(_lines(data / "code/cpython_3_11_stdlib.jsonl.gz"))
    peps = [
        {"document": one["document"], "summary": one["summary"]} for one in _lines(data / "summ_en/peps_train.jsonl.gz")
    ]
    pairs = _lines(data / "preference/hh_harmless_train.jsonl.gz")
    short = [
        {**one, ORIGIN: one["chosen"][:ALIKE]} for one in pairs if max(len(one["chosen"]), len(one["rejected"])) <= 600
    ]
    return {
        "harmless": (short, 100, 300),
        "classical": (classical, 50, 400),
        "tatoeba": (tatoeba, 50, 400),
        "crosswoz": (crosswoz, 6, 60),
        "medquad": (medquad, 40, 240),
        "stdlib": (code, 50, 240),
        "spans": ([one for one in _spans(data) if 400 <= len(one["document"]) <= 2500], 24, 60),
        "peps": (_shortest(peps, 16), 16, 0),
        "qmsum": (_shortest(_qmsum(data), 8), 8, 0),
        "vcsum": (_shortest(list(_lines(data / "summ_zh/vcsum_dev.jsonl")), 6), 6, 0),
        "loogle": (list(_loogle(data)), 60, 0),
        "far": ([one for one in _loogle(data) if _far(one)], 60, 0),
    }


def _qmsum(data: Path) -> Rows:
    """Whole meetings with the summary of all that was said."""
    found = []
    for one in _lines(data / "summ_en/qmsum_train.jsonl.gz"):
        said = "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in one["meeting_transcripts"])
        found += [{"document": said, "summary": query["answer"]} for query in one["general_query_list"]]
    return found


def _spans(data: Path) -> Iterable[dict[str, Any]]:
    """What was said of one question in a meeting, and its summary."""
    for meeting, one in enumerate(_lines(data / "summ_en/qmsum_train.jsonl.gz")):
        for query in one["specific_query_list"]:
            turns = [
                turn
                for first, last in query["relevant_text_span"]
                for turn in one["meeting_transcripts"][int(first) : int(last) + 1]
            ]
            said = "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in turns)
            yield {"document": said, "query": query["query"], "summary": query["answer"], ORIGIN: meeting}


def _loogle(data: Path) -> Iterable[dict[str, Any]]:
    """Questions about long texts; those about one text follow each other, so it is read once."""
    for one in _lines(data / "longqa_en/loogle_shortdep_qa.jsonl"):
        for pair in ast.literal_eval(one["qa_pairs"]):
            yield {"document": one["input"], "question": pair["Q"], "answer": pair["A"], "gold": pair.get("S")}


def _far(row: dict[str, Any]) -> bool:
    """Whether the sentences that answer a question stand far into a text that is not too long."""
    gold = row["gold"] if isinstance(row["gold"], list) else [row["gold"]]
    places = [row["document"].find(one[:60]) for one in gold if one]
    return len(row["document"]) < LONG and bool(places) and min(places) > FAR


def _shortest(rows: Rows, count: int) -> Rows:
    return sorted(rows, key=lambda one: len(one["document"]))[:count]


def run(name: str, source: str, folder: Path, only: Sequence[str] = ()) -> None:
    """Score every system of a job on its test rows, or `only` some of its ways of prompting.

    Raises:
        SystemExit: FOLDER has scores of another model or of other rows, or a run of another recipe; the tuning was
            stopped; the job has no such way.
    """
    job = JOBS[name]
    if unknown := [way for way in only if way not in job.ways]:
        raise SystemExit(f"{name} is not done by '{unknown[0]}': {nearest(unknown[0], job.ways)}")
    lm, task = load(source), task_from(dict(job.task))
    assert isinstance(task, Generative)
    tests = task.read(read_table(str(folder / f"{name}.test.jsonl")), {}).examples
    shots: Sequence[Example] = ()
    if job.recipe:
        shots = task.read(read_table(str(folder / f"{name}.train.jsonl")), {}).examples
    systems: dict[str, Sequence[Prediction]] = {}
    recipe = _recipe(name, source, folder) if job.recipe and not only else None
    keep = _Keeper(task, tests, shots, folder / f"{name}.scores.jsonl", source)
    _settle(name, folder, keep.of, recipe)
    simple = not only and (shots or task.name == "summarise")
    for plain, said in task.baselines(shots, tests).items() if simple else ():
        systems[plain] = keep(plain, lambda said=said: said)
    for way, settings in {way: job.ways[way] for way in only or job.ways}.items():
        own = task_from({**job.task, **settings})
        systems[way] = keep(way, lambda own=own: own.predict(lm, tests), settings=dict(settings))
    if job.shots and not only:
        near = Prompting(job.shots, shots, "similar")
        systems[f"{job.shots}-shot"] = keep(f"{job.shots}-shot", lambda: task.prompted(lm, tests, near))
    if recipe is not None:
        systems["tuned"] = keep("tuned", lambda: _tuned(name, recipe, folder, tests), recipe=recipe)
    for (other, before), (one, found) in combinations(systems.items(), 2):
        both = [_flat(task, tests, said) for said in (found, before)]
        metric = task.metrics[0]
        made = compare([metric], both[0][0], both[0][1], both[1][1], Settings(language=task.language))
        _say(f"{name}: {one} - {other}, {metric}: {made[metric]}")


def _recipe(name: str, source: str, folder: Path) -> dict[str, Any]:
    """The job's recipe for one model and the rows in a folder; its test rows are scored here."""
    values: dict[str, Any] = {**read_recipe(RECIPES / f"{name}.toml"), "model": source}
    values["data"]["train"] = [str(folder / one) for one in values["data"]["train"]]
    values["data"].pop("test", None)
    return values


def _settle(name: str, folder: Path, of: Mapping[str, Any], recipe: dict[str, Any] | None) -> None:
    """Claim the scores of a job and the run of its recipe, before anything is asked."""
    claim(folder / f"{name}.scores.jsonl", of, OTHER)
    if recipe is not None:
        rows = b"".join(Path(one).read_bytes() for one in recipe["data"]["train"])
        claim(folder / f"run-{name}", {"recipe": recipe, "rows": _hash(rows)}, OTHER)


def _tuned(name: str, recipe: dict[str, Any], folder: Path, tests: Sequence[Example]) -> Sequence[Prediction]:
    """What the model says after a recipe; its run goes on if it is there."""
    begun = monotonic()
    made = finetune(TuningRecipe.parse(recipe, name), folder / f"run-{name}", Options(show=_say))
    if not made.finished:
        raise SystemExit("stopped; the same command goes on")
    _say(f"{name}: tuned in {monotonic() - begun:.0f} s")
    return made.task.predict(made.lm, tests)


class _Keeper:
    """Scores what a system says, prints it and keeps both; what a system said in an earlier run is not asked again, if
    its model, its task, the rows of both parts and what is said `about` the system are the same."""

    def __init__(
        self, task: Generative, tests: Sequence[Example], shots: Sequence[Example], path: Path, source: str
    ) -> None:
        self._task, self._tests, self._path = task, tests, path
        rows = [_hash(repr([one.values for one in part]).encode()) for part in (tests, shots)]
        self.of = {"model": source, "rows": rows}
        self._about = self.of | {"task": task.model_dump(mode="json")}

    def __call__(self, system: str, made: Callable[[], Sequence[Prediction]], **about: Any) -> Sequence[Prediction]:
        about = json.loads(json.dumps(self._about | about))
        said, begun = self._path.with_name(f"{self._path.stem}.{system.replace(' ', '-')}.jsonl"), monotonic()
        first, *lines = list(_lines(said)) if said.exists() else [{}]
        if first == about:
            _say(f"{system:12} of an earlier run ({said})")
            return [Prediction(one["output"], more=one["more"]) for one in lines]
        found = made()
        seconds = monotonic() - begun
        aside = said.with_suffix(".part")
        _write(aside, [about, *({"output": one.output, "more": dict(one.more)} for one in found)])
        aside.replace(said)
        for metric, one in self._task.score(self._tests, found).items():
            _say(f"{system:12} {metric:16} {one}  ({seconds:.0f} s)")
            line = {"system": system, "metric": metric, "seconds": round(seconds, 1), **_values(one)}
            self._append(line | self.of)
        tokens = [one.more["tokens"] for one in found if "tokens" in one.more]
        if tokens:
            sums = {key: sum(one[key] for one in tokens) for key in tokens[0]}
            _say(f"{system:12} tokens {sums}")
        return found

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _values(one: Measured) -> dict[str, Any]:
    return {"value": one.value, "low": one.low, "high": one.high, "count": one.count}


def _flat(task: Generative, tests: Sequence[Example], found: Sequence[Prediction]) -> tuple[list[Any], list[Any]]:
    """References and predictions, one text each; a dialogue has several of them."""
    wanted, given = [], []
    for example, one in zip(tests, found, strict=True):
        truth, said = task.truth(example), one.output
        if isinstance(said, list):
            wanted += truth
            given += said
        else:
            wanted.append(truth)
            given.append(said)
    return wanted, given


def _say(text: Any) -> None:
    print(text, flush=True)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def _tabs(path: Path) -> Iterable[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (line.rstrip("\n").split("\t") for line in file)


def _write(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    what, *rest = sys.argv[1:] or [""]
    if what == "prepare":
        prepare(Path(rest[0]), Path(rest[1]))
    elif what == "run":
        run(rest[0], rest[1], Path(rest[2]), rest[3:])
    else:
        _say(str(__doc__))


if __name__ == "__main__":
    main()
