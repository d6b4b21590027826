"""Small tokenizers with the special tokens of a family."""

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

from tests.text.small import LINES, trained


def built(specials: str, kind: str = "byte-level") -> str:
    """A `tokenizer.json` with these special tokens; `kind` may be SentencePiece's way with blanks."""
    if kind == "byte-level":
        made = tokenizers.Tokenizer.from_str(trained("bpe").source)
    else:
        other = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]]
        )
        other.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        other.train_from_iterator([*LINES * 9, " Hi <|im_end|> [INST] </s>"], trainer)
        made = tokenizers.Tokenizer(other.model)
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        if kind == "prepend":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials.split()])
    return made.to_str()


def settings_of(specials: str) -> dict:
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    return {key: token for key, token in named.items() if token in specials.split()} | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
