"""Train a tokenizer on raw text: byte-level BPE, WordPiece or Unigram, each with an exact round trip."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import tokenizers
from pydantic import Field
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, DataError
from handscroll.text.pretokenizers import byte_level, pieces, words
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.unigram import train_unigram
from handscroll.text.wordpiece import framed

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_PIECE = 200_000  # characters handed to the library at a time; bounds its memory
# WordPiece looks for the longest entry by trying every length: quadratic in a word. Words are cut after so many
# characters (97 bytes at most), which keeps encoding linear on scripts without spaces and on runs of one sign.
_WORDPIECE_WORD = 24


class TokenizerConfig(Config):
    """What to train.

    `vocab` is the final size, special tokens included. `min_frequency` (bpe, wordpiece; 2 unless set) is how often a
    pair must occur to be merged. Special tokens take the last ids and never match inside text; with [CLS] and [SEP]
    among them every text is put between the two, as BERT has it. `sentinels` adds so many for span corruption after
    them, <extra_id_0> with the last id, and every text ends with the end token, as T5 has them.
    """

    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    vocab: Annotated[int, Field(gt=0)] = 4096
    pretokenizer: Literal["qwen2", "gpt2", "llama3"] = "qwen2"
    min_frequency: Annotated[int, Field(ge=1)] | None = None
    special: tuple[str, ...] = ("<|endoftext|>",)
    sentinels: Annotated[int, Field(ge=0)] = 0

    @property
    def added(self) -> tuple[str, ...]:
        """All special tokens, in the order of their ids."""
        return (*self.special, *(f"<extra_id_{number}>" for number in reversed(range(self.sentinels))))


def train_tokenizer(documents: Iterable[str], settings: TokenizerConfig) -> Tokenizer:
    """Train on `documents`; the same text and settings give the same `tokenizer.json`.

    All three kinds split text with a published pattern, write it in the 256-letter byte alphabet of GPT-2, learn
    pieces of that, and always hold all 256 letters. So `decode(encode(x)) == x` for every valid text and nothing is
    ever unknown:

    - `bpe`: byte-level BPE as in GPT-2, Llama 3 and Qwen 2 (no normaliser), exportable to GGUF.
    - `wordpiece`: greedy longest match. No `##`: a word's start already shows in its leading space, and a
      continuation mark would have to be told apart from `##` in the text. Pieces are learned by pair frequency, as
      the `tokenizers` library does, not by BERT's likelihood.
    - `unigram`: the most probable segmentation, trained by expectation maximisation (`unigram.py`; the library's own
      trainer gives another result on every run). No space marker and no NFKC, which are what makes SentencePiece lossy.

    Raises:
        ConfigError: `vocab` cannot hold the alphabet and the special tokens, or a special token is empty, double or
            an ordinary piece.
        DataError: no text, or too little text for `vocab`.
    """
    _check(settings)
    texts = (part for document in documents for part in pieces(document, _PIECE))
    target = settings.vocab - len(settings.added)
    built = _train_unigram(texts, settings, target) if settings.kind == "unigram" else _train(texts, settings, target)
    found = built.get_vocab_size()
    if found < target:
        raise DataError(
            f"the text yields only {found + len(settings.added)} tokens, not {settings.vocab}; "
            f"give more text, ask for vocab <= {found + len(settings.added)}"
            + ("" if settings.kind == "unigram" else " or a smaller min_frequency")
        )
    ordinary = [token for token in settings.added if built.token_to_id(token) is not None]
    if ordinary:
        raise ConfigError(
            f"special token {ordinary[0]!r} is an ordinary piece of this text; choose one like '<|name|>'"
        )
    built.add_special_tokens(list(settings.added))
    if {"[CLS]", "[SEP]"} <= set(settings.special):
        framed(built, "[CLS]", "[SEP]")
    elif settings.sentinels:
        _ended(built)
    provenance = {"kind": settings.kind, "pretokenizer": settings.pretokenizer}
    return Tokenizer(
        built.to_str(pretty=True),
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,  # transformers would drop the space before a full stop
            "handscroll": provenance,
        },
    )


def _ended(built: tokenizers.Tokenizer) -> None:
    """Let `encode` put the end token, where there is one, behind each text: so span corruption trains a source."""
    end = Tokenizer(built.to_str()).eos
    if end is not None:
        name = built.id_to_token(end)
        built.post_processor = processors.TemplateProcessing(
            single=f"$A {name}", pair=f"$A {name} $B:1 {name}:1", special_tokens=[(name, end)]
        )


def _check(settings: TokenizerConfig) -> None:
    special = settings.added
    if "" in special or len(set(special)) < len(special):
        raise ConfigError(f"special tokens {list(special)}: an empty or double name; name each token once")
    least = len(ALPHABET) + len(special)
    if settings.vocab < least:
        raise ConfigError(
            f"vocab = {settings.vocab} cannot hold the {len(ALPHABET)} bytes and {len(special)} special tokens; "
            f"ask for at least {least}"
        )
    if settings.kind == "unigram" and settings.min_frequency is not None:
        raise ConfigError(
            "min_frequency has no meaning for kind = 'unigram'; leave it out or take 'bpe' or 'wordpiece'"
        )


def _train(texts: Iterable[str], settings: TokenizerConfig, target: int) -> tokenizers.Tokenizer:
    common: dict[str, Any] = {
        "vocab_size": target,
        "min_frequency": settings.min_frequency or 2,
        "initial_alphabet": ALPHABET,
        "show_progress": False,
    }
    if settings.kind == "bpe":
        built, trainer = tokenizers.Tokenizer(models.BPE()), trainers.BpeTrainer(**common)
        longest = None
    else:
        longest = _WORDPIECE_WORD
        built = tokenizers.Tokenizer(models.WordPiece(max_input_chars_per_word=5 * longest))
        trainer = trainers.WordPieceTrainer(**common, continuing_subword_prefix="")
    built.pre_tokenizer = byte_level(settings.pretokenizer, longest)
    built.decoder = decoders.ByteLevel()
    built.train_from_iterator(_counted(texts), trainer)
    return built


def _train_unigram(texts: Iterable[str], settings: TokenizerConfig, target: int) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for text in _counted(texts):
        counts.update(words(settings.pretokenizer, text))
    letters = _byte_letters()
    vocabulary = [("".join(letters[b] for b in piece), score) for piece, score in train_unigram(counts, target)]
    built = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=None, byte_fallback=False))
    built.pre_tokenizer = byte_level(settings.pretokenizer)
    built.decoder = decoders.ByteLevel()
    return built


def _counted(texts: Iterable[str]) -> Iterator[str]:
    """Pass texts on; no text at all is an error."""
    empty = True
    for text in texts:
        empty = empty and not text
        yield text
    if empty:
        raise DataError("no text to train on; give at least one document")


def _byte_letters() -> list[str]:
    """Letter of each byte in GPT-2's alphabet: visible Latin-1 characters stand for themselves, the rest move up."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(moved)) for byte in range(256)]
