"""SentencePiece models become tokenizers with the ids of SentencePiece itself."""

import io
import json
import random
import sys
import warnings
from pathlib import Path

import pytest

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.text.tokenizer import Tokenizer
from tests.naming import naming
from tests.text.small import LINES

HARD = """\
Hello  world|  a|a  |a   b|\n|\n\nx\n|\thello\t|ﬁne ①②③ ＡＢＣ|é è ê|\
你好，世界。|👍🏽 fam 👨‍👩‍👧|<s>hi</s>|<unk>|<0x0A>|▁made▁| ▁ |a▁b|İ ŉ ǆ|\
アカサ ｶﾞ|xxxxxxxxxxxxxxxxxxxxxxx|1234567890|\u00a0nbsp\u3000wide|a\r\nb|\u200bzero\u200d|한국어|\
العربية ﷺ|mid<sym>tail|the <sym> fox|ﬀ ﬃ|Ω ℵ ½|\
...!!!???|aaaa aaaaa aaaaaa| |""".split("|")
LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
FORMS = {
    "llama": ("bpe", LLAMA | {"allow_whitespace_only_pieces": True, "split_digits": True}),
    "gemma": ("bpe", LLAMA | {"add_dummy_prefix": False}),
    "gemma with tokens of the user": ("bpe", LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["<sym>"]}),
    "bpe, nfkc": ("bpe", {}),
    "bpe, lower case": ("bpe", {"normalization_rule_name": "nmt_nfkc_cf", "add_dummy_prefix": False}),
    "t5": ("unigram", {}),
    "unigram with bytes": ("unigram", {"byte_fallback": True, "normalization_rule_name": "identity"}),
    "unigram, all blanks": ("unigram", {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}),
    "unigram with tokens of the user": ("unigram", {"user_defined_symbols": ["<sym>"]}),
    "pieces across words": ("unigram", {"split_by_whitespace": False}),
}


def made(folder: Path, kind: str, file: str = "tokenizer.model", **settings):
    """A small SentencePiece model in a folder, and its own reader."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written, size = io.BytesIO(), 360 if settings.get("byte_fallback") else 110
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.strip() for line in LINES * 40]),
        model_writer=written,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    (folder / file).write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_those_of_sentencepiece(form, tmp_path):
    kind, settings = FORMS[form]
    theirs = made(tmp_path, kind, **settings)
    ours = Tokenizer.load(tmp_path)
    draw = random.Random(0)
    texts = HARD + ["".join(draw.choices(HARD, k=3)) for _ in range(60)]
    texts += ["".join(draw.choices("abe  \n▁.你é<> thequickdogs", k=16)) for _ in range(100)]
    for text in [*texts, *LINES]:
        ids = theirs.encode(text)
        assert ours.encode(text, special=False) == ids, text
        assert ours.encode(text) == [theirs.bos_id(), *ids], text
        if theirs.unk_id() not in ids and "▁" not in text:  # which SentencePiece strips as it does blanks
            assert ours.decode(ids) == theirs.decode(ids), text


def test_the_folder_that_is_written_reads_the_same_here_and_in_the_reference_library(tmp_path):
    transformers = pytest.importorskip("transformers")
    made(tmp_path, "bpe", **FORMS["llama"][1])
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path / "out")
    again = Tokenizer.load(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (again.bos, again.eos, again.unk) == (1, 2, 0)
    for text in LINES:
        assert again.encode(text) == tokenizer.encode(text) == reference(text)["input_ids"]


def test_settings_say_what_stands_around_a_text(tmp_path):
    theirs = made(tmp_path, "bpe", **FORMS["llama"][1])
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer.load(tmp_path).encode("the dog") == [*theirs.encode("the dog"), 2]


def test_t5_has_its_hundred_marks_behind_the_pieces_and_ends_a_text(tmp_path):
    theirs = made(tmp_path, "unigram", "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    tokenizer, size = Tokenizer.load(tmp_path), theirs.get_piece_size()
    assert tokenizer.vocab_size == size + 100 and (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, None)
    assert tokenizer.encode("the dog") == [*theirs.encode("the dog"), 1]
    assert tokenizer.encode("<extra_id_0>", special=False, parse=True) == [size + 99]
    assert not {0, 1, size + 99} & set(tokenizer.encode("a <extra_id_0> </s><pad>", special=False))


def test_xlm_roberta_counts_from_four_tokens_of_its_own(tmp_path):
    theirs = made(tmp_path, "unigram", "sentencepiece.bpe.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    tokenizer = Tokenizer.load(tmp_path)
    ids = theirs.encode("the quick dog")
    assert tokenizer.encode("the quick dog") == [0, *(number + 1 for number in ids), 2]
    assert (tokenizer.pad, tokenizer.unk, tokenizer.mask) == (1, 3, theirs.get_piece_size() + 1)


def test_what_cannot_be_read_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xff not a model")
    with pytest.raises(CheckpointError, match=naming("tokenizer.model", "tokenizer.json")):
        Tokenizer.load(tmp_path)
    made(tmp_path, "bpe")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLNetTokenizer"}')
    with pytest.raises(ConfigError, match=naming("xlnet", "tokenizer.json")):
        Tokenizer.load(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match="handscroll\\[sentencepiece\\]"):
        Tokenizer.load(tmp_path)
