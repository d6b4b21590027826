"""Do the marked passages hold the evidence? Questions of LooGLE with known sentences, explained over saved readings.

python -m bench.explain MODEL ../shared/data [--questions 20] [--characters 24000] [--passage 64] [--tried 3]

Each document is cut to its first `--characters` (the cut is this benchmark's, to spare time), read once, and asked the
questions whose evidence lies there. An answer is right if it shares at least half of its words with the known one
(token F1). For the right ones: is the evidence in the first three passages, by attention alone and by effect? And what
do the looks cost, beside the answer itself (question and answer over the same reading)?
"""

import argparse
import ast
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import handscroll
from handscroll.cache.reading.store import Store
from handscroll.explain.why import Explaining, Explanation, explain
from handscroll.generate.ask import TURN, Question
from handscroll.metrics.scores import mean, measured
from handscroll.metrics.table import measure

CONCISE = "\n\nAnswer with the fewest words, from the text above: {question}"


def documents(data: Path, characters: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Beginnings of documents, and the questions whose known sentences all stand in them."""
    with (data / "longqa_en/loogle_shortdep_qa.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            text, found = row["input"][:characters], []
            for pair in ast.literal_eval(row["qa_pairs"]):
                gold = pair["S"] if isinstance(pair.get("S"), list) else [pair.get("S") or ""]
                places = [(text.find(one[:60]), len(one)) for one in gold if one]
                if places and all(at >= 0 and at + size <= characters for at, size in places):
                    found.append({"question": pair["Q"], "answer": pair["A"], "places": places})
            yield text, found


def holds(made: Explanation, places: list[tuple[int, int]], by: str) -> bool:
    """Whether one of the first three passages touches a known sentence."""
    ranked = sorted(made.marks, key=lambda one: -(one.attention if by == "attention" else (one.effect or -1e9)))
    if by == "effect":
        ranked = [one for one in ranked if one.marked]
    return any(one.start < at + size and at < one.end for one in ranked[:3] for at, size in places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--characters", type=int, default=24_000)
    parser.add_argument("--passage", type=int, default=64)
    parser.add_argument("--tried", type=int, default=3)
    parser.add_argument("--store", type=Path, default=None, help="folder of the readings, so that none is read twice")
    options = parser.parse_args()
    lm = handscroll.load(options.model)
    how = Explaining(passage=options.passage, tried=options.tried, max_tokens=32, alternatives=0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.store or folder)
        template = CONCISE if lm.tokenizer.settings.get("chat_template") else TURN
        for number, (text, asked) in enumerate(documents(options.data, options.characters)):
            name = f"document-{number}"
            if asked and len(rows) < options.questions and name not in store.names():
                lm.read(text, store, name)
            for one in asked[: options.questions - len(rows)]:
                begun = perf_counter()
                answer = lm.ask(name, one["question"], store, template, max_tokens=32, temperature=0.0)
                answered = perf_counter()
                made = explain(lm, Question(name, one["question"], template), store, answer, how)
                score = measure(["token-f1"], [one["answer"]], [answer])["token-f1"].value
                row = {"right": score >= 0.5, "answer": answer, "wanted": one["answer"]}
                row |= {by: holds(made, one["places"], by) for by in ("attention", "effect")}
                row |= {"seconds": answered - begun, "explained": perf_counter() - answered, "rests": made.rests}
                rows.append(row)
                print(json.dumps(row, ensure_ascii=False), flush=True)
    right = [row for row in rows if row["right"]]
    print(f"{len(rows)} questions, {len(right)} answered right")
    for by in ("attention", "effect") if right else ():
        print(f"evidence in the first three by {by}: {measured(mean([float(row[by]) for row in right]))}")
    cost = sum(row["explained"] for row in rows) / sum(row["seconds"] for row in rows)
    print(f"the looks take {cost:.1f} times the answer")


if __name__ == "__main__":
    main()
