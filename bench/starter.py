"""The starter model against its goals: needles at every depth, and the worth of its window.

python -m bench.starter [MODEL]
"""

import sys
from pathlib import Path

import torch

import handscroll
from handscroll.data.corpus import select
from handscroll.evaluate.haystack import haystack
from handscroll.evaluate.needle import NeedleGrid, needle_grid
from handscroll.evaluate.perplexity import half_width
from handscroll.extend.story import PROVE, STARTER
from handscroll.text.readers import read

SAMPLES = 200


def main() -> None:
    lm = handscroll.load(sys.argv[1] if len(sys.argv) > 1 else STARTER)
    lengths = (128, 256, 512)
    record = needle_grid(lm, haystack(lm.tokenizer, None, 100_000), NeedleGrid(lengths=lengths, samples=SAMPLES), "x")
    print(f"needle accuracy, {SAMPLES} samples a cell, keys never trained on")
    print("depth  " + "".join(f"{length:>8}" for length in lengths))
    for depth, row in zip(record["depths"], record["accuracy"], strict=True):
        print(f"{depth:<7}" + "".join(f"{100 * value:>7.1f}%" for value in row))
    wide, narrow = [], []
    for document in read(select([f"{{stdlib}}/{name}" for name in PROVE])):
        ids = lm.encode(document.text)
        wide.append(float(lm.nll(ids, window=512)[512:].double().mean()))
        narrow.append(float(lm.nll(ids, window=256)[512:].double().mean()))
        print(f"{Path(document.source).name:<20} window 512: {wide[-1]:.3f}   window 256: {narrow[-1]:.3f}")
    gain = torch.tensor(narrow, dtype=torch.float64) - torch.tensor(wide, dtype=torch.float64)
    spread = half_width(gain)
    print(f"loss of held-out modules: {sum(wide) / len(wide):.3f} with 512, {sum(narrow) / len(narrow):.3f} with 256")
    print(f"gain of the wider window: {float(gain.mean()):.3f} +- {spread:.3f} nats (95 %, over {len(wide)} modules)")


if __name__ == "__main__":
    main()
