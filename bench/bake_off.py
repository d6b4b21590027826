"""Is the choice of `extend` the best one? Every candidate, `auto` and the search of factors, on text held out from all.

python -m bench.bake_off MODEL --to 4096 --choose FILES --prove FILES --work FOLDER [--seeds 3] [--windows 3]

For each seed `auto` and a search of LongRoPE's factors choose on the first text. Then all candidates, and
what was searched, read the same windows of the second text. The table says how far each choice is from the best
candidate there, which no choice can know. FOLDER keeps what was measured, and a second run goes on from there.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import handscroll
from handscroll.evaluate.samples import read_windows
from handscroll.extend.extend import GUARD, extension
from handscroll.extend.methods import candidates
from handscroll.extend.remembered import Remembered
from handscroll.extend.search import Search
from handscroll.extend.trials import Standing, Trials
from handscroll.extend.windows import Window
from handscroll.lm import LM
from handscroll.nn.positions.candidate import Candidate


def chosen(lm: LM, options: argparse.Namespace, seed: int, searched: bool) -> tuple[Candidate, int, float]:
    """What `extend` chooses, the tokens that it read, and the seconds that it took."""
    begun, name = time.monotonic(), "search" if searched else "auto"
    settings: dict[str, Any] = {"search": Search(generations=options.generations, seed=seed)} if searched else {}
    method, kept = "longrope" if searched else "auto", Path(options.work) / f"{name}-{seed}"
    made = extension(lm, options.to, method, text=options.choose, seed=seed, remember=kept, **settings)
    assert made.outcome is not None
    return made.candidate, made.outcome.read, time.monotonic() - begun


def study(lm: LM, options: argparse.Namespace, seed: int) -> None:
    auto, tokens, seconds = chosen(lm, options, seed, searched=False)
    found, more, longer = chosen(lm, options, seed, searched=True)
    print(f"seed {seed}: auto {auto.name}: {tokens:,} tokens, {seconds:.0f} s", flush=True)
    print(f"seed {seed}: search: {more:,} tokens, {longer:.0f} s", flush=True)
    samples = read_windows(options.prove, lm.tokenizer, options.to, options.windows, seed)
    trained = lm.trained or lm.context
    windows = [Window.real(sample, trained, options.to) for sample in samples]
    trials = Trials(lm, Remembered(Path(options.work) / "prove", lm))
    bases = [trials.base(window) for window in windows]
    entries = [*candidates(lm.model, "auto", options.to), found]
    field = trials.further([Standing(one) for one in entries], windows, bases)
    field.sort(key=lambda one: one.score(GUARD))
    line = lambda one: f"{one.long:.3f} nats, short text {one.rise:+.3f}, score {one.score(GUARD):.3f}"  # noqa: E731
    shown = {"best of the methods": next(one for one in field if one.candidate.method != "longrope")}
    shown["auto's choice"] = next(one for one in field if one.candidate.name == auto.name)
    shown["LongRoPE, searched"] = next(one for one in field if one.candidate.method == "longrope")
    yarn = [one for one in field if one.candidate.method == "yarn"]
    shown["best YaRN"] = yarn[0]
    shown["YaRN as published"] = next(one for one in yarn if one.candidate.detail == "beta 32/1")
    for method in ("ntk", "dynamic-ntk", "llama3", "pi", "none"):
        shown[f"best {method}"] = next(one for one in field if one.candidate.method == method)
    best = field[0]
    for name in ("auto's choice", "best YaRN", "LongRoPE, searched"):
        behind, error = shown[name].apart(best, GUARD)
        print(
            f"seed {seed}: {name}: {behind:.3f} +- {1.96 * error:.3f} behind the best, {best.candidate.name}",
            flush=True,
        )
    for name, one in shown.items():
        print(f"seed {seed}: {name:<20} {line(one)}   {one.candidate.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--choose", nargs="+", required=True)
    parser.add_argument("--prove", nargs="+", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = handscroll.load(options.model)
    for seed in range(options.first, options.first + options.seeds):
        study(lm, options, seed)


if __name__ == "__main__":
    main()
