"""Speculative decoding: tokens a second and accepted guesses beside plain decoding, two threads, greedy and sampled.

python -m bench.speculative [--new 200] [--repeat 5]

First the bundled starter model, with look-up: a prompt that it copies (a function of Python's library, and its first
lines again), and one that it only continues. Then what a forward of several tokens costs beside one of one token, on a
random 135M Llama in bfloat16 over 2,048 cached tokens: a guess pays when the tokens a forward yields are more than
that. Random weights say nothing of acceptance, so none is measured there. Plain and drafted runs alternate; medians.
"""

import argparse
import inspect
import statistics
import tempfile
import textwrap
import time
from pathlib import Path

import torch

import handscroll
from bench.systems import SHAPE, make_folder, timed
from handscroll.extend.story import STARTER
from handscroll.generate.draft import Lookup
from handscroll.models.weights import load_model
from handscroll.nn.marks import Marks

SYSTEMS = {
    "plain": None,
    "look-up 2": (2, 7),
    "look-up 3": (3, 7),
    "look-up 5": (5, 7),
    "look-up 3, 15 guesses": (3, 15),
}


def prompts() -> dict[str, str]:
    """A function and its first lines again; the function breaking off."""
    source = inspect.getsource(textwrap.TextWrapper._handle_long_word)
    begin = source[: len(source) // 4]
    return {"copies": f"{source}\n{begin}", "continues": source[: len(source) // 2]}


def starter(new: int, repeat: int) -> None:
    lm = handscroll.load(STARTER)
    print(f"{'prompt':<10} {'temperature':>11} {'system':<22} {'tokens/s':>8} {'faster':>7} {'accepted':>9} a forward")
    for name, prompt in prompts().items():
        for temperature in (0.0, 0.8):
            drafts = {s: None if about is None else Lookup(about[0], longest=about[1]) for s, about in SYSTEMS.items()}
            speeds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
            made = dict.fromkeys(SYSTEMS, 0)
            for seed in range(repeat):
                for system, draft in drafts.items():
                    started = time.perf_counter()
                    settings = {"max_tokens": new, "temperature": temperature, "seed": seed, "beyond": True}
                    count = len(lm.continuations(prompt, draft=draft, **settings)[0].tokens)
                    speeds[system].append(count / (time.perf_counter() - started))
                    made[system] += count
            base = statistics.median(speeds["plain"])
            for system, draft in drafts.items():
                speed = statistics.median(speeds[system])
                told = ""
                if draft is not None:
                    count = draft.acceptance
                    told = f"{count.rate:>9.0%} {made[system] / (count.forwards + repeat):>9.1f}"
                print(
                    f"{name:<10} {temperature:>11} {system:<22} {speed:>8.0f} {speed / base:>6.2f}x {told}", flush=True
                )


@torch.no_grad()
def verification(repeat: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        model = load_model(Path(folder), torch.bfloat16, "cpu")
    length, kv, size = 2048, SHAPE["kv_heads"], SHAPE["head_size"]
    cache = model.new_cache(length + 32)
    for layer in range(SHAPE["layers"]):
        cache.append(layer, *torch.randn(2, 1, kv, length, size).bfloat16(), Marks.run(0, length))
    cache.commit()

    def forward(count: int) -> None:
        marks = Marks.run(length, count)
        model.logits(
            model.hidden(model.embed(torch.full((1, count), 5), marks), marks, model.mask(), cache, length + 32)
        )
        cache.trim(length)

    counts = (1, 2, 4, 6, 8, 12, 16)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(8 * repeat):
        for count in counts:
            times[count].append(timed(lambda count=count: forward(count)))
    one = statistics.median(times[1])
    print("\ntokens in a forward   ms   times one of one token")
    for count in counts:
        middle = statistics.median(times[count])
        print(f"{count:>19} {1e3 * middle:>4.0f} {middle / one:>12.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    starter(options.new, options.repeat)
    verification(options.repeat)


if __name__ == "__main__":
    main()
