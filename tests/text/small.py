"""Small tokenizers, trained here."""

from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer

LINES = ["the quick brown fox jumps over the lazy dog, 12 times; don't stop\n", "北京大学的学生在图书馆里看书。\n"]


def trained(kind: str, pretokenizer: str = "qwen2") -> Tokenizer:
    values = {
        "kind": kind,
        "vocab": 300 if kind == "bpe" else 270,
        "pretokenizer": pretokenizer,
        "special": ("<|endoftext|>",),
    }
    return train_tokenizer(LINES * 40, TokenizerConfig.parse(values, "test"))
