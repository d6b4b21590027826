"""The LSTM as the recurrent baseline: loss by position beside GPT-2 and Llama forms of about its size, equal tokens.

python -m bench.recurrent --all [--device cuda] --out results.jsonl; python -m bench.recurrent --table results.jsonl

Each family is trained from random weights on the same windows of the same books in the same order, with the better of
two rates by its loss on a validation book, and measured on two others: nats a token by position, bits a character, and
the bytes that it keeps of a text (keys and values, or a state) to go on reading it.
"""

import argparse
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.seeds import Place, latest, main, prepared, spread
from handscroll.data.sources import TokenSource
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import Sample, read_windows
from handscroll.lm import LM
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig
from handscroll.train.recipe import Recipe

BOOKS = (
    "dumas_the_count_of_monte_cristo",
    "austen_emma",
    "austen_pride_and_prejudice",
    "bronte_jane_eyre",
    "cooper_the_last_of_the_mohicans",
    "stoker_dracula",
)
CHOOSE, PROVE = ("montgomery_anne_of_green_gables",), ("shelley_frankenstein", "stevenson_treasure_island")
TOKENIZER = TokenizerConfig(vocab=2048)
CONTEXTS = (64, 512)
WINDOWS = 48
# About 1.6 M numbers each; tied heads.
SIZES: dict[str, dict[str, Any]] = {
    "lstm": {"width": 256, "layers": 2},
    "gpt2": {"width": 160, "layers": 4, "heads": 5, "mlp_width": 640},
    "llama": {"width": 160, "layers": 4, "heads": 5, "kv_heads": 5, "head_size": 32, "mlp_width": 432, "tied": True},
}
RATES = (2e-3, 6e-3)
CPU, GPU = (0.4e6, 2048), (8e6, 16384)  # tokens of a run, tokens of an update


def files(data: str) -> list[str]:
    return [f"{data}/text_en/books_train/{book}.txt" for book in BOOKS]


def made(options: argparse.Namespace) -> tuple[Tokenizer, TokenSource]:
    return prepared(Path(options.work) / "recurrent", files(options.data), TOKENIZER)


def recipe(options: argparse.Namespace, family: str, seed: int, place: Place, context: int, rate: float) -> Recipe:
    tokens, update = GPU if place.cuda else CPU
    steps = place.steps(tokens, update)
    values = {
        "seed": seed,
        "threads": 1,
        "text": {"files": files(options.data)},
        "model": {
            "family": family,
            "initialise": "xavier",
            "sizes": SIZES[family] | ({} if family == "lstm" else {"context": context}),
        },
        "data": {"text": {"kind": "text", "sampling": "cyclic"}},
        "stages": [{"length": context, "rows": update // context, "steps": steps, "mix": {"text": 1.0}}],
        "optimizer": {"name": "adamw", "lr": rate, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "warmup": max(1, steps // 20), "final": 0.05},
        "loop": {"save_every": max(1, steps // 10)},
        "memory": {"strategy": "plain"},
    }
    return Recipe.parse(values, "bench")


def windows(options: argparse.Namespace, tokenizer: Tokenizer, books: tuple[str, ...], context: int) -> list[Sample]:
    paths = [f"{options.data}/text_en/books_valid/{book}.txt" for book in books]
    return read_windows(paths, tokenizer, context, WINDOWS * (CONTEXTS[-1] // context), seed=0)


def work(options: argparse.Namespace, part: str, seed: int, place: Place) -> None:
    tokenizer, text = made(options)
    for context in CONTEXTS:
        for rate in RATES:
            settings = recipe(options, part, seed, place, context, rate)
            tokens = settings.steps * settings.stages[0].rows * context
            this = {"family": part, "context": context, "seed": seed, "rate": rate, "tokens": tokens}
            if place.known(this):
                continue
            with place.fit(settings, tokenizer, text, f"{part}-{context}-{rate}") as model:
                lm = LM(model, tokenizer, part)
                chosen = measure(lm, windows(options, tokenizer, CHOOSE, context), part)
                proof = windows(options, tokenizer, PROVE, context)
                losses = measure(lm, proof, part)
                characters = sum(len(tokenizer.decode(sample.ids[1:])) for sample in proof)
                config = model.config
                kept = config.spec.cache_bytes(context, 4)
                place.say(
                    this
                    | {
                        "parameters": sum(parameter.numel() for parameter in model.parameters()),
                        "kept": kept,
                        "chosen": chosen.mean(),
                        "loss": losses.mean(),
                        "bits": losses.mean() * losses.values.numel() / characters / math.log(2),
                        "blocks": {str(last): losses.mean(first, last) for first, last in blocks(context)},
                    }
                )


def blocks(context: int) -> list[tuple[int, int]]:
    """Positions first .. last - 1."""
    edges = [edge for edge in (1, 16, 64, 128, 256, 512) if edge < context]
    return list(zip(edges, [*edges[1:], context], strict=True))


def table(results: Iterable[dict[str, Any]]) -> None:
    """A table for each context and number of tokens: mean and deviation over seeds at the rate that CHOOSE chose."""
    found = latest((one for one in results if "family" in one), ("family", "context", "tokens", "rate", "seed"))
    for context, tokens in sorted({(one["context"], one["tokens"]) for one in found}):
        ends = [str(last) for _, last in blocks(context)]
        columns = [f"{first}-{last - 1}" for first, last in blocks(context)]
        print(f"\ncontext {context}, {tokens / 1e6:.1f} M tokens: nats a token at positions\n")
        print(
            "| family | seeds | parameters | bytes kept | rate | " + " | ".join(columns) + " | all | bits a character |"
        )
        print("|---|---|---|---|---|" + "---|" * (len(columns) + 2))
        for family in SIZES:
            of = [one for one in found if (one["family"], one["context"], one["tokens"]) == (family, context, tokens)]
            rates = {rate: [one for one in of if one["rate"] == rate] for rate in RATES}
            rates = {rate: ones for rate, ones in rates.items() if ones}
            if not rates:
                continue
            rate = min(rates, key=lambda rate: statistics.mean(one["chosen"] for one in rates[rate]))
            ones = rates[rate]
            numbers = [spread([one["blocks"][end] for one in ones]) for end in ends]
            numbers += [spread([one[name] for one in ones]) for name in ("loss", "bits")]
            first = f"{len(ones)} | {ones[0]['parameters']:,} | {ones[0]['kept']:,} | {rate:g}"
            print(f"| {family} | {first} | " + " | ".join(numbers) + " |")


if __name__ == "__main__":
    main(__doc__, tuple(SIZES), made, work, table)
