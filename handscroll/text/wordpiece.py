"""BERT's own tokenizer from its `vocab.txt`: words and Chinese characters apart, then greedy longest match."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from handscroll.base.errors import CheckpointError
from handscroll.text.shape import flag

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece_json(words: str, settings: Mapping[str, Any], where: str) -> str:
    """The `tokenizer.json` of a `vocab.txt` (a token a line, `##` before those that continue a word).

    `settings` (tokenizer_config.json) may say `do_lower_case` (true unless it does), `strip_accents` and
    `tokenize_chinese_chars`, as they did for the release of BERT.

    Raises:
        CheckpointError: no [UNK], [CLS] or [SEP] among the tokens, or a token stands there twice.
    """
    names = words.replace("\r\n", "\n").removesuffix("\n").split("\n")  # other line separators are tokens
    vocabulary = {word: number for number, word in enumerate(names)}
    missing = [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in vocabulary]
    if missing or len(vocabulary) < len(names):
        what = f"no {missing[0]}" if missing else f"{len(names) - len(vocabulary)} tokens twice"
        raise CheckpointError(f"{where} is no BERT vocabulary: it has {what}; copy it again")
    built = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    built.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=bool(flag(settings, "tokenize_chinese_chars", True)),
        strip_accents=flag(settings, "strip_accents", None),
        lowercase=bool(flag(settings, "do_lower_case", True)),
    )
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece(prefix="##")
    framed(built, "[CLS]", "[SEP]")
    built.add_special_tokens([name for name in SPECIAL if name in vocabulary])
    return built.to_str()


def framed(built: tokenizers.Tokenizer, before: str, after: str) -> None:
    """Let `encode` put `before` before a text, `after` behind it, and behind a second text, which is of type 1."""
    ids = [(name, built.token_to_id(name)) for name in (before, after)]
    built.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}", pair=f"{before} $A {after} $B:1 {after}:1", special_tokens=ids
    )
