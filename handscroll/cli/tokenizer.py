"""`handscroll tokenizer`: train a tokenizer on raw text."""

from pathlib import Path
from typing import Annotated

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.options import FILES, Encoding, Key, SkipPictures, reader
from handscroll.cli.records import folder_to_write
from handscroll.text.training import TokenizerConfig, train_tokenizer


def tokenizer(
    files: Annotated[list[str], typer.Argument(help=FILES)],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for tokenizer.json and tokenizer_config.json; must hold neither.", callback=folder_to_write
        ),
    ],
    kind: Annotated[str, typer.Option(help="bpe, wordpiece or unigram; all are byte level and lossless.")] = "bpe",
    vocab: Annotated[int, typer.Option(help="Number of tokens, special ones included.")] = 4096,
    pretokenizer: Annotated[str, typer.Option(help="Rule that splits words: qwen2, gpt2 or llama3.")] = "qwen2",
    special: Annotated[list[str] | None, typer.Option(help="A special token; repeatable. [<|endoftext|>]")] = None,
    sentinels: Annotated[int, typer.Option(help="Number of sentinels <extra_id_N> for span corruption.")] = 0,
    min_frequency: Annotated[
        int | None, typer.Option(help="Fewest occurrences of a pair (bpe, wordpiece). [2]")
    ] = None,
    key: Key = "",
    encoding: Encoding = "",
    skip_pictures: SkipPictures = False,
) -> None:
    """Train a tokenizer on raw text and write it as a Hugging Face tokenizer folder."""
    settings = TokenizerConfig.parse(
        {"kind": kind, "vocab": vocab, "pretokenizer": pretokenizer, "min_frequency": min_frequency}
        | {"sentinels": sentinels}
        | ({"special": tuple(special)} if special else {}),
        "handscroll tokenizer",
    )
    taken = [name for name in ("tokenizer.json", "tokenizer_config.json") if (out / name).exists()]
    if taken:
        raise ConfigError(f"--out {out} already holds {' and '.join(taken)}; choose another folder")
    texts = [document.text for document in reader(key, encoding, skip_pictures).read(files)]
    trained = train_tokenizer(texts, settings)
    size = sum(len(text.encode("utf-8")) for text in texts)
    count = 0
    for text in texts:
        ids = trained.encode(text)
        count += len(ids)
        assert trained.decode(ids) == text, "the round trip is exact by construction"
    trained.save(out)
    typer.echo(f"{kind} tokenizer with {trained.vocab_size} tokens from {len(texts)} documents ({size:,} bytes)")
    typer.echo(f"{count:,} tokens, {size / count:.2f} bytes per token on that text; every document decodes exactly")
    typer.echo(f"written: {out / 'tokenizer.json'}, {out / 'tokenizer_config.json'}")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("tokenizer")(tokenizer)
