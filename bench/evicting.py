"""What evicting policies cost: bytes freed, and distance from the exact cache by several measures, on a real text.

python -m bench.evicting MODEL TEXT [--length 512] [--windows 8] [--samples 4] [--budgets 50,25,12.5] [--dtype float32]

Of every window of `length` tokens the first three quarters are a prompt, read in chunks of 64; the rest is read token
by token, as in decoding, and there the next-token distribution is held to the exact one: KL mean and worst (nats),
share of positions with the same likeliest token, change of the loss. Freed: bytes that the cache no longer holds at the
end, of those of the full one (in brackets: of what the budget promises).
Needle: greedy answers at five depths. Copying: 40 tokens from the first half are said again at the end; share of the
last 32 that are predicted. Sums: a few-shot text of two-digit additions; in brackets the share of answers equal to the
exact cache's. All of them are read and answered within the budget.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from handscroll.evaluate.haystack import haystack
from handscroll.evaluate.needle import _prompt
from handscroll.generate.decode import decode
from handscroll.generate.policies.table import EVICTING, cache_of
from handscroll.generate.prefill import prefill
from handscroll.generate.sample import Sampling
from handscroll.lm import LM, load
from handscroll.nn.marks import Marks

CHUNK = 64
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
COPIED, GIVEN = 40, 8


@torch.no_grad()
def continued(lm: LM, tokens: Tensor, prompt: int, policy: str) -> tuple[Tensor, int]:
    """Log-probabilities (B, T - prompt, V) that predict the tokens after the prompt, and the bytes of the cache."""
    model, length = lm.model, tokens.shape[1]
    cache = cache_of(policy)(model.config.layers, capacity=length - 1)
    parts = [prefill(model, tokens[:, :prompt], Marks.run(0, prompt), cache, length, CHUNK)]
    for at in range(prompt, length - 1):
        here = Marks.run(at, 1)
        parts.append(model.hidden(model.embed(tokens[:, at : at + 1], here), here, model.mask(), cache, length))
    return model.logits(torch.cat(parts, dim=1)).float().log_softmax(-1), cache.nbytes


@dataclass(frozen=True)
class Tasks:
    """Windows (B, T) of the text; prompts of needles and sums with their answers; rows that end with a copy."""

    windows: Tensor
    needles: list[tuple[list[int], list[int]]]
    copies: Tensor
    sums: list[tuple[list[int], str]]


def tasks(lm: LM, text: list[int], length: int, windows: int, samples: int) -> Tasks:
    draw = random.Random(0)
    starts = [draw.randrange(len(text) - length) for _ in range(windows)]
    rows = [text[start : start + length] for start in starts]
    copies = []
    for row in rows:
        first = draw.randrange(length // 2 - COPIED)
        copies.append(row[: length - COPIED] + row[first : first + COPIED])
    filler = haystack(lm.tokenizer, None, length)
    needles = [_prompt(lm, filler, length - 1, depth, 5, draw) for depth in DEPTHS for _ in range(samples)]
    sums = []
    for _ in range(5 * samples):
        a, b = draw.randrange(10, 50), draw.randrange(10, 50)
        asked, shots = f"{a} + {b} =", ""
        while len(lm.encode(shots + asked)) < length - 32:
            c, d = draw.randrange(10, 50), draw.randrange(10, 50)
            shots += f"{c} + {d} = {c + d}\n"
        sums.append((lm.encode(shots + asked), str(a + b)))
    return Tasks(torch.tensor(rows), needles, torch.tensor(copies), sums)


def written(lm: LM, prompts: list[list[int]], new: int, policy: str) -> list[list[int]]:
    """The greedy continuation of every prompt, each alone."""
    found = []
    for prompt in prompts:
        steps = decode(
            lm.model, [prompt], Sampling(max_tokens=new, ignore_eos=True), beyond=True, chunk=CHUNK, policy=policy
        )
        found.append([item.token for step in steps for item in step])
    return found


@dataclass(frozen=True)
class Outcome:
    """What one policy did with the tasks."""

    scores: Tensor
    nbytes: int
    needle: float
    copying: float
    answers: list[str]


def outcome(lm: LM, given: Tasks, policy: str) -> Outcome:
    length = given.windows.shape[1]
    parts = [continued(lm, row[None], length * 3 // 4, policy) for row in given.windows]
    found = written(lm, [prompt for prompt, _ in given.needles], max(len(a) for _, a in given.needles), policy)
    hits = [got[: len(answer)] == answer for got, (_, answer) in zip(found, given.needles, strict=True)]
    first = length - COPIED + GIVEN
    said = torch.cat([continued(lm, row[None], first, policy)[0] for row in given.copies])
    copied = (said.argmax(-1) == given.copies[:, first:]).float().mean()
    texts = [lm.decode(ids).split("\n")[0].strip() for ids in written(lm, [p for p, _ in given.sums], 4, policy)]
    return Outcome(torch.cat([p for p, _ in parts]), parts[0][1], sum(hits) / len(hits), float(copied), texts)


def line(name: str, share: float, got: Outcome, exact: Outcome, given: Tasks) -> str:
    target = given.windows[:, given.windows.shape[1] * 3 // 4 :, None]
    apart = (exact.scores.exp() * (exact.scores - got.scores)).sum(-1)
    change = (exact.scores - got.scores).gather(2, target).mean()
    same = (exact.scores.argmax(-1) == got.scores.argmax(-1)).float().mean()
    freed = 1 - got.nbytes / exact.nbytes
    promised = f" ({freed / (1 - share):.0%})" if share < 1 else ""
    right = sum(text == answer for text, (_, answer) in zip(got.answers, given.sums, strict=True)) / len(given.sums)
    alike = sum(a == b for a, b in zip(got.answers, exact.answers, strict=True)) / len(given.sums)
    return (
        f"| {name} | {share:.1%} | {freed:.1%}{promised} | {apart.mean():.1e} | {apart.max():.1e} | {change:+.3f} | "
        f"{same:.1%} | {got.needle:.0%} | {got.copying:.0%} | {right:.0%} ({alike:.0%}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--budgets", default="50,25,12.5")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    lm = load(options.model, dtype=options.dtype)
    text = lm.encode(options.text.read_text(encoding="utf-8"), special=False)
    given = tasks(lm, text, options.length, options.windows, options.samples)
    exact = outcome(lm, given, "full")
    print("| policy | budget | freed | KL mean | worst | loss | same | needle | copying | sums |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print(line("full", 1.0, exact, exact, given), flush=True)
    for percent in (float(part) for part in options.budgets.split(",")):
        budget = int(options.length * percent / 100)
        for name in EVICTING:
            got = outcome(lm, given, f"{name}:budget={budget}")
            print(line(name, percent / 100, got, exact, given), flush=True)


if __name__ == "__main__":
    main()
