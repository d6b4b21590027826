"""Far lengths on one GPU within a quarter of an hour: RULER of a longer model, and all ways to lengthen one.

    python -m bench.gpu_length --model qwen.gguf --train BOOKS --text OTHERS --out FOLDER [--steps ruler,train,compare]
    python -m bench.gpu_length --model handscroll/starter --train BOOKS --text OTHERS --out FOLDER --small

`ruler` lengthens MODEL and asks it RULER's thirteen tasks. `train` makes a Llama of 39 million weights with 2,048
tokens of context. `compare` lengthens it by every method and by searched factors to 32,768 and 131,072 tokens: all
read the same windows, and the reports draw their losses by position. Each step is a command of `handscroll`, which is
printed; one that has ended is not done again. `--small` does the same on a CPU in a minute, with small numbers.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.kept import claim

STEPS = ("ruler", "train", "compare")
RECIPE = """
seed = 1
[text]
files = [{files}]
[tokenizer.train]
vocab = {vocab}
[model]
family = "llama"
[model.sizes]
width = {width}
layers = {layers}
heads = {heads}
kv_heads = {kv_heads}
head_size = 64
mlp_width = {mlp_width}
tied = true
context = {trained}
[data.text]
kind = "text"
sampling = "packed"
[[stages]]
length = {trained}
rows = {rows}
steps = {steps}
mix = {{ text = 1.0 }}
[optimizer]
name = "adamw"
lr = 0.001
[schedule]
name = "wsd"
warmup = {warmup}
[loop]
precision = "{precision}"
"""


@dataclass(frozen=True)
class Sizes:
    """What is measured; `seeds` of a comparison for each target."""

    device: str
    precision: str
    reach: int  # tokens to which MODEL is lengthened, and that RULER's texts have
    trained: int
    targets: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    rows: int
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    generations: int

    def recipe(self, files: Sequence[str]) -> str:
        """The recipe of the new model."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if f"{{{name}}}" in RECIPE}
        named = ", ".join(f'"{Path(one).resolve()}"' for one in files)
        return RECIPE.format(files=named, warmup=max(1, self.steps // 20), **values)


GPU = Sizes("cuda", "bfloat16", 131_072, 2048, (32_768, 131_072), (2, 1), 3000, 32, 4096, 640, 8, 10, 5, 1728, 12)
SMALL = Sizes("cpu", "float32", 1024, 64, (256, 512), (1, 1), 20, 4, 512, 128, 2, 2, 1, 256, 2)


def commands(options: argparse.Namespace, sizes: Sizes) -> list[tuple[str, Path, list[str]]]:
    """Step, the path that it leaves, and its words for `handscroll`, in order."""
    out, device = options.out, ["--device", sizes.device]
    longer, texts = out / f"longer-{sizes.reach}", [word for one in options.text for word in ("--text", one)]
    answers = ["--lengths", str(sizes.reach), "--samples", "1", "--out", str(out / "ruler"), "--json"]
    ruler = [*answers, str(out / "ruler.jsonl"), "--report", str(out / "report"), *device]
    lengthen = ["extend", options.model, "--to", str(sizes.reach), "--method", "llama3", "--out", str(longer)]
    train = ["train", str(out / "recipe.toml"), "--set", f"device='{sizes.device}'", "--out", str(out / "run")]
    found = [
        ("ruler", longer, lengthen),
        ("ruler", out / "report", ["evaluate", "ruler", str(longer), *ruler]),
        ("train", out / "run" / "model", train),
    ]
    for target, seeds in zip(sizes.targets, sizes.seeds, strict=True):
        made = out / f"compared-{target}"
        how = ["--compare", "--search", "--generations", str(sizes.generations), "--seeds", str(seeds)]
        how += ["--measured", str(target // 2), "--needles", "1", "--out", str(made)]
        words = ["extend", str(out / "run" / "model"), "--to", str(target), *how, *texts, *device]
        found.append(("compare", made, words))
    asked = [step.strip() for step in options.steps.split(",")]
    if unknown := [step for step in asked if step not in STEPS]:
        raise SystemExit(f"--steps: '{unknown[0]}' is none of {', '.join(STEPS)}")
    return [one for one in found if one[0] in asked]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model to lengthen for RULER")
    parser.add_argument("--train", nargs="+", required=True, help="books to learn from")
    parser.add_argument("--text", nargs="+", required=True, help="other books, on which the methods are compared")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--small", action="store_true")
    return parser


def main() -> None:
    options = arguments().parse_args()
    sizes = SMALL if options.small else GPU
    recipe = sizes.recipe(options.train)
    for _, left, words in commands(options, sizes):
        claim(left, {"words": words, "recipe": recipe}, "give another --out")
    (options.out / "recipe.toml").write_text(recipe, encoding="utf-8")
    for step, left, words in commands(options, sizes):
        print(f"$ handscroll {' '.join(words)}", flush=True)
        if left.exists():
            print(f"{step}: {left} was made before")
            continue
        begun = time.monotonic()
        if status := subprocess.run([sys.executable, "-m", "handscroll", *words], check=False).returncode:
            raise SystemExit(f"the command above ended with status {status}; the same benchmark goes on there")
        print(f"{step}: {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
