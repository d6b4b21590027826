"""Tokenizers out of GGUF files and into them; expected ids are llama.cpp's and those of the tokenizers themselves."""

import json
import os
import shutil

import pytest

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.gguf import read_gguf
from handscroll.extend.story import STARTER
from handscroll.lm import load
from handscroll.text.gguf import SPLITS, json_of, tokenizer_of
from handscroll.text.gguf_out import metadata_of
from handscroll.text.tokenizer import Tokenizer
from tests.conftest import shared
from tests.text.small import trained

HARD = [
    "Hello,  world! don't DON'T we'Ve 3.14159 1,000,000 ２０２６",
    "中文，。、；：？！「测试」１２３ 北京大学 𠀀𪜀㐀",
    "👩‍👩‍👧‍👦 👍🏽 🫠 naïve café é ß ﬁ ½ ²",
    "  def f(x):\r\n\treturn x ** 2  # comment\n\n\n\t\tx",
    "a" * 60 + " " * 20 + "\n" * 12 + "!" * 9 + "0" * 11,
    "<|endoftext|><s></s> ▁▁x▁",
    " ",
    "\t",
]


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge"])
def test_published_vocabularies_give_the_ids_that_stand_beside_them(name):
    """One file a kind, with ids that llama.cpp's own tests expect: 47 texts each, English, Chinese, emoji, blanks."""
    file = shared(f"tokenizers/ggml-vocab-{name}.gguf")
    tokenizer = Tokenizer.load(file)
    texts = file.with_name(file.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    wanted = file.with_name(file.name + ".out").read_text(encoding="utf-8").split("\n")
    assert len(texts) == 47
    for text, ids in zip(texts, wanted, strict=False):
        assert tokenizer.encode(text, special=False) == [int(number) for number in ids.split()], text


def test_bert_keeps_to_the_tokenizer_of_its_release():
    """Also where llama.cpp differs from it: words of more than 100 letters, Hangul, combining marks."""
    file = shared("tokenizers/ggml-vocab-bert-bge.gguf")
    tokenizer = Tokenizer.load(file)
    assert tokenizer.encode("x" * 101, special=False) == [tokenizer.unk]
    assert tokenizer.encode("Café") == [tokenizer.cls, *tokenizer.encode("cafe", special=False), tokenizer.sep]


def there_and_back(tokenizer: Tokenizer) -> Tokenizer:
    metadata = metadata_of(tokenizer, tokenizer.vocab_size + 3, () if tokenizer.eos is None else (tokenizer.eos,))
    assert len(metadata["tokenizer.ggml.tokens"]) == tokenizer.vocab_size + 3
    return Tokenizer(*tokenizer_of(metadata, "test"))


@pytest.mark.parametrize("pretokenizer", ["qwen2", "gpt2", "llama3"])
def test_a_trained_tokenizer_comes_back(pretokenizer):
    tokenizer = trained("bpe", pretokenizer)
    tokenizer.settings["chat_template"] = "{{ messages }}"
    again = there_and_back(tokenizer)
    for text in HARD:
        for parse in (False, True):
            assert again.encode(text, parse=parse) == tokenizer.encode(text, parse=parse), text
    assert again.settings["chat_template"] == "{{ messages }}"
    assert (again.bos, again.eos, again.frame()) == (tokenizer.bos, tokenizer.eos, tokenizer.frame())
    assert again.decode(again.encode(HARD[0])) == HARD[0]


@pytest.mark.parametrize("name", ["gpt2", "roberta", "t5", "wordpiece", "llama-spm"])
def test_published_tokenizers_come_back(name, tmp_path):
    if name == "gpt2":
        for file in ("gpt2_vocab.json", "gpt2_merges.txt"):
            shutil.copy(shared(f"tokenizers/{file}"), tmp_path / file.removeprefix("gpt2_"))
        tokenizer = Tokenizer.load(tmp_path)
    elif name == "wordpiece":
        shutil.copy(shared("tokenizers/chinese_wordpiece_vocab.txt"), tmp_path / "vocab.txt")
        tokenizer = Tokenizer.load(tmp_path)
    elif name == "llama-spm":
        tokenizer = Tokenizer.load(shared("tokenizers/ggml-vocab-llama-spm.gguf"))
    else:
        tokenizer = Tokenizer.load(
            shared(f"tokenizers/{name}_{'base' if name == 'roberta' else 'small'}_tokenizer.json")
        )
    again = there_and_back(tokenizer)
    for text in HARD:
        assert again.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize(("kind", "said"), [("wordpiece", "WordPiece"), ("unigram", "no such tokenizer")])
def test_tokenizers_that_llama_cpp_does_not_know_are_refused(kind, said):
    with pytest.raises(ConfigError, match=said):
        there_and_back(trained(kind))


def test_what_is_not_known_is_refused_with_what_is():
    plain = metadata_of(trained("bpe"), 300, ())
    for change, said in (
        ({"tokenizer.ggml.pre": "gpt-3"}, "gpt-2"),
        ({"tokenizer.ggml.model": "rwkv"}, "llama"),
        ({"tokenizer.ggml.reverse": True}, "tokenizer.ggml.reverse"),
    ):
        with pytest.raises(ConfigError, match=said):
            tokenizer_of(plain | change, "test")
    with pytest.raises(CheckpointError, match="merges"):
        tokenizer_of({key: value for key, value in plain.items() if not key.endswith("merges")}, "test")


def test_sentencepiece_joins_the_pair_of_the_best_score():
    """Not the first pair: `b c` scores better than `a b`, so `abc` is `a bc`. A letter that is no token is bytes."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{number:02X}>" for number in range(256)],
        "▁",
        "a",
        "b",
        "c",
        "ab",
        "bc",
        "▁a",
    ]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 7,
    }
    tokenizer = Tokenizer(*tokenizer_of(metadata, "test"))
    assert [tokens[number] for number in tokenizer.encode("abc")] == ["<s>", "▁a", "bc"]
    assert [tokens[number] for number in tokenizer.encode("é", special=False)] == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é")) == "abc é"
    bare = Tokenizer(*tokenizer_of(metadata | {"tokenizer.ggml.add_space_prefix": False}, "test"))
    assert [tokens[number] for number in bare.encode("abc", special=False)] == ["a", "bc"]


def test_every_split_of_words_is_a_pattern_that_the_library_takes():
    plain = metadata_of(trained("bpe"), 300, ())
    for name in SPLITS:
        tokenizer = Tokenizer(*tokenizer_of(plain | {"tokenizer.ggml.pre": name}, "test"))
        for text in HARD:
            assert tokenizer.decode(tokenizer.encode(text, special=False)) == text or "bloom" in name


def test_the_json_holds_what_the_file_says():
    spec = json.loads(json_of(metadata_of(trained("bpe"), 300, ()), "test"))
    assert [token["content"] for token in spec["added_tokens"]] == ["<|endoftext|>"]


def test_the_json_of_a_file_is_made_again_from_the_same_file_only(tmp_path):
    """A tokenizer keeps no JSON text of its file, which is large; what it gives for it is that of the file it read."""
    path = load(STARTER).export_gguf(tmp_path / "starter.gguf", "q4_0")
    tokenizer = Tokenizer.load(path)
    assert tokenizer.source == json_of(read_gguf(path).metadata, "test")
    assert Tokenizer(tokenizer.source, tokenizer.settings).fingerprint == tokenizer.fingerprint
    os.utime(path, (0, 0))
    with pytest.raises(CheckpointError, match="changed"):
        tokenizer.save(tmp_path / "saved")


def test_headers_of_published_vocabularies_are_read_as_the_gguf_library_reads_them():
    import gguf

    file = shared("tokenizers/ggml-vocab-gpt-2.gguf")
    ours, theirs = read_gguf(file).metadata, gguf.GGUFReader(file).fields
    assert {f"{key}" for key in ours} == {key for key in theirs if not key.startswith("GGUF.")}
    for key, value in ours.items():
        assert theirs[key].contents() == value
